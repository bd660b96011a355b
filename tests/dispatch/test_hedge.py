"""Hedges: who wins, what the other one costs, and that nothing is left of it. In virtual time but for real sockets."""

from __future__ import annotations

import asyncio
import gc
import time as clock
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from benchmarks.outage import VirtualLoop
from piapi_async import (
    AllProvidersFailedError,
    APIConnectionError,
    BudgetExceededError,
    ChatCompletion,
    ChatRequest,
    Client,
    Health,
    Limits,
    Provider,
    Restarted,
    Retry,
    Text,
)
from piapi_async.catalog import ModelInfo
from piapi_async.ledger import Books
from piapi_async.policy import Deadline
from piapi_async.pool import SessionPool
from piapi_async.route import SAMPLES, Call
from piapi_async.testing import LocalServer, RawServer, ReadRequest, Send, Wait
from tests.dispatch.scripted import (
    HOW,
    OK,
    STREAM,
    WORST,
    Answer,
    Piece,
    World,
    assemble,
    broken,
    interrupt_at_every_wait,
    make,
    refused,
)
from tests.leaks import KEY, PROMPT
from tests.wires import DONE, WHOLE, chunk, completion, sse_cut

pytestmark = pytest.mark.anyio

HEDGED = Retry(hedge=True)
SLOW = Answer(think=9)
SLOW_STREAM = Answer([WHOLE + DONE], think=9)
BOTH = pytest.mark.parametrize("stream", [False, True])
on_real_sockets = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def time() -> float:
    return asyncio.get_running_loop().time()


def hedged(one: Iterable[Answer], two: Iterable[Answer] = (), **options: Any) -> World:
    """Providers of which the first takes a second to answer as a rule; a hundred hedges are allowed."""
    scripts = {"one": one, "two": two} if two else {"one": one}
    world = make(scripts, **{"retry": HEDGED, **options})
    for starts in world.upstream().starts:
        starts.extend([1.0] * SAMPLES)
    world.dispatcher.hedgeable = 2000
    return world


async def get(world: World, stream: bool, **fields: Any) -> ChatCompletion:
    return await (world.read if stream else world.complete)(**fields)


def outcomes(answer: ChatCompletion) -> list[tuple[str, str]]:
    return [(attempt.provider, attempt.kind) for attempt in answer.attempts]


# -- who wins ----------------------------------------------------------------------------------------------------------


@BOTH
async def test_the_second_one_wins(stream: bool) -> None:
    world = hedged([SLOW_STREAM if stream else SLOW], [STREAM if stream else OK], budget=9 * WORST)
    answer = await get(world, stream)
    assert (answer.provider, answer.text, time()) == ("two", "Hello!", 1)
    assert [(sent.provider, sent.at) for sent in world.transport.sent] == [("one", 0), ("two", 1)]
    assert outcomes(answer) == [("one", "cancelled"), ("two", "ok")]
    assert world.books.unknown == WORST  # both are booked
    assert world.books.rows["two", "gpt-4o"].calls == 1
    world.assert_idle()


@BOTH
async def test_the_first_one_wins_all_the_same(stream: bool) -> None:
    slow = Answer([WHOLE + DONE] if stream else [completion()], think=1.5)
    world = hedged([slow], [SLOW_STREAM if stream else SLOW], budget=9 * WORST)
    answer = await get(world, stream)
    assert (answer.provider, time()) == ("one", 1.5)
    assert outcomes(answer) == [("two", "cancelled"), ("one", "ok")]
    assert world.books.unknown == WORST
    world.assert_idle()


@BOTH
async def test_no_second_one_where_the_first_is_quick(stream: bool) -> None:
    world = hedged([STREAM if stream else OK], [OK])
    answer = await get(world, stream)
    assert (outcomes(answer), world.sent_to()) == ([("one", "ok")], ["one"])


async def test_a_stream_that_began_is_not_hedged_however_slow_it_goes_on() -> None:
    world = hedged([Answer([chunk("Hel"), 50.0, chunk("lo!", "stop"), 50.0, DONE])], [STREAM])
    answer = await world.read()
    assert (answer.text, outcomes(answer), time()) == ("Hello!", [("one", "ok")], 100)


async def test_a_stream_that_sends_comments_only_has_not_begun() -> None:
    world = hedged([Answer([b": wait\n\n", 9.0, WHOLE + DONE])], [STREAM])
    answer = await world.read()
    assert (answer.provider, time()) == ("two", 1)
    assert [exchange.ended for exchange in world.transport.exchanges] == ["closed", "finished"]
    world.assert_idle()


async def test_both_answer_at_the_same_moment() -> None:
    world = hedged([Answer(think=2)], [Answer(think=1)], budget=9 * WORST)
    answer = await world.complete()
    assert [kind for _, kind in outcomes(answer)] == ["ok", "ok"]
    assert outcomes(answer)[-1][0] == answer.provider
    assert world.books.unknown == 0  # the bills of both are known
    assert [row.calls for row in world.books.rows.values()] == [1, 1]
    assert world.books.spent > 0
    world.assert_idle()


async def test_both_streams_begin_at_the_same_moment() -> None:
    begun: list[Piece] = [chunk("Hel"), 1.0, chunk("lo!", "stop") + DONE]
    world = hedged([Answer(begun, think=2)], [Answer(begun, think=1)], budget=9 * WORST)
    answer = await world.read()
    assert answer.text == "Hello!"
    assert sorted(kind for _, kind in outcomes(answer)) == ["cancelled", "ok"]
    assert sorted(exchange.ended for exchange in world.transport.exchanges) == ["closed", "finished"]
    assert world.books.unknown == WORST
    world.assert_idle()


# -- where one of them fails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 429, 503])
@BOTH
async def test_a_hedge_that_fails_ends_nothing(status: int, stream: bool) -> None:
    slow = Answer([WHOLE + DONE] if stream else [completion()], think=5)
    world = hedged([slow], [refused(status)])
    answer = await get(world, stream)
    assert (answer.provider, time()) == ("one", 5)
    assert outcomes(answer) == [("two", "status"), ("one", "ok")]
    world.assert_idle()


@BOTH
async def test_the_first_one_fails_behind_its_hedge(stream: bool) -> None:
    late = Answer([WHOLE + DONE] if stream else [completion()], think=4)
    world = hedged([broken(APIConnectionError("no"), think=2)], [late])
    answer = await get(world, stream)
    assert (answer.provider, time()) == ("two", 5)
    assert outcomes(answer) == [("one", "connect"), ("two", "ok")]
    world.assert_idle()


@BOTH
async def test_the_first_one_fails_before_its_hedge(stream: bool) -> None:
    world = hedged([refused(503)], [STREAM if stream else OK])
    answer = await get(world, stream)
    assert (answer.provider, time()) == ("two", 0)
    assert outcomes(answer) == [("one", "status"), ("two", "ok")]
    assert world.dispatcher.hedges == 0
    world.assert_idle()


@BOTH
async def test_both_fail(stream: bool) -> None:
    world = hedged([Answer([b"{}"], 503, think=2)], [Answer([b"{}"], 500, think=2)], retry=Retry(2, hedge=True))
    with pytest.raises(AllProvidersFailedError) as caught:
        await get(world, stream)
    assert [error.provider for error in caught.value.errors] == ["one", "two"]
    assert len(world.transport.sent) == 2
    world.assert_idle()


async def test_both_fail_and_a_third_attempt_answers() -> None:
    slow_failure = Answer([b"{}"], 503, think=2)
    world = hedged([slow_failure, OK], [slow_failure, OK], retry=Retry(hedge=True, base=0))
    answer = await world.complete()
    assert outcomes(answer)[:2] == [("one", "status"), ("two", "status")]
    assert (len(answer.attempts), answer.attempts[-1].kind) == (3, "ok")
    world.assert_idle()


async def test_a_hedged_stream_breaks_off() -> None:
    world = hedged([SLOW_STREAM], [Answer([chunk("Hel")])], budget=9 * WORST)
    kinds: list[str] = []
    text = ""
    async for item in world.dispatcher.stream(world.call(stream=True, restart=True)):
        kinds.append(type(item).__name__)
        if isinstance(item, Restarted):
            assert (item.error.partial, text) == ("Hel", "Hel")
            text = ""
        elif isinstance(item, list):
            text += "".join(each.text for each in item)
        else:
            assert (item.text, text) == ("Hello!", "Hello!")
    assert kinds == ["list", "Restarted", "list", "ChatCompletion"]
    world.assert_idle()


# -- when there is none ------------------------------------------------------------------------------------------------


async def test_no_hedge_while_too_little_is_known() -> None:
    world = make({"one": [OK] * SAMPLES, "two": [OK]}, retry=HEDGED)
    world.dispatcher.hedgeable = 1000
    world.upstream().starts[True].extend([1.0] * SAMPLES)  # of streams, which says nothing of other answers
    world.transport.scripts["one"] = [Answer(think=1)] * (SAMPLES // 10) + [SLOW]
    for _ in range(SAMPLES // 10):
        await world.complete()
    assert world.dispatcher.hedges == 0
    assert (await world.complete()).provider == "two"


@pytest.mark.parametrize("why", ["alone", "off", "paused", "sick", "share"])
async def test_no_hedge(why: str) -> None:
    world = hedged([SLOW], () if why == "alone" else [OK], retry=Retry(hedge=why != "off"))
    if why == "paused":
        world.key(1).gate.pause(60)
    if why == "sick":
        for _ in range(5):
            world.key(1).breaker("gpt-4o").record(0, good=False)
    if why == "share":
        world.dispatcher.hedgeable = 18
    answer = await world.complete()
    assert (outcomes(answer), world.sent_to(), time()) == ([("one", "ok")], ["one"], 9)


@pytest.mark.parametrize("why", ["full", "paused", "budget"])
async def test_a_hedge_waits_for_nothing(why: str) -> None:
    """What stands in its way comes while the first one is under way."""
    budget = WORST * 3 // 2 if why == "budget" else None
    world = hedged([SLOW], [OK], limits=Limits(1), budget=budget)
    call = asyncio.create_task(world.complete())
    await asyncio.sleep(0.5)
    gate = world.key(1).gate
    if why == "full":
        assert gate.try_enter(0, time())
    if why == "paused":
        gate.pause(5)
    await asyncio.sleep(1)
    assert gate.queued == 0
    answer = await call
    assert (outcomes(answer), world.sent_to(), time()) == ([("one", "ok")], ["one"], 9)
    assert world.dispatcher.hedges == 0
    if why == "full":
        gate.leave()
    world.assert_idle()


@pytest.mark.parametrize("together", [False, True])
async def test_a_twentieth_of_the_calls_at_most(together: bool) -> None:
    world = hedged([Answer(think=1.5)], [SLOW])
    world.dispatcher.hedgeable = 0
    calls = [world.complete() for _ in range(100)]
    if together:
        await asyncio.gather(*calls)
    else:
        for call in calls:
            await call
    assert Counter(world.sent_to()) == {"one": 100, "two": 5}
    world.assert_idle()


async def test_a_hedge_is_no_way_round_the_budget() -> None:
    world = hedged([SLOW], [OK], budget=WORST - 1)
    with pytest.raises(BudgetExceededError):
        await world.complete()
    world.assert_idle()


# -- the caller leaves, or raises --------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0.5, 1.5])
@BOTH
async def test_the_caller_leaves(at: float, stream: bool) -> None:
    slow = SLOW_STREAM if stream else SLOW
    world = hedged([slow], [slow], budget=9 * WORST)
    tasks = asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(at):
            await get(world, stream)
    world.assert_idle()
    assert asyncio.all_tasks() == tasks
    assert world.books.unknown == (WORST if at < 1 else 2 * WORST)
    assert world.dispatcher.outcomes == {"cancelled": 1 if at < 1 else 2}


async def test_a_hook_that_raises_before_the_hedge_is_sent() -> None:
    world = hedged([SLOW], [OK], budget=9 * WORST)

    def hook() -> None:
        if world.transport.sent:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        await world.complete(on_send=hook)
    assert world.sent_to() == ["one"]
    assert world.books.unknown == WORST  # the first one's
    world.assert_idle()


SWEPT = {
    "the second one wins": ([Answer([0.5, WHOLE, 0.5, DONE], think=2)], [Answer([0.25, WHOLE, 0.5, DONE])]),
    "the first one wins": ([Answer([WHOLE, DONE], think=1.5)], [Answer([9.0, WHOLE, DONE], connect=0.25)]),
    "both at once": ([Answer([WHOLE, DONE], think=2)], [Answer([WHOLE, DONE], think=1)]),
    "the hedge fails": ([Answer([WHOLE, DONE], think=3)], [Answer([b"{}"], 503)]),
    "the first one fails": ([Answer([b"{}"], 503, think=2)], [Answer([WHOLE, DONE], think=3)]),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("course", SWEPT)
@BOTH
async def test_the_caller_leaves_at_every_wait_of_both(course: str, how: str, stream: bool) -> None:
    """Also in the moment in which the winner is known and the loser is being ended."""

    def answers(script: list[Answer]) -> list[Answer]:
        if stream:
            return script
        whole: list[bytes | float] = [0.5, completion()]
        return [answer if answer.status != 200 else Answer(whole, think=answer.think) for answer in script]

    one, two = SWEPT[course]
    worlds: list[World] = []

    async def work() -> ChatCompletion:
        world = hedged(
            answers(one), answers(two), limits=Limits(1), budget=9 * WORST, health=Health(success_threshold=99)
        )
        worlds.append(world)
        for which in (0, 1):
            breaker = world.key(which).breaker("gpt-4o")
            for _ in range(5):
                breaker.record(time() - 6, good=False)
            assert breaker.state(time()) == "half-open"
        return await get(world, stream)

    waits = 0
    async for answer in interrupt_at_every_wait(work, how):
        world = worlds.pop()
        world.assert_idle()
        assert world.dispatcher.hedges == (waits > 0 and len(world.transport.sent) > 1)
        waits += answer is None
        if answer is not None:
            assert answer.text == "Hello!"
            assert world.dispatcher.hedges == 1
    assert waits >= 6


@pytest.mark.parametrize("taken", range(4))
async def test_a_hedged_stream_is_dropped(taken: int) -> None:
    begun: list[Piece] = [chunk("Hel"), 1.0, chunk("lo!"), 1.0, chunk(finish="stop") + DONE]
    world = hedged([SLOW_STREAM], [Answer(begun)], budget=9 * WORST)
    tasks = asyncio.all_tasks()
    source = world.dispatcher.stream(world.call(stream=True))
    for _ in range(taken):
        await anext(source)
    del source
    gc.collect()
    for _ in range(5):
        await asyncio.sleep(0)
    world.assert_idle()
    assert asyncio.all_tasks() == tasks
    assert world.books.unknown == (2 * WORST if taken else 0)


# -- real sockets ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def pair(
    primary: LocalServer | RawServer, backup: LocalServer | RawServer, **options: Any
) -> AsyncIterator[Client]:
    price = {"gpt-4o-mini": ModelInfo("gpt-4o-mini", "1", "2", max_output_tokens=16_000)}
    backups = [Provider("backup", backup.base_url, KEY, prices=price)]
    options = {"retry": HEDGED, "backups": backups, **options}
    async with Client(KEY, base_url=primary.base_url, model="gpt-4o-mini", **options) as client:
        yield client


async def read_text(client: Client, how: str) -> tuple[str, str]:
    """The text as an iteration hands it out, and as the whole answer has it."""
    async with client.stream(PROMPT) as stream:
        if how == "tokens":
            text = "".join([token async for token in stream])
        elif how == "chunks":
            text = "".join([each.text async for each in stream.chunks()])
        else:
            text = "".join([each.text async for each in stream.events() if isinstance(each, Text)])
        return text, (await stream.completion()).text


@on_real_sockets
@pytest.mark.parametrize("pace", [None, 200.0])
@pytest.mark.parametrize("how", ["tokens", "chunks", "events"])
async def test_a_stream_that_may_be_hedged_hands_out_what_came_first(how: str, pace: float | None) -> None:
    async with LocalServer(api_key=KEY, tokens_per_second=pace) as primary, LocalServer(api_key=KEY) as backup:
        async with pair(primary, backup) as client:
            text, whole = await read_text(client, how)
            assert text == whole != ""


@on_real_sockets
@pytest.mark.parametrize("how", ["tokens", "chunks", "events"])
async def test_a_hedge_that_won_hands_out_what_came_first(how: str) -> None:
    async with LocalServer(api_key=KEY) as primary, LocalServer(api_key=KEY) as backup, pair(primary, backup) as client:
        for _ in range(20):
            await read_text(client, how)
        primary.latency = 30
        text, whole = await asyncio.wait_for(read_text(client, how), 5)
        assert text == whole != ""
        assert len(backup.requests) == 1


@on_real_sockets
@BOTH
async def test_the_losers_connection_is_closed_within_100_ms(stream: bool) -> None:
    async with LocalServer(api_key=KEY) as primary, LocalServer(api_key=KEY) as backup, pair(primary, backup) as client:

        async def ask() -> ChatCompletion:
            if not stream:
                return await client.complete(PROMPT)
            async with client.stream(PROMPT) as answer:
                return await answer.completion()

        for _ in range(20):
            await ask()
        primary.latency = 30
        assert (await asyncio.wait_for(ask(), 5)).provider == "backup"
        won = clock.monotonic()
        while not primary.requests[-1].disconnected:
            assert clock.monotonic() - won < 0.1
            await asyncio.sleep(0.001)
        assert client.statistics().in_flight == 0


@on_real_sockets
async def test_the_caller_leaves_at_the_turns_of_the_loop_around_the_win() -> None:
    """Whenever it is, the winner's place, connection and money are not lost."""
    slow, winning = [ReadRequest(), Wait()], [ReadRequest(), Send(sse_cut(chunk("Hel"))), Wait()]
    async with RawServer(slow) as primary, RawServer(winning) as backup:
        servers = {"one": primary, "two": backup}
        providers = [Provider(name, server.base_url, KEY) for name, server in servers.items()]
        books = Books(10**15)
        dispatcher = assemble(providers, SessionPool, books, retry=HEDGED)
        for starts in dispatcher.upstreams[0].starts:
            starts.extend([0.005] * SAMPLES)
        dispatcher.hedgeable = 10**6
        request = ChatRequest(PROMPT, "gpt-4o", stream=True)

        async def use() -> None:
            call = Call(request, "gpt-4o", time(), Deadline(), "key", dispatcher.upstreams, [], {}, WORST)
            async with aclosing(dispatcher.stream(call)) as source:
                async for _ in source:
                    pass

        async with aclosing(await dispatcher.transport.__aenter__()):
            for turns in range(40):
                requests = len(backup.requests)
                caller = asyncio.create_task(use())
                async with asyncio.timeout(5):
                    while len(backup.requests) == requests:
                        await asyncio.sleep(0)
                for _ in range(turns):
                    await asyncio.sleep(0)
                caller.cancel()
                await asyncio.wait([caller])
                assert dispatcher.statistics().in_flight == 0
                assert books.reserved == 0
                assert "in_flight=0" in repr(dispatcher.transport)
            async with asyncio.timeout(0.1):
                while "open=0" not in repr(dispatcher.transport):
                    await asyncio.sleep(0.001)
        assert dispatcher.hedges == 40
