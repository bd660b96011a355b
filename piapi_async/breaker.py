"""Is this provider healthy? A circuit breaker: closed, open, half-open. Pure: the time is passed in, in seconds.

It opens after a run of failures, or when half of many calls fail. While open it admits nobody; then one probe at a
time, and two good ones close it. A failed probe opens it again for twice as long.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Literal

from piapi_async.policy import NEVER, Health

__all__ = ["Breaker"]

State = Literal["closed", "open", "half-open"]


class Breaker:
    """The breaker of one provider key and model.

    Attributes:
        closed: Whether it is: then it admits everybody, and nobody need ask.

    Args:
        health: When to open and close.
        rng: Source of the jitter.
    """

    __slots__ = (
        "_failed",
        "_good_probes",
        "_health",
        "_probing",
        "_reopens",
        "_rng",
        "_running",
        "_since",
        "_until",
        "_window",
        "closed",
    )

    def __init__(self, health: Health, rng: random.Random) -> None:
        self._health = health
        self._rng = rng
        self._failed = 0  # in a row
        self._window: deque[list[float]] = deque()  # [second, good, bad], the running second last
        self._running: list[float] = [-NEVER, 0, 0]
        self._since = 0.0
        self._until = 0.0
        self._reopens = 0
        self._probing = False
        self._good_probes = 0
        self.closed = True

    def state(self, now: float) -> State:
        """Return the state at a moment."""
        if self.closed:
            return "closed"
        return "open" if now < self._until else "half-open"

    def admits(self, now: float) -> bool:
        """Whether a call may be sent: always while closed, one probe at a time while half-open."""
        return self.closed or (now >= self._until and not self._probing)

    def start(self, now: float) -> bool:
        """Note that a call is sent; returns whether it is the probe, to be told to `record`.

        While open a call may be sent too, when no provider is healthy; it is no probe and its failure changes nothing.
        """
        probe = not self.closed and self.admits(now)
        self._probing = self._probing or probe
        return probe

    def record(self, now: float, good: bool | None, probe: bool = False, began: float = NEVER) -> None:
        """Note how a call ended: well, badly, or (None) in a way that says nothing of the provider's health.

        Args:
            now: When.
            good: How.
            probe: What `start` returned for it.
            began: When it was sent. An answer to what was sent before the breaker opened does not close it: a provider
                that takes no new calls may still finish old ones.
        """
        if probe:
            self._probing = False
        if good is None:
            return
        if not self.closed:
            if began >= self._since:
                self._record_while_open(now, good, probe=probe)
            return
        if self._running[0] != now // 1:
            self._next_second(now // 1)
        if good:
            self._running[1] += 1
            self._failed = 0
            return  # a good call opens nothing
        self._running[2] += 1
        self._failed += 1
        bad = sum(bucket[2] for bucket in self._window)
        calls = bad + sum(bucket[1] for bucket in self._window)
        health = self._health
        too_many = calls >= health.minimum_calls and bad / calls >= health.failure_ratio
        if too_many or self._failed >= health.failure_threshold:
            self._open(now)

    def _record_while_open(self, now: float, good: bool, *, probe: bool) -> None:
        if good:
            # A good answer while open, sent when nobody was healthy, tells as much as a probe.
            self._until = min(self._until, now)
            self._good_probes += 1
            if self._good_probes >= self._health.success_threshold:
                self._close()
        elif probe:
            self._open(now)

    def _next_second(self, second: float) -> None:
        """Move the window on."""
        self._running = [second, 0, 0]
        self._window.append(self._running)
        while self._window[0][0] <= second - self._health.window:
            self._window.popleft()

    def _open(self, now: float) -> None:
        # Far past the cap the exponent stops to grow: a float would overflow in an outage of hours.
        span = min(self._health.open_cap, self._health.open * 2 ** min(self._reopens, 64))
        # Jitter downwards, so that the cap is one: clients that saw the same outage do not come back at once.
        self._until = now + span * self._rng.uniform(0.8, 1.0)
        self._since = now
        self.closed = False
        self._reopens += 1
        self._good_probes = 0

    def _close(self) -> None:
        self.closed = True
        self._reopens = self._failed = self._good_probes = 0
        self._window.clear()
        self._running = [-NEVER, 0, 0]
