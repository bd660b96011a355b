"""The client's own steps; what the wire does to it is in test_faults."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from functools import partial
from typing import Any, cast

import pytest

from piapi_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ChatRequest,
    Client,
    ConfigurationError,
    InvalidRequestError,
    Limits,
    Message,
    Provider,
    RateLimitError,
    Retry,
    Timeout,
)
from piapi_async.client import _Begun, _end
from piapi_async.errors import NotFoundError, PermissionDeniedError
from piapi_async.testing import LocalServer, RawServer, ReadRequest, Send, Stall, Status, Wait, http_response
from tests.leaks import KEY, PROMPT, assert_tight

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
    ],
)
def test_bad_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        Client(**{"api_key": KEY, **options})
    assert_tight(caught.value)


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
    for call in (client.stream, client.map):
        with pytest.raises(RuntimeError, match="closed"):
            call("x")
    with pytest.raises(RuntimeError, match="opened before"):
        await client.__aenter__()
    await client.aclose()
    assert "closed" in repr(client)


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


@pytest.mark.parametrize(
    ("prompt", "params", "error", "says"),
    [
        (PROMPT, {"temperature": 3}, InvalidRequestError, "temperature: 3 .* from 0 to 2"),
        (PROMPT, {"deadline": 0}, InvalidRequestError, "deadline"),
        (PROMPT, {"deadline": "1"}, InvalidRequestError, "deadline"),
        (3, {}, InvalidRequestError, "prompt"),
        (ChatRequest(PROMPT, stream=True), {}, InvalidRequestError, "client.stream"),
        (PROMPT, {"temprature": 1}, TypeError, "'temperature'"),
        (PROMPT, {"stream": True}, TypeError, "client.stream"),
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


async def test_a_hedged_stream_that_lost_in_the_last_moment_is_closed() -> None:
    begun = cast("Callable[..., _Begun]", _Begun)(*[None] * 4)
    left: list[_Begun] = []

    async def ready() -> _Begun:
        return begun

    async def leave(begun: _Begun) -> None:
        left.append(begun)

    await _end([asyncio.create_task(ready())], leave)  # cancelled before its first step
    assert not left
    task = asyncio.create_task(ready())
    await asyncio.wait([task])
    await _end([task], leave)
    assert left == [begun]
