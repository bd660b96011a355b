"""`SessionPool`: one aiohttp session per provider and key; bytes in, bytes out. All IO of the client is here.

This is the one boundary where foreign exceptions end: whatever aiohttp, the loop or the operating system raises becomes
an `APIError` here, raised outside the `except` block, so that neither the key nor the prompt, which the exceptions of
aiohttp hold, hides in its `__context__`.
"""

from __future__ import annotations

import asyncio
import errno
import io
import math
import socket
import ssl as ssl_module
import zlib
from collections import deque
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, Protocol, Self, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakSet

import aiohttp
import msgspec
from aiohttp import hdrs
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError

from piapi_async.errors import (
    APIConnectionError,
    APIError,
    APIResponseError,
    Secret,
    StreamTooLargeError,
)
from piapi_async.policy import NEVER, Due, Headers, timed_out
from piapi_async.wire import Body

__all__ = ["Endpoint", "Exchange", "SessionPool", "Transport"]

READ_BUFFER = 1 << 13
"""aiohttp pauses reading at twice this: 16 kB is the most that waits unread for a slow consumer. Below this it asks the
transport for more with each chunk that is read, so that 8 kB save a tenth of a token that comes with others (ours)."""

DRAIN_SECONDS = 0.1
"""How long a finished stream's connection may take to end its body before it is closed instead of kept (ours)."""

MAX_BODY_BYTES = 16 << 20
"""Largest body, decoded, that is taken for an answer (16 MiB: a hundred times the longest; ours)."""

LARGE_BODY = 1 << 20
"""aiohttp wants a request body above 1 MiB as a file, so that writing it does not block the loop."""

INFLATED_PIECE = 1 << 20
"""Most bytes that one read of a compressed body gives (ours)."""

KEPT_BLOCK = 1 << 20
"""Bytes of a block that is made and dropped when a pool opens. asyncio asks for 256 KiB at each read, however little
comes; glibc has the kernel map and unmap such a block each time, which makes a read of 2.3 µs one of 14. Once it has
freed a block so large, as it does when a peer first closes a connection, it keeps them (mallopt(3), M_MMAP_THRESHOLD),
twice as much at most. This makes it so from the start; to other allocators it is nothing."""

BURST = 256
"""Most requests that begin in one turn of the loop: thousands at once would keep it so busy that their connections,
though made, are not looked at before the connect timer is over (ours)."""

KEEPALIVE = tuple(
    (getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)  # macOS and Windows lack some
)
"""Seconds before the first probe, between probes, and probes: a silent stream lives behind NAT, a dead peer is noticed
within a minute (ours)."""

_LOCAL_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EACCES})
_FOREIGN = (aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError, ValueError)
"""What aiohttp, ssl and the loop raise when an exchange fails; anything else is a mistake of ours and passes."""


class Inflate(Protocol):
    """What `zlib.decompressobj` makes, whose class has no public name."""

    @property
    def unconsumed_tail(self) -> bytes:
        """Input that the last call did not get to."""
        ...

    @property
    def eof(self) -> bool:
        """Whether the end of the compressed data has come."""
        ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Return at most `max_length` bytes of what `data` stands for."""
        ...


class Endpoint(msgspec.Struct, frozen=True, eq=False):
    """Where one key's requests go.

    Attributes:
        provider: Name of the provider.
        url: The whole URL of chat completions.
        secret: The key, which goes to this URL's origin only.
        headers: Extra headers; those of a single request win over them.
    """

    provider: str
    url: str
    secret: Secret
    headers: Mapping[str, str] = {}


class Exchange(msgspec.Struct, eq=False):
    """One request under way, and its answer: status and headers at once, the body as it is read.

    Attributes:
        status: HTTP status.
        headers: The answer's headers, names in any case, each once or more.
        response: aiohttp's answer, once it begins.
        made: The socket made for it, as the factory deep inside aiohttp tells; None where a kept connection is used.
        due: When the wait that is under way ends in a timeout, `NEVER` while there is none.
        began: When the last wait for the body began.
        expired: Whether one did.
    """

    _line: _Line
    _task: asyncio.Task[object]
    _cancelling: int
    due: float
    response: aiohttp.ClientResponse | None = None
    made: socket.socket | None = None
    began: float = NEVER
    expired: bool = False
    status: int = 0
    headers: Headers = cast("Headers", None)  # until the answer begins
    _reader: aiohttp.StreamReader = cast("aiohttp.StreamReader", None)  # as above
    _inflate: Inflate | None = None

    __repr__ = object.__repr__  # it would show all that these lead to

    def begin(self, response: aiohttp.ClientResponse) -> None:
        """Note that the answer begins."""
        self.response = response
        self._reader = response.content
        self.status = response.status
        headers: Any = response.headers
        self.headers = headers
        encoding = response.headers.get(hdrs.CONTENT_ENCODING)
        if encoding is not None and encoding.lower() != "identity":
            self._inflate = zlib.decompressobj(wbits=47)  # 47: zlib or gzip, as it comes

    def expire(self, due: float) -> None:
        """End the wait, if it is still the one that was due: by a cancellation, or by closing the answer."""
        if self.due == due and not self.expired:
            self.expired = True
            if self.response is None:
                self._task.cancel()
            else:
                self.response.close()

    def caused(self) -> bool:
        """Whether a `CancelledError` is this exchange's own; takes the cancellation back if so."""
        return self.expired and self._task.uncancel() <= self._cancelling

    def abandon(self) -> None:
        """End a connection now; closing it as aiohttp does waits until what is left of the body is written."""
        if self.made is not None:
            with suppress(OSError):
                self.made.shutdown(socket.SHUT_RDWR)

    def read(self, due: Due) -> Awaitable[bytes]:
        """Return the bytes that have arrived, at least one, or `b""` at the end of the body.

        Raises:
            APITimeoutError: `due` came first.
            APIConnectionError: The body broke off.
            APIResponseError: Its content encoding is broken.
        """
        return self._read(due) if self._inflate is None else self._read_inflated(due, self._inflate)

    async def _read_inflated(self, due: Due, inflate: Inflate) -> bytes:
        """Undo a content encoding that nobody asked for, in pieces, so that a small body can't fill the memory."""
        due = due.after(self._line.time(), "progress", due.progress)  # for all the reads that it takes
        while data := inflate.unconsumed_tail or await self._read(due):
            try:
                plain = inflate.decompress(data, INFLATED_PIECE)
            except zlib.error:
                break
            if plain:
                return plain
        if not data and inflate.eof:
            return b""
        self.close()
        raise APIResponseError(
            f"{self._line.host}'s answer has a broken or unknown content encoding; it was asked for none",
            kind="encoding",
            maybe_billed=True,
        )

    async def _read(self, due: Due) -> bytes:
        line = self._line
        failure: BaseException
        try:
            self.began = now = line.time()
            self.due = ends = due.ends(now)
            if ends < line.rings:
                line.ring_at(ends)
            return await self._reader.readany()
        except asyncio.CancelledError:
            self.close()
            raise
        except _FOREIGN as error:
            failure = error
        finally:
            self.due = NEVER
        self.close()
        if self.expired:
            raise timed_out(due.after(self.began, "progress", due.progress), line.host)
        raise _closed(line.host) if line.closed else _translate(failure, line.host, in_body=True)

    async def read_all(self, due: Due, start: bytes = b"") -> bytes:
        """Return the whole body.

        Args:
            due: When it must be there.
            start: What has been read of it before.

        Raises:
            StreamTooLargeError: It is larger than `MAX_BODY_BYTES`, content encoding undone.
            APIError: As `read`.
        """
        content = self._reader
        if content.is_eof() and self._inflate is None and content.exception() is None:
            body = start + content.read_nowait()  # it is all there, as most are: that needs no wait, and no timer
        else:
            pieces = [start]
            size = len(start)
            while size <= MAX_BODY_BYTES and (piece := await self.read(due)):
                pieces.append(piece)
                size += len(piece)
            body = b"".join(pieces)
        if len(body) <= MAX_BODY_BYTES:
            self._line.finish(self)
            return body
        self.close()
        raise StreamTooLargeError(
            f"{self._line.host} answered with more than {MAX_BODY_BYTES:,} bytes; ask for a shorter answer",
            maybe_billed=True,
        )

    async def read_start(self, due: Due, limit: int = 1 << 16) -> bytes:
        """Return the body's first `limit` bytes, or a little more, and end the exchange."""
        data = b""
        while len(data) < limit:
            piece = await self.read(due)
            if not piece:
                break
            data += piece
        self.finish()
        return data

    def finish(self) -> None:
        """End a body that has been read as far as it matters, and keep its connection if it ends by itself soon."""
        self._line.finish(self)

    def close(self) -> None:
        """Close the connection, now."""
        self._line.close(self)


_exchange: ContextVar[Exchange] = ContextVar("piapi_async_exchange")


class _Request(aiohttp.ClientRequest):
    """A request that takes the headers as the session gives them.

    aiohttp walks over them once more, one by one, and then looks which of its defaults are missing, where none is: 3 %
    of the instructions of a request. Should it ask this class no more, it only takes longer again.
    """

    def update_headers(self, headers: Any) -> None:
        """Take them; they are this request's own. The host stands first, as HTTP wants it, if it was there before."""
        headers[hdrs.HOST] = self.url.host_port_subcomponent
        self.headers = headers

    def update_auto_headers(self, skip_auto_headers: object) -> None:
        """Add none."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Send the head and the body in one piece, at the end of this turn of the loop, where the body lets that be."""
        body, protocol = self.body, conn.protocol
        if not isinstance(body, _Content) or protocol is None or protocol.transport is None:
            return await super().send(conn)
        body.apart = True
        head = _Head(conn, protocol, protocol.transport)
        response = await super().send(cast("Connection", head))
        body.line.post(protocol.transport, b"".join((*head.pieces, body.content)))
        return response


class _Content(aiohttp.BytesPayload):
    """A body that `_Request` sends itself: for aiohttp there is then none, so that it makes no task to write it.

    On Python 3.11 that task is a tenth of the instructions of a request. Should aiohttp not ask `_Request`, it writes
    the body as any other.

    Attributes:
        content: The bytes.
        line: What sends them.
        apart: Whether they are sent apart from what aiohttp writes.
    """

    def __init__(self, content: bytes, line: _Line) -> None:
        super().__init__(content)
        self.content = content
        self.line = line
        self.apart = False

    def __bool__(self) -> bool:
        return not self.apart

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Write it, unless it is sent apart: not even an aiohttp that sees it otherwise may send it twice."""
        if not self.apart:
            await super().write_with_length(writer, content_length)


class _Head:
    """Stands in for a connection, with its protocol and transport, while aiohttp writes a request's head to it.

    All else that aiohttp asks of the connection it gets from the real one.

    Attributes:
        pieces: What it wrote.
    """

    def __init__(self, connection: Connection, protocol: ResponseHandler, transport: asyncio.Transport) -> None:
        self.pieces: list[bytes] = []
        self.protocol = SimpleNamespace(
            transport=SimpleNamespace(is_closing=transport.is_closing, write=self.pieces.append),
            writing_paused=False,  # the transport takes what comes; what is waited for is the answer
            start_timeout=protocol.start_timeout,
        )
        self._connection = connection

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


class _Line:
    """One endpoint's session, the spare one that always connects anew, and the requests under way.

    One loop timer serves all their waits: it rings when the first of them is due, or was when the timer was set; an
    exchange whose wait ends sooner sets it anew. A timer for each request cost a completion 7 µs. And where the loop
    was blocked past a moment, bytes that have arrived meanwhile win over the timer; with `asyncio.timeout` they do not.

    Attributes:
        rings: When the timer rings.
        begun: Requests begun in this turn of the loop.
        waiting: Those that wait for another turn.
    """

    def __init__(self, endpoint: Endpoint, open_session: _Opener) -> None:
        self.url = endpoint.url
        self.host = urlsplit(endpoint.url).hostname or ""
        self.session = open_session(force_close=False)
        self._open_session = open_session
        self._spare: aiohttp.ClientSession | None = None
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self.time = self._loop.time
        self._exchanges: set[Exchange] = set()
        self._draining: dict[aiohttp.ClientResponse, asyncio.TimerHandle] = {}
        self.rings = NEVER
        self.begun = 0
        self.waiting: deque[asyncio.Future[None]] = deque()
        self._outbox: list[tuple[asyncio.WriteTransport, bytes]] = []
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        """Requests sent whose answer has not ended."""
        return len(self._exchanges)

    @property
    def spare(self) -> aiohttp.ClientSession:
        """A session whose connections are new for each request: for the resend after a stale connection."""
        if self._spare is None:
            self._spare = self._open_session(force_close=True)
        return self._spare

    async def wait_for_turn(self) -> None:
        """Wait for a turn of the loop in which fewer than `BURST` requests have begun, first come, first served."""
        turn = self._loop.create_future()
        self.waiting.append(turn)
        await turn

    def _turn(self) -> None:
        self.begun = 0
        for _ in range(min(BURST, len(self.waiting))):
            turn = self.waiting.popleft()
            if not turn.done():  # as one that is cancelled is
                turn.set_result(None)
        if self.waiting:
            self._loop.call_soon(self._turn)

    def begin(self, due: float) -> Exchange:
        """Begin a request, whose answer must begin before `due`."""
        if not self.begun and not self.waiting:
            self._loop.call_soon(self._turn)
        self.begun += 1
        task: Any = asyncio.current_task(self._loop)
        exchange = Exchange(self, task, task.cancelling(), due)
        self._exchanges.add(exchange)
        if due < self.rings:
            self.ring_at(due)
        return exchange

    def post(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Write to a transport once all that is ready in this turn of the loop has run.

        To write each at once costs a sixth of a request more: the system then wakes the other side for each.
        """
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append((transport, data))

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        for transport, data in outbox:
            if not transport.is_closing():  # else the answer's end, which is waited for, tells of it
                transport.write(data)

    def ring_at(self, moment: float) -> None:
        """Set the timer to a moment that is nearer than the one it is set to."""
        if self._alarm is not None:
            self._alarm.cancel()
        self.rings = moment
        self._alarm = self._loop.call_at(moment, self._ring)

    def _ring(self) -> None:
        """End the waits that are due; each ring looks at all, but there are few: most waits end long before."""
        now = self.time()
        self.rings = nearest = NEVER
        for exchange in self._exchanges:
            if exchange.due <= now:
                # One turn of the loop later: bytes that arrived while it was blocked have then ended the wait.
                self._loop.call_soon(exchange.expire, exchange.due)
            else:
                nearest = min(nearest, exchange.due)
        if nearest < NEVER:
            self.ring_at(nearest)

    def finish(self, exchange: Exchange) -> None:
        """Give the connection back once the body has ended, or close it after `DRAIN_SECONDS`."""
        self._exchanges.discard(exchange)
        response = exchange.response
        if response is None or response.content.is_eof():
            return  # the response has given its connection back by itself
        self._draining[response] = self._loop.call_later(DRAIN_SECONDS, self._shut, response)
        response.content.on_eof(lambda: self._drained(response))

    def _drained(self, response: aiohttp.ClientResponse) -> None:
        if timer := self._draining.pop(response, None):
            timer.cancel()

    def _shut(self, response: aiohttp.ClientResponse) -> None:
        self._drained(response)
        response.close()

    def close(self, exchange: Exchange) -> None:
        """Close an answer's connection; a request without an answer yet fails with its session."""
        self._exchanges.discard(exchange)
        if exchange.response is not None:
            self._shut(exchange.response)

    async def close_all(self) -> None:
        """Close every connection; reads under way fail."""
        self.closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        for turn in self.waiting:
            if not turn.done():
                turn.set_result(None)
        self.waiting.clear()
        for response in [*(e.response for e in self._exchanges if e.response is not None), *self._draining]:
            self._shut(response)
        await self.session.close()
        if self._spare is not None:
            await self._spare.close()


class _Opener:
    """Makes the sessions of one endpoint, all with the same settings."""

    def __init__(
        self, endpoint: Endpoint, pool: SessionPool, sockets: WeakSet[socket.socket], proxy: str | None
    ) -> None:
        self._endpoint = endpoint
        self._pool = pool
        self._sockets = sockets
        self._proxy = proxy

    def __call__(self, *, force_close: bool) -> aiohttp.ClientSession:
        pool = self._pool
        connector = aiohttp.TCPConnector(
            limit=0,  # the gate bounds concurrency; a second bound here could only deadlock with it
            ssl=pool.ssl,
            force_close=force_close,
            ttl_dns_cache=60,  # seconds; a batch must not look the name up for each connection, a failover must notice
            socket_factory=self._make_socket,
        )
        return aiohttp.ClientSession(
            connector=connector,
            # All but the key: wherever else a session might be made to go, the key goes to this endpoint only.
            headers={
                "Host": urlsplit(self._endpoint.url).netloc,
                "Content-Type": "application/json",
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": pool.agent,
                **self._endpoint.headers,
            },
            timeout=aiohttp.ClientTimeout(total=None, connect=pool.connect_timeout, ceil_threshold=math.inf),
            cookie_jar=aiohttp.DummyCookieJar(),
            request_class=_Request,
            proxy=self._proxy,
            auto_decompress=False,  # it undoes an encoding in unbounded steps, and takes an unknown one for bad HTTP
            read_bufsize=READ_BUFFER,
            raise_for_status=False,
        )

    def _make_socket(self, address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, _ = address
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
        self._sockets.add(made)
        if exchange := _exchange.get(None):
            exchange.made = made
        return made


class Transport(Protocol):
    """What a client sends through: a `SessionPool`, or a simulation's stand-in."""

    async def __aenter__(self) -> Self:
        """Open."""
        ...

    async def close(self) -> None:
        """Close; idempotent."""
        ...

    async def send(
        self, endpoint: Endpoint, body: Body, headers: Mapping[str, str], due: Due, *, fresh: bool = False
    ) -> Exchange:
        """Post a body and return the exchange once its headers are there."""
        ...


class SessionPool:
    """The sessions of a client: opened and closed with it, one per provider and key.

    `repr(pool)` tells how many connections are open, how many of them idle, and how many requests are in flight.

    Args:
        endpoints: Each gets a session of its own, so that no key, cookie or connection is shared.
        connect_timeout: Seconds for name lookup, TCP and TLS together; None for never.
        ssl: False for no verification; True for the system's certificates; or a context.
        proxy: URL of an HTTP proxy.
        trust_env: Whether `HTTPS_PROXY` and `NO_PROXY` count, where no proxy is given. `~/.netrc` never does: the key
            is what a provider knows the caller by.
    """

    def __init__(
        self,
        endpoints: Iterable[Endpoint],
        *,
        connect_timeout: float | None = 5.0,
        ssl: ssl_module.SSLContext | bool = True,
        proxy: str | None = None,
        trust_env: bool = False,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self.connect_timeout = connect_timeout
        self.ssl = ssl
        self.proxy = proxy
        self.trust_env = trust_env
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._lines: dict[Endpoint, _Line] = {}
        self.agent = ""

    def __repr__(self) -> str:
        if not self._lines:
            return "<SessionPool closed>"
        connections = sum(made.fileno() != -1 for made in self._sockets)
        return (
            f"<SessionPool open={connections} idle={max(0, connections - self.in_flight)} in_flight={self.in_flight}>"
        )

    @property
    def in_flight(self) -> int:
        """Requests sent whose answer has not ended."""
        return sum(line.in_flight for line in self._lines.values())

    async def __aenter__(self) -> Self:
        from importlib.metadata import version  # deferred: it would be a tenth of the package's import time

        self.agent = f"piapi-async/{version('piapi-async')}"
        bytes(KEPT_BLOCK)
        for endpoint in self.endpoints:
            proxy = self.proxy
            if proxy is None and self.trust_env:
                # Not by aiohttp's own trust_env: a password in ~/.netrc would then stand in the way of the key. In a
                # thread, as some systems look names up to answer.
                proxy = await asyncio.to_thread(_environment_proxy, endpoint.url)
            self._lines[endpoint] = _Line(endpoint, _Opener(endpoint, self, self._sockets, proxy))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every session and connection; what is in flight fails with `kind="closed"`. Idempotent."""
        lines, self._lines = list(self._lines.values()), {}
        for line in lines:
            await line.close_all()

    async def send(
        self, endpoint: Endpoint, body: Body, headers: Mapping[str, str], due: Due, *, fresh: bool = False
    ) -> Exchange:
        """Post a body and return the exchange once its headers are there.

        Args:
            endpoint: One of this pool's.
            body: The request's JSON.
            headers: For this request only.
            due: When the headers must be there.
            fresh: Whether to connect anew.

        Raises:
            APITimeoutError: `due`, or the connect timer, came first.
            APIConnectionError: No answer; `kind="stale"` when a kept connection was closed before a byte came back, so
                that the request is safe to send again at once.
        """
        line = self._lines.get(endpoint)
        if line is None:
            raise _closed(endpoint.provider)
        if line.begun >= BURST or line.waiting:
            await line.wait_for_turn()
            if line.closed:
                raise _closed(line.host)
        exchange = line.begin(due.at)
        token = _exchange.set(exchange)
        failure: BaseException
        try:
            # The body, and the header with the key, are never bound to a name: a traceback may show locals.
            response = await (line.spare if fresh else line.session).post(
                line.url,
                data=_Content(body.content, line) if len(body.content) < LARGE_BODY else io.BytesIO(body.content),
                headers={hdrs.AUTHORIZATION: f"Bearer {endpoint.secret.reveal()}", **headers},
                allow_redirects=False,
            )
            exchange.begin(response)
            return exchange
        except asyncio.CancelledError as error:
            exchange.abandon()
            if not exchange.caused():
                line.close(exchange)
                raise
            failure = error
        except _FOREIGN as error:
            failure = error
        finally:
            exchange.due = NEVER
            _exchange.reset(token)
        line.close(exchange)
        if exchange.expired:
            raise timed_out(due, line.host)
        if line.closed:
            raise _closed(line.host)
        raise _translate(
            failure, line.host, reused=exchange.made is None, connect_timeout=self.connect_timeout or NEVER
        )


def _environment_proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL; None for none."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


def _closed(host: str) -> APIConnectionError:
    return APIConnectionError(
        f"the client was closed while it waited for {host}; keep it open", kind="closed", maybe_billed=True
    )


def _translate(
    error: BaseException, host: str, *, in_body: bool = False, reused: bool = False, connect_timeout: float = NEVER
) -> APIError:
    """Say in this library's words what aiohttp, ssl or the operating system raised."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return timed_out(Due(kind="connect", seconds=connect_timeout), host, sent=False)
    kind, text = _connect_problem(error)
    if kind:
        return APIConnectionError(f"{text} ({host})", kind=kind)
    if isinstance(error, aiohttp.ClientResponseError) or _is_half_a_header(error):
        return APIConnectionError(
            f"{host} does not answer in HTTP; check the base URL's port", kind="protocol", maybe_billed=True
        )
    if in_body or isinstance(error, aiohttp.ClientPayloadError):
        return APIConnectionError(
            f"{host} broke the connection off in the middle of its answer; try again",
            kind="truncated body",
            maybe_billed=True,
        )
    return APIConnectionError(
        f"{host} closed the connection before it answered; try again",
        kind="stale" if reused else "reset",
        maybe_billed=True,
    )


def _connect_problem(error: BaseException) -> tuple[str, str]:
    """Kind and text of an error before the connection was there; `("", "")` for any other."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "certificate", "the server's certificate is not trusted; check the host name or pass an ssl context"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return "tls", "no TLS connection; check that the port speaks https"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "dns", "the host name is not known; check the base URL for a typo"
    if isinstance(error, (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError)):
        return "proxy", "the proxy does not let the request through; check the proxy setting"
    if isinstance(error, OSError) and error.errno in _LOCAL_ERRNOS:
        return "local", "this process can open no more connections; lower the concurrency or raise its limits"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connect", "the connection was refused or the host can't be reached; check the base URL, or use a backup"
    return "", ""


def _is_half_a_header(error: BaseException) -> bool:
    """Tell an end inside the headers, which comes with what was parsed of them, from one before any byte."""
    return isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(cast("object", error.message), str)
