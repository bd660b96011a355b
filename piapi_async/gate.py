"""May I send now? One gate per provider and key, shared by all callers. First come, first served; nobody polls.

What decides is `Gate.opens`, a pure function of the state and the time: the moment at which a caller with so many
tokens may pass. Only the first in the queue waits for that moment; the others wait to become first. A caller takes its
place itself, in one step without an await, so one that is cancelled leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from piapi_async.policy import NEVER, Due, Limits, timed_out

__all__ = ["Gate"]


class _Bucket:
    """At most `per_minute` of something in any 60 seconds.

    A tenth of it (at least one) may go at once; the rest flows in evenly, so that no window of a minute holds more.
    """

    __slots__ = ("_at", "_level", "capacity", "rate")

    def __init__(self, per_minute: float) -> None:
        self.capacity = min(per_minute, max(1.0, per_minute / 10))
        # One at a time needs even spacing only; a burst must be taken off what flows in during the same minute.
        self.rate = (per_minute if self.capacity <= 1 else per_minute - self.capacity) / 60
        self._level = self.capacity
        self._at = -NEVER

    def opens(self, amount: float, now: float) -> float:
        """When `amount` may pass; what is larger than the whole capacity passes when that is full, and is owed."""
        lacks = min(amount, self.capacity) - self._now(now)
        return now if lacks <= 1e-9 else now + lacks / self.rate

    def take(self, amount: float, now: float) -> None:
        """Take it out; a negative amount puts it back."""
        self._level = min(self.capacity, self._now(now) - amount)
        self._at = now

    def _now(self, now: float) -> float:
        return min(self.capacity, self._level + (now - self._at) * self.rate)


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


class Gate:
    """Bounds what one provider key is asked.

    The bound on requests in flight starts at `Limits.concurrency`; a 429 multiplies it by `Limits.throttle` (once a
    second at most, never below 1), and as many good answers as it allows add 1.

    Attributes:
        in_flight: Places taken.
        bound: Most places, as narrowed by 429s.
        widest: Most places when nothing narrows them.
        paused_until: The end of the last cool-down.
        counts_tokens: Whether tokens are limited here.

    Args:
        name: Provider, for errors.
        limits: The bounds.
        dice: Source of the jitter.
        clock: The time in seconds; by default the event loop's.
    """

    def __init__(
        self,
        name: str,
        limits: Limits,
        dice: random.Random | None = None,
        clock: Callable[[], float] = _loop_time,
    ) -> None:
        self._name = name
        self._limits = limits
        self._dice = dice or random.Random()
        self._clock = clock
        self._requests = _Bucket(limits.requests_per_minute) if limits.requests_per_minute else None
        self._tokens = _Bucket(limits.tokens_per_minute) if limits.tokens_per_minute else None
        self._good = 0
        self._narrowed = -NEVER
        self.paused_until = -NEVER
        self._calm_at = -NEVER  # the end of the ramp behind the pause
        self._metered = self._requests is not None or self._tokens is not None
        self._queue: dict[_Waiter, None] = {}
        self.bound = self.widest = limits.concurrency
        self.counts_tokens = self._tokens is not None
        self.in_flight = 0

    @property
    def queued(self) -> int:
        """Callers that wait for a place."""
        return len(self._queue)

    def pause_left(self, now: float) -> float:
        """Seconds of cool-down left, 0 for none."""
        return self.paused_until - now if now < self.paused_until else 0.0

    def opens(self, tokens: float, now: float) -> float:
        """The moment at which a request of so many tokens may pass; `NEVER` while only a release can let it."""
        if now < self.paused_until:
            return self.paused_until
        if self.in_flight >= self.bound:
            return NEVER
        if now < self._calm_at:
            # After a cool-down the bound grows from one to its whole width, so that not all callers come at once.
            at = self.paused_until + self._limits.ramp * self.in_flight / self.bound
            if now < at:
                return at
        if self._requests is not None:
            now = self._requests.opens(1, now)
        return now if self._tokens is None else self._tokens.opens(tokens, now)

    def take(self, tokens: float, now: float) -> bool:
        """Take a place if that needs no wait, and say so; each place is given back by one `release`."""
        if self._queue or self.in_flight >= self.bound:
            return False
        if now < self._calm_at or self._metered:  # else a free place is all that it takes
            if self.opens(tokens, now) > now:
                return False
            self._meter(tokens, now)
        self.in_flight += 1
        return True

    async def acquire(self, due: Due, tokens: float = 0, patience: float | None = None) -> bool:
        """Take a place, waiting for one if need be; each place is given back by one `release`.

        Args:
            due: When to give up.
            tokens: Estimate of the tokens that the request costs, for `Limits.tokens_per_minute`.
            patience: Seconds of cool-down that are worth waiting for; None for any.

        Returns:
            Whether the place was taken; False when a cool-down exceeds the patience.

        Raises:
            APITimeoutError: `due` came first.
        """
        now = self._clock()
        if self.take(tokens, now):
            return True
        waiter = _Waiter()
        self._queue[waiter] = None
        try:
            while patience is None or self.pause_left(now) <= patience:
                if now >= due.at:
                    raise timed_out(due, self._name, sent=False)
                first = next(iter(self._queue)) is waiter
                at = self.opens(tokens, now) if first else NEVER
                if at <= now:
                    self._meter(tokens, now)
                    self.in_flight += 1
                    return True
                await waiter.wait(min(at, due.at))
                now = self._clock()
            return False
        finally:
            del self._queue[waiter]
            self._wake()

    def _meter(self, tokens: float, now: float) -> None:
        if self._requests is not None:
            self._requests.take(1, now)
        if self._tokens is not None:
            self._tokens.take(tokens, now)

    def release(self) -> None:
        """Give a place back."""
        self.in_flight -= 1
        if self._queue:
            self._wake()

    def settle(self, reserved: float, used: float) -> None:
        """Correct the tokens taken by `acquire` to those used."""
        if self._tokens is not None:
            self._tokens.take(used - reserved, self._clock())
            self._wake()

    def good(self) -> None:
        """Note a good answer: as many as the bound in a row widen it by one."""
        if self.bound < self.widest:
            self._good += 1
            if self._good >= self.bound:
                self._good = 0
                self.bound += 1
                self._wake()

    def throttled(self, seconds: float, most: float = NEVER) -> None:
        """Note a 429: narrow the bound, and let nobody pass for so long, as `pause` does."""
        now = self._clock()
        self._good = 0
        if now - self._narrowed >= 1:
            self._narrowed = now
            self.bound = max(1, int(self.bound * self._limits.throttle))
        self.pause(seconds, most)

    def pause(self, seconds: float, most: float = NEVER) -> None:
        """Let nobody pass for so long, and a jittered moment more, `most` seconds at most; a longer pause stands.

        The jitter is half a second, a tenth of a long pause, or as much as a short one again: clients that were sent
        away together do not come back together.
        """
        jitter = self._dice.uniform(0, min(seconds, max(0.5, seconds / 10)))
        until = self._clock() + min(most, seconds + jitter)
        self.paused_until = max(self.paused_until, until)
        self._calm_at = self.paused_until + self._limits.ramp
        for waiter in self._queue:  # all look at the pause anew: for some it is not worth the wait
            waiter.wake()

    def _wake(self) -> None:
        """Let the first in the queue look again."""
        for waiter in self._queue:
            waiter.wake()
            break


class _Waiter:
    """One caller in the queue.

    It waits on a future with a loop timer, which is what anyio's event and cancel scope come down to on asyncio: to
    import those takes 5 ms.
    """

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future = asyncio.get_running_loop().create_future()

    def wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self, until: float) -> None:
        """Wait to be woken, at most until a moment of the event loop's clock."""
        loop = asyncio.get_running_loop()
        timer = None if until == NEVER else loop.call_at(until, self.wake)
        try:
            await self._future
        finally:
            if timer is not None:
                timer.cancel()
        self._future = loop.create_future()
