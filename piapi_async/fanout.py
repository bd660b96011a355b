"""`Results` and `Result`: one input, many calls under way, results with back-pressure. What is behind `Client.map`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
)
from types import TracebackType
from typing import Generic, Self, TypeVar, cast

import anyio
import attrs

from piapi_async.errors import ConfigurationError
from piapi_async.models import Attempt, ChatCompletion, ChatRequest

__all__ = ["Result", "Results"]

T = TypeVar("T")

PULLED_A_TURN = 16
"""Most items pulled in one turn of the event loop (ours)."""


@attrs.frozen(slots=False)
class Result:
    """What became of one prompt of a `map`.

    Attributes:
        index: Position of the prompt in the input, from 0.
        request: The request, or None if the prompt could not be made into one.
        completion: The answer, if there is one.
        error: Why there is none.
        latency: Seconds from the moment the prompt was taken up to its end.
        key: What the caller calls the prompt, if it came as a pair of key and prompt; else its index.
    """

    index: int
    request: ChatRequest | None
    completion: ChatCompletion | None = None
    error: Exception | None = None
    latency: float = 0.0
    key: object = attrs.field(kw_only=True, default=attrs.Factory(lambda self: self.index, takes_self=True))

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every request that was sent, or tried, for this prompt."""
        if self.completion is not None:
            return self.completion.attempts
        attempts: tuple[Attempt, ...] = getattr(self.error, "attempts", ())
        return attempts

    def unwrap(self) -> ChatCompletion:
        """Return the completion.

        Raises:
            Exception: `error`, if there is no completion.
        """
        if self.completion is not None:
            return self.completion
        raise self.error or RuntimeError("a result has a completion or an error; this one was made with neither")


async def close_generator(items: object) -> None:
    """Close an input that is a generator, so that its `finally` runs now; what else it may be stays open."""
    if isinstance(items, AsyncGenerator):
        await cast("AsyncGenerator[object, None]", items).aclose()
    elif isinstance(items, Generator):
        cast("Generator[object, None, None]", items).close()


class Results(Generic[T]):
    """Asks for every item of an input, `concurrency` at a time; a context manager that is its own async iterator.

    At most twice the concurrency is pulled and not yet handed out, so memory does not grow with the input, and a caller
    that stops to read stops the sending.

    One task drives the input from its first item to its last, as one loop would, so an input may set context variables
    and reset them. Each call sees the context in which its item came. An input that is a generator is closed when the
    block is left.

    Args:
        items: What to ask; an iterable or async iterable, endless too.
        ask: Called with each item's index and the item; what it raises comes out of the iteration and ends it.
        concurrency: Most calls of `ask` at once, 1 or more.
        ordered: Whether results come in the input's order.
    """

    def __init__(
        self,
        items: Iterable[T] | AsyncIterable[T],
        ask: Callable[[int, T], Coroutine[object, object, Result]],
        *,
        concurrency: int,
        ordered: bool,
    ) -> None:
        if isinstance(items, (str, bytes)) or not isinstance(cast("object", items), (Iterable, AsyncIterable)):
            raise ConfigurationError(f"prompts: a {type(items).__name__} is not a list of prompts; pass an iterable")
        if isinstance(concurrency, bool) or not isinstance(cast("object", concurrency), int) or concurrency < 1:
            raise ConfigurationError("concurrency: it is not in range; pass a whole number, 1 or more")
        self._items: Iterator[T] | AsyncIterator[T] = aiter(items) if isinstance(items, AsyncIterable) else iter(items)
        self._ask = ask
        self._concurrency = concurrency
        self._ordered = ordered
        self._pulled = 0
        self._handed = 0
        self._ready: deque[Result] = deque()
        self._early: dict[int, Result] = {}  # behind the next one in order
        self._in_order = 0
        self._asking: set[asyncio.Task[Result]] = set()
        self._feeder: asyncio.Task[None] | None = None
        self._begun = False  # whether the feeder has
        self._fed = False  # whether it has come to the input's end
        self._room = asyncio.Event()  # set when there may be room for one more item
        self._news = asyncio.Event()  # set when a result came, and at the end
        self._left = False
        self._cut = False  # whether the block was left before the end
        self._input_error: BaseException | None = None
        self._closing_error: Exception | None = None  # what the input raised as it was closed
        self._ask_error: BaseException | None = None

    async def __aenter__(self) -> Self:
        if self._feeder is not None:
            raise RuntimeError("this map was begun before; call client.map() again")
        self._feeder = asyncio.create_task(self._feed())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._feeder is not None  # noqa: S101  # __aenter__ has made it
        self._left = True
        self._cut = not self._has_ended()
        await self._end_tasks(self._feeder)
        self._news.set()  # another task may wait for a result
        if self._closing_error is not None:
            raise self._closing_error

    async def _end_tasks(self, feeder: asyncio.Task[None]) -> None:
        """Cancel what is under way, and wait until it has ended, whatever happens to the caller meanwhile."""
        interrupted: asyncio.CancelledError | None = None
        # A scope of the caller's that was cancelled is cancelled at every wait; this one is to be waited out.
        with anyio.CancelScope(shield=True):
            self._cancel(feeder)
            while running := [task for task in (feeder, *self._asking) if not task.done()]:
                try:
                    await asyncio.wait(running)
                except asyncio.CancelledError as again:
                    interrupted = again  # the caller is in a hurry, so what is slow to end is told again
                    self._cancel(feeder)
        if interrupted is not None:
            raise interrupted

    def _cancel(self, feeder: asyncio.Task[None]) -> None:
        for task in self._asking:
            task.cancel()
        if self._begun:  # else it ends by itself, once it has closed the input
            feeder.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        if self._feeder is None:
            raise RuntimeError("the map is not open; use it inside `async with client.map(...) as results:`")
        while not self._ready:
            if self._ask_error is not None or self._cut or self._has_ended():
                return self._end()
            self._news.clear()
            await self._news.wait()
        self._handed += 1
        self._room.set()
        return self._ready.popleft()

    def _end(self) -> Result:
        if self._cut:
            raise RuntimeError("the map was left before its end; read its results inside its block")
        error = self._ask_error or self._input_error
        if isinstance(error, StopAsyncIteration):  # raised as it is, it would look like the end
            raise RuntimeError("the input, or a call, raised StopAsyncIteration") from error
        raise error or StopAsyncIteration

    def _has_ended(self) -> bool:
        return self._fed and not self._asking

    async def _feed(self) -> None:
        """Drive the input from its first item to its last, and close it."""
        self._begun = True
        try:
            try:
                await self._pull()
            finally:
                await close_generator(self._items)
        except (Exception, asyncio.CancelledError) as error:
            # The input's own error is the caller's: it comes out of the iteration, behind the results, or of the block.
            if not self._left:
                self._input_error = error
            elif isinstance(error, Exception):
                self._closing_error = error
        finally:
            self._fed = True
            self._news.set()

    async def _pull(self) -> None:
        while await self._wait_for_room():
            try:
                item = await anext(self._items) if isinstance(self._items, AsyncIterator) else next(self._items)
            except StopIteration:
                return
            except StopAsyncIteration:
                if isinstance(self._items, AsyncIterator):
                    return
                raise
            self._start(item)
            del item
            if not self._pulled % PULLED_A_TURN:
                await asyncio.sleep(0)  # an input that never waits must not hold up the others

    async def _wait_for_room(self) -> bool:
        """Wait until one more item may be pulled, and say whether one is wanted."""
        while not self._left and self._ask_error is None:
            ahead = self._pulled - self._handed
            if len(self._asking) < self._concurrency and ahead < 2 * self._concurrency:
                return True
            self._room.clear()
            await self._room.wait()
        return False

    def _start(self, item: T) -> None:
        if self._left:  # an input may take no notice of being cancelled
            return
        task = asyncio.create_task(self._ask(self._pulled, item))
        self._pulled += 1
        self._asking.add(task)
        task.add_done_callback(self._take)

    def _take(self, task: asyncio.Task[Result]) -> None:
        self._asking.discard(task)
        if task.cancelled():
            self._ask_error = self._ask_error or asyncio.CancelledError()
        elif (error := task.exception()) is not None:
            self._ask_error = self._ask_error or error
        else:
            self._put(task.result())
        self._room.set()
        self._news.set()

    def _put(self, result: Result) -> None:
        if not self._ordered:
            self._ready.append(result)
            return
        self._early[result.index] = result
        while (next_ := self._early.pop(self._in_order, None)) is not None:
            self._ready.append(next_)
            self._in_order += 1
