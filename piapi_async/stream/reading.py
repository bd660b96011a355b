"""One exchange → chunks, a list for each read from the socket: what arrived together costs one step together."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterable

from piapi_async.errors import APIConnectionError, APIError, Secret, StreamTooLargeError
from piapi_async.models import ChatCompletionChunk
from piapi_async.policy import Deadline
from piapi_async.pool import Exchange
from piapi_async.sse import MAX_EVENT_BYTES, ServerSentEvent, SSEDecoder
from piapi_async.wire import AnswerBuilder, ChunkDecoder, as_chunk, decode_completion

_BLANK = b"\xef\xbb\xbf \t\r\n"
"""A byte order mark and white space, which may stand before an answer."""


_COMMENTS = rb"^(:[^\n]*\n\s*)+"
"""Comments, which some gateways send while they wait, whatever comes then."""


async def read_chunks(
    exchange: Exchange,
    builder: AnswerBuilder,
    *,
    first_event: Deadline,
    progress: float | None,
    deadline: Deadline,
    clock: Callable[[], float],
    secrets: Iterable[Secret] = (),
    require_finish_reason: bool = False,
) -> AsyncGenerator[list[ChatCompletionChunk], None]:
    """Yield the chunks of one exchange, a list for each read, and add them to the answer that is being built.

    It returns only if the answer is whole. What follows a terminator is not looked at.

    Args:
        exchange: Where the bytes come from.
        builder: What the chunks are added to.
        first_event: When the first event must be there.
        progress: Seconds from one event to the next, without the time that the caller takes; None for never.
        deadline: When the whole call must be over.
        clock: The time that the deadlines are of, in seconds.
        secrets: Keys that must not appear in an error.
        require_finish_reason: Whether a terminator alone does not make an answer whole.

    Raises:
        APIError: The stream broke off, stalled, held an error, or ended before it was whole.
    """
    reader = _ChunkReader(builder, secrets)
    due = first_event
    between_events = deadline.with_progress(progress)  # each wait counts from its own beginning
    broken = False
    while not reader.ended:
        began = clock()
        try:
            data = await exchange.read(due)
        except APIConnectionError as error:
            if error.kind != "truncated body":
                raise
            broken = True  # which is one more way for a stream to end
            break
        if not data:
            break
        if reader.begins_document(data):
            chunks = reader.take_document(await exchange.read_all(due.with_progress(progress), data))
        else:
            chunks = reader.take(data)
        if chunks:
            builder.count(chunks)
            yield chunks
            due = between_events
        elif due is between_events:  # comments came, which don't count: the wait for the next event goes on
            due = deadline.or_within(began, "progress", progress)
        del data, chunks  # else they stay in memory while the next bytes are waited for
        if reader.failure is not None:
            raise reader.failure
    if rest := reader.finish():
        builder.count(rest)
        yield rest
    builder.check_end(terminated=reader.ended, broken=broken, require_finish_reason=require_finish_reason)


class _ChunkReader:
    """Turns the bytes of one answer into chunks, whatever form they have.

    Attributes:
        ended: Whether a terminator has come, or a whole document.
        failure: What is wrong behind the chunks that were returned.

    Args:
        builder: What the chunks are added to.
        secrets: Keys that must not appear in an error.
    """

    def __init__(self, builder: AnswerBuilder, secrets: Iterable[Secret]) -> None:
        self.ended = False
        self.failure: APIError | None = None
        self._builder = builder
        self._secrets = secrets
        self._decoder = ChunkDecoder(builder, secrets)
        self._events: SSEDecoder | _JSONLines = SSEDecoder()
        self._blank = True  # nothing but white space has come

    def begins_document(self, data: bytes) -> bool:
        """Whether these bytes begin one JSON answer, an error, or a web page, as no event stream does."""
        if not self._blank:
            return False
        start = re.sub(_COMMENTS, b"", data.lstrip(_BLANK))
        self._blank = not start
        line, end, _ = start.partition(b"\n")
        whole = end and line.rstrip().endswith(b"}") and b'"delta"' in line
        if line.startswith(b"{") and (whole or b'"chat.completion.chunk"' in line):
            self._events = _JSONLines()  # the events of a stream without their field names
            return False
        return start[:1] in (b"{", b"[", b"<")

    def take_document(self, body: bytes) -> list[ChatCompletionChunk]:
        """Take a whole answer for the only chunk of a stream."""
        completion = decode_completion(body, choices=self._builder.asked, secrets=self._secrets)
        if len(completion.choices) == self._builder.asked == 1:
            completion.choices[0].index = 0  # the tokens are those of choice 0
        chunk = as_chunk(completion)
        self._builder.add(chunk)
        self.ended = True
        return [chunk]

    def take(self, data: bytes) -> list[ChatCompletionChunk]:
        """Take what one read brought, and return the chunks that it ends."""
        chunks: list[ChatCompletionChunk] = []
        ready: list[ServerSentEvent] = []
        try:
            self._events.feed_into(data, ready)
        except StreamTooLargeError as error:
            error.maybe_billed = True
            self.failure = error
        try:
            self.ended = self._decoder.decode(ready, chunks)
        except APIError as error:
            self.failure = error
            chunks += self._decoder.flush()
        if self.ended:  # what is wrong behind a terminator is nobody's loss
            self.failure = None
        return chunks

    def finish(self) -> list[ChatCompletionChunk]:
        """Return what is left when no more bytes come: an event without its blank line, half a surrogate pair."""
        chunks: list[ChatCompletionChunk] = []
        if not self.ended:
            self.ended = self._decoder.decode_unended(self._events.unended(), chunks)
        return chunks + self._decoder.flush()


class _JSONLines:
    """Turns lines of JSON into events; it stands in for an `SSEDecoder`."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def feed_into(self, data: bytes, events: list[ServerSentEvent]) -> None:
        """Add the lines that end in these bytes to the events.

        Raises:
            StreamTooLargeError: A line is larger than an answer may be.
        """
        *ended, rest = data.split(b"\n")
        for line in ended:
            self._hold(line)
            if event := self.unended():
                events.append(event)
        self._hold(rest)

    def _hold(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > MAX_EVENT_BYTES:
            raise StreamTooLargeError(f"a line of the stream is larger than {MAX_EVENT_BYTES:,} bytes")
        self._pieces.append(piece)

    def unended(self) -> ServerSentEvent | None:
        """Return the line so far, and begin another; None if it is blank."""
        line, self._pieces, self._size = b"".join(self._pieces), [], 0
        return ServerSentEvent(line.decode("utf-8", "replace")) if line.strip() else None
