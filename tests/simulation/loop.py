"""An event loop whose time jumps from one timer to the next, and whose tasks can be interrupted at any await."""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any, TypeVar, TypeVarTuple

import anyio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MOST_TURNS = 100_000
"""Turns of the loop that no history needs: one that takes more goes round in circles."""


class StuckError(Exception):
    """Everybody waits and nothing will ever happen, or the same happens again and again."""


class _Jump(selectors.BaseSelector):
    """A selector that never looks at a file and never waits: it moves the clock instead."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns = 0
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = self._keys[fileobj] = selectors.SelectorKey(fileobj, 0, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StuckError("everybody waits, and nothing will ever happen")
        self.turns += 1
        if self.turns > MOST_TURNS:
            raise StuckError("it goes round in circles")
        if timeout > 0:
            self.now += timeout
        return []


class _Task(asyncio.Task[T]):
    """A task whose hash is its number, so that a set of tasks has the same order every time."""

    def __init__(self, number: int, work: Coroutine[Any, Any, T], **options: Any) -> None:
        self.number = number  # first: a set has it from here on
        super().__init__(work, **options)

    def __hash__(self) -> int:
        return self.number


@contextmanager
def scopes_in_order() -> Iterator[None]:
    """Number the cancel scopes of the running loop: anyio keeps a scope's children in a set.

    Else whom a scope cancels first would depend on where in memory the others are, and a seed would not be one history.
    """
    cls = type(anyio.CancelScope())
    numbers: dict[int, tuple[int, anyio.CancelScope]] = {}  # it holds the scopes, so that no address is used twice

    def number(scope: anyio.CancelScope) -> int:
        return numbers.setdefault(id(scope), (len(numbers), scope))[0]

    cls.__hash__ = number  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        cls.__hash__ = object.__hash__  # type: ignore[method-assign]


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, without real IO or threads.

    Attributes:
        problems: What would have been logged: errors that nobody took.
    """

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)
        self._numbers = itertools.count(1)
        self._timers: list[asyncio.TimerHandle] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self.problems: list[str] = []
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._note_problem)

    def time(self) -> float:
        """Seconds of virtual time, from 0."""
        return self._jump.now

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Do as asyncio does, and keep the timer in mind."""
        handle = super().call_at(when, callback, *args, context=context)
        self._timers.append(handle)
        return handle

    def timers(self) -> list[asyncio.TimerHandle]:
        """The timers that are set and have not rung."""
        self._timers = [each for each in self._timers if not each.cancelled() and each.when() > self._jump.now]
        return self._timers

    def tasks(self) -> list[asyncio.Task[Any]]:
        """The tasks that have not ended."""
        self._tasks = [each for each in self._tasks if not each.done()]
        return self._tasks

    def _make_task(self, _: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        strike = striking.get()
        task = _Task(next(self._numbers), work if strike is None else _Watched(work, strike), loop=self, **options)
        self._tasks.append(task)
        return task

    def _note_problem(self, _: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        self.problems.append(f"{context.get('message')}: {context.get('exception')!r}")


# -- interruptions -----------------------------------------------------------------------------------------------------

HOW = ("at once", "as the wait ends")
"""When a task that is cancelled notices: in the next turn of the loop, or together with what it waits for."""


class Strike:
    """Cancels a task at the nth wait, its own ones and those of all tasks that it begins counted together.

    Attributes:
        waits: So far.
        struck: Whether it has cancelled the task.
        task: What it cancels.

    Args:
        at: Which wait, from 1; 0 for none.
        how: One of `HOW`.
        before: Called right before it strikes.
    """

    def __init__(self, at: int, how: str = HOW[0], before: Callable[[], object] = lambda: None) -> None:
        self.waits = 0
        self.struck = False
        self.task: asyncio.Task[Any] | None = None
        self._at = at
        self._how = how
        self._before = before

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do the work in a task of its own, which this one may cancel."""
        token = striking.set(self)
        try:
            self.task = task = asyncio.create_task(work)
        finally:
            striking.reset(token)
        return task

    def count(self, waited: asyncio.Future[Any] | None) -> None:
        """Count a wait, and strike if it is the one; None is a turn of the loop."""
        self.waits += 1
        if self.waits == self._at:
            if waited is not None and self._how == HOW[1]:
                waited.add_done_callback(lambda _: self._strike())
            else:
                asyncio.get_running_loop().call_soon(self._strike)

    def _strike(self) -> None:
        if self.task is not None and not self.task.done():
            self._before()
            self.struck = True
            self.task.cancel()


class _Watched(Coroutine[Any, Any, T]):
    """A coroutine whose waits are counted; in all else the one that it stands for."""

    def __init__(self, work: Coroutine[Any, Any, T], strike: Strike) -> None:
        self._work = work
        self._strike = strike

    def send(self, value: Any) -> Any:
        waited = self._work.send(value)
        self._strike.count(waited)
        return waited

    def throw(self, *error: Any) -> Any:
        waited = self._work.throw(*error)
        self._strike.count(waited)
        return waited

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._work.__await__()

    def __getattr__(self, name: str) -> Any:  # asyncio and anyio look at its state
        return getattr(self._work, name)


striking: ContextVar[Strike | None] = ContextVar("striking", default=None)
"""What counts the waits of the tasks that are made here."""
