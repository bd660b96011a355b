"""A hedge: where an attempt is slow to begin, a second one at another provider; the first good answer wins.

It bills twice, so it is off by default, and rare when it is on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from piapi_async.dispatch.attempt import AttemptInFlight
from piapi_async.errors import APIError, BudgetExceededError
from piapi_async.models import ChatCompletion, ChatCompletionChunk
from piapi_async.route import Call, Route

if TYPE_CHECKING:
    from piapi_async.dispatch.dispatcher import Dispatcher


class HedgedAttempt:
    """One or two attempts that stand for one. Entered like an `AttemptInFlight`.

    Attributes:
        leader: The attempt whose answer it is.

    Args:
        dispatcher: Who carries them out.
        call: What they belong to.
    """

    def __init__(self, dispatcher: Dispatcher, call: Call) -> None:
        self.leader = AttemptInFlight(dispatcher, call)
        self._dispatcher = dispatcher
        self._call = call
        self._attempts = [self.leader]
        self._tasks: dict[asyncio.Task[bool], AttemptInFlight] = {}

    async def __aenter__(self) -> Self:
        await self.leader.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self.leader.end(error)
        self._end_losers()
        # All is given back by now. What follows lets tasks and generators run to their ends.
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for attempt in self._attempts:
            await attempt.__aexit__(None, None, None)
        return isinstance(error, APIError)

    def _end_losers(self) -> None:
        for task, attempt in self._tasks.items():
            if attempt is not self.leader:
                task.cancel()
                attempt.end()
            elif not task.done():
                task.cancel()

    async def complete(self) -> ChatCompletion:
        """Ask, and return the first whole answer, or of streams the whole one that begins first."""
        if self.leader.by_stream:
            await self.open_stream()
            return await self.leader.read_stream()
        answers: dict[AttemptInFlight, ChatCompletion] = {}

        async def ask(attempt: AttemptInFlight) -> None:
            answers[attempt] = await attempt.complete()

        await self._race(ask)
        return answers[self.leader]

    async def open_stream(self) -> list[ChatCompletionChunk]:
        """Ask for a stream, and return the first chunks of the one that begins first."""
        firsts: dict[AttemptInFlight, list[ChatCompletionChunk]] = {}

        async def start(attempt: AttemptInFlight) -> None:
            await attempt.open_stream()
            firsts[attempt] = await anext(attempt.batches)
            attempt.note_first_event()

        await self._race(start)
        return firsts[self.leader]

    async def _race(self, work: Callable[[AttemptInFlight], Awaitable[None]]) -> None:
        """Do the work at one provider, and where that is slow at a second one too; the winner becomes the leader.

        Raises:
            APIError: All attempts failed; it is the last one's error.
        """
        delay = self._delay(self.leader)
        if delay is None:
            await work(self.leader)
            return
        self._start(self.leader, work)
        done, _ = await asyncio.wait(self._tasks, timeout=delay)
        second = None if done else self._enter_second()
        if second is not None:
            self._start(second, work)
        await self._first_good()
        self._end_losers()

    def _start(self, attempt: AttemptInFlight, work: Callable[[AttemptInFlight], Awaitable[None]]) -> None:
        async def run() -> bool:
            try:
                await work(attempt)
            except APIError as error:
                attempt.end(error)
                return False
            return True

        self._tasks[asyncio.create_task(run())] = attempt

    def _delay(self, first: AttemptInFlight) -> float | None:
        """How long the first attempt may take before a second one begins; None for no second one."""
        self._dispatcher.hedgeable += 1
        return None if self._route() is None else first.upstream.slow_start(stream=first.by_stream)

    def _enter_second(self) -> AttemptInFlight | None:
        """Begin a second attempt, if that needs no wait and the budget has room for it."""
        route = self._route()
        second = AttemptInFlight(self._dispatcher, self._call)
        with suppress(BudgetExceededError):
            if route is not None and second.try_enter(route, self._dispatcher.clock()):
                self._dispatcher.hedges += 1
                self._attempts.append(second)
                return second
        return None

    def _route(self) -> Route | None:
        """Where a second attempt may go now; None for nowhere, or where hedges would be too many."""
        dispatcher = self._dispatcher
        if dispatcher.hedges + 1 > dispatcher.retry.hedge * dispatcher.hedgeable:
            return None
        return dispatcher.router.hedge(self._call, self.leader.upstream, dispatcher.clock())

    async def _first_good(self) -> None:
        """Wait for the first attempt that succeeds; where all fail, raise the last one's error."""
        pending = set(self._tasks)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                self.leader = self._tasks[task]
                if task.result():
                    return
        raise next(reversed(self._call.failures.values())).error
