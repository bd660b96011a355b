"""`SessionPool`: one aiohttp session per provider and key."""

from __future__ import annotations

import asyncio
import io
import math
import socket
import ssl as ssl_module
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakSet

import aiohttp
from aiohttp.connector import Connection

from piapi_async.errors import APITimeoutError
from piapi_async.policy import NEVER, Deadline, timed_out
from piapi_async.pool.exchange import SessionExchange
from piapi_async.pool.foreign import FOREIGN, closed, translate
from piapi_async.pool.resolver import ThreadResolver, in_thread
from piapi_async.pool.timer import WaitTimer
from piapi_async.provider import Endpoint
from piapi_async.wire import COMMON_HEADERS, Body

READ_BUFFER = 1 << 13
"""aiohttp pauses reading at twice this: 16 kB is the most that waits unread for a slow consumer (ours)."""

DRAIN_SECONDS = 0.1
"""How long a finished stream's connection may take to end its body before it is closed instead of kept (ours)."""

LARGE_BODY = 1 << 20
"""aiohttp wants a request body above 1 MiB as a file, so that writing it does not block the loop."""

KEEPALIVE = tuple(
    (getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)  # macOS and Windows lack some
)
"""Seconds before the first probe, between probes, and probes: a silent stream lives behind NAT, a dead peer is noticed
within a minute (ours)."""

STALE_SECONDS = 0.25
"""How soon after its request a kept connection must end to count as closed before: one that ends later may have carried
the prompt to somebody who worked on it (ours)."""

_connecting: ContextVar[SessionExchange | None] = ContextVar("piapi_async_connecting", default=None)
"""The exchange that a connection is looked for."""


class _Connector(aiohttp.TCPConnector):
    """Tells the exchange when it has its connection: the request goes out next."""

    async def connect(self, *args: Any, **options: Any) -> Connection:
        """Do as aiohttp does, and tell."""
        connection = await super().connect(*args, **options)
        if exchange := _connecting.get():
            exchange.note_sent()
        return connection


class EndpointSession:
    """One endpoint's session, the spare one that always connects anew, and the exchanges under way.

    Attributes:
        url: Where the requests go.
        host: For errors.
        proxied: Whether a proxy is in between.
        closed: Whether it is.
        loop: The event loop that it was opened on.
        time: The loop's clock.

    Args:
        endpoint: Where the requests go.
        make_session: Makes a session; told whether each request gets a new connection.
        proxied: Whether it goes through a proxy.
    """

    def __init__(
        self, endpoint: Endpoint, make_session: Callable[[bool], aiohttp.ClientSession], *, proxied: bool
    ) -> None:
        self.url = endpoint.url
        self.host = urlsplit(endpoint.url).hostname or ""
        self.proxied = proxied
        self.closed = False
        self._make_session = make_session
        self._session = make_session(False)
        self._spare: aiohttp.ClientSession | None = None
        self.loop = asyncio.get_running_loop()
        self.time = self.loop.time
        self._timer = WaitTimer(self.loop)
        self._connect_seconds = math.inf  # of the quickest: what slows one down says nothing of the next
        self._exchanges: set[SessionExchange] = set()
        self._draining: dict[aiohttp.ClientResponse, asyncio.TimerHandle] = {}

    @property
    def in_flight(self) -> int:
        """Requests sent whose answer has not ended."""
        return len(self._exchanges)

    def session(self, *, fresh: bool) -> aiohttp.ClientSession:
        """The session, or one whose connections are new for each request: for the resend after a stale connection."""
        if not fresh:
            return self._session
        if self._spare is None:
            self._spare = self._make_session(True)
        return self._spare

    def new_exchange(self, deadline: Deadline, on_sent: Callable[[], None]) -> SessionExchange:
        """Make an exchange, whose answer must begin before a deadline."""
        exchange = SessionExchange(self, self._timer, on_sent, deadline.at)
        self._exchanges.add(exchange)
        self._timer.add(exchange)
        return exchange

    def note_connected(self, seconds: float) -> None:
        """Note how long a new connection took."""
        self._connect_seconds = min(self._connect_seconds, seconds)

    def is_stale(self, exchange: SessionExchange) -> bool:
        """Whether an exchange on a kept connection failed too soon for anybody to have worked on its request."""
        if not exchange.sent or exchange.made is not None:
            return False
        return self.time() - exchange.sent_at <= max(STALE_SECONDS, 2 * self._connect_seconds)

    def timed_out(self, deadline: Deadline) -> APITimeoutError:
        """Make the error of a wait that a deadline ended."""
        return timed_out(deadline, self.host)

    def end_exchange(self, exchange: SessionExchange, *, keep: bool) -> None:
        """End an exchange.

        Args:
            exchange: Any; one that has ended stays as it is.
            keep: Whether to keep its connection, if the body ends within `DRAIN_SECONDS`.
        """
        self._exchanges.discard(exchange)
        self._timer.discard(exchange)
        response = exchange.response
        if response is None or (keep and response.content.is_eof()):
            return  # there is none yet, or it has given its connection back by itself
        if not keep:
            self._shut(response)
        elif response not in self._draining:
            self._draining[response] = self.loop.call_later(DRAIN_SECONDS, self._shut, response)
            response.content.on_eof(lambda: self._drained(response))

    def _drained(self, response: aiohttp.ClientResponse) -> None:
        if timer := self._draining.pop(response, None):
            timer.cancel()

    def _shut(self, response: aiohttp.ClientResponse) -> None:
        self._drained(response)
        response.close()

    async def aclose(self) -> None:
        """Close every connection; reads under way fail. Can be called again if it was cancelled."""
        self.shut()
        await self._session.close()
        if self._spare is not None:
            await self._spare.close()

    def shut(self) -> None:
        """End every exchange, and take no more."""
        self.closed = True
        self._timer.cancel()
        for response in [*(e.response for e in self._exchanges if e.response is not None), *self._draining]:
            self._shut(response)


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
        self._endpoints = tuple(endpoints)
        self._connect_timeout = connect_timeout
        self._ssl = ssl
        self._proxy = proxy
        self._trust_env = trust_env
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._sessions: dict[Endpoint, EndpointSession] = {}

    def __repr__(self) -> str:
        if not getattr(self, "_sessions", None):  # a traceback out of __init__ may ask
            return "<SessionPool closed>"
        connections = sum(made.fileno() != -1 for made in self._sockets)
        return (
            f"<SessionPool open={connections} idle={max(0, connections - self.in_flight)} in_flight={self.in_flight}>"
        )

    @property
    def in_flight(self) -> int:
        """Requests sent whose answer has not ended."""
        return sum(session.in_flight for session in self._sessions.values())

    async def __aenter__(self) -> Self:
        await self.aclose()  # what a close that was cancelled has left
        self._resolver = ThreadResolver()
        proxies = [await self._find_proxy(endpoint.url) for endpoint in self._endpoints]
        for endpoint, proxy in zip(self._endpoints, proxies, strict=True):  # in one step: all of them or none
            self._sessions[endpoint] = self._open(endpoint, proxy)
        return self

    async def _find_proxy(self, url: str) -> str | None:
        if self._proxy is not None or not self._trust_env:
            return self._proxy
        # Not by aiohttp's own trust_env: a password in ~/.netrc would then stand in the way of the key. In a thread, as
        # some systems look names up to answer.
        return await in_thread(partial(_environment_proxy, url))

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every session and connection; what is in flight fails with `kind="closed"`.

        Idempotent; one that was cancelled can be called again.
        """
        sessions = list(self._sessions.items())
        for _, session in sessions:  # in one step: nothing goes on at one while another is being closed
            session.shut()
        for endpoint, session in sessions:
            await session.aclose()
            if self._sessions.get(endpoint) is session:  # not one that was opened meanwhile
                del self._sessions[endpoint]

    def _open(self, endpoint: Endpoint, proxy: str | None) -> EndpointSession:
        # Not the key: wherever else a session might be made to go, the key goes to this endpoint only.
        headers = {**COMMON_HEADERS, "User-Agent": _user_agent(), **endpoint.headers}

        def make_session(force_close: bool) -> aiohttp.ClientSession:
            connector = _Connector(
                limit=0,  # the gate bounds concurrency; a second bound here could only deadlock with it
                ssl=self._ssl,
                force_close=force_close,
                resolver=self._resolver,
                ttl_dns_cache=60,  # seconds: a batch must not look the name up for each connection
                socket_factory=self._make_socket,
            )
            return aiohttp.ClientSession(
                connector=connector,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout, ceil_threshold=math.inf),
                cookie_jar=aiohttp.DummyCookieJar(),
                proxy=proxy,
                auto_decompress=False,  # it undoes an encoding in unbounded steps, and fails at an unknown one
                read_bufsize=READ_BUFFER,
                raise_for_status=False,
            )

        return EndpointSession(endpoint, make_session, proxied=proxy is not None)

    def _make_socket(self, address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, _ = address
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
        self._sockets.add(made)
        if exchange := _connecting.get():
            exchange.made = made
        return made

    async def send(
        self,
        endpoint: Endpoint,
        body: Body,
        headers: Mapping[str, str],
        deadline: Deadline,
        *,
        on_sent: Callable[[], None],
        fresh: bool = False,
    ) -> SessionExchange:
        """Post a body and return the exchange once its headers are there, as `Transport.send` says.

        Raises:
            APITimeoutError: The deadline, or the connect timer, came first.
            APIConnectionError: No answer.
        """
        session = self._sessions.get(endpoint)
        if session is None or session.closed:
            raise closed(endpoint.provider, sent=False)
        exchange = session.new_exchange(deadline, on_sent)
        token = _connecting.set(exchange)
        failure: BaseException
        try:
            # The body, and the header with the key, are never bound to a name here: a traceback may show locals.
            response = await session.session(fresh=fresh).post(
                session.url,
                data=body.content if len(body.content) < LARGE_BODY else io.BytesIO(body.content),
                headers={"Authorization": f"Bearer {endpoint.secret.reveal()}", **headers},
                allow_redirects=False,
            )
            exchange.answer(response)
            return exchange
        except asyncio.CancelledError as error:
            exchange.abort()
            if not exchange.cancelled_itself():
                exchange.close()
                raise
            failure = error
        except FOREIGN as error:
            failure = error
        finally:
            exchange.due = NEVER
            _connecting.reset(token)
        exchange.close()
        if exchange.expired:
            raise timed_out(deadline, session.host, sent=exchange.sent)
        if session.closed:
            raise closed(session.host, sent=exchange.sent)
        raise translate(
            failure,
            session.host,
            stale=session.is_stale(exchange),
            tunnel=session.proxied and not exchange.sent,
            connect_timeout=self._connect_timeout,
        )


def _user_agent() -> str:
    # Deferred: it would be a tenth of the package's import time.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"piapi-async/{version('piapi-async')}"
    except PackageNotFoundError:  # as in a frozen program, or a tree that was not installed
        return "piapi-async"


def _environment_proxy(url: str) -> str | None:
    """The proxy that the environment names for a URL; None for none."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)
