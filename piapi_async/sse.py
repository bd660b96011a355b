"""Server-sent events from bytes, incrementally, by the WHATWG rules (HTML Living Standard, section 9.2).

No IO: `SSEDecoder.feed` takes whatever bytes arrived and returns the events that they end. Lines are split as bytes and
each is decoded alone. That is the same as decoding the whole stream, since neither CR nor LF is ever part of a longer
UTF-8 sequence, and it makes every way of cutting the bytes equal.
"""

from __future__ import annotations

from typing import NoReturn

import attrs

from piapi_async.errors import StreamTooLargeError

__all__ = ["SSEDecoder", "ServerSentEvent"]

MAX_EVENT_BYTES = 16 << 20
"""Most bytes that an event's data may have (16 MiB, as for a plain answer: a picture in base64 is one event; ours)."""

_BOM = b"\xef\xbb\xbf"
_PIECE = 1 << 16
"""Bytes looked at at once: all lines of a large chunk, split at one time, take many times its memory (ours)."""


@attrs.define
class ServerSentEvent:
    """One event.

    Attributes:
        data: The `data` lines, joined by LF.
        event: The event's type.
        id: The last event id when this event was dispatched.
        retry: Milliseconds, if the event's own block had a valid `retry` field.
    """

    data: str
    event: str = "message"
    id: str = ""
    retry: int | None = None


class SSEDecoder:
    """Turns bytes into events; one decoder a stream.

    Attributes:
        last_event_id: The last `id` that a blank line made valid, `""` before any.
        reconnection_time: The last valid `retry`, in milliseconds, or None.

    Args:
        max_event_bytes: Most bytes that an event's data may have, and any other line. Lines in progress count too, so
            an endless line can't fill the memory.
    """

    __slots__ = (
        "_after_cr",
        "_at_start",
        "_data",
        "_event",
        "_held",
        "_id",
        "_line",
        "_max",
        "_retry",
        "last_event_id",
        "reconnection_time",
    )

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        if max_event_bytes < 1:
            raise ValueError(f"max_event_bytes: {max_event_bytes} is not a size; pass 1 or more")
        self._max = max_event_bytes
        self._line: bytes | bytearray = b""  # the unended last line
        self._after_cr = False  # the last byte was a CR: an LF that follows belongs to it
        self._at_start = True  # a BOM may still come
        self._data: bytes | bytearray | None = None  # one buffer: many short lines must not take many times their bytes
        self._held = 0  # bytes that _data adds to, with the LF that joins the next line
        self._event = ""
        self._id = ""
        self._retry: int | None = None
        self.last_event_id = ""
        self.reconnection_time: int | None = None

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Take the next bytes and return the events that they end.

        Args:
            chunk: Any number of bytes, cut anywhere.

        Raises:
            StreamTooLargeError: An event passed the cap. The decoder is of no use after that.
        """
        events: list[ServerSentEvent] = []
        self.feed_into(chunk, events)
        return events

    def feed_into(self, chunk: bytes, events: list[ServerSentEvent]) -> None:
        """Do as `feed`, and add the events to a list, which has all that ended before one that is too large.

        Args:
            chunk: As in `feed`.
            events: Where the events go.

        Raises:
            StreamTooLargeError: As in `feed`.
        """
        if len(chunk) <= _PIECE:
            self._feed(chunk, events)
        else:
            for start in range(0, len(chunk), _PIECE):
                self._feed(chunk[start : start + _PIECE], events)

    def unended(self) -> ServerSentEvent | None:
        """Return the event that the end of the bytes left without its blank line; None if there is none.

        The WHATWG rules drop it, so `feed` never returns it. Call this when no more bytes come.
        """
        line, self._line = bytes(self._line), b""
        events: list[ServerSentEvent] = []
        self._take([line] if line else [], events)
        self._dispatch(events)
        return events[0] if events else None

    def _feed(self, chunk: bytes, events: list[ServerSentEvent]) -> None:
        if chunk and self._after_cr:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if self._at_start:
            chunk = self._strip_bom(chunk)
        if self._line:
            chunk = self._go_on(chunk, events)
        if not chunk:
            return
        checked = len(chunk) + self._held > self._max
        if not checked and self._data is None and not self._event and self._retry is None and b"\r" not in chunk:
            chunk = self._take_blocks(chunk, events)
            if not chunk:
                return
        # bytes.splitlines ends a line at LF, CR and CRLF, and at nothing else.
        lines = chunk.splitlines()
        if chunk.endswith(b"\r"):
            self._after_cr = True
        elif lines and not chunk.endswith(b"\n"):
            self._line = bytearray(lines.pop())
        if checked:
            self._check(lines, events)
        else:
            self._take(lines, events)

    def _take_blocks(self, chunk: bytes, events: list[ServerSentEvent]) -> bytes:
        """Take the blocks that end in this chunk, if each is one `data` line, and return the bytes behind them.

        Nearly every event of every provider is such a block, and to take it whole is much cheaper than line by line.
        """
        end = chunk.rfind(b"\n\n")
        if end < 0 or not chunk.startswith(b"data: "):
            return chunk
        text = chunk[6:end].decode("utf-8", "replace")
        id_ = self._id
        if "\n" in text:
            values = text.split("\n\ndata: ")
            if "\n" in "".join(values):
                return chunk
            events += [ServerSentEvent(value, "message", id_) for value in values]
        else:
            events.append(ServerSentEvent(text, "message", id_))
        self.last_event_id = id_
        return chunk[end + 2 :]

    def _strip_bom(self, chunk: bytes) -> bytes:
        """Hold the first bytes back until they are a BOM, which is dropped, or can't become one."""
        start = bytes(self._line) + chunk
        if len(start) < 3 and _BOM.startswith(start):
            self._line = start
            return b""
        self._line = b""
        self._at_start = False
        return start.removeprefix(_BOM)

    def _go_on(self, chunk: bytes, events: list[ServerSentEvent]) -> bytes:
        """Join the unended line to a chunk that is longer; or add to it, up to the first line end, and return the rest.

        What is moved is always the shorter part, so that the work is linear in the bytes however they are cut.
        """
        if len(self._line) < len(chunk):
            chunk = bytes(self._line) + chunk
            self._line = b""
            return chunk
        ends = [end for end in (chunk.find(b"\n"), chunk.find(b"\r")) if end >= 0]
        end = min(ends, default=len(chunk))
        line = self._line = bytearray(self._line) if isinstance(self._line, bytes) else self._line
        line += chunk[:end]
        if self._is_too_large(line):
            self._refuse()
        if not ends:
            return b""
        self._line = b""
        if line.startswith(b"data: "):
            del line[:6]  # in place: a copy would make three of a large event
            self._add_data(line)
        else:
            self._take([bytes(line)], events)
        if chunk[end] == 13:
            self._after_cr = len(chunk) == end + 1
            end += chunk[end + 1 : end + 2] == b"\n"
        return chunk[end + 1 :]

    def _check(self, lines: list[bytes], events: list[ServerSentEvent]) -> None:
        """Take lines that may pass the cap, one at a time."""
        for line in lines:
            if self._is_too_large(line):
                self._refuse()
            self._take([line], events)
        if self._is_too_large(self._line):
            self._refuse()

    def _is_too_large(self, line: bytes | bytearray) -> bool:
        """Whether a line, ended or not, is past the cap: with the data before it if it is data, else alone."""
        if line.startswith(b"data:"):
            return self._held + len(line) - (6 if line.startswith(b"data: ") else 5) > self._max
        return len(line) - 6 > self._max  # so that a line that may become `data: ` is not refused before

    def _refuse(self) -> NoReturn:
        self._line = b""
        self._data = None
        raise StreamTooLargeError(
            f"an event of the stream is larger than {self._max} bytes; ask for a shorter answer, "
            "or give the SSEDecoder a larger max_event_bytes"
        )

    def _take(self, lines: list[bytes], events: list[ServerSentEvent]) -> None:
        for line in lines:
            if not line:
                self._dispatch(events)
            elif line[0] != 58:  # a colon in front makes a comment
                self._field(line)

    def _add_data(self, value: bytes | bytearray) -> None:
        if self._held + len(value) > self._max:
            self._refuse()
        self._held += len(value) + 1
        if self._data is None:
            self._data = value
        else:
            if not isinstance(self._data, bytearray):
                self._data = bytearray(self._data)
            self._data += b"\n"
            self._data += value

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._add_data(value)
        elif name == b"event":
            self._event = value.decode(errors="replace")
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode(errors="replace")
        elif name == b"retry" and value.isdigit():
            # bytes.isdigit knows ASCII digits only; int() refuses more than 4,300 of them.
            self._retry = self.reconnection_time = int(value[:4000])

    def _dispatch(self, events: list[ServerSentEvent]) -> None:
        """End the block at a blank line; without data it is no event, but its id counts."""
        self.last_event_id = self._id
        data = self._data
        if data is not None:
            events.append(
                ServerSentEvent(data.decode(errors="replace"), self._event or "message", self._id, self._retry)
            )
            self._data = None
            self._held = 0
        self._event = ""
        self._retry = None
