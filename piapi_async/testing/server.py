"""`LocalServer`: PiAPI's chat completions as its page describes them, on loopback, with scripted faults.

`rules` and `replies` work out the answer to a request, without any IO. This module is the HTTP around them: the only
place that sleeps, writes to connections and drops them.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import islice
from types import TracebackType
from typing import Any, Final, NoReturn, cast

import msgspec
from aiohttp import web
from attrs import evolve, field, frozen

from piapi_async import catalog
from piapi_async.testing.faults import (
    Cut,
    Delay,
    Drop,
    Fault,
    FaultRule,
    Garbage,
    Stall,
    Status,
    StreamError,
    fault_rule,
)
from piapi_async.testing.raw import http_response, reset, stop_accepting
from piapi_async.testing.replies import Answerer, Reply, make_reply
from piapi_async.testing.rules import ChatBody, Refusal, check, parse

__all__ = ["LocalServer", "ReceivedRequest"]

EXAMPLE_MODEL: Final = "gpt-3.5-turbo"
"""The model in the page's example requests. It answers, although it is missing from the page's table of models."""

_RESET_PAUSE: Final = 0.01  # seconds; without a pause, a reset overtakes what was sent before it
_TURN: Final = 64  # events that a stream without a pace may send before others get their turn
_STREAM_HEADERS: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
_JSON_HEADERS: Final = {"Content-Type": "application/json"}


@frozen
class ReceivedRequest:
    """A request that the server received, and what became of it.

    Attributes:
        number: The request's number; the first one is 0.
        method: The HTTP method.
        path: The path, without the query.
        headers: The headers. Upper and lower case of their names do not matter.
        raw: The body's bytes.
        body: The body as parsed JSON; `None` if it is not JSON.
        fault: The scripted fault that it met; `None` if none.
        status: The status of the answer; `None` before there is one, and if the connection was dropped.
        disconnected: Whether the client left before it had the whole answer.
    """

    number: int
    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    raw: bytes = field(default=b"", repr=False)
    body: Any = field(default=None, repr=False)
    fault: Fault | None = None
    status: int | None = None
    disconnected: bool = False


class LocalServer:
    """An OpenAI-style server that behaves as PiAPI's page describes, for tests and demonstrations.

        async with LocalServer(terminator="[DONE]") as server:
            client = Client(server.api_key, base_url=server.base_url)

    It serves `POST /v1/chat/completions` (models, plans, roles, ranges, `n`, `stop`, `max_tokens`, functions, tools,
    response formats, usage, streams) and `GET /v1/models`. The same messages always get the same answer.

    You may create it inside or outside an event loop; `async with` or `start` opens the socket. To play an outage,
    close it and start it again: it keeps its port.

    Attributes:
        api_key: The key that it accepts.
        plan: The key's plan. You may change it at any time, like the next three.
        terminator: The data that ends a stream; `None`: a stream just ends.
        tokens_per_second: The pace of each stream; `None`: as fast as possible.
        latency: Seconds before the headers of every completion.
    """

    def __init__(
        self,
        *,
        plan: str = "creator",
        terminator: str | None = "[none]",
        api_key: str = "sk-local-test-key",
        host: str = "127.0.0.1",
        port: int = 0,
        tokens_per_second: float | None = None,
        latency: float = 0.0,
        models: Iterable[str] = (),
        answer: Answerer | None = None,
        faults: Iterable[Fault | None] | FaultRule = (),
        more_keys: Iterable[str] = (),
        keep: int = 100_000,
        max_body_bytes: int = 64 << 20,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Take the options. Nothing is opened yet.

        Args:
            plan: The key's plan, one of `catalog.PLANS`.
            terminator: The data that ends a stream: `[none]` as on the page, `[DONE]` as SDKs want it; `None`: no data.
            api_key: The key that it accepts.
            host: The address to listen on.
            port: The port to listen on; 0: any free one.
            tokens_per_second: The pace of each stream, above 0; `None`: as fast as possible.
            latency: Seconds before the headers of every completion.
            models: Models to serve beside the page's, on every plan.
            answer: Makes the texts: gets the messages as parsed JSON and returns a string.
            faults: The script of faults; see `piapi_async.testing.faults`.
            more_keys: Further keys that it accepts.
            keep: How many requests `requests` keeps; the oldest go first.
            max_body_bytes: The largest request body. A larger one is refused with 413.
            ssl_context: Speak TLS with this context.

        Raises:
            ConfigurationError: There is no such plan.
        """
        catalog.allows(plan, plan)
        self.plan = plan
        self.terminator = terminator
        self.api_key = api_key
        self.tokens_per_second = tokens_per_second
        self.latency = latency
        self.faults = faults
        self._host = host
        self._port = port
        self._answer = answer
        self._models = (EXAMPLE_MODEL, *models)
        self._keys = frozenset((api_key, *more_keys))
        self._keep = keep
        self._max_body_bytes = max_body_bytes
        self._ssl = ssl_context
        self._http: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._requests: dict[int, ReceivedRequest] = {}
        self._received = 0
        self._completions = 0

    @property
    def base_url(self) -> str:
        """`http://HOST:PORT/v1`. It is known once the server is started."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._ssl else 'http'}://{host}:{self.port}/v1"

    @property
    def port(self) -> int:
        """The port. It is known once the server is started."""
        if not self._port:
            raise RuntimeError("the server has no port until it is started: use it with `async with`")
        return self._port

    @property
    def requests(self) -> list[ReceivedRequest]:
        """The requests that it received, in order, as a new list."""
        return list(self._requests.values())

    @property
    def faults(self) -> Iterable[Fault | None] | FaultRule:
        """The script of faults. Set another one at any time, or append to the list you passed."""
        return self._faults

    @faults.setter
    def faults(self, script: Iterable[Fault | None] | FaultRule) -> None:
        self._faults = script
        self._rule = fault_rule(script)

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            OSError: The port is taken, or the address is not one of this machine.
            RuntimeError: The server is started already.
        """
        if self._listener is not None:
            raise RuntimeError("the server is started already")
        self._http = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._listener = await asyncio.get_running_loop().create_server(
            self._http, self._host, self._port, backlog=4096, ssl=self._ssl
        )
        self._port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and end every request at once. Closing it again does nothing."""
        if self._listener is None or self._http is None:
            return
        listener, self._listener = self._listener, None
        await stop_accepting(listener)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._http.pre_shutdown()  # ends idle connections, which `shutdown` would wait for
        await self._http.shutdown(0.1)

    async def __aenter__(self) -> LocalServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # --- One request ------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Record the request, answer it, and record what became of it."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._tasks.add(task)
        number = self._received
        self._received += 1
        self._requests[number] = ReceivedRequest(number, request.method, request.path, request.headers)
        if len(self._requests) > self._keep:
            del self._requests[next(iter(self._requests))]
        try:
            response = await self._respond(request, number)
            self._update(number, status=response.status)
        except _DroppedError:
            response = web.Response()  # aiohttp sees that the connection is closed, and sends nothing
        except asyncio.CancelledError:  # cancelled by `close`, or by aiohttp because the client left
            self._update(number, disconnected=self._listener is not None)
            raise
        finally:
            self._tasks.discard(task)
        return response

    def _update(self, number: int, **changes: Any) -> None:
        if number in self._requests:
            self._requests[number] = evolve(self._requests[number], **changes)

    async def _respond(self, request: web.BaseRequest, number: int) -> web.StreamResponse:
        raw = await _read(request, self._max_body_bytes)
        document = _parse_json(raw)
        self._update(number, raw=raw, body=document)
        method = {"/v1/chat/completions": "POST", "/v1/models": "GET"}.get(request.path)
        if method is None:
            return _refuse(Refusal(404, f"There is nothing at {request.path}.", code="unknown_url"))
        if request.method != method:
            refusal = Refusal(405, f"{request.path} takes {method}, not {request.method}.", code="method_not_allowed")
            return _refuse(refusal, {"Allow": method})
        if method == "POST":
            return await self._complete(request, number, raw, document)
        refused = self._check_key(request)
        return _json(200, self._model_list()) if refused is None else _refuse(refused)

    async def _complete(self, request: web.BaseRequest, number: int, raw: bytes, document: Any) -> web.StreamResponse:
        fault = self._rule(self._completions, document)
        self._completions += 1
        self._update(number, fault=fault)
        if isinstance(fault, Delay):
            await asyncio.sleep(fault.seconds)
        elif isinstance(fault, Drop):
            _drop(request, fault.how)
        elif isinstance(fault, Stall) and fault.after is None:
            await _forever()
        elif isinstance(fault, Status):
            return _json(fault.code, fault.content(), fault.headers)
        elif isinstance(fault, Garbage):
            return _json(fault.status, fault.body, {"Content-Type": fault.content_type})

        body = self._accept(request, raw, document)
        if isinstance(body, Refusal):
            return _refuse(body)
        if self.latency:
            await asyncio.sleep(self.latency)
        reply = make_reply(body, document, self._answer)
        if body.stream:
            return await self._stream(request, number, reply, fault)
        if isinstance(fault, (Cut, Stall)):
            self._update(number, status=200)
            await _send_half(request, reply.completion(), fault)
        return _json(500, fault.content()) if isinstance(fault, StreamError) else _json(200, reply.completion())

    def _accept(self, request: web.BaseRequest, raw: bytes, document: Any) -> ChatBody | Refusal:
        """Check key, size, types and rules, in the order in which a gateway does."""
        refusal = self._check_key(request)
        if refusal is not None:
            return refusal
        if len(raw) > self._max_body_bytes:
            message = f"The request is larger than {self._max_body_bytes} bytes."
            return Refusal(413, message, code="request_too_large")
        if document is None:
            return Refusal(400, "The request's body is not valid JSON.")
        body = parse(document)
        return body if isinstance(body, Refusal) else check(body, self.plan, self._models) or body

    async def _stream(
        self, request: web.BaseRequest, number: int, reply: Reply, fault: Fault | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=_headers(_STREAM_HEADERS))
        try:
            if isinstance(fault, Cut) and fault.how == "close":
                send = _unframed(request)
            else:
                await response.prepare(request)
                send = response.write
            self._update(number, status=200)
            for event in reply.opening():
                await send(event)
            if isinstance(fault, (Cut, Stall, StreamError)):
                await self._send_tokens(send, reply, fault.after)
                if not isinstance(fault, StreamError):
                    await _interrupt(request, fault)
                await send(b"data: %b\n\n" % fault.content())
                return response
            await self._send_tokens(send, reply)
            for event in reply.closing(self.terminator):
                await send(event)
        except ConnectionError:
            self._update(number, disconnected=True)
        return response

    async def _send_tokens(self, send: _Send, reply: Reply, most: int | None = None) -> None:
        """Send one event per token, at the pace that is set, and `most` at most."""
        clock = asyncio.get_running_loop().time
        start = clock()
        for index, piece in enumerate(islice(reply.pieces(), most)):
            if self.tokens_per_second is not None:
                # Count from the start, so that one late token does not make all the others late.
                await asyncio.sleep(max(0.0, start + index / self.tokens_per_second - clock()))
            elif index % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            await send(piece)

    def _check_key(self, request: web.BaseRequest) -> Refusal | None:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and key in self._keys:
            return None
        message = "Incorrect API key provided." if key else "No API key: send it as 'Authorization: Bearer KEY'."
        return Refusal(401, message, code="invalid_api_key")

    def _model_list(self) -> bytes:
        names = [name for name, info in catalog.CATALOG.items() if not info.is_pattern] + list(self._models)
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "piapi"} for name in names]
        return msgspec.json.encode({"object": "list", "data": models})


_Send = Callable[[bytes], Awaitable[None]]


class _DroppedError(Exception):
    """The connection was dropped on purpose, so there is nothing left to answer."""


async def _read(request: web.BaseRequest, limit: int) -> bytes:
    """Read the request's body; one above the limit is read only a little further."""
    parts: list[bytes] = []
    size = 0
    while size <= limit and (part := await request.content.readany()):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _parse_json(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _headers(fields: Mapping[str, str]) -> dict[str, str]:
    """The headers of an answer: these, and a request id."""
    return {**fields, "x-request-id": f"req_{secrets.token_hex(12)}"}


def _json(status: int, content: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    response = web.Response(status=status, body=content, headers=_headers(_JSON_HEADERS))
    response.headers.update(headers or {})  # here, because these headers ignore the case of names
    return response


def _refuse(refusal: Refusal, headers: Mapping[str, str] | None = None) -> web.Response:
    return _json(refusal.status, refusal.content(), headers)


# --- Faults -----------------------------------------------------------------------------------------------------------


def _transport(request: web.BaseRequest) -> asyncio.Transport:
    # Never None here: when a client leaves, aiohttp cancels the handler before it gets this far.
    return cast("asyncio.Transport", request.transport)


def _drop(request: web.BaseRequest, how: str) -> NoReturn:
    """End the connection, without aiohttp: it would finish the answer first."""
    if how == "reset":
        reset(_transport(request))
    else:
        _transport(request).close()
    raise _DroppedError


async def _forever() -> NoReturn:
    """Wait until we are cancelled, because the client leaves or the server is closed."""
    while True:
        await asyncio.get_running_loop().create_future()


def _unframed(request: web.BaseRequest) -> _Send:
    """Begin an answer whose body ends with the connection."""
    transport = _transport(request)

    async def send(data: bytes) -> None:
        transport.write(data)

    transport.write(http_response(200, headers=_headers(_STREAM_HEADERS), close_delimited=True))
    return send


async def _interrupt(request: web.BaseRequest, fault: Cut | Stall) -> NoReturn:
    """Break off an answer after its last good byte, as the fault says."""
    if isinstance(fault, Stall):
        await _forever()
    if fault.how == "reset":
        await asyncio.sleep(_RESET_PAUSE)
    _drop(request, fault.how)


async def _send_half(request: web.BaseRequest, content: bytes, fault: Cut | Stall) -> NoReturn:
    """Send the head and half of the body of an answer, then break off as the fault says."""
    close_delimited = isinstance(fault, Cut) and fault.how == "close"
    whole = http_response(200, content, _headers(_JSON_HEADERS), close_delimited=close_delimited)
    _transport(request).write(whole[: len(whole) - len(content) // 2])
    await _interrupt(request, fault)
