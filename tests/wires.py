"""What the tests by row of the list of faults share: answers as bytes, a client on a scripted server, its errors.

Every error is also walked for the key and the prompt, and must be one of this library's own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import attrs
import pytest

from piapi_async import APIError, ChatCompletion, Client, Retry, Timeout
from piapi_async.testing import RawServer, ReadRequest, Step, http_response
from tests.leaks import CANARIES, KEY, PROMPT, assert_tight

ONCE = Retry(attempts=1)
QUICK = Timeout(connect=5, first_event=5, progress=5, total=5)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Whatever a test does, neither the logs at DEBUG nor standard error show the key or the prompt."""
    caplog.set_level(logging.DEBUG)
    yield
    for canary in CANARIES:
        assert canary not in caplog.text
        assert canary not in capfd.readouterr().err


def completion(content: object = "Hello!", **fields: object) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    whole = {"id": "c-1", "object": "chat.completion", "created": 1, "model": "gpt-4o", "choices": [choice]}
    return json.dumps({**whole, "usage": usage, **fields}).encode()


def chunk(content: object = None, finish: str | None = None, index: int = 0, **fields: object) -> bytes:
    delta = {} if content is None else {"content": content}
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "c-1", "choices": [choice], **fields}).encode() + b"\n\n"


WHOLE = chunk("Hel") + chunk("lo!") + chunk(finish="stop")
DONE = b"data: [DONE]\n\n"
SSE = {"Content-Type": "text/event-stream"}


def sse(*pieces: bytes) -> bytes:
    """A whole chunked answer, a chunk a piece."""
    return http_response(200, headers=SSE, chunks=pieces)


def sse_cut(*pieces: bytes) -> bytes:
    """The same without its last chunk."""
    return sse(*pieces).removesuffix(b"0\r\n\r\n")


def sse_closed(*pieces: bytes) -> bytes:
    """The same delimited by the end of the connection."""
    return http_response(200, b"".join(pieces), SSE, close_delimited=True)


def ok(body: bytes = completion()) -> bytes:
    return http_response(200, body)


@asynccontextmanager
async def dialled(
    *scripts: Sequence[Step], timeout: Timeout = QUICK, tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[tuple[Client, RawServer]]:
    """A server that runs the scripts, one a connection, and a client that dials it."""
    async with (
        RawServer(*scripts, ssl_context=tls) as server,
        Client(KEY, base_url=server.base_url, model="gpt-4o", timeout=timeout, **{"retry": ONCE, **options}) as client,
    ):
        yield client, server


async def ask(client: Client, **params: Any) -> ChatCompletion:
    return await client.complete(PROMPT, **params)


async def read(client: Client, **params: Any) -> ChatCompletion:
    async with client.stream(PROMPT, **params) as stream:
        async for _ in stream:
            pass
        return await stream.completion()


async def failure(call: Any) -> APIError:
    """The error that a call raises, which must be this library's, tight, and on record."""
    with pytest.raises(APIError) as caught:
        await asyncio.wait_for(call, 5)
    error = caught.value
    assert_tight(error)
    assert error.provider == "piapi"
    assert error.attempts
    assert error.attempts[-1].kind == error.kind
    assert str(error)
    return error


async def fails(
    *steps: Step,
    cls: type[APIError],
    kind: str,
    how: Callable[..., Any] = ask,
    maybe_billed: bool = True,
    partial: str = "",
    timeout: Timeout = QUICK,
    **options: Any,
) -> APIError:
    """Read a request, do the steps, and expect one error, after which the client is as good as new."""
    async with dialled([ReadRequest(), *steps], timeout=timeout, **options) as (client, server):
        error = await failure(how(client))
        assert type(error) is cls, error
        assert (error.kind, error.maybe_billed, error.partial) == (kind, maybe_billed, partial), error
        assert "in_flight=0" in repr(client)
        assert len(server.requests) == 1
        return error


BOTH = pytest.mark.parametrize("how", [ask, read])


@attrs.frozen
class ThreadedServer:
    """A server in a thread, which goes on while the event loop is blocked.

    Attributes:
        base_url: For a client.
        started: Set once its first answer is sent.
    """

    base_url: str
    started: threading.Event
    _go_on: threading.Event
    _done: threading.Event

    def send_the_rest(self) -> None:
        """Send the rest of the answer, with the event loop blocked until all of it is sent."""
        self._go_on.set()
        assert self._done.wait(5)


def jumping_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Make the running loop's clock one that jumps; what is returned makes it jump by so many seconds."""
    loop = asyncio.get_running_loop()
    now, ahead = loop.time, [0.0]
    monkeypatch.setattr(loop, "time", lambda: now() + sum(ahead))
    return ahead.append


@contextmanager
def server_in_a_thread(first: bytes, rest: bytes) -> Iterator[ThreadedServer]:
    """A server that reads one request, sends the first part of its answer, and the rest when it is told to."""
    started, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(first)
            started.set()
            go_on.wait(5)
            connection.sendall(rest)
            done.set()
            connection.recv(1 << 16)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield ThreadedServer(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", started, go_on, done)
        thread.join(5)
