"""Room in the budget: an attempt that does not fit may wait until calls under way have made some."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import attrs

from piapi_async.ledger import Books
from piapi_async.policy import NEVER, Deadline, timed_out


@attrs.define(eq=False, repr=False, slots=False)
class _Waiter:
    """An attempt that waits. What it is told it has reserved; None tells it to look again, or that time is up."""

    amount: Callable[[], int]
    reserved: asyncio.Future[int | None]

    def tell(self, reserved: int | None) -> None:
        if not self.reserved.done():  # as one that was cancelled is
            self.reserved.set_result(reserved)


@attrs.define(eq=False, repr=False, slots=False)
class Room:
    """Lets attempts wait for room in the budget. Whoever gives a reservation back calls `changed`.

    A call under way has reserved the most that it may cost, and mostly costs less: as long as anything is reserved,
    there may be room later. All that wait are looked at in their order, and a small one may pass a large one.
    """

    _books: Books
    _waiting: dict[_Waiter, None] = attrs.field(factory=dict[_Waiter, None], init=False)

    async def reserve(self, amount: Callable[[], int], deadline: Deadline) -> int:
        """Reserve as soon as there is room, and return how much.

        Args:
            amount: Tells how much is to be reserved by now.
            deadline: When to give up.

        Raises:
            BudgetExceededError: There is no room, and nothing under way can make any.
            APITimeoutError: The deadline came first.
        """
        while not self._books.fits(amount()) and self._books.reserved:
            reserved = await self._wait(amount, deadline)
            if reserved is not None:
                return reserved
            if asyncio.get_running_loop().time() >= deadline.at:
                raise timed_out(deadline, "room in the budget", sent=False)
        reserved = amount()
        self._books.reserve(reserved)
        return reserved

    async def _wait(self, amount: Callable[[], int], deadline: Deadline) -> int | None:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(amount, loop.create_future())
        timer = None if deadline.at == NEVER else loop.call_at(deadline.at, waiter.tell, None)
        self._waiting[waiter] = None
        try:
            return await waiter.reserved
        except BaseException:
            if waiter.reserved.done() and not waiter.reserved.cancelled():
                self._books.release(waiter.reserved.result() or 0)  # cancelled just when it got it
                self.changed()
            raise
        finally:
            self._waiting.pop(waiter, None)
            if timer is not None:
                timer.cancel()

    def changed(self) -> None:
        """Let those go on for whom there is room now, and all where nothing is left that could make any."""
        if not self._waiting:
            return
        for waiter in list(self._waiting):
            amount = waiter.amount()
            if not waiter.reserved.done() and self._books.fits(amount):
                self._books.reserve(amount)
                waiter.tell(amount)
        if not self._books.reserved:
            for waiter in self._waiting:
                waiter.tell(None)
