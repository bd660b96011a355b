"""One timer of the event loop for any number of waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from piapi_async.policy import NEVER

if TYPE_CHECKING:

    class Wait(Protocol):
        """Something that may wait too long.

        Attributes:
            due: When its present wait ends, on the loop's clock; `NEVER` while there is none.
        """

        due: float

        def expire(self, due: float) -> None:
            """End the wait, if it is still the one that was due then."""
            ...


class WaitTimer:
    """Ends waits that are due.

    It rings when the first of them is due, or was when it was set; a wait that ends sooner sets it anew. Most waits end
    long before they are due, so it rings rarely. Where the loop was blocked past a moment, bytes that have arrived
    meanwhile win over the timer; with a timer for each wait they might not.

    Attributes:
        rings: When it rings; `NEVER` while nothing is due.

    Args:
        loop: Whose clock it is.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waits: set[Wait] = set()
        self._handle: asyncio.TimerHandle | None = None
        self.rings = NEVER

    def add(self, wait: Wait) -> None:
        """Watch a wait, from now on, whenever it is due."""
        self._waits.add(wait)
        if wait.due < self.rings:
            self.ring_at(wait.due)

    def discard(self, wait: Wait) -> None:
        """Watch it no longer."""
        self._waits.discard(wait)

    def ring_at(self, moment: float) -> None:
        """Ring at a moment that is nearer than the one it is set to."""
        self.cancel()
        self.rings = moment
        self._handle = self._loop.call_at(moment, self._ring)

    def _ring(self) -> None:
        now = self._loop.time()
        self.rings = nearest = NEVER
        for wait in self._waits:
            if wait.due <= now:
                # One turn of the loop later: bytes that arrived while it was blocked have then ended the wait.
                self._loop.call_soon(wait.expire, wait.due)
            else:
                nearest = min(nearest, wait.due)
        if nearest < NEVER:
            self.ring_at(nearest)

    def cancel(self) -> None:
        """Ring no more, until it is set again."""
        self.rings = NEVER
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
