"""Whole answers that are asked for by stream: timers, attempts, hedges, and the turn to it. In virtual time."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from benchmarks.outage import VirtualLoop
from piapi_async import (
    AllProvidersFailedError,
    APIConnectionError,
    APIError,
    APITimeoutError,
    BudgetExceededError,
    ChatCompletion,
    Health,
    Provider,
    Retry,
    StreamTruncatedError,
    Timeout,
)
from piapi_async.catalog import ModelInfo
from piapi_async.errors import InternalServerError
from piapi_async.ledger import Books
from piapi_async.route import SAMPLES
from tests.dispatch.scripted import (
    OK,
    STREAM,
    WORST,
    Answer,
    Piece,
    ScriptedTransport,
    World,
    assemble,
    broken,
    make,
    refused,
)
from tests.wires import DONE, WHOLE, chunk

pytestmark = pytest.mark.anyio

STREAM_ONLY = {"gpt-4o": ModelInfo("gpt-4o", "1", "1", stream_only=True)}
CUT = Answer([chunk("Hel")])


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def time() -> float:
    return asyncio.get_running_loop().time()


def outcomes(answer: ChatCompletion | APIError) -> list[tuple[str, str]]:
    return [(attempt.provider, attempt.kind) for attempt in answer.attempts]


def streamed(world: World) -> list[bool]:
    """Whether each request asked for a stream, in turn; its header says the same as its body."""
    bodies = [json.loads(sent.body).get("stream", False) for sent in world.transport.sent]
    assert [sent.headers.get("Accept") == "text/event-stream" for sent in world.transport.sent] == bodies
    return bodies


async def failure(world: World, **fields: Any) -> APIError:
    with pytest.raises(APIError) as caught:
        await world.complete(**fields)
    world.assert_idle()
    return caught.value


# -- asked by stream ---------------------------------------------------------------------------------------------------


async def test_the_whole_answer_comes_by_stream() -> None:
    world = make({"one": [Answer([WHOLE[:9], 2.0, WHOLE[9:] + DONE], think=1)]}, budget=WORST)
    answer = await world.complete(via_stream=True)
    assert (answer.text, answer.finish_reason, answer.provider, streamed(world)) == ("Hello!", "stop", "one", [True])
    assert answer.attempts[0].time_to_first_token == 3
    assert [exchange.ended for exchange in world.transport.exchanges] == ["finished"]
    assert world.books.rows["one", "gpt-4o"].calls == 1
    world.assert_idle()


async def test_a_stream_has_no_total() -> None:
    pieces: list[Piece] = [50.0, chunk("a")] * 40
    world = make({"one": [Answer([*pieces, chunk(finish="stop"), DONE])]}, timeout=Timeout(total=100))
    answer = await world.complete(via_stream=True)
    assert (answer.text, time()) == ("a" * 40, 2000)


@pytest.mark.parametrize(
    ("timer", "answer", "seconds"),
    [("first_event", Answer(think=1e6), 120), ("progress", Answer([WHOLE, 1e6]), 60)],
)
async def test_the_timers_are_those_of_a_stream(timer: str, answer: Answer, seconds: float) -> None:
    world = make({"one": [answer]}, retry=Retry(1))
    error = await failure(world, via_stream=True)
    assert isinstance(error, APITimeoutError)
    assert (error.kind, time()) == (timer, seconds)


async def test_one_that_breaks_off_is_asked_again_silently() -> None:
    world = make({"one": [CUT, STREAM]}, budget=9 * WORST)
    answer = await world.complete(via_stream=True)
    assert (answer.text, outcomes(answer)) == ("Hello!", [("one", "truncated"), ("one", "ok")])
    assert world.books.unknown == WORST
    world.assert_idle()


async def test_one_that_breaks_off_goes_to_another_provider() -> None:
    world = make({"one": [CUT], "two": [STREAM]})
    answer = await world.complete(via_stream=True)
    assert (answer.text, outcomes(answer)) == ("Hello!", [("one", "truncated"), ("two", "ok")])
    assert (streamed(world), time()) == ([True, True], 0)


async def test_the_last_error_has_the_text_and_commits_to_nothing() -> None:
    world = make({"one": [CUT]}, retry=Retry(2))
    error = await failure(world, via_stream=True)
    assert isinstance(error, StreamTruncatedError)
    assert (error.partial, error.committed, error.maybe_billed, len(error.attempts)) == ("Hel", False, True, 2)
    world = make({"one": [CUT], "two": [CUT]}, retry=Retry(2))
    error = await failure(world, via_stream=True)
    assert isinstance(error, AllProvidersFailedError)
    assert (error.partial, error.committed) == ("Hel", False)


# -- models that answer by stream only ---------------------------------------------------------------------------------


async def test_a_model_that_answers_by_stream_only() -> None:
    world = make({"one": [STREAM]}, prices=STREAM_ONLY)
    for _ in range(2):
        assert (await world.complete()).text == "Hello!"
    assert streamed(world) == [True, True]


async def test_never_by_stream_where_the_caller_says_so() -> None:
    world = make({"one": [OK]}, prices=STREAM_ONLY)
    assert (await world.complete(via_stream=False)).text == "Hello!"
    assert streamed(world) == [False]


async def test_such_a_model_is_no_plain_try_to_turn_from() -> None:
    world = make({"one": [refused(524), STREAM]}, prices=STREAM_ONLY)
    error = await failure(world)
    assert (outcomes(error), streamed(world)) == ([("one", "edge")], [True])


def pair(
    one: Iterable[Answer], two: Iterable[Answer], first_prices: Any, second_prices: Any, hedge: float = 0
) -> World:
    """Two providers, of which the second calls the model by another name."""
    providers = [
        Provider("one", "https://one.example", "sk-first-key-0001", prices=first_prices),
        Provider("two", "https://two.example", "sk-2", models={"gpt-4o": "theirs"}, prices=second_prices),
    ]
    books, transport = Books(), ScriptedTransport({"one": one, "two": two})
    return World(assemble(providers, lambda _: transport, books, retry=Retry(hedge=hedge)), transport, books)


THEIRS = {"theirs": ModelInfo("theirs", "1", "1", stream_only=True)}


async def test_each_provider_is_asked_as_its_own_model_needs_it() -> None:
    world = pair([refused(503)], [STREAM], {}, THEIRS)
    assert (await world.complete()).provider == "two"
    assert streamed(world) == [False, True]
    world = pair([refused(503)], [OK], STREAM_ONLY, {})
    assert (await world.complete()).provider == "two"
    assert streamed(world) == [True, False]


# -- a gateway's timeout -----------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("status", [504, 524])


@BOTH
async def test_one_more_try_by_stream(status: int) -> None:
    world = make({"one": [Answer([b"{}"], status, think=100), STREAM]}, budget=9 * WORST)
    answer = await world.complete()
    assert (answer.text, [each.status for each in answer.attempts]) == ("Hello!", [status, 200])
    assert streamed(world) == [False, True]
    plain, second = world.transport.sent
    assert json.loads(second.body) == {**json.loads(plain.body), "stream": True}
    assert plain.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert world.books.unknown == WORST  # the first try's
    assert world.dispatcher.upstreams[0].retry_budget == 9
    world.assert_idle()


@BOTH
async def test_the_server_may_answer_it_without_a_stream(status: int) -> None:
    world = make({"one": [refused(status), OK]})
    assert (await world.complete()).text == "Hello!"


async def test_it_is_made_once_a_call() -> None:
    world = make({"one": [refused(524)]}, budget=9 * WORST)
    error = await failure(world)
    assert isinstance(error, InternalServerError)
    assert (error.maybe_billed, streamed(world), world.books.unknown) == (True, [False, True], 2 * WORST)


async def test_what_is_asked_again_anyway_goes_on_by_stream() -> None:
    world = make({"one": [refused(503), refused(504), refused(504)]})
    await failure(world)
    assert streamed(world) == [False, False, True]
    world = make({"one": [refused(504)]})
    await failure(world)
    assert streamed(world) == [False, True, True]


@pytest.mark.parametrize(("status", "asked"), [(504, 3), (524, 1)])
async def test_it_is_not_made_where_the_caller_says_never(status: int, asked: int) -> None:
    world = make({"one": [refused(status)]})
    error = await failure(world, via_stream=False)
    assert (streamed(world), error.maybe_billed) == ([False] * asked, True)


@BOTH
async def test_a_backup_takes_over_instead(status: int) -> None:
    world = make({"one": [refused(status)], "two": [OK]}, budget=9 * WORST)
    answer = await world.complete()
    assert (outcomes(answer)[-1], streamed(world), world.books.unknown) == (("two", "ok"), [False, False], WORST)


async def test_a_sick_backup_is_one_all_the_same() -> None:
    world = make({"one": [refused(524)], "two": [OK]}, health=Health(failure_threshold=1))
    world.key(1).breaker("gpt-4o").record(time(), good=False)
    assert (await world.complete()).provider == "two"
    assert streamed(world) == [False, False]


@pytest.mark.parametrize("why", ["attempts", "header", "retry budget", "sick"])
async def test_the_bounds_of_any_retry_hold(why: str) -> None:
    retry = Retry(attempts=1) if why == "attempts" else Retry(budget=0 if why == "retry budget" else 10)
    health = Health(failure_threshold=1 if why == "sick" else 5)
    headers = {"x_should_retry": "false"} if why == "header" else {}
    world = make({"one": [refused(524, **headers), STREAM]}, retry=retry, health=health)
    await failure(world)
    assert streamed(world) == [False]


async def test_the_deadline_holds() -> None:
    world = make({"one": [Answer([b"{}"], 524, think=100), STREAM]}, budget=9 * WORST)
    error = await failure(world, deadline=150)
    assert (error.kind, error.maybe_billed, streamed(world), time()) == ("deadline", True, [False], 100)


async def test_the_budget_holds() -> None:
    world = make({"one": [refused(524), STREAM]}, budget=WORST * 3 // 2)
    with pytest.raises(BudgetExceededError):
        await world.complete()
    assert (streamed(world), world.books.unknown) == ([False], WORST)


async def test_a_stream_of_the_callers_is_not_asked_again() -> None:
    world = make({"one": [refused(524), STREAM]})
    with pytest.raises(InternalServerError):
        await world.read()
    assert streamed(world) == [True]


# -- hedges ------------------------------------------------------------------------------------------------------------


def hedged(world: World) -> World:
    """The first provider begins streams within a second as a rule, and answers within ten; hedges are allowed."""
    for starts, seconds in zip(world.upstream().starts, (10.0, 1.0), strict=True):
        starts.extend([seconds] * SAMPLES)
    world.dispatcher.hedgeable = 2000
    return world


HEDGED = Retry(hedge=True)
SLOW = Answer([WHOLE + DONE], think=9)


async def test_the_hedge_wins() -> None:
    world = hedged(make({"one": [SLOW], "two": [Answer([WHOLE, 5.0, DONE])]}, retry=HEDGED, budget=9 * WORST))
    answer = await world.complete(via_stream=True)
    assert (answer.provider, time(), outcomes(answer)) == ("two", 6, [("one", "cancelled"), ("two", "ok")])
    assert answer.attempts[-1].time_to_first_token == 0
    assert (streamed(world), world.books.unknown) == ([True, True], WORST)
    world.assert_idle()


async def test_a_stream_that_began_is_not_hedged() -> None:
    slow = Answer([chunk("Hel"), 50.0, chunk("lo!", "stop"), DONE])
    world = hedged(make({"one": [slow], "two": [STREAM]}, retry=HEDGED))
    answer = await world.complete(via_stream=True)
    assert (answer.text, outcomes(answer), time()) == ("Hello!", [("one", "ok")], 50)


async def test_a_hedged_stream_that_breaks_off_is_asked_again() -> None:
    world = hedged(make({"one": [SLOW], "two": [CUT, STREAM]}, retry=HEDGED))
    answer = await world.complete(via_stream=True)
    assert (answer.text, answer.attempts[-1].kind) == ("Hello!", "ok")
    assert ("two", "truncated") in outcomes(answer)
    world.assert_idle()


async def test_a_hedge_goes_the_first_ones_way_or_its_models() -> None:
    world = hedged(pair([SLOW], [STREAM], STREAM_ONLY, {}, 0.05))
    assert ((await world.complete()).provider, streamed(world), time()) == ("two", [True, True], 1)
    world = hedged(pair([Answer(think=99)], [STREAM], {}, THEIRS, 0.05))
    assert ((await world.complete()).provider, streamed(world), time()) == ("two", [False, True], 11)


async def test_both_fail() -> None:
    lost = broken(APIConnectionError("no", kind="reset", maybe_billed=True), think=3)
    world = hedged(make({"one": [lost], "two": [refused(503)]}, retry=Retry(2, hedge=True)))
    error = await failure(world, via_stream=True)
    assert isinstance(error, AllProvidersFailedError)
    assert Counter(outcomes(error)) == {("one", "reset"): 1, ("two", "status"): 1}
