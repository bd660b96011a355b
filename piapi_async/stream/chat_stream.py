"""`ChatStream`, which the caller holds. It consumes a source that `dispatch` makes, and knows nothing of the client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeAlias, TypeVar, cast

from piapi_async.errors import APIConnectionError
from piapi_async.models import ChatCompletion, ChatCompletionChunk

if TYPE_CHECKING:
    from piapi_async.stream.events import Restarted, StreamEvent

__all__ = ["ChatStream", "StreamItem"]

T = TypeVar("T")

StreamItem: TypeAlias = "list[ChatCompletionChunk] | Restarted | ChatCompletion"
"""What comes out of a stream: a list of chunks (maybe empty) once it is open, more lists, the whole completion last; a
`Restarted` where it begins anew."""


class ChatStream:
    """A streamed answer: an async context manager, and an async iterator of the tokens of choice 0.

    Leaving the block closes the connection and frees its place; a read that another task has under way then gets an
    `APIConnectionError` of kind `"closed"`. There is one consumer: a second iteration is a `RuntimeError`. An iteration
    ends without an error only when the answer is whole: after one that failed, every further read raises.
    """

    def __init__(self, source: AsyncGenerator[StreamItem, None], *, restarts: bool = False) -> None:
        self._source = source
        self._restarts = restarts
        self._began: list[ChatCompletionChunk] | Restarted | None = None
        self._consumed = False
        self._looped = False  # whether an `async for` over the tokens has begun
        self._tokens: deque[str] | None = None  # that are ready, once somebody asks for tokens
        self._completion: ChatCompletion | None = None
        self._failure: BaseException | None = None
        self._open = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader: asyncio.Task[object] | None = None
        self._left: asyncio.Future[None] | None = None  # what the block waits for, left while another task reads

    async def __aenter__(self) -> Self:
        """Send the request; returns when the answer has begun.

        Raises:
            APIError: No provider began an answer.
        """
        if self._open:
            raise RuntimeError("the stream is open already; call client.stream() again for another")
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._began = await self._pull()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        if self._reader is not None:
            self._left = asyncio.get_running_loop().create_future()
            self._reader.cancel()
            await self._left
        await self._source.aclose()

    def __aiter__(self) -> AsyncIterator[str]:
        self._check_no_restarts()
        if self._tokens is None or self._looped:
            self._claim()
            self._tokens = deque()
        self._looped = True
        return _Items(self._pull, _tokens_of, self._tokens)

    async def __anext__(self) -> str:
        if self._tokens is None:
            self._check_no_restarts()
            self._claim()
            self._tokens = deque()
        return await anext(_Items(self._pull, _tokens_of, self._tokens))

    def chunks(self) -> AsyncIterator[ChatCompletionChunk]:
        """Iterate over whole chunks instead of tokens: all choices, fragments of calls, usage."""
        self._check_no_restarts()
        return self._consume(_chunks_of)

    def events(self) -> AsyncIterator[StreamEvent]:
        """Iterate over what the answer is made of, told apart: `Text`, `Reasoning`, and `CallDelta` for calls.

        A refusal is no event: `completion()` has it, as `choices[0].message.refusal`. A stream that was asked for
        `on_interrupt="restart"` gives a `Restarted` too. It says that all before it is void: another answer begins
        behind it.
        """
        from piapi_async.stream.events import events_of  # deferred: few programs ask for it

        return self._consume(events_of)

    async def completion(self) -> ChatCompletion:
        """Drain what is left and return the whole answer, fragments joined for every choice, function and tool call.

        Raises:
            APIError: The stream failed before its end.
        """
        self._check_open()
        while self._completion is None:
            await self._pull()
        return self._completion

    async def _pull(self) -> list[ChatCompletionChunk] | Restarted | None:
        """Return what comes next from the source; None at the end of a whole answer."""
        if self._began is not None:  # what came when the stream was opened
            began, self._began = self._began, None
            return began
        if self._completion is not None:
            return None
        self._check_readable()
        reader = cast("asyncio.Task[object]", asyncio.current_task(self._loop))  # a coroutine runs in one
        self._reader = reader
        cancelling = reader.cancelling()
        try:
            item = await anext(self._source)
        except BaseException as error:
            self._failure = error.with_traceback(None)
            if not self._was_left(error, reader, cancelling):
                raise
        else:
            if not isinstance(item, ChatCompletion):
                return item
            self._completion = item
            return None
        finally:
            self._reader = None
            if self._left is not None and not self._left.done():
                self._left.set_result(None)
        raise APIConnectionError(
            "the stream was closed while a task read it; leave its block when all is read",
            kind="closed",
            maybe_billed=True,
        )

    def _check_readable(self) -> None:
        if not self._open:
            raise RuntimeError("the stream was left before its end; read it inside its block")
        self._check_not_failed()
        if self._reader is not None:
            raise RuntimeError("another task reads the stream already; it has one consumer")

    def _was_left(self, error: BaseException, reader: asyncio.Task[object], cancelling: int) -> bool:
        """Whether a read ended because the block was left; takes that cancellation back."""
        return self._left is not None and isinstance(error, asyncio.CancelledError) and reader.uncancel() <= cancelling

    def _check_no_restarts(self) -> None:
        if self._restarts:
            raise RuntimeError("a stream that may restart is read by events(), which say where; or by completion()")

    def _check_open(self) -> None:
        if not self._open and self._completion is None:
            raise RuntimeError("the stream is not open; use it inside `async with client.stream(...) as stream:`")

    def _check_not_failed(self) -> None:
        if self._failure is not None:
            raise RuntimeError(f"the stream has failed before, so there is no whole answer: {self._failure!r}")

    def _claim(self) -> None:
        """Become the one consumer."""
        self._check_open()
        self._check_not_failed()
        if self._consumed:
            raise RuntimeError("the stream has a consumer already; keep what you need in the first iteration")
        self._consumed = True

    def _consume(self, select: Select[T]) -> _Items[T]:
        self._claim()
        return _Items(self._pull, select, deque())


Select: TypeAlias = "Callable[[list[ChatCompletionChunk] | Restarted], list[T]]"
"""What of a batch an iteration gives."""


class _Items(Generic[T]):
    """An iteration over a stream, which does not hold it in turn: a cycle costs a collection."""

    def __init__(
        self,
        pull: Callable[[], Awaitable[list[ChatCompletionChunk] | Restarted | None]],
        select: Select[T],
        ready: deque[T],
    ) -> None:
        self._pull = pull
        self._select = select
        self._ready = ready

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._ready:
            batch = await self._pull()
            if batch is None:
                raise StopAsyncIteration
            self._ready.extend(self._select(batch))
        return self._ready.popleft()


def _tokens_of(batch: list[ChatCompletionChunk] | Restarted) -> list[str]:
    tokens: list[str] = []
    for chunk in batch if isinstance(batch, list) else ():  # a stream that may restart gives no tokens
        for choice in chunk.choices:
            if choice.index == 0 and choice.delta.content:
                tokens.append(choice.delta.content)
    return tokens


def _chunks_of(batch: list[ChatCompletionChunk] | Restarted) -> list[ChatCompletionChunk]:
    return batch if isinstance(batch, list) else []
