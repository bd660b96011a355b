"""Calls carried out: attempt after attempt, streams and their restarts, and what is left when a caller leaves."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from benchmarks.outage import VirtualLoop
from piapi_async import (
    AllProvidersFailedError,
    APIConnectionError,
    APIError,
    BudgetExceededError,
    ChatCompletion,
    ChatStream,
    Client,
    Health,
    Limits,
    Provider,
    Restarted,
    Retry,
    StreamTruncatedError,
)
from piapi_async.catalog import ModelInfo
from piapi_async.errors import InternalServerError
from piapi_async.testing import LocalServer, RawServer, ReadRequest, Send, http_response
from tests.dispatch.scripted import (
    HOW,
    OK,
    STREAM,
    WORST,
    Answer,
    World,
    broken,
    interrupt_at_every_wait,
    make,
    refused,
)
from tests.leaks import KEY, PROMPT
from tests.wires import DONE, SSE, WHOLE, chunk, completion

pytestmark = pytest.mark.anyio

NOTHING = Decimal(0)
BOTH = pytest.mark.parametrize("stream", [False, True])
on_real_sockets = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def time() -> float:
    return asyncio.get_running_loop().time()


async def get(world: World, stream: bool, **fields: Any) -> ChatCompletion:
    return await (world.read if stream else world.complete)(**fields)


def good(stream: bool) -> Answer:
    return STREAM if stream else OK


def outcomes(answer: ChatCompletion | APIError) -> list[tuple[str, str]]:
    return [(attempt.provider, attempt.kind) for attempt in answer.attempts]


# -- one attempt after another -----------------------------------------------------------------------------------------


@BOTH
async def test_the_first_answer_is_it(stream: bool) -> None:
    world = make({"one": [good(stream)], "two": [good(stream)]})
    answer = await get(world, stream)
    assert (answer.text, outcomes(answer)) == ("Hello!", [("one", "ok")])
    world.assert_idle()


@BOTH
async def test_another_provider_answers_where_one_fails(stream: bool) -> None:
    world = make({"one": [refused(503)], "two": [good(stream)]}, budget=9 * WORST)
    answer = await get(world, stream)
    assert (answer.provider, outcomes(answer)) == ("two", [("one", "status"), ("two", "ok")])
    assert (time(), world.books.unknown) == (0, 0)
    world.assert_idle()


@BOTH
async def test_the_same_provider_answers_after_a_wait(stream: bool) -> None:
    world = make({"one": [refused(503), refused(503), good(stream)]}, budget=9 * WORST)
    answer = await get(world, stream)
    assert outcomes(answer) == [("one", "status"), ("one", "status"), ("one", "ok")]
    assert 0 < time() < 1.5
    world.assert_idle()


@BOTH
async def test_nobody_answers(stream: bool) -> None:
    world = make({"one": [refused(503)], "two": [broken(APIConnectionError("no"))]}, retry=Retry(2))
    with pytest.raises(AllProvidersFailedError) as caught:
        await get(world, stream)
    assert outcomes(caught.value) == [("one", "status"), ("two", "connect")]
    world.assert_idle()


@BOTH
async def test_the_error_of_a_single_provider_is_told_as_it_is(stream: bool) -> None:
    world = make({"one": [refused(503)]})
    with pytest.raises(InternalServerError) as caught:
        await get(world, stream)
    assert len(caught.value.attempts) == 3
    world.assert_idle()


@BOTH
async def test_a_retry_that_does_not_fit_the_budget(stream: bool) -> None:
    world = make({"one": [refused(504)]}, budget=WORST * 3 // 2)
    with pytest.raises(BudgetExceededError):
        await get(world, stream)
    assert (world.sent_to(), world.books.unknown) == (["one"], WORST)
    world.assert_idle()


async def test_the_answer_knows_all_attempts_and_what_it_cost_itself() -> None:
    world = make({"one": [refused(504)], "two": [OK]}, prices={"gpt-4o": ModelInfo("gpt-4o", "1", "1")})
    answer = await world.complete()
    assert answer.cost is not None
    assert answer.cost.scaleb(12) == 5 * 10**6  # five tokens at a dollar a million
    assert [(key, row.calls) for key, row in world.books.rows.items()] == [
        (("one", "gpt-4o"), 0),
        (("two", "gpt-4o"), 1),
    ]
    assert len(answer.attempts) == 2


# -- streams -----------------------------------------------------------------------------------------------------------


async def test_a_stream_is_open_once_its_headers_are_there() -> None:
    world = make({"one": [Answer([7.0, chunk("Hel"), 1.0, chunk("lo!", "stop") + DONE], think=2)]})
    seen: list[tuple[float, object]] = []
    async for item in world.dispatcher.stream(world.call(stream=True)):
        text = "".join(each.text for each in item) if isinstance(item, list) else type(item)
        seen.append((time(), text))
    assert seen == [(2, ""), (9, "Hel"), (10, "lo!"), (10, ChatCompletion)]


@pytest.mark.parametrize("begun", [b"", chunk(""), b": wait\n\n"])
async def test_another_provider_takes_over_silently_before_any_text(begun: bytes) -> None:
    world = make({"one": [Answer([begun] if begun else [])], "two": [STREAM]})
    text = ""
    async for item in world.dispatcher.stream(world.call(stream=True)):
        assert not isinstance(item, Restarted)
        if isinstance(item, list):
            text += "".join(each.text for each in item)
    assert (text, world.sent_to()) == ("Hello!", ["one", "two"])
    world.assert_idle()


async def test_a_stream_that_breaks_off_after_its_first_text_is_the_callers() -> None:
    world = make({"one": [Answer([chunk("Hel")])], "two": [STREAM]}, budget=9 * WORST)
    with pytest.raises(StreamTruncatedError) as caught:
        await world.read()
    assert (caught.value.partial, world.sent_to()) == ("Hel", ["one"])
    assert world.books.unknown == WORST
    world.assert_idle()


async def test_a_restart_says_so_once() -> None:
    """Where the new stream breaks off before any text, nothing has to be forgotten once more."""
    script = [Answer([chunk("Hel")]), refused(409), Answer([chunk("")]), STREAM]
    world = make({"one": script}, retry=Retry(attempts=4, base=0), budget=9 * WORST)
    items = [item async for item in world.dispatcher.stream(world.call(stream=True, restart=True))]
    assert [type(item).__name__ for item in items] == [
        *("list", "list"),  # open, "Hel"
        *("Restarted", "list", "list"),  # open, ""
        *("list", "list", "ChatCompletion"),  # open, "Hello!"
    ]
    (restart,) = (item for item in items if isinstance(item, Restarted))
    assert restart.error.partial == "Hel"
    assert isinstance(items[-1], ChatCompletion)
    assert items[-1].text == "Hello!"
    world.assert_idle()


async def test_a_restart_that_fails_is_the_last_error() -> None:
    world = make({"one": [Answer([chunk("Hel")])]}, retry=Retry(attempts=2, base=0))
    items: list[object] = []
    with pytest.raises(StreamTruncatedError):
        async for item in world.dispatcher.stream(world.call(stream=True, restart=True)):
            items.append(item)
    assert [type(item).__name__ for item in items] == ["list", "list", "Restarted", "list", "list"]
    world.assert_idle()


async def test_the_answer_comes_when_all_is_given_back() -> None:
    """A caller that asks again at once, with the answer in hand, finds a place and the money."""
    world = make({"one": [STREAM]}, limits=Limits(1), budget=WORST)
    async with aclosing(world.dispatcher.stream(world.call(stream=True))) as source:
        async for item in source:
            if isinstance(item, ChatCompletion):
                world.assert_idle()
                assert item.cost is not None


# -- its state ---------------------------------------------------------------------------------------------------------


async def test_statistics() -> None:
    keys = ("sk-first-key-0001", "sk-second-key-02")
    world = make({"one": [refused(429, retry_after="3"), Answer(think=9)], "two": [OK]}, keys=keys, limits=Limits(2))
    with pytest.raises(BudgetExceededError):
        await make({"one": [OK]}, budget=1).complete()
    call = world.call()
    answer = await world.dispatcher.complete(call)
    assert outcomes(answer) == [("one", "status"), ("two", "ok")]
    under_way = [asyncio.create_task(world.complete()) for _ in range(2)]
    await asyncio.sleep(1)
    seen = world.dispatcher.statistics()
    assert [(key.provider, key.key) for key in seen.keys] == [
        ("one", "…0001"),
        ("one", "…y-02"),
        ("two", "…0001"),
        ("two", "…y-02"),
    ]
    assert (seen.in_flight, seen.queued, seen.outcomes) == (2, 0, {"status": 1, "ok": 1})
    assert [key.in_flight for key in seen.keys] == [0, 2, 0, 0]
    assert [key.bound for key in seen.keys] == [1, 2, 2, 2]
    assert [key.pause > 0 for key in seen.keys] == [True, False, False, False]
    assert seen.keys[0].breakers == {"gpt-4o": "closed"}
    assert seen.keys[3].breakers == {}
    assert [key.retries for key in seen.keys] == [10, 10, 10, 10]
    queued = asyncio.create_task(world.complete())
    await asyncio.sleep(0.5)
    assert world.dispatcher.statistics().queued == 1
    for task in (*under_way, queued):
        await task
    world.assert_idle()


# -- the caller's own code raises --------------------------------------------------------------------------------------


def raise_mine(*_: object) -> int:
    raise ZeroDivisionError("mine")


@asynccontextmanager
async def client_of(world: World, **options: Any) -> AsyncIterator[Client]:
    """A client that sends through the scripts of a world."""
    options = {"budget": "1", "limits": Limits(1), "model": "gpt-4o", **options}
    base_url = "https://one.example"
    async with Client(KEY, base_url=base_url, transport=world.transport, **options) as client:
        yield client


async def use(client: Client, stream: bool, **params: Any) -> ChatCompletion:
    if not stream:
        return await client.complete(PROMPT, max_tokens=10, **params)
    async with client.stream(PROMPT, max_tokens=10, **params) as opened:
        return await opened.completion()


def assert_idle(client: Client) -> None:
    seen = client.statistics()
    assert (seen.in_flight, seen.queued, client.ledger.reserved) == (0, 0, NOTHING)


@BOTH
@pytest.mark.parametrize("hedge", [False, True])
async def test_a_hook_before_sending_that_raises(stream: bool, hedge: bool) -> None:
    world = make({"piapi": [good(stream)]})
    async with client_of(world, retry=Retry(hedge=hedge)) as client:
        for _ in range(2):  # the second finds the one place free
            with pytest.raises(ZeroDivisionError, match="mine"):
                await use(client, stream, on_send=raise_mine)
            assert_idle(client)
        assert (client.ledger.unknown, client.ledger.spent, len(world.transport.sent)) == (NOTHING, NOTHING, 0)
        assert client.statistics().outcomes == {"cancelled": 2}
        assert (await use(client, stream)).text == "Hello!"


@BOTH
async def test_a_hook_that_raises_before_a_retry(stream: bool) -> None:
    world = make({"piapi": [refused(504)]})

    def hook() -> None:
        if world.transport.sent:
            raise_mine()

    async with client_of(world) as client:
        with pytest.raises(ZeroDivisionError, match="mine"):
            await use(client, stream, on_send=hook)
        assert_idle(client)
        assert client.ledger.unknown > 0  # the 504's
        assert len(client.ledger.entries) == 1
        assert world.sent_to() == ["piapi"]


@BOTH
async def test_a_tokenizer_that_raises_before_anything_is_sent(stream: bool) -> None:
    world = make({"piapi": [good(stream)]})
    limits = Limits(1, tokens_per_minute=1000)
    async with client_of(world, tokenizer=raise_mine, limits=limits) as client:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError, match="mine"):
                await use(client, stream)
            assert_idle(client)
        assert (client.ledger.unknown, client.ledger.spent, len(world.transport.sent)) == (NOTHING, NOTHING, 0)


@BOTH
@pytest.mark.parametrize("hedge", [False, True])
async def test_a_tokenizer_that_raises_at_an_answer_without_usage(stream: bool, hedge: bool) -> None:
    world = make({"piapi": [STREAM if stream else Answer([completion(usage=None)])]})
    async with client_of(world, tokenizer=raise_mine, retry=Retry(hedge=hedge)) as client:
        unknown = client.ledger.unknown
        for _ in range(2):
            with pytest.raises(ZeroDivisionError, match="mine"):
                await use(client, stream)
            assert_idle(client)
            assert client.ledger.unknown > unknown  # it was answered
            unknown = client.ledger.unknown
        assert client.ledger.spent == 0
        assert world.sent_to() == ["piapi"] * 2


# -- the caller leaves -------------------------------------------------------------------------------------------------

ONE_PROBE = Health(failure_threshold=1, success_threshold=99)
"""A provider that failed once stays on probation for the whole test."""

COURSES: dict[str, list[Answer]] = {
    "it answers": [Answer([0.5, WHOLE, 0.5, DONE], connect=0.5, think=0.5)],
    "a stale connection": [
        broken(APIConnectionError("closed", kind="stale", maybe_billed=True), think=1),
        Answer([WHOLE, DONE], connect=0.5),
    ],
    "a retry": [Answer([0.5, b"{}"], 409, think=0.5), Answer([WHOLE, DONE], think=0.5)],
}


def answers(course: str, stream: bool) -> list[Answer]:
    if stream:
        return COURSES[course]
    whole: list[bytes | float | APIError] = [0.5, completion()]
    return [
        each if each.status != 200 or each.error else Answer(whole, connect=each.connect, think=each.think)
        for each in COURSES[course]
    ]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("course", COURSES)
@BOTH
async def test_the_caller_leaves_at_every_wait(course: str, how: str, stream: bool) -> None:
    """The one place is taken at first, and the provider is on probation."""
    worlds: list[World] = []

    async def work() -> ChatCompletion:
        script = {"one": answers(course, stream)}
        world = make(script, limits=Limits(1), health=ONE_PROBE, budget=9 * WORST, retry=Retry(base=1))
        worlds.append(world)
        breaker = world.key().breaker("gpt-4o")
        breaker.record(time() - 6, good=False)
        assert breaker.state(time()) == "half-open"
        gate = world.key().gate
        assert gate.try_enter(0, time())
        asyncio.get_running_loop().call_later(1, gate.leave)
        return await get(world, stream)

    waits = 0
    async for answer in interrupt_at_every_wait(work, how):
        await asyncio.sleep(1)  # whoever had the place has left by then
        world = worlds.pop()
        world.assert_idle()
        if answer is None:
            waits += 1
            outs = Counter(world.dispatcher.statistics().outcomes)
            assert set(outs) <= {"cancelled", "status", "stale"}
            assert outs["cancelled"] <= 1
            billed = any(exchange.status == 200 for exchange in world.transport.exchanges)
            assert world.books.unknown in ((WORST,) if billed else (0, WORST))
        else:
            assert (answer.text, world.books.unknown) == ("Hello!", 0)
    assert waits >= 5


async def test_a_call_is_thrown_away_at_every_wait() -> None:
    """As happens to what a loop leaves behind when it ends: the coroutine is closed, not cancelled."""
    ended = False
    for waits in range(1, 20):
        world = make({"one": answers("it answers", stream=False)}, health=ONE_PROBE, budget=9 * WORST)
        world.key().breaker("gpt-4o").record(time() - 6, good=False)
        work = world.complete()
        for _ in range(waits):
            try:
                waited = work.send(None)
            except StopIteration:
                ended = True
                break
            while waited is not None and not waited.done():
                await asyncio.sleep(0.25)
        work.close()
        world.assert_idle()
        if ended:
            break
    assert ended
    assert waits >= 5


@pytest.mark.parametrize("taken", range(4))
async def test_a_stream_is_dropped_wherever_it_is(taken: int) -> None:
    pieces: list[bytes | float | APIError] = [chunk("Hel"), 1.0, chunk("lo!"), 1.0, chunk(finish="stop") + DONE]
    world = make({"one": [Answer(pieces)]}, health=ONE_PROBE, limits=Limits(1), budget=9 * WORST)
    world.key().breaker("gpt-4o").record(time() - 6, good=False)
    tasks = asyncio.all_tasks()
    stream = ChatStream(world.dispatcher.stream(world.call(stream=True)))
    if taken:
        await stream.__aenter__()
        for _ in range(taken - 1):
            await anext(stream)
    del stream
    for _ in range(3):  # asyncio closes it in a task
        await asyncio.sleep(0)
    world.assert_idle()
    assert asyncio.all_tasks() == tasks
    assert world.books.unknown == (WORST if taken else 0)


async def test_leaving_closes_the_answer_before_it_lets_the_next_one_in() -> None:
    world = make({"one": [Answer([chunk("Hel"), 99.0])]}, limits=Limits(1))
    async with ChatStream(world.dispatcher.stream(world.call(stream=True))) as stream:
        assert await anext(stream) == "Hel"
        assert world.key().gate.in_flight == 1
    assert world.transport.exchanges[0].ended == "closed"
    world.assert_idle()


# -- real sockets ------------------------------------------------------------------------------------------------------


@on_real_sockets
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("hedge", [False, True])
@BOTH
async def test_the_caller_leaves_at_every_wait_on_real_sockets(how: str, hedge: bool, stream: bool) -> None:
    """Every connection is new, so connecting is among the waits."""
    body = WHOLE + DONE if stream else completion()
    reply = http_response(200, body, SSE if stream else None, close_delimited=True)
    script = [ReadRequest(), Send(reply, piece=len(reply) // 3 + 1, pause=0.001)]
    failing = [ReadRequest(), Send(http_response(503, b"{}", close_delimited=True))]
    health = Health(failure_threshold=1, success_threshold=10**6, open=0.001)
    price = {"gpt-4o": ModelInfo("gpt-4o", "1", "1")}
    async with RawServer(failing, script) as primary, RawServer(script) as backup:
        backups = [Provider("backup", backup.base_url, KEY, prices=price)]
        retry = Retry(hedge=hedge)
        async with Client(
            KEY,
            base_url=primary.base_url,
            model="gpt-4o",
            limits=Limits(1),
            health=health,
            retry=retry,
            budget="100",
            backups=backups,
        ) as client:
            assert (await use(client, stream)).provider == "backup"
            await asyncio.sleep(0.002)
            waits = 0
            async for answer in interrupt_at_every_wait(lambda: use(client, stream), how):
                assert client.statistics().keys[0].breakers == {"gpt-4o": "half-open"}
                assert_idle(client)
                assert "in_flight=0" in repr(client)
                async with asyncio.timeout(0.1):
                    while "open=0" not in repr(client):
                        await asyncio.sleep(0.001)
                if answer is None:
                    waits += 1
                    assert (await use(client, stream)).provider == "piapi"  # the probe is free
                else:
                    assert answer.provider == "piapi"
            assert waits >= 3
            assert client.ledger.unknown > 0


@on_real_sockets
@pytest.mark.parametrize("how", ["complete", "tokens", "chunks", "events", "completion"])
async def test_a_call_leaves_no_cyclic_garbage(how: str) -> None:
    """Cycles cost a collection, which stops a busy service for as long as it takes."""
    async with LocalServer(api_key=KEY) as server, Client(KEY, base_url=server.base_url, model="gpt-4o") as client:

        async def call() -> None:
            if how == "complete":
                await client.complete(PROMPT)
                return
            async with client.stream(PROMPT) as stream:
                if how == "completion":
                    await stream.completion()
                    return
                items: AsyncIterator[object] = aiter(stream) if how == "tokens" else getattr(stream, how)()
                async for _ in items:
                    pass

        for _ in range(3):
            await call()
        await asyncio.sleep(0.15)  # connections that are being ended
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                await call()
            await asyncio.sleep(0.15)
            assert gc.collect() == 0
        finally:
            gc.enable()


async def test_a_stream_that_is_left_early_leaves_no_cyclic_garbage() -> None:
    world = make({"one": [Answer([chunk("Hel"), 9.0])]})

    async def some() -> None:
        async with ChatStream(world.dispatcher.stream(world.call(stream=True))) as stream:
            async for _ in stream:
                break

    await some()
    world.transport.exchanges.clear()
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            await some()
        assert gc.collect() == 0
    finally:
        gc.enable()


async def test_a_call_that_fails_over_leaves_no_cyclic_garbage() -> None:
    for retry in (Retry(), Retry(hedge=True)):
        world = make({"one": [refused(409), OK] * 20, "two": [OK]}, retry=retry)
        await world.complete()
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                await world.complete()
            assert gc.collect() == 0
        finally:
            gc.enable()
