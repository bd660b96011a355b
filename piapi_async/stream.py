"""`ChatStream`: bytes → events → chunks → tokens → completion.

`read_chunks` turns one exchange into batches of chunks, a batch for each read from the socket: the chunks that arrived
together cost one step of a generator together. `Answer` joins them. `ChatStream` is what the caller holds; it consumes
a source that the client makes, and knows nothing of the client.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable
from types import TracebackType
from typing import Protocol, Self, TypeAlias, TypeVar, cast

import msgspec

from piapi_async.errors import (
    APIConnectionError,
    APIError,
    APIResponseError,
    Secret,
    StreamTooLargeError,
    StreamTruncatedError,
)
from piapi_async.models import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    FunctionCall,
    Message,
    ToolCall,
    Usage,
)
from piapi_async.policy import Due
from piapi_async.sse import ServerSentEvent, SSEDecoder
from piapi_async.wire import (
    ChunkDecoder,
    WireChoice,
    WireChunk,
    WireCompletion,
    WireDelta,
    as_chunk,
    decode_completion,
)

__all__ = ["Answer", "ChatStream", "Restarted", "Timers", "read_chunks"]

T = TypeVar("T")


# -- joining chunks --------------------------------------------------------------------------------------------------


class _Call:
    """A function call in the making."""

    __slots__ = ("arguments", "id", "name", "type")

    def __init__(self) -> None:
        self.name = ""
        self.arguments: list[str] = []
        self.id: str | None = None
        self.type: str | None = "function"

    def add(self, fragment: FunctionCall) -> None:
        if fragment.name != self.name:  # some servers repeat the name in every fragment
            self.name += fragment.name
        self.arguments.append(fragment.arguments)

    def whole(self) -> FunctionCall:
        return FunctionCall(self.name, "".join(self.arguments))


class _Choice:
    """One choice's message in the making."""

    __slots__ = ("content", "finish_reason", "function_call", "logprobs", "role", "tools")

    def __init__(self) -> None:
        self.role = "assistant"
        self.content: list[str] = []
        self.finish_reason: str | None = None
        self.function_call: _Call | None = None
        self.tools: dict[int, _Call] = {}
        self.logprobs: list[object] = []

    def add_calls(self, delta: WireDelta) -> None:
        if delta.function_call is not None:
            self.function_call = self.function_call or _Call()
            self.function_call.add(delta.function_call)
        for fragment in delta.tool_calls or ():
            call = self.tools.setdefault(self._place(fragment), _Call())
            call.id = call.id or fragment.id
            call.type = fragment.type or call.type
            call.add(fragment.function)

    def _place(self, fragment: ToolCall) -> int:
        """The call that a fragment belongs to; without an index, by its id, else the one begun last."""
        if fragment.index is not None:
            return fragment.index
        for index, call in self.tools.items():
            if fragment.id is not None and call.id == fragment.id:
                return index
        last = max(self.tools, default=-1)
        return last + 1 if fragment.id is not None or last < 0 else last

    def whole(self, index: int) -> Choice:
        tools = tuple(ToolCall(self.tools[i].whole(), self.tools[i].id, self.tools[i].type) for i in sorted(self.tools))
        call = self.function_call.whole() if self.function_call else None
        content = "".join(self.content)
        message = Message(
            self.role,
            content if content or not (tools or call) else None,
            function_call=call,
            tool_calls=tools or None,
        )
        return Choice(index, message, self.finish_reason, _join_logprobs(self.logprobs))


_NO_CHOICE = _Choice()
"""Stands where there is none yet; nothing is ever added to it."""


def _join_logprobs(parts: list[object]) -> object:
    """Join `{"content": [...]}` of every chunk; anything else is handed on as it came."""
    if len(parts) < 2:
        return parts[0] if parts else None
    joined: dict[str, list[object]] = {}
    for part in parts:
        if not isinstance(part, dict):
            return parts
        for name, value in cast("dict[str, object]", part).items():
            if isinstance(value, list):
                joined.setdefault(name, []).extend(cast("list[object]", value))
    return joined


class Answer:
    """The whole answer, joined from chunks as they come.

    Attributes:
        usage: Token counts, once a chunk brought them; a later null does not undo them.
    """

    __slots__ = ("_choices", "_created", "_id", "_last", "_model", "_place", "_seen", "usage")

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}
        # The choice that the last chunk was for: looked at first. Where thousands of streams get a token in turn, each
        # object that a token leads to is one that the processor has to fetch.
        self._place: int | None = None
        self._last = _NO_CHOICE
        self._id = ""
        self._created = 0
        self._model = ""
        self._seen = False
        self.usage: Usage | None = None

    @property
    def text(self) -> str:
        """Content of choice 0 so far."""
        first = self._choices.get(0)
        return "".join(first.content) if first else ""

    @property
    def begun(self) -> bool:
        """Whether any chunk has come."""
        return self._seen

    @property
    def has_content(self) -> bool:
        """Whether any text, or fragment of a call, has come."""
        return any(choice.content or choice.function_call or choice.tools for choice in self._choices.values())

    def extend(self, chunks: Iterable[WireChunk]) -> None:
        """Add chunks."""
        for chunk in chunks:
            if not self._seen or not self._model:
                self._start(chunk)
            for part in chunk.choices:
                choice = self._last if part.index == self._place else self._choice(part.index)
                delta = part.delta
                if delta.content:
                    choice.content.append(delta.content)
                if part.finish_reason is not None:
                    choice.finish_reason = part.finish_reason
                if delta.role:
                    choice.role = delta.role
                if delta.function_call is not None or delta.tool_calls is not None:
                    choice.add_calls(delta)
                if part.logprobs is not None:
                    choice.logprobs.append(part.logprobs)
            if chunk.usage is not None:
                self.usage = chunk.usage

    def _choice(self, index: int) -> _Choice:
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice()
        self._place, self._last = index, choice
        return choice

    def _start(self, chunk: WireChunk) -> None:
        self._seen = True
        self._id = self._id or chunk.id or ""
        self._created = self._created or chunk.created or 0
        self._model = self._model or chunk.model or ""

    def check_end(self, *, terminated: bool, broken: bool = False, require_finish_reason: bool = False) -> None:
        """Say whether an ended stream is whole.

        Args:
            terminated: Whether a terminator came.
            broken: Whether the connection broke off.
            require_finish_reason: Whether a terminator alone is not enough.

        Raises:
            StreamTruncatedError: It is not.
            APIResponseError: Nothing came at all.
        """
        if not self._seen and not broken:
            raise APIResponseError("the stream ended without any event; try again", kind="empty", maybe_billed=True)
        finished = bool(self._choices) and all(c.finish_reason is not None for c in self._choices.values())
        if finished or (terminated and not require_finish_reason):
            return
        lacks = "a finish_reason" if terminated else "its terminator and a finish_reason"
        raise StreamTruncatedError(f"the stream ended without {lacks}: the answer is cut; ask again", maybe_billed=True)

    def whole(self, asked: str) -> WireCompletion:
        """The answer as a completion; `asked` is the model to name when the stream named none."""
        return WireCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._model or asked,
            choices=tuple(self._choices[i].whole(i) for i in sorted(self._choices)),
            usage=self.usage,
        )


# -- reading chunks --------------------------------------------------------------------------------------------------


class Readable(Protocol):
    """What is read from: a `pool.Exchange`, or a test's stand-in."""

    began: float
    """When the last wait began."""

    def read(self, due: Due) -> Awaitable[bytes]:
        """Return the bytes that have arrived, `b""` at the end."""
        ...

    async def read_all(self, due: Due, start: bytes = b"") -> bytes:
        """Return the rest of the body behind `start`."""
        ...


class Timers(msgspec.Struct, frozen=True, eq=False):
    """The waits of one stream.

    Attributes:
        first_event: When the first event must be there.
        progress: Seconds from one event to the next; None for never.
        deadline: When the whole call must be over.
    """

    first_event: Due
    progress: float | None
    deadline: Due


async def read_chunks(
    exchange: Readable,
    answer: Answer,
    timers: Timers,
    *,
    secrets: Iterable[Secret] = (),
    require_finish_reason: bool = False,
) -> AsyncGenerator[list[WireChunk], None]:
    """Yield the chunks of one exchange, a list for each read, and add them to `answer`.

    It returns only if the answer is whole. What follows a terminator is not looked at.

    Raises:
        APIError: The stream broke off, stalled, held an error, or ended before it was whole.
    """
    events = SSEDecoder()
    decoder = ChunkDecoder(secrets)
    due = timers.first_event
    between = timers.deadline.each(timers.progress)  # for each wait from its own beginning
    fresh, ended, broken = True, False, False
    while not ended:
        try:
            data = await exchange.read(due)
        except APIConnectionError as error:
            if error.kind != "truncated body":
                raise
            broken = True  # which is one more way for a stream to end
            break
        if not data:
            break
        if fresh and _is_document(data):
            body = await exchange.read_all(due.each(timers.progress), data)
            completion = decode_completion(body, secrets=secrets)
            chunks, ended, failure = [_as_chunk(completion)], True, None
        else:
            chunks, ended, failure = _decode(events, decoder, data)
        fresh = fresh and data.isspace()
        if chunks:
            answer.extend(chunks)
            yield chunks
            due = between
        elif due is between:  # what came were comments, which don't count
            due = timers.deadline.after(exchange.began, "progress", timers.progress)
        del data, chunks  # else they stay while the next are waited for: 2.2 KiB a stream
        if failure is not None:
            raise failure
    if last := decoder.flush():
        answer.extend([last])
        yield [last]
    answer.check_end(terminated=ended, broken=broken, require_finish_reason=require_finish_reason)


def _is_document(start: bytes) -> bool:
    """Whether a body is no event stream, which never begins so, but one JSON answer, an error, or a web page."""
    return start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"<")


def _decode(events: SSEDecoder, decoder: ChunkDecoder, data: bytes) -> tuple[list[WireChunk], bool, APIError | None]:
    """Decode what arrived: the chunks in it, whether the stream has ended, and what is wrong behind the chunks."""
    chunks: list[WireChunk] = []
    decode = decoder.decode
    failure: APIError | None = None
    ready: Iterable[ServerSentEvent]
    try:
        ready = events.feed(data)
    except StreamTooLargeError as error:
        failure, ready = error, error.events
        failure.maybe_billed = True
    try:
        for event in ready:
            chunk = decode(event)
            if isinstance(chunk, str):  # "end"
                return chunks, True, None
            if chunk is not None:
                chunks.append(chunk)
    except APIError as error:
        failure = error
    return chunks, False, failure


def _as_chunk(completion: WireCompletion) -> WireChunk:
    """A whole completion as the only chunk of a stream."""
    return WireChunk(
        choices=tuple(
            WireChoice(
                choice.index,
                WireDelta(
                    choice.message.role,
                    choice.message.text or None,
                    choice.message.function_call,
                    choice.message.tool_calls,
                ),
                choice.finish_reason,
                choice.logprobs,
            )
            for choice in completion.choices
        ),
        id=completion.id,
        object="chat.completion.chunk",
        created=completion.created,
        model=completion.model,
        usage=completion.usage,
    )


# -- what the caller holds -------------------------------------------------------------------------------------------


class Restarted(msgspec.Struct, frozen=True):
    """Comes out of `ChatStream.events` where an answer broke off and another one begins: forget the text so far.

    Attributes:
        error: What broke it off; its `partial` is the text to forget.
    """

    error: APIError


Source: TypeAlias = AsyncGenerator[list[WireChunk] | Restarted | ChatCompletion, None]
"""What a `ChatStream` consumes: an empty list once the stream is open, lists of chunks, the whole completion last."""


class ChatStream:
    """A streamed answer: an async context manager, and an async iterator of the tokens of choice 0.

    Leaving the block closes the connection and frees its place. There is one consumer: a second iteration is a
    `RuntimeError`.
    """

    def __init__(self, source: Source, *, restarts: bool = False) -> None:
        self._source = source
        self._restarts = restarts
        self._consumer: AsyncGenerator[object, None] | None = None
        self._tokens: AsyncGenerator[str, None] | None = None
        self._looping = False
        self._completion: ChatCompletion | None = None
        self._open = False

    async def __aenter__(self) -> Self:
        """Send the request; returns when the answer has begun.

        Raises:
            APIError: No provider began an answer.
        """
        if self._open:
            raise RuntimeError("the stream is open already; call client.stream() again for another")
        self._open = True
        await anext(self._source)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        if self._consumer is not None:
            await self._consumer.aclose()
        await self._source.aclose()

    def __aiter__(self) -> AsyncIterator[str]:
        self._check_no_restarts()
        if self._tokens is None or self._looping:
            self._tokens = self._consume(self._iterate_tokens())
        self._looping = True
        return self._tokens

    async def __anext__(self) -> str:
        self._check_no_restarts()
        if self._tokens is None:
            self._tokens = self._consume(self._iterate_tokens())
        return await anext(self._tokens)

    def chunks(self) -> AsyncIterator[ChatCompletionChunk]:
        """Iterate over whole chunks instead of tokens: all choices, fragments of calls, usage."""
        self._check_no_restarts()
        return self._consume(self._iterate_chunks())

    def events(self) -> AsyncIterator[ChatCompletionChunk | Restarted]:
        """Iterate over whole chunks, and over the restarts of a stream that was asked for `on_interrupt="restart"`.

        A `Restarted` says that the text so far is void: another answer begins behind it.
        """
        return self._consume(self._iterate_events())

    async def completion(self) -> ChatCompletion:
        """Drain what is left and return the whole answer, fragments joined for every choice, function and tool call.

        Raises:
            APIError: The stream fails before its end.
        """
        self._check_open()
        if self._completion is None:
            async for item in self._source:
                self._keep(item)
        if self._completion is None:
            raise RuntimeError("the stream has failed before; there is no whole answer")
        return self._completion

    def _check_no_restarts(self) -> None:
        if self._restarts:
            raise RuntimeError("a stream that may restart is read by events(), which say where; or by completion()")

    def _check_open(self) -> None:
        if not self._open and self._completion is None:
            raise RuntimeError("the stream is not open; use it inside `async with client.stream(...) as stream:`")

    def _consume(self, consumer: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        self._check_open()
        if self._consumer is not None:
            raise RuntimeError("the stream has a consumer already; keep what you need in the first iteration")
        self._consumer = consumer
        return consumer

    def _keep(self, item: list[WireChunk] | Restarted | ChatCompletion) -> list[WireChunk]:
        if isinstance(item, list):
            return item
        if isinstance(item, ChatCompletion):
            self._completion = item
        return []

    async def _iterate_tokens(self) -> AsyncGenerator[str, None]:
        async for item in self._source:
            tokens = [
                content
                for chunk in (item if type(item) is list else self._keep(item))
                for choice in chunk.choices
                if choice.index == 0 and (content := choice.delta.content)
            ]
            del item  # as in `read_chunks`
            for token in tokens:
                yield token

    async def _iterate_events(self) -> AsyncGenerator[ChatCompletionChunk | Restarted, None]:
        async for item in self._source:
            if isinstance(item, Restarted):
                yield item
            for chunk in self._keep(item):
                yield as_chunk(chunk)

    async def _iterate_chunks(self) -> AsyncGenerator[ChatCompletionChunk, None]:
        async for item in self._source:
            for chunk in self._keep(item):
                yield as_chunk(chunk)
