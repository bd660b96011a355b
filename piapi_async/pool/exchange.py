"""One request on an aiohttp session, and its answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import aiohttp

from piapi_async.errors import APIError, StreamTooLargeError
from piapi_async.policy import NEVER, Deadline
from piapi_async.pool.foreign import FOREIGN, closed, translate
from piapi_async.pool.timer import WaitTimer
from piapi_async.wire import ANSWER_HEADERS, Headers

if TYPE_CHECKING:
    from piapi_async.pool.encoding import ContentDecoder
    from piapi_async.pool.session import EndpointSession

MAX_BODY_BYTES = 16 << 20
"""Largest body, decoded, that is taken for an answer (16 MiB: a hundred times the longest; ours)."""

INFLATED_PIECE = 1 << 20
"""Most bytes that one read of a compressed body gives (ours)."""


class SessionExchange:
    """An `Exchange` on a session of the pool.

    Attributes:
        due: When the present wait ends in a timeout, for `WaitTimer`.
        expired: Whether one did.
        made: The socket made for it; None while there is none, and where a kept connection is used.
        sent: Whether the request began to go out.
        sent_at: When it did.

    Args:
        session: What it belongs to.
        timer: What ends its waits.
        on_sent: Called when the request begins to go out.
        due: When the answer's headers must be there.
    """

    def __init__(self, session: EndpointSession, timer: WaitTimer, on_sent: Callable[[], None], due: float) -> None:
        self.status = 0
        self.headers: Headers = {}
        self.due = due
        self.expired = False
        self.sent = False
        self.sent_at = NEVER
        self._began = session.time()
        self.made: socket.socket | None = None
        self.response: aiohttp.ClientResponse | None = None
        self._session = session
        self._timer = timer
        self._task = cast("asyncio.Task[object]", asyncio.current_task(session.loop))  # whose coroutine this is made in
        self._cancelling = self._task.cancelling()
        self._content = aiohttp.EMPTY_PAYLOAD
        self._decoder: ContentDecoder | None = None
        self._on_sent = on_sent

    # -- before the answer ---------------------------------------------------------------------------------------------

    def note_sent(self) -> None:
        """Note that the request begins to go out."""
        self.sent = True
        self.sent_at = self._session.time()
        if self.made is not None:
            self._session.note_connected(self.sent_at - self._began)
        on_sent = self._on_sent
        del self._on_sent  # it leads back here, and a cycle costs a collection
        on_sent()

    def answer(self, response: aiohttp.ClientResponse) -> None:
        """Note that the answer begins."""
        self.response = response
        self._content = response.content
        self.status = response.status
        self.headers = _copy(response)
        encoding = self.headers.get("content-encoding")
        if encoding is not None and encoding.lower() != "identity":
            self._decoder = _find_decoder(encoding, self._session.host)

    def expire(self, due: float) -> None:
        """End the wait, if it is still the one that was due: by a cancellation, or by closing the answer."""
        if self.due == due and not self.expired:
            self.expired = True
            if self.response is not None:
                self.response.close()
            else:
                self._task.cancel()

    def cancelled_itself(self) -> bool:
        """Whether a `CancelledError` is this exchange's own; takes the cancellation back if so."""
        return self.expired and self._task.uncancel() <= self._cancelling

    def abort(self) -> None:
        """End a connection now; closing it as aiohttp does waits until what is left of the body is written."""
        if self.made is not None:
            with suppress(OSError):
                self.made.shutdown(socket.SHUT_RDWR)

    # -- the body ------------------------------------------------------------------------------------------------------

    def read(self, deadline: Deadline) -> Awaitable[bytes]:
        """Return the bytes that have arrived, at least one, or `b""` at the end of the body.

        Raises:
            APITimeoutError: The deadline came first.
            APIConnectionError: The body broke off.
            APIResponseError: Its content encoding is broken, or can't be undone.
        """
        return self._read(deadline) if self._decoder is None else self._read_decoded(deadline, self._decoder)

    async def _read(self, deadline: Deadline) -> bytes:
        failure: BaseException
        began = self._session.time()
        try:
            self.due = due = deadline.of_a_wait(began)
            if due < self._timer.rings:
                self._timer.ring_at(due)
            return await self._content.readany()
        except asyncio.CancelledError:
            self.close()
            raise
        except FOREIGN as error:
            failure = error
        finally:
            self.due = NEVER
        self.close()
        if self.expired:
            raise self._session.timed_out(deadline.or_within(began, "progress", deadline.progress))
        if self._session.closed:
            raise closed(self._session.host, sent=True)
        raise translate(failure, self._session.host, in_body=True)

    async def _read_decoded(self, deadline: Deadline, decoder: ContentDecoder) -> bytes:
        """Undo content encodings that nobody asked for."""
        for_all = deadline.or_within(self._session.time(), "progress", deadline.progress)
        try:
            while not (plain := decoder.read()) and not decoder.ended:
                decoder.feed(await self._read(for_all))
        except APIError:
            self.close()
            raise
        return plain

    async def read_all(self, deadline: Deadline, start: bytes = b"") -> bytes:
        """Return the whole body, and give its connection back.

        Args:
            deadline: When it must be there.
            start: What has been read of it before.

        Raises:
            StreamTooLargeError: It is larger than `MAX_BODY_BYTES`, content encoding undone.
            APIError: As `read`.
        """
        pieces = [start]
        size = len(start)
        while size <= MAX_BODY_BYTES and (piece := await self.read(deadline)):
            pieces.append(piece)
            size += len(piece)
            if self._decoder is None and self._content.at_eof():
                break  # as nearly always, after the first piece
        if size <= MAX_BODY_BYTES:
            self.finish()
            return b"".join(pieces)
        self.close()
        raise StreamTooLargeError(
            f"{self._session.host} answered with more than {MAX_BODY_BYTES:,} bytes; ask for a shorter answer",
            maybe_billed=True,
        )

    async def read_start(self, deadline: Deadline, limit: int = 1 << 16) -> bytes:
        """Return the body's first `limit` bytes, or a little more, and end the exchange."""
        data = b""
        while len(data) < limit:
            piece = await self.read(deadline)
            if not piece:
                break
            data += piece
        self.finish()
        return data

    def finish(self) -> None:
        """End a body that has been read as far as it matters, and keep its connection if it ends by itself soon."""
        self._session.end_exchange(self, keep=True)

    def close(self) -> None:
        """Close the connection, now."""
        self._session.end_exchange(self, keep=False)


def _copy(response: aiohttp.ClientResponse) -> Headers:
    """Copy headers out of aiohttp's own mapping; what came more than once is joined by line ends."""
    headers = response.headers
    return {name: "\n".join(headers.getall(name)) for name in ANSWER_HEADERS if name in headers}


def _find_decoder(header: str, host: str) -> ContentDecoder | None:
    from piapi_async.pool.encoding import ContentDecoder, find_encodings  # deferred: nearly no answer is encoded

    encodings = find_encodings(header)
    return ContentDecoder(encodings, host, INFLATED_PIECE) if encodings else None
