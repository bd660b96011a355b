"""An attempt: what entering takes, what leaving gives back, and what is put on record. In virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import pytest

from benchmarks.outage import VirtualLoop
from piapi_async import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APITimeoutError,
    BudgetExceededError,
    ChatCompletion,
    Health,
    Limits,
    RateLimitError,
    Retry,
    StreamTruncatedError,
    Timeout,
)
from piapi_async.dispatch import AttemptInFlight
from piapi_async.dispatch.attempt import ERROR_BODY_SECONDS
from piapi_async.errors import InsufficientQuotaError, InternalServerError, NotFoundError
from piapi_async.route import Call, Route
from tests.dispatch.scripted import (
    OK,
    STREAM,
    WORST,
    Answer,
    World,
    broken,
    make,
    refused,
)
from tests.wires import DONE, WHOLE, chunk, completion

pytestmark = pytest.mark.anyio

SICK_AT_ONCE = Health(failure_threshold=1)
NO_WAIT = Retry(base=0, cap=0, throttle_base=0, throttle_cap=0)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def time() -> float:
    return asyncio.get_running_loop().time()


async def attempt(world: World, call: Call | None = None) -> ChatCompletion | APIError:
    """Make one attempt, and return what came of it."""
    call = call or world.call()
    async with AttemptInFlight(world.dispatcher, call) as entered:
        return await entered.complete()
    return list(call.failures.values())[-1].error


async def attempt_stream(world: World, call: Call | None = None) -> ChatCompletion | APIError:
    """The same by stream."""
    call = call or world.call(stream=True)
    async with AttemptInFlight(world.dispatcher, call) as entered:
        assert await entered.open_stream() == []
        async for _ in entered.batches:
            if entered.first_event is None:
                entered.note_first_event()
        entered.finish_stream()
    if entered.completion is not None:
        return entered.completion
    return list(call.failures.values())[-1].error


async def sicken(world: World, which: int = 0) -> None:
    """Open the breaker of a provider."""
    key = world.key(which)
    for _ in range(5):
        key.breaker("gpt-4o").record(time(), good=False)
    assert not key.admits("gpt-4o", time())


# -- entering ----------------------------------------------------------------------------------------------------------


async def test_entering_takes_and_leaving_gives_back() -> None:
    world = make({"one": [OK]}, budget=2 * WORST)
    call = world.call()
    async with AttemptInFlight(world.dispatcher, call) as entered:
        assert world.key().gate.in_flight == 1
        assert world.books.reserved == WORST
        assert call.begun == 1
        assert (entered.upstream, entered.key) == (world.upstream(), world.key())
    world.assert_idle()
    assert world.books.taken == 0  # nothing was sent
    assert [each.kind for each in call.attempts] == ["cancelled"]


async def test_what_does_not_fit_the_budget_takes_nothing() -> None:
    world = make({"one": [OK]}, budget=WORST - 1)
    with pytest.raises(BudgetExceededError):
        await attempt(world)
    world.assert_idle()
    assert world.sent_to() == []
    assert world.dispatcher.outcomes == {}


@pytest.mark.parametrize("timer", ["pool", "deadline"])
async def test_a_call_that_gives_up_at_the_gate(timer: str) -> None:
    world = make({"one": [OK]}, limits=Limits(1), timeout=Timeout(pool=0.5), budget=5 * WORST)
    assert world.key().gate.try_enter(0, time())
    call = world.call(deadline=0.375 if timer == "deadline" else None)
    await asyncio.sleep(0.125)
    with pytest.raises(APITimeoutError) as caught:
        await attempt(world, call)
    error = caught.value
    seconds = 0.25 if timer == "deadline" else 0.5
    (record,) = call.attempts
    assert (record.provider, record.key, record.status, record.kind) == ("one", "…0001", None, timer)
    assert (record.started, record.latency) == (0.125, seconds)
    assert (error.kind, error.provider, error.attempts, error.maybe_billed) == (timer, "one", (record,), False)
    assert world.dispatcher.outcomes == {timer: 1}
    assert world.key().breakers == {}  # it says nothing about the provider
    world.key().gate.leave()
    world.assert_idle()


async def test_a_call_that_waits_when_the_client_closes() -> None:
    world = make({"one": [OK]}, limits=Limits(1), budget=5 * WORST)
    assert world.key().gate.try_enter(0, time())
    waiting = asyncio.create_task(attempt(world))
    await asyncio.sleep(1)
    world.dispatcher.close_gates()
    with pytest.raises(APIConnectionError) as caught:
        await waiting
    assert (caught.value.kind, [each.kind for each in caught.value.attempts]) == ("closed", ["closed"])
    world.key().gate.leave()
    world.assert_idle()


async def test_what_brought_no_answer_is_told_once_it_is_on_the_books() -> None:
    lost = broken(APIConnectionError("reset", kind="reset", maybe_billed=True))
    gone = broken(APIConnectionError("closed", kind="stale", maybe_billed=True))
    world = make({"one": [lost, refused(503), gone, lost, OK]}, retry=Retry(attempts=4), budget=9 * WORST)
    seen: list[tuple[str, int]] = []
    await world.complete(
        on_send=lambda: seen.append(("sent", world.books.unknown)),
        on_settled=lambda: seen.append(("settled", world.books.unknown)),
    )
    assert seen == [
        *[("sent", 0), ("settled", WORST)],
        *[("sent", WORST), ("settled", WORST)],
        *[("sent", WORST), ("settled", WORST)],  # on a stale connection
        *[("sent", WORST), ("settled", 2 * WORST)],
        ("sent", 2 * WORST),  # the answer's
    ]


@pytest.mark.parametrize("think", [0.0, 10.0], ids=["by then", "not yet"])
async def test_a_call_that_waits_for_another_try_when_the_client_closes(think: float) -> None:
    """It does not go on at a client that is open again; whether it has failed already or not."""
    refusal = attrs.evolve(refused(503), think=think)
    world = make({"one": [refusal, OK]}, budget=5 * WORST, retry=Retry(base=100, cap=100))
    waiting = asyncio.create_task(world.complete())
    await asyncio.sleep(1)
    world.dispatcher.close_gates()
    with pytest.raises(APIConnectionError) as caught:
        await waiting
    assert [each.kind for each in caught.value.attempts] == ["status", "closed"]
    assert (caught.value.kind, caught.value.maybe_billed) == ("closed", False)
    assert world.sent_to() == ["one"]
    world.assert_idle()


async def test_a_provider_that_falls_sick_while_a_call_waits_for_its_turn() -> None:
    world = make({"one": [OK], "two": [OK]}, limits=Limits(1))
    assert world.key().gate.try_enter(0, time())
    waiting = asyncio.create_task(attempt(world))
    await asyncio.sleep(1)
    await sicken(world)
    world.key().gate.leave()
    answer = await waiting
    assert isinstance(answer, ChatCompletion)
    assert answer.provider == "two"
    world.assert_idle()


async def test_a_pause_that_comes_while_a_call_waits_for_its_turn() -> None:
    world = make({"one": [OK], "two": [OK]}, limits=Limits(1))
    assert world.key().gate.try_enter(0, time())
    waiting = asyncio.create_task(attempt(world))
    await asyncio.sleep(1)
    world.key().gate.pause(60)
    answer = await waiting
    assert isinstance(answer, ChatCompletion)
    assert (answer.provider, time()) == ("two", 1)
    world.key().gate.leave()
    world.assert_idle()


async def test_with_nobody_healthy_it_is_sent_all_the_same_and_is_no_probe() -> None:
    world = make({"one": [OK]})
    await sicken(world)
    call = world.call()
    assert isinstance(await attempt(world, call), ChatCompletion)
    assert call.panic
    world.assert_idle()
    assert world.key().breaker("gpt-4o").state(time()) == "half-open"  # as good as a probe


async def test_a_place_is_taken_without_a_wait_or_not_at_all() -> None:
    world = make({"one": [OK]}, limits=Limits(1), budget=5 * WORST)
    route = Route(world.upstream(), world.key())
    first, second = (AttemptInFlight(world.dispatcher, world.call()) for _ in range(2))
    assert first.try_enter(route, time())
    assert not second.try_enter(route, time())
    assert world.books.reserved == WORST
    first.end()
    world.assert_idle()


async def test_first_attempts_fill_the_retry_budget_and_retries_take_from_it() -> None:
    world = make({"one": [refused(503)]}, retry=Retry(budget=1, base=0), health=Health(failure_threshold=100))
    world.upstream().retry_budget = 0.9
    call = world.call()
    await attempt(world, call)
    assert world.upstream().retry_budget == 1
    await attempt(world, call)
    assert (call.begun, world.upstream().retry_budget) == (2, 0)  # a retry gives nothing back
    with pytest.raises(InternalServerError):
        await attempt(world, call)
    for _ in range(5):
        await attempt(world)
    assert world.upstream().retry_budget == 0.5
    for _ in range(6):
        await attempt(world)
    assert world.upstream().retry_budget == 1


async def test_a_retry_waits_before_it_takes_anything() -> None:
    world = make({"one": [refused(503), OK]}, retry=Retry(base=8), budget=5 * WORST)
    call = world.call()
    await attempt(world, call)
    retry = asyncio.create_task(attempt(world, call))
    await asyncio.sleep(0)
    world.assert_idle()
    assert isinstance(await retry, ChatCompletion)
    assert 0 < world.transport.sent[1].at <= 8
    assert call.attempts[1].started == world.transport.sent[1].at


async def test_a_provider_that_falls_sick_while_a_retry_waits_is_left_alone() -> None:
    world = make({"one": [refused(503), OK], "two": [OK]}, retry=Retry(base=3))
    world.key(1).gate.pause(4)  # longer than a failover takes
    call = world.call()
    await attempt(world, call)
    retry = asyncio.create_task(attempt(world, call))
    await asyncio.sleep(0)
    await sicken(world)
    answer = await retry
    assert isinstance(answer, ChatCompletion)
    assert answer.provider == "two"
    world.assert_idle()


# -- good answers ------------------------------------------------------------------------------------------------------


async def test_a_good_answer() -> None:
    world = make({"one": [Answer(headers={"x-request-id": "r-1"}, think=2)]}, budget=5 * WORST)
    call = world.call()
    answer = await attempt(world, call)
    assert isinstance(answer, ChatCompletion)
    (record,) = call.attempts
    assert (record.kind, record.status, record.started, record.latency) == ("ok", 200, 0, 2)
    assert (record.request_id, record.usage, record.time_to_first_token) == ("r-1", answer.usage, None)
    assert (answer.provider, answer.request_id, answer.attempts) == ("one", "r-1", (record,))
    assert answer.cost is not None
    assert answer.cost.scaleb(12) == world.books.spent
    assert not answer.cost_estimated
    assert (world.dispatcher.outcomes, world.books.unknown) == ({"ok": 1}, 0)
    assert [exchange.ended for exchange in world.transport.exchanges] == ["finished"]
    world.assert_idle()


async def test_a_good_stream() -> None:
    world = make({"one": [Answer([3.0, WHOLE, 4.0, DONE], headers={"x-request-id": "r-1"})]})
    call = world.call(stream=True)
    answer = await attempt_stream(world, call)
    assert isinstance(answer, ChatCompletion)
    (record,) = call.attempts
    assert (answer.text, answer.cost_estimated, answer.attempts) == ("Hello!", True, (record,))
    assert (record.time_to_first_token, record.latency) == (3, 7)
    assert [exchange.ended for exchange in world.transport.exchanges] == ["finished"]
    world.assert_idle()


async def test_a_good_answer_widens_the_gate() -> None:
    world = make({"one": [OK]}, limits=Limits(4))
    gate = world.key().gate
    for _ in range(5):
        gate.throttle(0)
        await asyncio.sleep(1)
    assert gate.bound == 1
    await attempt(world)
    assert gate.bound == 2


async def test_what_was_counted_as_tokens_is_corrected_to_what_was_used() -> None:
    usage = {"prompt_tokens": 20, "completion_tokens": 20, "total_tokens": 40}
    unknown = Answer([completion(usage=None)])
    world = make({"one": [Answer([completion(usage=usage)]), unknown]}, limits=Limits(tokens_per_minute=1000))
    gate = world.key().gate
    await attempt(world, world.call(tokens=100))
    assert gate.opens_at(60, time()) == time()
    assert gate.opens_at(61, time()) > time()
    await asyncio.sleep(60)
    await attempt(world, world.call(tokens=100))
    assert gate.opens_at(1, time()) > time()  # without usage the estimate stands


async def test_the_pause_of_a_good_answer_counts_from_its_headers_on() -> None:
    limit = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30s"}
    world = make({"one": [Answer([5.0, WHOLE + DONE], headers=limit)]})
    call = world.call(stream=True)
    async with AttemptInFlight(world.dispatcher, call) as entered:
        await entered.open_stream()
        assert 30 <= world.key().gate.pause_left(time()) <= 33
        until = world.key().gate.paused_until
        async for _ in entered.batches:
            pass
        entered.finish_stream()
    assert time() == 5
    assert world.key().gate.paused_until == until  # however long the answer takes


async def test_how_long_answers_take_is_learned_for_hedges_only() -> None:
    for hedge, seen in ((True, [[2.0], [3.0]]), (False, [[], []])):
        script = [Answer(think=2), Answer([3.0, WHOLE, 4.0, DONE])]
        world = make({"one": script}, retry=Retry(hedge=hedge))
        await attempt(world)
        await attempt_stream(world)
        assert [list(starts) for starts in world.upstream().starts] == seen


# -- failures ----------------------------------------------------------------------------------------------------------


async def test_a_failure_is_told_what_only_the_attempt_knows() -> None:
    world = make({"one": [refused(503, x_request_id="r-1")], "two": [refused(400)]}, health=SICK_AT_ONCE)
    call = world.call()
    error = await attempt(world, call)
    assert isinstance(error, InternalServerError)
    assert (error.provider, error.request_id, error.attempts) == ("one", "r-1", tuple(call.attempts))
    assert [(each.kind, each.status, each.request_id) for each in call.attempts] == [("status", 503, "r-1")]
    assert world.key().breaker("gpt-4o").state(time()) == "open"
    assert [exchange.ended for exchange in world.transport.exchanges] == ["finished"]
    await attempt(world, call)
    assert world.key(1).breaker("gpt-4o").state(time()) == "closed"  # a mistake of the caller's
    assert [upstream.provider.name for upstream in call.failures] == ["one", "two"]
    assert world.dispatcher.outcomes == {"status": 2}
    world.assert_idle()


async def test_failures_are_in_the_order_in_which_they_came_last() -> None:
    world = make({"one": [refused(503)], "two": [refused(503), OK]}, retry=Retry(attempts=9, base=0))
    call = world.call()
    await attempt(world, call)
    await attempt(world, call)
    assert [upstream.provider.name for upstream in call.failures] == ["one", "two"]
    await sicken(world, 1)
    await attempt(world, call)
    assert [(upstream.provider.name, call.failures[upstream].times) for upstream in call.failures] == [
        ("two", 1),
        ("one", 2),
    ]


async def test_a_new_connection_where_the_answer_asks_for_one() -> None:
    world = make({"one": [refused(421), broken(APIConnectionError("no")), OK]}, retry=Retry(attempts=9, base=0))
    call = world.call()
    for _ in range(3):
        await attempt(world, call)
    assert [sent.fresh for sent in world.transport.sent] == [False, True, False]


async def test_a_provider_whose_credit_is_used_up_is_left_alone() -> None:
    world = make({"one": [refused(402), OK], "two": [OK]})
    assert isinstance(await attempt(world), InsufficientQuotaError)
    for wait, provider in ((0, "two"), (599, "two"), (1, "one")):
        await asyncio.sleep(wait)
        answer = await attempt(world)
        assert isinstance(answer, ChatCompletion)
        assert answer.provider == provider


QUOTA = json.dumps({"error": {"message": "No.", "code": "insufficient_quota"}}).encode()
RESET = {"x-ratelimit-reset-requests": "30s"}
EMPTY = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "7s"}


@pytest.mark.parametrize(
    ("status", "headers", "least", "most", "bound"),
    [
        (503, {}, 0, 0, 256),
        (503, {"retry-after": "5"}, 5, 5.5, 256),
        (503, EMPTY, 7, 7.7, 256),  # what the headers say is left
        (503, {**EMPTY, "retry-after": "5"}, 5, 5.5, 256),  # Retry-After wins
        (503, {**EMPTY, "retry-after": "0"}, 0, 0, 256),
        (503, {"retry-after": "86400"}, 300, 300, 256),
        (429, {"retry-after": "3"}, 3, 3.5, 179),
        (429, RESET, 30, 33, 179),
        (503, RESET, 0, 0, 256),  # nothing says that none is left
        (429, {}, 0, 1.5, 179),
        (429, {"retry-after": "86400"}, 300, 300, 179),
        (529, {}, 0, 1.5, 256),
        (529, {"retry-after": "4"}, 4, 4.5, 256),
    ],
)
async def test_the_cool_down(status: int, headers: Mapping[str, str], least: float, most: float, bound: int) -> None:
    world = make({"one": [Answer([b"{}"], status, headers)]})
    await attempt(world)
    gate = world.key().gate
    assert least <= gate.pause_left(time()) <= most
    assert gate.bound == bound


async def test_who_waits_for_the_place_meets_the_cool_down() -> None:
    world = make({"one": [Answer([b"{}"], 429, {"retry-after": "30"}, think=1), OK]}, limits=Limits(1))
    first, second = (asyncio.create_task(attempt(world)) for _ in range(2))
    assert isinstance(await first, RateLimitError)
    assert isinstance(await second, ChatCompletion)
    assert world.transport.sent[0].at == 0
    assert 31 <= world.transport.sent[1].at <= 34


@pytest.mark.parametrize("answer", [Answer([QUOTA], 429), broken(APIConnectionError("no"))])
async def test_no_cool_down(answer: Answer) -> None:
    world = make({"one": [answer]})
    await attempt(world)
    assert (world.key().gate.pause_left(time()), world.key().gate.bound) == (0, 256)


async def test_an_error_object_in_a_200_that_means_too_many_requests_narrows_too() -> None:
    limited = json.dumps({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}).encode()
    world = make({"one": [Answer([limited])]})
    assert isinstance(await attempt(world), RateLimitError)
    assert (world.key().gate.bound, [exchange.ended for exchange in world.transport.exchanges]) == (179, ["finished"])


async def test_the_backoff_of_a_throttle_grows_with_each_of_a_call() -> None:
    longest = [0.0] * 4
    retry = Retry(attempts=9, throttle_base=8, throttle_cap=1000, budget=1000)
    world = make({"one": [refused(429)]}, retry=retry)
    for _ in range(200):
        call = world.call()
        for i in range(4):
            await attempt(world, call)
            longest[i] = max(longest[i], world.key().gate.pause_left(time()))
        await asyncio.sleep(1000)
    for i, seconds in enumerate(longest):
        assert 0.85 * 8 * 2**i < seconds <= 1.1 * 8 * 2**i + 10


async def test_x_should_retry() -> None:
    world = make({"one": [refused(503, x_should_retry="false")]})
    call = world.call()
    error = await attempt(world, call)
    with pytest.raises(InternalServerError) as caught:
        await attempt(world, call)
    assert caught.value is error
    world = make({"one": [refused(400, x_should_retry="true"), OK]}, retry=NO_WAIT)
    call = world.call()
    await attempt(world, call)
    assert isinstance(await attempt(world, call), ChatCompletion)


async def test_a_name_that_is_nearly_right() -> None:
    world = make({"one": [refused(404)]})
    call = world.call()
    call.model = "gpt-4o-mni"
    error = await attempt(world, call)
    assert isinstance(error, NotFoundError)
    assert "did you mean 'gpt-4o-mini'?" in str(error)


@pytest.mark.parametrize("body", [[APIConnectionError("no", kind="truncated body")], [1000.0, b"{}"]])
async def test_a_broken_body_takes_nothing_from_the_status(body: list[float | bytes | APIError]) -> None:
    world = make({"one": [Answer(body, 503, {"retry-after": "1"})]})
    error = await attempt(world)
    assert isinstance(error, InternalServerError)
    assert (error.retry_after, time() <= ERROR_BODY_SECONDS) == (1, True)
    assert [exchange.ended for exchange in world.transport.exchanges] == ["closed"]
    world.assert_idle()


@pytest.mark.parametrize(
    ("timer", "answer", "stream", "seconds"),
    [
        ("total", Answer(think=1e6), False, 600),
        ("progress", Answer([1e6]), False, 60),
        ("first_event", Answer(think=1e6), True, 120),
        ("first_event", Answer([1e6]), True, 120),
        ("progress", Answer([WHOLE, 1e6]), True, 60),
    ],
)
async def test_the_timers(timer: str, answer: Answer, stream: bool, seconds: float) -> None:
    world = make({"one": [answer]})
    error = await (attempt_stream(world) if stream else attempt(world))
    assert isinstance(error, APITimeoutError)
    assert (error.kind, time()) == (timer, seconds)
    assert world.transport.open == set()


# -- streams that fail -------------------------------------------------------------------------------------------------


async def test_a_stream_that_breaks_off_has_told_its_text() -> None:
    world = make({"one": [Answer([chunk("Hel")])]}, health=SICK_AT_ONCE, budget=5 * WORST)
    call = world.call(stream=True, live=True)
    error = await attempt_stream(world, call)
    assert isinstance(error, StreamTruncatedError)
    assert (error.partial, error.committed, error.maybe_billed) == ("Hel", True, True)
    assert call.interrupted is error
    assert [exchange.ended for exchange in world.transport.exchanges] == ["closed"]
    assert world.books.unknown == WORST
    assert world.key().breaker("gpt-4o").state(time()) == "open"
    world.assert_idle()


async def test_a_stream_that_breaks_off_before_any_text_commits_to_nothing() -> None:
    world = make({"one": [Answer([chunk("")])]})
    call = world.call(stream=True)
    error = await attempt_stream(world, call)
    assert isinstance(error, StreamTruncatedError)
    assert (error.partial, error.committed, error.maybe_billed, call.interrupted) == ("", False, True, None)


async def test_an_error_object_in_a_stream_counts_as_billed_once_chunks_have_come() -> None:
    refusal = b'data: {"error": {"message": "no", "code": "server_error"}}\n\n'
    for pieces, billed in (([refusal], False), ([chunk("") + refusal], True)):
        world = make({"one": [Answer(pieces)]}, budget=5 * WORST)
        error = await attempt_stream(world)
        assert isinstance(error, APIError)
        assert (error.maybe_billed, world.books.unknown) == (billed, WORST * billed)


async def test_a_stream_without_a_finish_reason_where_one_is_required() -> None:
    for required in (True, False):
        world = make({"one": [Answer([chunk("Hel") + DONE])]}, require_finish_reason=required)
        assert isinstance(await attempt_stream(world), StreamTruncatedError) == required


# -- what an attempt may have cost -------------------------------------------------------------------------------------


CASES: list[tuple[Answer, bool]] = [
    (refused(503), False),
    (refused(504), True),
    (broken(APIConnectionError("no", kind="connect")), False),
    (broken(APIConnectionError("no", kind="reset", maybe_billed=True)), True),
    (Answer([b"<html>"]), True),
    (Answer(connect=1000), False),
    (Answer(think=1000), True),
]


@pytest.mark.parametrize("budget", [None, 5 * WORST])
@pytest.mark.parametrize(("answer", "billed"), CASES)
async def test_what_a_failed_attempt_may_have_cost(answer: Answer, billed: bool, budget: int | None) -> None:
    world = make({"one": [answer]}, budget=budget)
    error = await attempt(world)
    assert isinstance(error, APIError)
    assert error.maybe_billed == billed
    assert (world.books.unknown > 0) == billed
    world.assert_idle()


@pytest.mark.parametrize("budget", [None, 5 * WORST])
@pytest.mark.parametrize(("answer", "billed"), [(Answer(connect=9), False), (Answer(think=9), True)])
async def test_what_an_abandoned_attempt_may_have_cost(answer: Answer, billed: bool, budget: int | None) -> None:
    world = make({"one": [answer]}, budget=budget)
    call = world.call()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await attempt(world, call)
    assert (world.books.unknown > 0) == billed
    assert [each.kind for each in call.attempts] == ["cancelled"]
    assert world.dispatcher.outcomes == {"cancelled": 1}
    world.assert_idle()


# -- a kept connection that was closed ---------------------------------------------------------------------------------


def stale() -> Answer:
    return broken(APIConnectionError("closed", kind="stale", maybe_billed=True), think=1)


async def test_a_stale_connection_is_made_good_once_a_call() -> None:
    world = make({"one": [stale(), OK]}, budget=5 * WORST)
    call = world.call()
    assert isinstance(await attempt(world, call), ChatCompletion)
    assert [sent.fresh for sent in world.transport.sent] == [False, True]
    assert [sent.headers["X-Attempt"] for sent in world.transport.sent if "X-Attempt" in sent.headers][-1] == "2"
    assert [(each.kind, each.status, each.started, each.latency) for each in call.attempts] == [
        ("stale", None, 0, 1),
        ("ok", 200, 1, 0),
    ]
    assert (call.begun, call.sent, world.books.unknown) == (1, 2, 0)
    world = make({"one": [stale()]}, budget=5 * WORST)
    call = world.call()
    error = await attempt(world, call)
    assert isinstance(error, APIConnectionError)
    assert (error.kind, error.maybe_billed, world.books.unknown) == ("stale", True, WORST)
    assert [each.kind for each in call.attempts] == ["stale", "stale"]
    world.assert_idle()


async def test_a_resend_that_is_not_sent_owes_nothing() -> None:
    """What went out on the stale connection reached nobody, and the resend did not get so far."""
    world = make({"one": [stale(), Answer(connect=9)]}, budget=5 * WORST)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await attempt(world)
    assert len(world.transport.sent) == 2
    assert world.books.unknown == 0
    world.assert_idle()


async def test_a_resend_is_no_failure_of_the_provider() -> None:
    world = make({"one": [stale(), OK]}, health=SICK_AT_ONCE)
    await attempt(world)
    assert world.key().breaker("gpt-4o").state(time()) == "closed"


# -- probes ------------------------------------------------------------------------------------------------------------


async def half_open(world: World) -> None:
    """Let the first provider fail once, and wait until it may be probed."""
    await attempt(world)
    await asyncio.sleep(5)
    assert world.key().breaker("gpt-4o").state(time()) == "half-open"


async def test_a_probe_takes_the_only_place_until_it_ends() -> None:
    world = make({"one": [refused(503), OK]}, health=SICK_AT_ONCE)
    await half_open(world)
    async with AttemptInFlight(world.dispatcher, world.call()) as entered:
        assert not world.key().admits("gpt-4o", time())
        await entered.complete()
    assert world.key().admits("gpt-4o", time())
    world.assert_idle()


async def test_an_abandoned_probe_gives_its_place_back() -> None:
    world = make({"one": [refused(503), Answer(think=9)]}, health=SICK_AT_ONCE)
    await half_open(world)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await attempt(world)
    assert world.key().breaker("gpt-4o").state(time()) == "half-open"
    world.assert_idle()


async def test_a_streaming_probe_is_good_with_its_first_event() -> None:
    slow = Answer([0.5, chunk("Hel"), 0.5, chunk("lo!", "stop") + DONE])
    world = make({"one": [refused(503), slow, slow, slow, refused(503)]}, health=SICK_AT_ONCE)
    await half_open(world)
    breaker = world.key().breaker("gpt-4o")

    async def begin() -> AttemptInFlight:
        """A stream that has had its first event, and goes on."""
        entered = await AttemptInFlight(world.dispatcher, world.call(stream=True)).__aenter__()
        await entered.open_stream()
        await anext(entered.batches)
        entered.note_first_event()
        assert entered.first_event == 0.5
        return entered

    first = await begin()
    assert breaker.admits(time())  # while the first one goes on
    assert breaker.state(time()) == "half-open"
    second = await begin()
    assert breaker.state(time()) == "closed"
    third = await begin()  # no probe: it counts when it ends
    for entered in (first, second, third):
        async for _ in entered.batches:
            pass
        entered.finish_stream()
        await entered.__aexit__(None, None, None)
    assert breaker.state(time()) == "closed"
    await attempt(world)
    assert breaker.state(time()) == "open"  # the next failure counts as before
    world.assert_idle()


async def test_a_streaming_probe_counts_once() -> None:
    world = make({"one": [refused(503), STREAM]}, health=SICK_AT_ONCE)
    await half_open(world)
    for state in ("half-open", "closed"):
        assert isinstance(await attempt_stream(world), ChatCompletion)
        assert world.key().breaker("gpt-4o").state(time()) == state


async def test_a_streaming_probe_that_breaks_off_after_its_first_event_is_a_failure() -> None:
    world = make({"one": [refused(503), Answer([chunk("Hel")])]}, health=SICK_AT_ONCE)
    await half_open(world)
    assert isinstance(await attempt_stream(world), StreamTruncatedError)
    assert world.key().breaker("gpt-4o").state(time()) == "half-open"  # the probe was good; it was told so
    world.assert_idle()


# -- leaving -----------------------------------------------------------------------------------------------------------


async def test_it_ends_once() -> None:
    world = make({"one": [OK]}, budget=5 * WORST)
    call = world.call()
    async with AttemptInFlight(world.dispatcher, call) as entered:
        await entered.complete()
        entered.end()
        entered.end()
        entered.end(APIResponseError("no"))
    assert ([each.kind for each in call.attempts], call.failures) == (["ok"], {})
    world.assert_idle()


async def test_an_answer_that_its_caller_leaves_behind_is_no_answer() -> None:
    """It has come whole, and yet whoever asked left by an error of his own before he had it."""
    world = make({"one": [OK]}, budget=5 * WORST)
    with pytest.raises(ZeroDivisionError):
        async with AttemptInFlight(world.dispatcher, world.call()) as entered:
            await entered.complete()
            raise ZeroDivisionError
    assert world.books.unknown == WORST
    world.assert_idle()


def raise_mine(*_: object) -> int:
    raise ZeroDivisionError("mine")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hook_before_sending_that_raises(stream: bool) -> None:
    world = make({"one": [STREAM if stream else OK]}, budget=5 * WORST)
    call = world.call(stream=stream, on_send=raise_mine)
    with pytest.raises(ZeroDivisionError, match="mine"):
        await (attempt_stream if stream else attempt)(world, call)
    assert (world.sent_to(), world.books.taken) == ([], 0)
    assert call.failures == {}
    world.assert_idle()


async def test_a_hook_before_sending_that_raises_at_the_resend() -> None:
    world = make({"one": [stale()]}, budget=5 * WORST)

    def hook() -> None:
        if world.transport.sent:
            raise_mine()

    with pytest.raises(ZeroDivisionError, match="mine"):
        await attempt(world, world.call(on_send=hook))
    assert len(world.transport.sent) == 1
    assert world.books.taken == 0  # what went out reached nobody
    world.assert_idle()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tokenizer_that_raises_at_the_end_of_an_answer_without_usage(stream: bool) -> None:
    script: Iterable[Answer] = [STREAM if stream else Answer([completion(usage=None)])]
    world = make({"one": script}, budget=5 * WORST, tokenizer=raise_mine, health=SICK_AT_ONCE)
    call = world.call(stream=stream)
    with pytest.raises(ZeroDivisionError, match="mine"):
        await (attempt_stream if stream else attempt)(world, call)
    assert world.books.unknown == WORST  # it was sent, and answered
    assert call.failures == {}
    assert world.key().breaker("gpt-4o").state(time()) == "closed"
    world.assert_idle()


async def test_a_stream_that_is_entered_late_has_its_whole_time() -> None:
    """Its timers count from the request, not from the moment at which the caller made the stream."""
    world = make({"one": [Answer(think=100, pieces=[WHOLE + DONE])]})
    call = world.call(stream=True)
    await asyncio.sleep(100)
    answer = await attempt_stream(world, call)
    assert isinstance(answer, ChatCompletion)
    (record,) = answer.attempts
    assert (record.started, record.time_to_first_token) == (100, 100)


async def test_each_try_of_a_call_has_its_number_and_the_calls_one_id() -> None:
    world = make({"one": [refused(503), OK]}, retry=NO_WAIT, stream_usage=True)
    call = world.call(stream=False)
    await attempt(world, call)
    await attempt(world, call)
    first, second = world.transport.sent
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"] == "key-1"
    assert (first.headers.get("X-Attempt", "1"), second.headers["X-Attempt"]) == ("1", "2")
    assert first.body == second.body
