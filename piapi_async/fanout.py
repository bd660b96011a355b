"""`Results` and `Result`: N workers, one iterator, results with back-pressure. What is behind `Client.map`."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar, cast

import anyio
import attrs
from anyio.abc import TaskGroup

from piapi_async.errors import ConfigurationError
from piapi_async.models import Attempt, ChatCompletion, ChatRequest

__all__ = ["Result", "Results"]

T = TypeVar("T")


@attrs.frozen(slots=False)
class Result:
    """What became of one prompt of a `map`.

    Attributes:
        index: Position of the prompt in the input, from 0.
        request: The request, or None if the prompt could not be made into one.
        completion: The answer, if there is one.
        error: Why there is none.
        latency: Seconds from the moment the prompt was taken up to its end.
    """

    index: int
    request: ChatRequest | None
    completion: ChatCompletion | None = None
    error: Exception | None = None
    latency: float = 0.0

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


class Results(Generic[T]):
    """Asks for every item of an input, `concurrency` at a time; a context manager that is its own async iterator.

    At most twice the concurrency is pulled and not yet handed out, so memory does not grow with the input, and a caller
    that stops to read stops the sending. Workers start one by one, as items come.

    Args:
        items: What to ask; an iterable or async iterable, endless too.
        ask: Called with each item's index and the item; what it raises comes out of the iteration and ends it.
        concurrency: Most calls of `ask` at once, 1 or more.
        ordered: Whether results come in the input's order.
    """

    def __init__(
        self,
        items: Iterable[T] | AsyncIterable[T],
        ask: Callable[[int, T], Awaitable[Result]],
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
        self._room = anyio.Semaphore(2 * concurrency, fast_acquire=True)
        self._turn = anyio.Lock(fast_acquire=True)
        self._pulled = 0
        self._handed = 0
        self._ready: deque[Result] = deque()
        self._early: dict[int, Result] = {}
        self._news = anyio.Event()
        self._workers = 0
        self._exhausted = False
        self._input_error: Exception | None = None
        self._ask_error: Exception | None = None
        self._group: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise RuntimeError("this map was begun before; call client.map() again")
        self._group = await anyio.create_task_group().__aenter__()
        self._start_worker(self._group)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._group is not None  # noqa: S101  # __aenter__ has made it
        self._group.cancel_scope.cancel()
        if isinstance(error, anyio.get_cancelled_exc_class()):
            return await self._group.__aexit__(kind, error, traceback)
        # The group is not told of the caller's error: it would hand it on inside an ExceptionGroup.
        await self._group.__aexit__(None, None, None)
        return None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        if self._group is None:
            raise RuntimeError("the map is not open; use it inside `async with client.map(...) as results:`")
        while not self._ready:
            if self._ask_error is not None or not self._workers:
                return self._end()
            if self._news.is_set():
                self._news = anyio.Event()
            await self._news.wait()
        result = self._ready.popleft()
        self._room.release()
        return result

    def _end(self) -> Result:
        raise self._ask_error or self._input_error or StopAsyncIteration

    def _start_worker(self, group: TaskGroup) -> None:
        self._workers += 1
        group.start_soon(self._work, group)

    async def _work(self, group: TaskGroup) -> None:
        try:
            while True:
                await self._room.acquire()
                pulled = await self._pull()
                if pulled is None:
                    break
                if self._workers < self._concurrency:
                    self._start_worker(group)
                index, item = pulled
                del pulled
                coming = self._ask(index, item)
                del item
                self._put(await coming)
        except Exception as error:
            self._exhausted, self._ask_error = True, error
        finally:
            self._workers -= 1
            self._news.set()

    async def _pull(self) -> tuple[int, T] | None:
        """Take the next item; one worker at a time, as an async iterator allows no more."""
        async with self._turn:
            if self._exhausted:
                return None
            try:
                item = await anext(self._items) if isinstance(self._items, AsyncIterator) else next(self._items)
            except (StopIteration, StopAsyncIteration):
                self._exhausted = True
                return None
            except Exception as error:
                # The input's own error is the caller's: it comes out of the iteration, behind the results.
                self._exhausted, self._input_error = True, error
                return None
            self._pulled += 1
            return self._pulled - 1, item

    def _put(self, result: Result) -> None:
        if not self._ordered:
            self._ready.append(result)
        else:
            self._early[result.index] = result
            while (next_ := self._early.pop(self._handed, None)) is not None:
                self._ready.append(next_)
                self._handed += 1
        self._news.set()
