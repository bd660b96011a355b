"""The client's own steps; what the wire does to it is in test_faults."""

from __future__ import annotations

import asyncio
import copy
import inspect
import os
import pickle
import pydoc
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from itertools import pairwise
from typing import Any, Self, cast

import anyio
import attrs
import pytest

from piapi_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ChatParams,
    ChatRequest,
    Client,
    ConfigurationError,
    Exchange,
    Health,
    InvalidRequestError,
    Limits,
    Message,
    Provider,
    RateLimitError,
    Retry,
    Timeout,
)
from piapi_async.catalog import ModelInfo
from piapi_async.errors import InternalServerError, NotFoundError, PermissionDeniedError
from piapi_async.gate import BURST
from piapi_async.policy import Deadline
from piapi_async.pool import SessionPool
from piapi_async.provider import Endpoint
from piapi_async.testing import (
    LocalServer,
    RawServer,
    ReadRequest,
    Repeat,
    Send,
    Stall,
    Status,
    Step,
    Wait,
    http_response,
)
from piapi_async.testing.raw import Connection
from piapi_async.wire import Body
from tests.leaks import KEY, PROMPT, assert_tight
from tests.wires import DONE, WHOLE, ask, ok, read, sse, sse_cut

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(faults=[]) as server:
        yield server


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[Client]:
    async with Client(server.api_key, base_url=server.base_url, model="gpt-4o-mini") as client:
        yield client


# -- asked what it would cost ------------------------------------------------------------------------------------------


def test_a_quote() -> None:
    client = Client(KEY, model="gpt-4o")
    quote = client.quote("four words of it", max_tokens=100)
    assert (quote.model, quote.tokens) == ("gpt-4o", 6)
    assert quote.least == 6 * Decimal("0.000001875")
    assert quote.most is not None
    assert quote.most >= quote.least + 100 * Decimal("0.0000075")
    assert client.quote(ChatRequest("Hello!", "mine", stream=True)).least is None


def test_a_quote_for_what_would_be_refused() -> None:
    with pytest.raises(InvalidRequestError, match="temperature") as caught:
        Client(KEY, model="gpt-4o").quote(PROMPT, temperature=3)
    assert_tight(caught.value)


# -- made --------------------------------------------------------------------------------------------------------------


def test_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIAPI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="PIAPI_API_KEY"):
        Client()


async def test_key_and_url_from_the_environment(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIAPI_API_KEY", server.api_key)
    monkeypatch.setenv("PIAPI_BASE_URL", server.base_url)
    async with Client(model="gpt-4o") as client:
        assert (await client.complete("Hello!")).text
    monkeypatch.setenv("PIAPI_BASE_URL", "http://evil.example")
    with pytest.raises(ConfigurationError, match="allow_http"):
        Client()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"api_key": "a\r\nX: 1"}, "api_key"),
        ({"base_url": "https://"}, "host"),
        ({"base_url": "http://api.example.com"}, "allow_http"),
        ({"plan": "gold"}, "plan"),
        ({"headers": {"Authorization": "x"}}, "Authorization"),
        ({"budget": "much"}, "budget"),
        ({"proxy": "nonsense"}, "proxy"),
        ({"proxy": "127.0.0.1:3128"}, "proxy"),
        ({"proxy": "http://[x"}, "proxy"),
        ({"proxy": 5}, "proxy"),
        ({"timeout": 30}, r"timeout: .* pass Timeout\("),
        ({"timeout": None}, r"timeout: .* pass Timeout\("),
        ({"retry": 3}, r"retry: .* pass Retry\("),
        ({"limits": 10}, r"limits: .* pass Limits\("),
        ({"health": None}, r"health: .* pass Health\("),
        ({"backups": Provider("backup", "https://backup.example.com", "sk-b")}, r"backups: .* pass a list: \[Provider"),
        ({"backups": None}, "backups: .* pass a list"),
        ({"backups": ["https://backup.example.com"]}, "backups: .* pass a list"),
        ({"backups": "backup"}, "backups: .* pass a list"),
        ({"model": 5}, "model: .* pass a name"),
        ({"budget": 5.0}, "budget: .* whole number, Decimal or str"),
        ({"budget": True}, "budget: .* whole number, Decimal or str"),
        ({"budget": 0}, "budget: .* above 0"),
        ({"budget": "NaN"}, "budget: .* above 0"),
        ({"tokenizer": "cl100k"}, "tokenizer: .* pass a function"),
        ({"prices": [1]}, "prices: .* pass {"),
        ({"prices": {"gpt-4o": "0.01"}}, "prices: .* pass {"),
        ({"prices": ()}, "prices: .* pass {"),
        ({"system_role": "user"}, "system_role: .* 'fold'"),
        ({"stream_usage": "no"}, "stream_usage: .* pass True or False"),
        ({"require_finish_reason": 1}, "require_finish_reason: .* pass True or False"),
        ({"ssl": False}, r"ssl: .* pass an ssl\.SSLContext"),
        ({"insecure": "false"}, "insecure: .* pass True or False"),
        ({"trust_env": "no"}, "trust_env: .* pass True or False"),
        ({"allow_http": "no"}, "allow_http: .* pass True or False"),
        ({"seed": 0.5}, "seed: .* pass a whole number"),
        ({"seed": "x"}, "seed: .* pass a whole number"),
        ({"headers": ()}, "headers: .* pass {"),
        ({"headers": {"Expect": "100-continue"}}, "headers: Expect .* leave it out"),
        ({"headers": {"connection": "close"}}, "headers: connection .* leave it out"),
    ],
)
def test_bad_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        Client(**{"api_key": KEY, **options})
    assert_tight(caught.value)


@pytest.mark.parametrize("budget", [5, "5", "5.00", Decimal(5)])
def test_a_budget(budget: Any) -> None:
    assert Client(KEY, budget=budget).ledger.budget == 5


def test_integers_of_numpy_are_integers() -> None:
    numpy = pytest.importorskip("numpy")
    five = numpy.int64(5)
    limits = Limits(five, requests_per_minute=numpy.float32(60), tokens_per_minute=five)
    retry = Retry(five, base=five)
    client = Client(KEY, limits=limits, retry=retry, budget=five, seed=five)
    assert (type(limits.concurrency), limits.concurrency) == (int, 5)
    assert (type(retry.attempts), retry.attempts) == (int, 5)
    assert client.ledger.budget == 5
    with pytest.raises(ConfigurationError, match="budget"):
        Client(KEY, budget=numpy.float64(5))
    for bad in (numpy.float64(5), numpy.int64(0), numpy.bool_(True)):
        with pytest.raises(ConfigurationError, match="concurrency"):
            Limits(bad)


def test_the_same_seed_jitters_alike_whatever_made_it() -> None:
    numpy = pytest.importorskip("numpy")

    async def wait(seed: Any) -> float:
        retry = Retry(attempts=2, base=0.1)
        transport = Refusing()
        async with Client(KEY, model="m", retry=retry, seed=seed, transport=transport) as client:
            with pytest.raises(APIConnectionError):
                await client.complete("x")
        first, second = transport.asked
        return second - first

    plain, of_numpy, other = (asyncio.run(wait(seed)) for seed in (7, numpy.int64(7), 2))
    assert plain == pytest.approx(of_numpy, abs=0.01)
    assert other != pytest.approx(plain, abs=0.01)


class Refusing:
    """A transport to nowhere.

    Attributes:
        asked: When each request came.
    """

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def __aenter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        pass

    async def send(
        self,
        endpoint: Endpoint,
        body: Body,
        headers: Mapping[str, str],
        deadline: Deadline,
        *,
        on_sent: Callable[[], None],
        fresh: bool = False,
    ) -> Exchange:
        self.asked.append(asyncio.get_running_loop().time())
        raise APIConnectionError("nobody is there")


def test_an_ssl_context_must_verify() -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ConfigurationError, match="insecure"):
        Client(KEY, ssl=context)
    Client(KEY, ssl=context, insecure=True)


def test_a_client_is_not_copied_and_shows_no_key() -> None:
    client = Client(KEY, headers={"X-Team": "blue"})
    for spread in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pickled or copied"):
            spread(client)
    assert KEY not in f"{client!r} {client} {vars(client)}"


# -- used where it belongs -------------------------------------------------------------------------------------------


async def test_before_and_after() -> None:
    client = Client(KEY)
    with pytest.raises(RuntimeError, match="not open"):
        await client.complete("x")
    async with client:
        assert "open=0 idle=0 in_flight=0" in repr(client)
        with pytest.raises(RuntimeError, match="open already"):
            await client.open()
        with pytest.raises(RuntimeError, match="open already"):
            async with client:
                pass
    for call in (client.stream, client.map):
        with pytest.raises(RuntimeError, match="closed"):
            call("x")
    await client.aclose()
    assert "closed" in repr(client)


async def test_open_and_aclose_are_what_the_block_does(server: LocalServer) -> None:
    client = await Client(server.api_key, base_url=server.base_url, model="gpt-4o").open()
    assert (await client.complete("x")).text
    assert "open=1" in repr(client)
    await client.aclose()
    await client.aclose()
    assert "closed" in repr(client)
    with pytest.raises(RuntimeError, match="closed"):
        await client.complete("x")


async def test_opened_again(server: LocalServer) -> None:
    client = Client(server.api_key, base_url=server.base_url, model="gpt-4o", budget="1")
    keys: list[str] = []
    for times in range(1, 4):
        async with client:
            assert (await client.complete("x")).text
            assert client.statistics().outcomes == {"ok": times}
        keys.append(server.requests[-1].headers["Idempotency-Key"])
    assert [(entry.provider, entry.calls) for entry in client.ledger.entries] == [("piapi", 3)]
    assert client.ledger.spent > 0
    assert len(set(keys)) == 3  # or a server might take one call for another


def test_opened_again_on_another_loop() -> None:
    server = RawServer([Repeat([ReadRequest(), Send(http_response(504, b"{}"))])])
    made: list[Client] = []

    async def fail(times: int) -> None:
        async with server:
            if not made:
                options: dict[str, Any] = {"retry": Retry(attempts=1), "health": Health(failure_threshold=2)}
                made.append(Client(KEY, base_url=server.base_url, model="gpt-4o", budget="1", **options))
            client = made[0]
            async with client:
                with pytest.raises(InternalServerError):
                    await client.complete("x")
                (key,) = client.statistics().keys
                assert key.breakers == {"gpt-4o": "open" if times == 2 else "closed"}
                assert client.statistics().outcomes == {"status": times}

    asyncio.run(fail(1))
    unknown = made[0].ledger.unknown
    assert unknown > 0
    asyncio.run(fail(2))
    assert made[0].ledger.unknown == 2 * unknown


async def test_an_open_that_fails_leaves_the_client_as_it_was(server: LocalServer) -> None:
    class Failing(SessionPool):
        fails = True

        async def __aenter__(self) -> Self:
            if self.fails:
                raise OSError("no sockets today")
            return await super().__aenter__()

    endpoints = Provider("piapi", server.base_url, server.api_key).endpoints()
    pool = Failing(endpoints)
    client = Client(server.api_key, base_url=server.base_url, model="gpt-4o", transport=pool)
    for _ in range(2):
        with pytest.raises(OSError, match="no sockets"):
            await client.open()
        with pytest.raises(RuntimeError, match="not open"):
            await client.complete("x")
    pool.fails = False
    async with client:
        assert "open=0" in repr(client)


async def test_another_loop(client: Client) -> None:
    def elsewhere() -> None:
        asyncio.run(client.complete("x"))

    for call in (elsewhere, partial(client.stream, "x")):  # in a loop of its own, and in none
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(call)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
async def test_a_fork(client: Client) -> None:
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            client.stream("x")
        except RuntimeError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.wait()  # noqa: ASYNC222  # the child ends at once
    assert b"forked" in os.read(reader, 200)
    os.close(reader)
    os.close(writer)


async def test_a_loop_of_a_forked_process(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(RuntimeError, match="forked"):
        await asyncio.to_thread(lambda: asyncio.run(client.complete("x")))


async def test_closed_with_calls_under_way(server: LocalServer) -> None:
    server.latency = 30
    client = Client(server.api_key, base_url=server.base_url, model="gpt-4o")
    async with client:
        waiting = asyncio.create_task(client.complete("x"))
        while not server.requests:
            await asyncio.sleep(0.001)
        await client.aclose()
        with pytest.raises(APIConnectionError) as caught:
            await waiting
    assert caught.value.kind == "closed"
    assert caught.value.maybe_billed


async def test_closed_with_calls_at_the_gate(server: LocalServer) -> None:
    server.latency = 30
    client = Client(server.api_key, base_url=server.base_url, model="gpt-4o", limits=Limits(concurrency=1), budget="1")
    async with client:
        first = asyncio.create_task(client.complete("x"))
        while not server.requests:
            await asyncio.sleep(0.001)
        waiting: list[asyncio.Task[Any]] = [asyncio.create_task(client.complete("x")) for _ in range(3)]

        async def stream() -> None:
            async with client.stream("x"):
                pass

        waiting.append(asyncio.create_task(stream()))
        while client.statistics().queued < 4:
            await asyncio.sleep(0.001)
        await client.aclose()
        for call in (first, *waiting):
            with pytest.raises(APIConnectionError) as caught:
                await call
            assert caught.value.kind == "closed"
            assert caught.value.maybe_billed == (call is first)  # what waited was never sent
            assert caught.value.provider == "piapi"
            assert_tight(caught.value)
    assert len(server.requests) == 1
    assert (client.statistics().in_flight, client.statistics().queued) == (0, 0)
    assert client.ledger.reserved == 0
    server.latency = 0
    async with client:  # and it can be used again
        assert (await client.complete("x")).text


async def test_closed_with_streams_under_way(server: LocalServer) -> None:
    server.tokens_per_second = 100
    client = Client(server.api_key, base_url=server.base_url, model="gpt-4o")
    async with client, client.stream("Tell me a story.") as stream:
        await anext(stream)
        await client.aclose()
        with pytest.raises(APIConnectionError) as caught:
            async for _ in stream:
                pass
    assert caught.value.kind == "closed"
    assert caught.value.partial


# -- asked -----------------------------------------------------------------------------------------------------------


async def test_complete(server: LocalServer, client: Client) -> None:
    completion = await client.complete("Why is the sky blue?", temperature=0.2, n=2)
    assert completion.text
    assert completion.finish_reason == "stop"
    assert len(completion.choices) == 2
    assert completion.usage is not None
    assert completion.cost == completion.usage.prompt_tokens * Decimal("0.1125e-6") + (
        completion.usage.completion_tokens * Decimal("0.45e-6")
    )
    assert not completion.cost_estimated
    assert completion.provider == "piapi"
    assert completion.request_id
    (attempt,) = completion.attempts
    assert (attempt.status, attempt.kind, attempt.usage) == (200, "ok", completion.usage)
    assert attempt.latency > 0
    assert attempt.key == "…-key"
    request = server.requests[0]
    assert request.body == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "temperature": 0.2,
        "n": 2,
    }
    assert request.headers["Authorization"] == f"Bearer {server.api_key}"
    assert request.headers["Accept-Encoding"] == "identity"
    assert request.headers["User-Agent"].startswith("piapi-async/")
    assert "Cookie" not in request.headers


async def test_what_may_be_asked(server: LocalServer, client: Client) -> None:
    message = {"role": "user", "content": "Hi!"}
    request = ChatRequest("Hi!", temperature=1)
    for prompt in ("Hi!", [message], [Message("user", "Hi!")], ChatRequest("Hi!")):
        assert (await client.complete(prompt)).text
        assert server.requests[-1].body["messages"] == [message]
    await client.complete(request, model="gpt-4o", temperature=0, n=None)
    assert server.requests[-1].body == {"model": "gpt-4o", "messages": [message], "temperature": 0}
    await client.complete(ChatRequest("Hi!", "gpt-4o"))
    assert server.requests[-1].body["model"] == "gpt-4o"
    assert request == ChatRequest("Hi!", temperature=1)
    async with client.stream(ChatRequest("Hi!", stream=True)) as stream:
        await stream.completion()
    assert server.requests[-1].body["stream"] is True


async def test_messages_is_another_name_of_prompt(server: LocalServer, client: Client) -> None:
    message = {"role": "user", "content": "Hi!"}
    for messages in ("Hi!", [message], [Message("user", "Hi!")], ChatRequest("Hi!")):
        assert (await client.complete(messages=messages)).text
        assert server.requests[-1].body["messages"] == [message]
        async with client.stream(messages=messages) as stream:
            assert (await stream.completion()).text
        assert server.requests[-1].body["messages"] == [message]
        assert client.quote(messages=messages) == client.quote("Hi!")


async def test_one_of_prompt_and_messages(server: LocalServer, client: Client) -> None:
    for call in (client.complete, client.stream, client.quote):
        for arguments, says in (({}, "no prompt"), ({"prompt": PROMPT, "messages": PROMPT}, "two names")):
            with pytest.raises(TypeError, match=says) as caught:
                made = cast("Callable[..., Any]", call)(**arguments)
                await made
            assert_tight(caught.value)
    assert server.requests == []


def test_help_tells_of_every_parameter() -> None:
    text = pydoc.plain(pydoc.render_doc(Client.complete))
    names = [*inspect.signature(Client.complete).parameters, *ChatParams.__annotations__]
    for name in set(names) - {"self"}:
        assert re.search(rf"^ +(- `{name}`|{name}): \S", text, re.MULTILINE), name
    assert "completion = await client.complete(" in text


@pytest.mark.parametrize(
    ("prompt", "params", "error", "says"),
    [
        (PROMPT, {"temperature": 3}, InvalidRequestError, "temperature: 3 .* from 0 to 2"),
        (PROMPT, {"deadline": 0}, InvalidRequestError, "deadline"),
        (PROMPT, {"deadline": "1"}, InvalidRequestError, "deadline"),
        (3, {}, InvalidRequestError, "prompt"),
        (ChatRequest(PROMPT, stream=True), {}, InvalidRequestError, "client.stream.*via_stream=True"),
        (ChatRequest(PROMPT, stream=True), {"via_stream": False}, InvalidRequestError, "client.stream"),
        (PROMPT, {"via_stream": "yes"}, InvalidRequestError, "via_stream: this str .* True, False or None"),
        (PROMPT, {"via_stream": 1}, InvalidRequestError, "via_stream: this int .* True, False or None"),
        (PROMPT, {"temprature": 1}, TypeError, "'temperature'"),
        (PROMPT, {"stream": True}, TypeError, "client.stream"),
        (PROMPT, {"timeout": 5}, TypeError, "'timeout' .* 'deadline'"),
        (PROMPT, {"max_retries": 5}, TypeError, "'max_retries' .*Retry"),
        (PROMPT, {"modle": "gpt-4o"}, TypeError, "'model'"),
        (PROMPT, {"zzz": 1}, TypeError, "'zzz'"),
    ],
)
async def test_refused_before_a_byte_is_sent(
    server: LocalServer, client: Client, prompt: Any, params: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        await client.complete(prompt, **params)
    assert_tight(caught.value)
    assert server.requests == []


async def test_no_model() -> None:
    async with Client(KEY) as client:
        with pytest.raises(InvalidRequestError, match="model"):
            await client.complete("x")


async def test_status_errors(server: LocalServer) -> None:
    server.plan = "free"
    async with Client(server.api_key, base_url=server.base_url) as client:
        with pytest.raises(NotFoundError) as missing:
            await client.complete(PROMPT, model="gpt-5-imaginary")
        with pytest.raises(PermissionDeniedError):
            await client.complete(PROMPT, model="gpt-4o")
    assert (missing.value.code, missing.value.status_code) == ("model_not_found", 404)
    assert missing.value.request_id
    async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini") as client:
        with pytest.raises(AuthenticationError) as wrong:
            await client.complete(PROMPT)
        assert_tight(wrong.value)
        with pytest.raises(AuthenticationError):
            async with client.stream(PROMPT):
                pass


async def test_a_status_with_a_broken_body() -> None:
    short = http_response(429, b"x" * 100)[:-50]
    async with (
        RawServer(
            [ReadRequest(), Send(short)], [ReadRequest(), Send(http_response(302, b"", {"Location": "//evil/x"}))]
        ) as server,
        Client(KEY, base_url=server.base_url, model="m", retry=Retry(attempts=1)) as client,
    ):
        with pytest.raises(RateLimitError):
            await client.complete(PROMPT)
        with pytest.raises(APIStatusError, match="redirects to evil"):
            await client.complete(PROMPT)
        assert server.connections == 2


async def test_deadline(server: LocalServer, client: Client) -> None:
    server.latency = 30
    for how in ("complete", "stream"):
        start = time.monotonic()
        with pytest.raises(APITimeoutError) as caught:
            if how == "complete":
                await client.complete(PROMPT, deadline=0.03)
            else:
                async with client.stream(PROMPT, deadline=0.03):
                    pass
        assert caught.value.kind == "deadline"
        assert time.monotonic() - start >= 0.03
        assert_tight(caught.value)


async def test_deadline_at_the_gate_and_in_a_stream() -> None:
    async with LocalServer(faults=[Stall(2)]) as server:
        limits = Limits(concurrency=1)
        async with Client(server.api_key, base_url=server.base_url, model="gpt-4o", limits=limits) as client:
            async with client.stream(PROMPT, deadline=0.05) as stream:
                with pytest.raises(APITimeoutError) as gate:
                    await client.complete(PROMPT, deadline=0.01)
                with pytest.raises(APITimeoutError) as late:
                    await stream.completion()
            assert (gate.value.kind, gate.value.maybe_billed) == ("deadline", False)
            assert (late.value.kind, late.value.maybe_billed) == ("deadline", True)
            assert late.value.partial
            assert (await client.complete(PROMPT)).text


@pytest.mark.parametrize("how", ["complete", "stream"])
async def test_cancelled(server: LocalServer, client: Client, how: str) -> None:
    cast("list[Any]", server.faults).append(Stall(None if how == "complete" else 1))

    async def call() -> None:
        if how == "complete":
            await client.complete(PROMPT)
        async with client.stream(PROMPT) as stream:
            async for _ in stream:
                pass

    task = asyncio.create_task(call())
    while not server.requests:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    task.cancel("mine")
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert caught.value.args == ("mine",)
    assert "in_flight=0" in repr(client)
    await asyncio.sleep(0.005)
    assert "open=0" in repr(client)


async def test_usage_in_streams_is_asked_for_only_when_told(server: LocalServer) -> None:
    async with Client(server.api_key, base_url=server.base_url, model="gpt-4o", stream_usage=True) as client:
        async with client.stream("Hi!") as stream:
            whole = await stream.completion()
        assert server.requests[-1].body["stream_options"] == {"include_usage": True}
        assert whole.usage is not None
        assert not whole.cost_estimated
        async with client.stream("Hi!", stream_options={"include_usage": False}) as stream:
            estimated = await stream.completion()
        assert estimated.usage is None
        assert estimated.cost_estimated
        await client.complete("Hi!")
        assert "stream_options" not in server.requests[-1].body
    async with Client(server.api_key, base_url=server.base_url, model="gpt-4o") as client:
        async with client.stream("Hi!") as stream:
            await stream.completion()
        assert "stream_options" not in server.requests[-1].body


async def test_an_unknown_price_is_none(server: LocalServer, client: Client) -> None:
    completion = await client.complete("Hi!", model="gpt-3.5-turbo")
    assert (completion.cost, completion.cost_estimated) == (None, False)


# -- fanned out ------------------------------------------------------------------------------------------------------


async def test_map(server: LocalServer, client: Client) -> None:
    def prompts() -> Iterator[Any]:
        yield from (f"Question {i}?" for i in range(20))
        yield 3

    async with client.map(prompts(), concurrency=4, ordered=True, max_tokens=5) as results:
        found = [result async for result in results]
    assert [result.index for result in found] == list(range(21))
    assert all(result.completion and result.request and result.attempts for result in found[:20])
    assert all(result.latency > 0 for result in found[:20])
    assert isinstance(found[20].error, InvalidRequestError)
    assert found[20].attempts == ()
    with pytest.raises(InvalidRequestError):
        found[20].unwrap()


async def test_map_keeps_an_error_with_its_prompt(client: Client, server: LocalServer) -> None:
    cast("list[Any]", server.faults).append(Status(400))
    async with client.map(["a", "b", "c"], concurrency=1) as results:
        found = {result.index: result async for result in results}
    assert isinstance(found[0].error, APIStatusError)
    assert found[0].attempts == found[0].error.attempts
    assert found[1].unwrap().text
    assert found[2].unwrap().text


async def test_map_refuses_what_can_never_work(client: Client) -> None:
    with pytest.raises(TypeError, match="temperature"):
        client.map(["a"], temprature=1)  # type: ignore[call-arg]  # that is the point
    for bad in (0, True, "4"):
        with pytest.raises(ConfigurationError, match="concurrency"):
            client.map(["a"], concurrency=bad)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(ConfigurationError, match="prompts"):
        client.map("one prompt alone")


async def test_leaving_map_early_cancels_the_rest(server: LocalServer) -> None:
    server.latency = 0.005

    def endless() -> Iterator[str]:
        number = 0
        while True:
            yield f"Question {(number := number + 1)}?"

    async with Client(server.api_key, base_url=server.base_url, model="gpt-4o") as client:
        async with client.map(endless(), concurrency=8) as results:
            async for result in results:
                if result.index >= 20:
                    break
        assert "in_flight=0" in repr(client)
        await asyncio.sleep(0.01)  # what was sent before reaches the server
        seen = len(server.requests)
        assert seen <= 20 + 2 * 8 + 8
        await asyncio.sleep(0.02)
        assert len(server.requests) == seen


async def test_many_streams_over_one_client(server: LocalServer, client: Client) -> None:
    async def one(i: int) -> str:
        async with client.stream(f"Question {i}?", max_tokens=20) as stream:
            return "".join([token async for token in stream])

    answers = await asyncio.gather(*(one(i) for i in range(100)))
    assert all(answers)
    assert "in_flight=0" in repr(client)


async def test_first_event_timer_of_a_slow_provider() -> None:
    async with (
        RawServer([ReadRequest(), Wait()]) as server,
        Client(KEY, base_url=server.base_url, model="m", timeout=Timeout(first_event=0.01)) as client,
    ):
        with pytest.raises(APITimeoutError, match="first_event"):
            async with client.stream(PROMPT):
                pass


async def test_a_request_for_no_stream_may_be_streamed(server: LocalServer, client: Client) -> None:
    async with client.stream(ChatRequest("Hi!", "gpt-4o")) as stream:
        assert (await stream.completion()).text
    assert server.requests[-1].body["stream"] is True


# -- a whole answer by stream ------------------------------------------------------------------------------------------

ALL = ModelInfo("gpt-4o-all", "1", "1", stream_only=True)
GPTS = ModelInfo("gpt-4-gizmo-*", "1", "1", stream_only=True)


def last_text(messages: Any) -> str:
    return f"echo: {messages[-1]['content']}"


def by_stream_only(number: int, body: Any) -> Status | None:
    return None if body.get("stream") else Status(400)


@pytest.fixture
async def streaming() -> AsyncIterator[tuple[LocalServer, Client]]:
    """A server that refuses what is not asked by stream, and a client that knows which models need that."""
    async with LocalServer(models=["gpt-4o-all"], faults=by_stream_only, answer=last_text) as server:
        prices = {info.model: info for info in (ALL, GPTS)}
        async with Client(server.api_key, base_url=server.base_url, model="gpt-4o-all", prices=prices) as client:
            yield server, client


async def test_complete_via_stream(server: LocalServer, client: Client) -> None:
    plain = await client.complete(PROMPT)
    streamed = await client.complete(PROMPT, via_stream=True)
    assert (streamed.text, streamed.finish_reason, streamed.model) == (plain.text, "stop", plain.model)
    assert (plain.cost_estimated, streamed.cost_estimated) == (False, True)  # no token counts in this stream
    assert [request.body.get("stream") for request in server.requests] == [None, True]
    assert [request.headers["Accept"] for request in server.requests][1] == "text/event-stream"
    assert plain.attempts[0].time_to_first_token is None
    assert streamed.attempts[0].time_to_first_token is not None
    assert (await client.complete(ChatRequest(PROMPT, stream=True), via_stream=True)).text == plain.text


@pytest.mark.parametrize("model", ["gpt-4o-all", "gpt-4-gizmo-g-gFt1ghYJl"])
async def test_a_model_that_answers_by_stream_only(streaming: tuple[LocalServer, Client], model: str) -> None:
    server, client = streaming
    assert (await client.complete("Hi!", model=model)).text == "echo: Hi!"
    assert (await client.complete("Hi!", model=model, via_stream=True)).text == "echo: Hi!"
    with pytest.raises(APIStatusError):
        await client.complete("Hi!", model=model, via_stream=False)
    with pytest.raises(APIStatusError):
        await client.complete("Hi!", model="gpt-4o")
    assert [request.body.get("stream") for request in server.requests] == [True, True, None, None]


async def test_map_asks_such_a_model_by_stream(streaming: tuple[LocalServer, Client]) -> None:
    _, client = streaming
    async with client.map(["a", "b"], ordered=True) as results:
        found = [result async for result in results]
    assert [result.unwrap().text for result in found] == ["echo: a", "echo: b"]
    request = found[0].request
    assert isinstance(request, ChatRequest)
    assert (await client.complete(request)).text == "echo: a"  # it can be asked again as it is


async def test_one_more_try_by_stream_after_a_gateways_timeout(server: LocalServer, client: Client) -> None:
    server.faults = [Status(524)]
    answer = await client.complete("Hi!", max_tokens=100)
    assert (answer.finish_reason, [each.status for each in answer.attempts]) == ("stop", [524, 200])
    plain, streamed = server.requests
    assert streamed.body == {**plain.body, "stream": True}
    assert plain.headers["Idempotency-Key"] == streamed.headers["Idempotency-Key"]
    assert client.ledger.unknown > 0
    assert client.ledger.spent == answer.cost


async def test_tokens_per_minute_are_settled_to_what_was_used(server: LocalServer) -> None:
    limits = Limits(tokens_per_minute=1000)  # 100 at once, then 15 a second
    async with Client(server.api_key, base_url=server.base_url, model="gpt-4o", limits=limits) as client:
        async with asyncio.timeout(2):
            for _ in range(3):  # each may use 90 tokens, and uses less than 20
                await client.complete("Hi!", max_tokens=90, stop=" ")
        async with client.stream("Hi!", max_tokens=90, stop=" ", stream_options={"include_usage": True}) as stream:
            assert (await stream.completion()).usage


async def test_a_long_cool_down_sends_those_in_the_queue_to_the_backup(server: LocalServer) -> None:
    cast("list[Any]", server.faults).append(Status(429, headers={"Retry-After": "60"}))
    server.latency = 0.02
    async with LocalServer(api_key="sk-backup-key-0") as other:
        backup = Provider("backup", other.base_url, other.api_key)
        limits = Limits(concurrency=1)
        async with Client(
            server.api_key, base_url=server.base_url, model="gpt-4o", limits=limits, backups=[backup]
        ) as client:
            answers = await asyncio.gather(*(client.complete(f"{i}?") for i in range(3)))
            assert {answer.provider for answer in answers} == {"backup"}
            assert len(server.requests) == 1


PRICE = ModelInfo("gpt-4o", "2.5", "10", max_output_tokens=1000)


@attrs.frozen
class Until(Step):
    """Wait for an event."""

    event: asyncio.Event

    async def run(self, connection: Connection) -> None:
        await self.event.wait()


@asynccontextmanager
async def race_of_two(how: str) -> AsyncIterator[tuple[Client, asyncio.Task[str], asyncio.Event]]:
    """A hedged call whose two answers come when an event is set."""
    both = asyncio.Event()
    whole, begun = (ok(), ok()) if how == "complete" else (sse(WHOLE, DONE), sse_cut(WHOLE))
    slow = [ReadRequest(), Until(both), Send(begun), Wait()]
    async with RawServer([*[ReadRequest(), Send(whole)] * 21, *slow]) as primary, RawServer(slow) as second:
        backup = Provider("backup", second.base_url, "sk-backup-key-0", prices={"gpt-4o": PRICE})
        async with Client(
            KEY, base_url=primary.base_url, model="gpt-4o", backups=[backup], retry=Retry(hedge=True), budget="1"
        ) as client:
            for _ in range(21):
                await ask(client) if how == "complete" else await read(client)

            async def race() -> str:
                if how == "complete":
                    return (await client.complete(PROMPT)).text
                async with client.stream(PROMPT) as stream:
                    return "".join([await anext(stream), await anext(stream)])

            call = asyncio.create_task(race())
            while not second.requests:
                await asyncio.sleep(0.001)
            yield client, call, both


@pytest.mark.parametrize("how", ["complete", "stream"])
async def test_two_hedged_answers_that_come_in_the_same_moment(how: str) -> None:
    """One is taken, the other is closed, and both are booked."""
    async with race_of_two(how) as (client, call, both):
        both.set()
        assert await call == "Hello!"
        statistics = client.statistics()
        assert (statistics.in_flight, sum(statistics.outcomes.values())) == (0, 21 + 2)
        assert client.ledger.reserved == 0
        booked = [entry.provider for entry in client.ledger.entries if entry.spent + entry.unknown]
        assert booked == ["piapi", "backup"]
        if how == "stream":
            with anyio.fail_after(1):
                while "open=0" not in repr(client):
                    await asyncio.sleep(0.001)


@pytest.mark.parametrize("steps", range(10))
@pytest.mark.parametrize("how", ["complete", "stream"])
async def test_a_hedged_call_that_is_cancelled_around_its_end(how: str, steps: int) -> None:
    """Whatever the moment, nothing is left of either attempt."""
    async with race_of_two(how) as (client, call, both):
        both.set()
        while "in_flight=2" in repr(client) and steps >= 5 and not call.done():
            await asyncio.sleep(0)  # some of the steps count from the answers on, some from before
        for _ in range(steps % 5):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        statistics = client.statistics()
        assert (statistics.in_flight, sum(statistics.outcomes.values())) == (0, 21 + 2)
        assert client.ledger.reserved == 0
        with anyio.fail_after(1):
            while "in_flight=0" not in repr(client):
                await asyncio.sleep(0.001)


async def test_a_plan_that_does_not_include_the_model(server: LocalServer) -> None:
    theirs = "vendor/gpt-4o"
    async with LocalServer(api_key="sk-backup-key-0", models=[theirs]) as other:
        for backups in ([], [Provider("backup", other.base_url, other.api_key, models={"gpt-4o": theirs})]):
            async with Client(
                server.api_key, base_url=server.base_url, plan="free", model="gpt-4o", backups=backups
            ) as client:
                assert (await client.complete("x", model="gpt-4o-mini")).provider == "piapi"
                if backups:
                    assert (await client.complete("x")).provider == "backup"
                else:
                    with pytest.raises(InvalidRequestError, match="plan"):
                        await client.complete(PROMPT)
    assert {request.body["model"] for request in server.requests} == {"gpt-4o-mini"}


async def test_thousands_at_once_are_sent_in_turns() -> None:
    """More than a burst that begins at once would keep the loop from looking at the connections it made."""
    count = 2 * BURST + 10
    transport = Refusing()
    async with Client(KEY, model="m", limits=Limits(count), retry=Retry(attempts=1), transport=transport) as client:
        loop = asyncio.get_running_loop()
        turns: list[int] = []

        def look() -> None:
            turns.append(len(transport.asked))
            if len(turns) < 100:
                loop.call_soon(look)

        calls = [asyncio.create_task(client.complete("x")) for _ in range(count)]
        look()
        await asyncio.gather(*calls, return_exceptions=True)
    steps = [after - before for before, after in pairwise(turns) if after > before]
    assert sum(steps) == count
    assert max(steps) <= BURST


async def test_on_interrupt_is_one_of_two_words(client: Client) -> None:
    for word in ("Restart", None, True):
        with pytest.raises(InvalidRequestError, match=r"on_interrupt: .* 'raise' or 'restart'"):
            client.stream("x", on_interrupt=word)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("tokens", [1.5, -5, float("nan"), "3", None])
async def test_a_tokenizer_that_returns_no_count(server: LocalServer, tokens: Any) -> None:
    options: dict[str, Any] = {"model": "gpt-4o", "budget": "1", "tokenizer": lambda text: tokens}
    async with Client(server.api_key, base_url=server.base_url, **options) as client:
        async with client.stream("x", max_tokens=5) as stream:
            with pytest.raises(ConfigurationError, match="tokenizer: it returned"):
                await stream.completion()
        assert client.ledger.reserved == 0
        assert client.ledger.unknown > 0


@pytest.mark.parametrize(
    ("name", "meant"),
    [("concurrency", "map"), ("on_interrupt", "stream"), ("budget", "Client"), ("temprature", "temperature")],
)
async def test_a_keyword_of_another_call(client: Client, name: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"'{name}' is no parameter; the nearest one is '{meant}"):
        await client.complete("x", **{name: 1})  # type: ignore[arg-type]  # that is the point


async def test_a_stream_is_asked_by_stream_anyway(client: Client) -> None:
    with pytest.raises(TypeError, match=r"'via_stream' is no parameter; the nearest one is 'complete\(via_stream="):
        client.stream("x", via_stream=True)  # type: ignore[call-arg]  # that is the point
