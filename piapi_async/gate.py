"""May I send now? One gate per provider and key, shared by all callers. First come, first served; nobody polls.

What decides is `Gate.opens_at`, a pure function of the state and the time: the moment at which a caller with so many
tokens may pass. `Gate._admit` hands places to those in the queue, in one step without an await, whenever that moment
may have come. So a caller that is cancelled leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Literal, TypeAlias

import attrs

from piapi_async.errors import APIConnectionError
from piapi_async.policy import NEVER, Deadline, Limits, timed_out

__all__ = ["BURST", "Gate"]

BURST = 256
"""Most callers that pass in one turn of the event loop. Thousands of requests that begin at once would keep the loop so
busy that their connections, though made, are not looked at before the connect timer is over (ours)."""


@attrs.define(eq=False, repr=False, slots=False)
class _Bucket:
    """At most `per_minute` of something in any 60 seconds.

    A tenth of it (at least one) may go at once; the rest flows in evenly, so that no window of a minute holds more.
    """

    per_minute: float
    capacity: float = attrs.field(init=False)
    rate: float = attrs.field(init=False)
    _level: float = attrs.field(init=False)
    _at: float = attrs.field(init=False, default=-NEVER)

    def __attrs_post_init__(self) -> None:
        self._level = self.capacity = min(self.per_minute, max(1.0, self.per_minute / 10))
        # One at a time needs even spacing only; a burst must be taken off what flows in during the same minute.
        self.rate = (self.per_minute if self.capacity <= 1 else self.per_minute - self.capacity) / 60

    def opens_at(self, amount: float, now: float) -> float:
        """When `amount` may pass; what is larger than the whole capacity passes when that is full, and is owed."""
        lacks = min(amount, self.capacity) - self._level_at(now)
        return now if lacks <= 1e-9 else now + lacks / self.rate

    def take(self, amount: float, now: float) -> None:
        """Take it out; a negative amount puts it back."""
        self._level = min(self.capacity, self._level_at(now) - amount)
        self._at = now

    def _level_at(self, now: float) -> float:
        return min(self.capacity, self._level + (now - self._at) * self.rate)


_Outcome: TypeAlias = Literal["admitted", "paused for too long", "timed out", "closed"]


@attrs.define(eq=False, repr=False, slots=False)
class _Waiter:
    """A caller in the queue; one that is admitted has its place already."""

    tokens: float
    max_pause: float
    outcome: asyncio.Future[_Outcome]

    @property
    def admitted(self) -> bool:
        """Whether it has its place."""
        outcome = self.outcome
        return outcome.done() and not outcome.cancelled() and outcome.result() == "admitted"

    def resolve(self, outcome: _Outcome) -> None:
        if not self.outcome.done():  # as one that was cancelled is
            self.outcome.set_result(outcome)


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


class Gate:
    """Bounds what one provider key is asked.

    The bound on requests in flight starts at `Limits.concurrency`; a 429 multiplies it by `Limits.decrease` (once a
    second at most, never below 1), and as many good answers as it allows add 1.

    Attributes:
        in_flight: Places taken.
        bound: Most places, as narrowed by 429s.
        paused_until: The end of the last cool-down, on the clock.
        counts_tokens: Whether tokens are limited here.

    Args:
        name: Provider, for errors.
        limits: The bounds.
        rng: Source of the jitter.
        clock: The time in seconds; by default the event loop's.
    """

    def __init__(
        self,
        name: str,
        limits: Limits,
        rng: random.Random | None = None,
        clock: Callable[[], float] = _loop_time,
    ) -> None:
        self._name = name
        self._limits = limits
        self._rng = rng or random.Random()
        self._clock = clock
        self._requests = _Bucket(limits.requests_per_minute) if limits.requests_per_minute else None
        self._tokens = _Bucket(limits.tokens_per_minute) if limits.tokens_per_minute else None
        self._good = 0
        self._narrowed = -NEVER
        self._calm_at = -NEVER  # the end of the ramp behind the pause
        self._queue: dict[_Waiter, None] = {}
        self._timer: asyncio.TimerHandle | None = None  # looks at the queue when the first in it may pass
        self._passed = 0  # in this turn of the loop
        self._limits_bursts = limits.concurrency > BURST
        self.paused_until = -NEVER
        self.bound = limits.concurrency
        self.counts_tokens = self._tokens is not None
        self.in_flight = 0

    @property
    def queued(self) -> int:
        """Callers that wait for a place."""
        return len(self._queue)

    @property
    def callers(self) -> int:
        """Callers in flight and waiting."""
        return self.in_flight + len(self._queue)

    def pause_left(self, now: float) -> float:
        """Seconds of cool-down left, 0 for none."""
        return self.paused_until - now if now < self.paused_until else 0.0

    def opens_at(self, tokens: float, now: float) -> float:
        """The moment at which a request of so many tokens may pass; `NEVER` while only another's end can let it."""
        if now < self.paused_until:
            return self.paused_until
        if self.in_flight >= self.bound or self._passed >= BURST:
            return NEVER
        if now < self._calm_at:
            # After a cool-down the bound grows from one to its whole width, so that not all callers come at once.
            at = self.paused_until + self._limits.ramp * self.in_flight / self.bound
            if now < at:
                return at
        if self._requests is not None:
            now = self._requests.opens_at(1, now)
        return now if self._tokens is None else self._tokens.opens_at(tokens, now)

    def try_enter(self, tokens: float, now: float) -> bool:
        """Take a place if that needs no wait, and say so; each place is given back by one `leave`."""
        if self._queue or self.opens_at(tokens, now) > now:
            return False
        self._take_place(tokens, now)
        return True

    async def enter(self, deadline: Deadline, tokens: float = 0, max_pause: float = NEVER) -> bool:
        """Take a place, waiting for one if need be; each place is given back by one `leave`.

        Args:
            deadline: When to give up.
            tokens: Estimate of the tokens that the request costs, for `Limits.tokens_per_minute`.
            max_pause: Seconds of cool-down that are worth waiting for.

        Returns:
            Whether the place was taken; False when a cool-down is longer than `max_pause`.

        Raises:
            APITimeoutError: The deadline came first.
            APIConnectionError: The gate was closed.
        """
        now = self._clock()
        if self.try_enter(tokens, now):
            return True
        if self.pause_left(now) > max_pause:
            return False
        loop = asyncio.get_running_loop()
        waiter = _Waiter(tokens, max_pause, loop.create_future())
        timer = None if deadline.at == NEVER else loop.call_at(deadline.at, waiter.resolve, "timed out")
        self._queue[waiter] = None
        self._admit()
        try:
            outcome = await waiter.outcome
        except BaseException:
            if waiter.admitted:  # cancelled in the moment between getting the place and taking it
                self.leave()
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if waiter in self._queue:
                del self._queue[waiter]
                self._admit()  # it may have stood in the way of the next one
        if outcome == "timed out":
            raise timed_out(deadline, self._name, sent=False)
        if outcome == "closed":
            text = f"the client was closed while a call waited for a place at {self._name}; keep it open"
            raise APIConnectionError(text, kind="closed")
        return outcome == "admitted"

    def _admit(self) -> None:
        """Let those in the queue pass, in their order, for whom it is time; look again when the next one may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        while self._queue:
            first = next(iter(self._queue))
            at = self.opens_at(first.tokens, now)
            if at > now:
                if at < NEVER:
                    self._timer = asyncio.get_running_loop().call_at(at, self._admit)
                return
            del self._queue[first]
            if not first.outcome.done():
                self._take_place(first.tokens, now)
                first.resolve("admitted")

    def _take_place(self, tokens: float, now: float) -> None:
        if self._requests is not None:
            self._requests.take(1, now)
        if self._tokens is not None:
            self._tokens.take(tokens, now)
        self.in_flight += 1
        if self._limits_bursts:
            if not self._passed:
                asyncio.get_running_loop().call_soon(self._next_turn)
            self._passed += 1

    def _next_turn(self) -> None:
        self._passed = 0
        self._admit()

    def leave(self) -> None:
        """Give a place back."""
        self.in_flight -= 1
        if self._queue:
            self._admit()

    def correct_tokens(self, estimated: float, used: float) -> None:
        """Correct the tokens that `enter` took to those used."""
        if self._tokens is not None:
            self._tokens.take(used - estimated, self._clock())
            self._admit()

    def widen(self) -> None:
        """Note a good answer: as many as the bound in a row widen it by one."""
        if self.bound < self._limits.concurrency:
            self._good += 1
            if self._good >= self.bound:
                self._good = 0
                self.bound += 1
                self._admit()

    def throttle(self, seconds: float, most: float = NEVER) -> None:
        """Note a 429: narrow the bound, and let nobody pass for so long, as `pause` does."""
        now = self._clock()
        self._good = 0
        if now - self._narrowed >= 1:
            self._narrowed = now
            self.bound = max(1, int(self.bound * self._limits.decrease))
        self.pause(seconds, most)

    def pause(self, seconds: float, most: float = NEVER) -> None:
        """Let nobody pass for so long, and a jittered moment more, `most` seconds at most; a longer pause stands.

        The jitter is half a second, a tenth of a long pause, or as much as a short one again: clients that were sent
        away together do not come back together.
        """
        now = self._clock()
        jitter = self._rng.uniform(0, min(seconds, max(0.5, seconds / 10)))
        self.paused_until = max(self.paused_until, now + min(most, seconds + jitter))
        self._calm_at = self.paused_until + self._limits.ramp
        left = self.pause_left(now)
        for waiter in [waiter for waiter in self._queue if waiter.max_pause < left]:
            del self._queue[waiter]
            waiter.resolve("paused for too long")
        self._admit()

    def close(self) -> None:
        """Send away all that wait; the gate may be used again afterwards, on another event loop too."""
        waiting, self._queue = list(self._queue), {}
        self._passed = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiter in waiting:
            waiter.resolve("closed")
