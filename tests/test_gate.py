"""The gate: first come, first served; nothing lost by a cancel; no minute above its limits."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left
from collections.abc import Awaitable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async import APIConnectionError, APITimeoutError, Limits
from piapi_async.gate import BURST, Gate
from piapi_async.policy import NEVER, Deadline, Timer

pytestmark = pytest.mark.anyio


class Clock:
    """A time that the test sets."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class NoChance(random.Random):
    """Always the lowest."""

    def uniform(self, a: float, b: float) -> float:
        return a


def make_gate(clock: Clock | None = None, **limits: Any) -> Gate:
    return Gate("piapi", Limits(**limits), NoChance(), clock or Clock())


def in_ms(milliseconds: float, timer: Timer = "pool") -> Deadline:
    return Deadline().or_within(anyio.current_time(), timer, milliseconds / 1000)


async def settle() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


async def started(what: Awaitable[Any]) -> asyncio.Task[Any]:
    """Start a task and let it come to its wait."""
    task = asyncio.ensure_future(what)
    await settle()
    assert isinstance(task, asyncio.Task)
    return task


def assert_empty(gate: Gate) -> None:
    assert (gate.in_flight, gate.queued) == (0, 0)


# -- places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 5])
async def test_first_come_first_served(width: int) -> None:
    gate = Gate("piapi", Limits(width))
    order: list[int] = []
    most = 0

    async def call(number: int) -> None:
        nonlocal most
        assert await gate.enter(Deadline())
        order.append(number)
        most = max(most, gate.in_flight)
        await anyio.lowlevel.checkpoint()
        gate.leave()

    async with anyio.create_task_group() as group:
        for number in range(30):
            group.start_soon(call, number)
    assert order == list(range(30))
    assert most == width
    assert_empty(gate)


async def test_a_free_place_is_taken_without_waiting() -> None:
    gate = Gate("piapi", Limits(2))
    coming = gate.enter(Deadline())
    with pytest.raises(StopIteration) as done:
        coming.send(None)
    assert done.value.value is True
    assert gate.in_flight == 1


async def test_who_comes_later_does_not_overtake() -> None:
    gate = Gate("piapi", Limits(1))
    await gate.enter(Deadline())
    first = await started(gate.enter(Deadline()))
    gate.leave()  # a place is free now, but it is the first's
    late = asyncio.ensure_future(gate.enter(Deadline()))
    await first
    await settle()
    assert not late.done()
    assert (gate.in_flight, gate.queued) == (1, 1)
    gate.leave()
    await late
    gate.leave()
    assert_empty(gate)


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timer", ["pool", "deadline"])
async def test_a_wait_that_is_too_long(timer: Timer) -> None:
    gate = Gate("piapi", Limits(1))
    await gate.enter(Deadline())
    with pytest.raises(APITimeoutError, match="piapi") as raised:
        await gate.enter(in_ms(5, timer))
    assert (raised.value.kind, raised.value.maybe_billed) == (timer, False)
    assert raised.value.__context__ is None
    assert (gate.in_flight, gate.queued) == (1, 0)


async def test_a_moment_that_has_passed() -> None:
    gate = Gate("piapi", Limits(1))
    assert await gate.enter(in_ms(-5))  # a free place costs no time
    with pytest.raises(APITimeoutError):
        await gate.enter(in_ms(-5))
    assert (gate.in_flight, gate.queued) == (1, 0)


async def test_the_first_gives_up_and_the_second_goes_on() -> None:
    gate = Gate("piapi", Limits(1))
    await gate.enter(Deadline())
    first = await started(gate.enter(in_ms(5)))
    second = await started(gate.enter(Deadline()))
    with pytest.raises(APITimeoutError):
        await first
    gate.leave()
    assert await second
    gate.leave()
    assert_empty(gate)


# -- cancelling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", range(5))
async def test_a_waiter_that_is_cancelled_leaves_the_queue(position: int) -> None:
    gate = Gate("piapi", Limits(1))
    await gate.enter(Deadline())
    waiters = [await started(gate.enter(Deadline())) for _ in range(5)]
    waiters[position].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiters[position]
    assert (gate.in_flight, gate.queued) == (1, 4)
    for waiter in waiters[:position] + waiters[position + 1 :]:
        gate.leave()
        assert await waiter
    gate.leave()
    assert_empty(gate)


@pytest.mark.parametrize("steps", range(6))
async def test_a_place_that_comes_with_the_cancel_is_not_lost(steps: int) -> None:
    """The first is cancelled just after its turn came: it has the place and gives it back, or the second has it."""
    gate = Gate("piapi", Limits(1))
    await gate.enter(Deadline())

    async def call() -> None:
        await gate.enter(Deadline())
        try:
            await anyio.sleep_forever()
        finally:
            gate.leave()

    first = await started(call())
    second = await started(gate.enter(Deadline()))
    gate.leave()
    for _ in range(steps):
        await anyio.lowlevel.checkpoint()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await asyncio.wait_for(second, 5)
    gate.leave()
    assert_empty(gate)


async def test_who_gives_up_stands_in_nobodys_way() -> None:
    """The first in the queue waits for many tokens; when it leaves, the next one, who needs few, need not."""
    gate = Gate("piapi", Limits(tokens_per_minute=600))
    await gate.enter(Deadline(), 58)
    first = await started(gate.enter(Deadline(), 60))
    second = await started(gate.enter(Deadline(), 1))
    assert not second.done()
    first.cancel()
    assert await asyncio.wait_for(second, 1)  # the first one's tokens would take six seconds
    assert first.cancelled()


async def test_everybody_is_cancelled() -> None:
    gate = Gate("piapi", Limits(1))
    await gate.enter(Deadline())
    with anyio.move_on_after(0.005):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(gate.enter, Deadline())
    gate.leave()
    assert_empty(gate)
    assert await gate.enter(Deadline())


@given(
    steps=st.lists(st.tuples(st.sampled_from(["call", "end", "cancel", "run"]), st.integers(0, 9)), max_size=60),
    width=st.integers(1, 3),
)
def test_property_no_place_is_lost(steps: list[tuple[str, int]], width: int) -> None:
    async def run() -> None:
        gate = Gate("piapi", Limits(width))
        ends: list[asyncio.Event] = []
        tasks: list[asyncio.Task[None]] = []

        async def call(end: asyncio.Event) -> None:
            assert await gate.enter(Deadline())
            try:
                assert gate.in_flight <= width
                await end.wait()
            finally:
                gate.leave()

        for what, which in steps:
            if what == "call":
                ends.append(asyncio.Event())
                tasks.append(asyncio.create_task(call(ends[-1])))
            elif what == "run":
                await asyncio.sleep(0)
            elif tasks:
                which %= len(tasks)
                tasks[which].cancel() if what == "cancel" else ends[which].set()
        for end in ends:
            end.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() or task.exception() is None for task in tasks)
        assert_empty(gate)

    asyncio.run(run())


# -- limits by the minute ----------------------------------------------------------------------------------------------


async def take_at_the_earliest(gate: Gate, clock: Clock, tokens: float, seconds: float) -> list[float]:
    """Take a place whenever one opens, and give it back at once; the moments."""
    start = clock.now
    moments: list[float] = []
    while (at := gate.opens_at(tokens, clock.now)) <= start + seconds:
        assert at < NEVER
        clock.now = max(clock.now, at)
        if gate.opens_at(tokens, clock.now) > clock.now:
            continue
        assert await gate.enter(Deadline(), tokens)
        moments.append(clock.now)
        gate.leave()
    return moments


def most_in_a_minute(moments: list[float]) -> int:
    return max(bisect_left(moments, start + 60) - i for i, start in enumerate(moments))


@pytest.mark.parametrize("per_minute", [0.5, 1, 3, 10, 12.5, 60, 600])
async def test_no_minute_holds_more_requests(per_minute: float) -> None:
    clock = Clock()
    gate = make_gate(clock, requests_per_minute=per_minute)
    moments = await take_at_the_earliest(gate, clock, 0, 600)
    assert most_in_a_minute(moments) <= max(1, per_minute)
    # Ten minutes of it; a burst is taken off the flow.
    assert len(moments) >= (0.9 if per_minute > 10 else 1) * per_minute * 10 * 0.99


@pytest.mark.parametrize(("per_minute", "tokens"), [(1000, 10), (1000, 99.5), (1000, 333), (90_000, 500)])
async def test_no_minute_holds_more_tokens(per_minute: float, tokens: float) -> None:
    clock = Clock()
    gate = make_gate(clock, tokens_per_minute=per_minute)
    moments = await take_at_the_earliest(gate, clock, tokens, 600)
    assert most_in_a_minute(moments) * tokens <= max(per_minute, tokens)
    assert len(moments) * tokens >= 0.8 * per_minute * 10 * 0.9
    assert gate.counts_tokens


async def test_a_request_larger_than_the_bucket_passes_when_it_is_full_and_is_owed() -> None:
    clock = Clock()
    gate = make_gate(clock, tokens_per_minute=600)
    assert gate.opens_at(10_000, clock.now) == clock.now
    assert await gate.enter(Deadline(), 10_000)
    gate.leave()
    assert gate.opens_at(1, clock.now) > clock.now + 10_000 / 600 * 60


async def test_what_was_not_used_is_given_back() -> None:
    clock = Clock()
    gate = make_gate(clock, tokens_per_minute=600)
    await gate.enter(Deadline(), 60)
    assert gate.opens_at(60, clock.now) > clock.now
    gate.correct_tokens(60, 0)
    assert gate.opens_at(60, clock.now) == clock.now
    gate.correct_tokens(0, 60)
    assert gate.opens_at(60, clock.now) > clock.now
    gate.correct_tokens(0, -(10**9))  # no more than the bucket holds
    assert gate.opens_at(60, clock.now) == clock.now
    await gate.enter(Deadline(), 60)
    assert gate.opens_at(1, clock.now) > clock.now


async def test_settling_without_a_limit() -> None:
    gate = make_gate()
    gate.correct_tokens(100, 5)
    assert not gate.counts_tokens
    assert gate.opens_at(10**9, 1000.0) == 1000.0


async def test_what_is_given_back_wakes_the_first() -> None:
    gate = Gate("piapi", Limits(tokens_per_minute=60))
    await gate.enter(Deadline(), 6)
    waiting = await started(gate.enter(Deadline(), 6))
    assert not waiting.done()
    gate.correct_tokens(6, 0)
    assert await waiting
    assert gate.in_flight == 2


async def test_the_minutes_limit_is_waited_for() -> None:
    gate = Gate("piapi", Limits(requests_per_minute=60_000))
    began = anyio.current_time()
    for _ in range(6_010):
        assert await gate.enter(Deadline())
        gate.leave()
    assert anyio.current_time() - began >= 10 / 900 * 0.9


# -- cool-downs --------------------------------------------------------------------------------------------------------


async def test_nobody_passes_in_a_pause() -> None:
    clock = Clock()
    gate = make_gate(clock)
    assert gate.pause_left(clock.now) == 0
    gate.pause(5)
    assert gate.pause_left(clock.now) == 5
    assert gate.opens_at(0, clock.now) == clock.now + 5
    gate.pause(2)  # a longer pause stands
    assert gate.pause_left(clock.now) == 5
    gate.pause(900, most=300)
    assert gate.pause_left(clock.now) == 300
    clock.now += 300
    assert gate.pause_left(clock.now) == 0
    assert gate.opens_at(0, clock.now) == clock.now
    clock.now += 1000
    assert gate.pause_left(clock.now) == 0


@pytest.mark.parametrize(("seconds", "most"), [(0.1, 0.2), (1, 1.5), (4, 4.5), (10, 11), (300, 330), (0, 0)])
def test_a_pause_is_jittered_upwards(seconds: float, most: float) -> None:
    clock = Clock()
    lefts: list[float] = []
    for seed in range(300):
        gate = Gate("piapi", Limits(), random.Random(seed), clock)
        gate.pause(seconds)
        lefts.append(gate.pause_left(clock.now))
    # Sums with the clock round off a little.
    assert seconds - 1e-9 <= min(lefts) <= seconds + 0.1 * (most - seconds)
    assert most - 0.1 * (most - seconds) <= max(lefts) + 1e-9 <= most + 2e-9


async def test_a_pause_is_waited_for() -> None:
    gate = Gate("piapi", Limits())
    gate.pause(0.01)
    began = anyio.current_time()
    assert await gate.enter(Deadline())
    assert anyio.current_time() - began >= 0.01


@pytest.mark.parametrize("max_pause", [0, 1, 4.9])
async def test_a_pause_that_is_not_worth_the_wait(max_pause: float) -> None:
    clock = Clock()
    gate = make_gate(clock)
    gate.pause(5)
    assert not await gate.enter(Deadline(), max_pause=max_pause)
    assert_empty(gate)


async def test_a_pause_that_comes_while_waiting() -> None:
    """All look at it anew: the one with patience stays, the other goes."""
    gate = Gate("piapi", Limits(1))
    await gate.enter(Deadline())
    patient = await started(gate.enter(Deadline(), max_pause=1))
    hasty = await started(gate.enter(Deadline(), max_pause=0.001))
    gate.pause(0.02)
    assert not await hasty
    gate.leave()
    assert await patient
    gate.leave()
    assert_empty(gate)


async def test_after_a_pause_the_width_grows_from_one() -> None:
    clock = Clock()
    gate = make_gate(clock, concurrency=10, ramp=2)
    for _ in range(3):
        await gate.enter(Deadline())
    gate.pause(5)
    clock.now += 5
    assert gate.opens_at(0, clock.now) == pytest.approx(clock.now + 2 * 3 / 10)
    for _ in range(3):
        gate.leave()
    await gate.enter(Deadline())
    assert gate.opens_at(0, clock.now) == pytest.approx(clock.now + 0.2)
    clock.now += 0.21
    assert gate.opens_at(0, clock.now) == clock.now
    clock.now += 2
    for _ in range(9):
        assert await gate.enter(Deadline())
    assert gate.opens_at(0, clock.now) == NEVER


# -- 429 ---------------------------------------------------------------------------------------------------------------


async def test_a_429_narrows_and_good_answers_widen() -> None:
    clock = Clock()
    gate = make_gate(clock, concurrency=10)
    gate.throttle(1)
    assert (gate.bound, gate.pause_left(clock.now)) == (7, 1)
    gate.throttle(3)  # once a second at most; its pause counts all the same
    assert (gate.bound, gate.pause_left(clock.now)) == (7, 3)
    clock.now += 1
    gate.throttle(0)
    assert gate.bound == 4
    for _ in range(10):
        clock.now += 1
        gate.throttle(0)
    assert gate.bound == 1
    gate.widen()
    assert gate.bound == 2
    gate.widen()
    assert gate.bound == 2
    gate.widen()
    assert gate.bound == 3
    for _ in range(1000):
        gate.widen()
    assert gate.bound == 10


async def test_a_429_begins_the_count_of_good_answers_anew() -> None:
    clock = Clock()
    gate = make_gate(clock, concurrency=10, decrease=0.2)
    gate.throttle(0)
    gate.widen()
    gate.throttle(0)
    gate.widen()
    assert gate.bound == 2
    gate.widen()
    assert gate.bound == 3


async def test_a_narrower_gate_lets_those_inside_finish() -> None:
    clock = Clock()
    gate = make_gate(clock, concurrency=4, decrease=0.5, ramp=0)
    for _ in range(4):
        await gate.enter(Deadline())
    gate.throttle(0)
    assert gate.bound == 2
    gate.leave()
    gate.leave()
    assert gate.opens_at(0, clock.now) == NEVER
    gate.leave()
    assert gate.opens_at(0, clock.now) == clock.now


async def test_a_wider_gate_wakes_the_first() -> None:
    clock = Clock()
    gate = make_gate(clock, concurrency=2, decrease=0.5, ramp=0)
    gate.throttle(0)
    await gate.enter(Deadline())
    waiting = await started(gate.enter(Deadline()))
    assert not waiting.done()
    gate.widen()
    assert await waiting


# -- bursts ------------------------------------------------------------------------------------------------------------


async def passes_by_turn(gate: Gate, callers: int) -> list[int]:
    """In which turn of the event loop each of so many callers, who come at once, passes; in the order they came."""
    loop = asyncio.get_running_loop()
    turn = 0
    turns: list[int] = []

    def count() -> None:
        nonlocal turn
        turn += 1
        if len(turns) < callers:
            loop.call_soon(count)

    async def call() -> None:
        assert await gate.enter(Deadline())
        turns.append(turn)

    loop.call_soon(count)
    await asyncio.gather(*(call() for _ in range(callers)))
    return turns


async def test_a_burst_is_spread_over_the_turns_of_the_loop() -> None:
    gate = Gate("piapi", Limits(concurrency=10 * BURST))
    turns = await passes_by_turn(gate, 3 * BURST + 1)
    assert turns == sorted(turns)  # first come, first served
    sizes = [turns.count(turn) for turn in sorted(set(turns))]
    assert sizes == [BURST, BURST, BURST, 1]
    assert turns[-1] - turns[0] <= 8  # and nobody waits for a timer
    assert gate.in_flight == 3 * BURST + 1


async def test_a_gate_that_is_no_wider_needs_no_spreading() -> None:
    gate = Gate("piapi", Limits(concurrency=BURST))
    assert set(await passes_by_turn(gate, BURST)) == {1}


async def test_who_needs_no_wait_counts_as_part_of_a_burst() -> None:
    gate = Gate("piapi", Limits(concurrency=10 * BURST))
    now = anyio.current_time()
    assert [gate.try_enter(0, now) for _ in range(BURST + 1)] == [True] * BURST + [False]
    await asyncio.sleep(0)
    assert gate.try_enter(0, now)


async def test_a_place_in_a_burst_that_comes_with_the_cancel_is_not_lost() -> None:
    """All are admitted by the turn of the loop in which they are cancelled; none of them runs before that."""
    gate = Gate("piapi", Limits(concurrency=10 * BURST))
    calls = [asyncio.ensure_future(gate.enter(Deadline())) for _ in range(BURST + 5)]
    await asyncio.sleep(0)
    late = calls[BURST:]
    assert gate.queued == 5
    while gate.queued:
        await asyncio.sleep(0)
    assert gate.in_flight == BURST + 5
    assert not any(task.done() for task in late)  # they have their places, and do not know it yet
    for task in late:
        task.cancel()
    await asyncio.wait(late)
    assert all(task.cancelled() for task in late)
    assert gate.in_flight == BURST


async def test_a_caller_that_is_thrown_away_gives_its_place_back() -> None:
    """As a task does whose loop has ended: its coroutine is closed without a cancellation."""
    gate = Gate("piapi", Limits(1))
    await gate.enter(Deadline())
    waiting, admitted = gate.enter(Deadline()), gate.enter(Deadline())
    for coroutine in (waiting, admitted):
        coroutine.send(None)
    waiting.close()
    assert (gate.in_flight, gate.queued) == (1, 1)
    gate.leave()
    assert (gate.in_flight, gate.queued) == (1, 0)
    admitted.close()
    assert_empty(gate)


# -- closing -----------------------------------------------------------------------------------------------------------


async def test_those_that_wait_are_sent_away_when_the_client_closes() -> None:
    gate = Gate("piapi", Limits(1))
    await gate.enter(Deadline())
    waiters = [await started(gate.enter(Deadline())) for _ in range(3)]
    gate.close()
    for waiter in waiters:
        with pytest.raises(APIConnectionError, match="piapi") as raised:
            await asyncio.wait_for(waiter, 5)
        assert (raised.value.kind, raised.value.maybe_billed) == ("closed", False)
    assert (gate.in_flight, gate.queued) == (1, 0)


def test_a_closed_gate_opens_again_on_another_loop() -> None:
    gate = Gate("piapi", Limits(concurrency=2 * BURST, requests_per_minute=10 * 60_000))

    async def use() -> None:
        gate.pause(0.005)
        waiter = await started(gate.enter(Deadline()))  # with a timer, that ends its pause
        gate.close()
        with pytest.raises(APIConnectionError):
            await waiter
        await asyncio.sleep(0.01)
        for _ in range(BURST):
            assert await gate.enter(in_ms(1000))
            gate.leave()
        gate.close()

    for _ in range(2):
        asyncio.run(use())
    assert_empty(gate)


def test_a_closed_gate_has_forgotten_a_loop_that_broke_off() -> None:
    """As by Ctrl-C, in a burst."""
    gate = Gate("piapi", Limits(concurrency=10 * BURST))

    async def interrupted() -> None:
        for _ in range(BURST):
            assert await gate.enter(Deadline())
            gate.leave()
        raise KeyboardInterrupt

    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(interrupted())
    loop.close()
    gate.close()

    async def again() -> None:
        assert await asyncio.wait_for(gate.enter(Deadline()), 5)

    asyncio.run(again())


async def test_what_ends_at_once_is_not_admitted() -> None:
    """A place is given back while the first in the queue has been cancelled, but has not run since."""
    gate = Gate("piapi", Limits(1))
    await gate.enter(Deadline())
    first, second = [await started(gate.enter(Deadline())) for _ in range(2)]
    first.cancel()
    gate.leave()
    assert await second
    assert first.cancelled()
    gate.leave()
    assert_empty(gate)


async def test_those_who_leave_at_the_same_moment_are_not_told_twice() -> None:
    gate = Gate("piapi", Limits(1))
    await gate.enter(Deadline())
    for happen in (gate.close, lambda: gate.pause(60)):
        waiter = await started(gate.enter(Deadline(), max_pause=1))
        waiter.cancel()
        happen()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    assert (gate.in_flight, gate.queued) == (1, 0)


def test_load_counts_those_that_wait() -> None:
    async def run() -> None:
        gate = Gate("piapi", Limits(1))
        assert gate.callers == 0
        await gate.enter(Deadline())
        await started(gate.enter(Deadline()))
        assert gate.callers == 2
        gate.close()

    asyncio.run(run())
