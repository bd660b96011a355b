"""A TCP server that does byte for byte what a script says, for the faults below HTTP.

    async with RawServer([ReadRequest(), Send(http_response(200, b"{}")[:40]), Reset()]) as server:
        ...  # dial server.base_url

A script is a sequence of steps; one connection runs one script. At its end the connection is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import cast

from attrs import field, frozen

__all__ = ["Close", "RawServer", "ReadRequest", "Repeat", "Reset", "Send", "Step", "Wait", "http_response"]


def http_response(
    status: int = 200,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    chunks: Iterable[bytes] | None = None,
    close_delimited: bool = False,
) -> bytes:
    """Return the bytes of an HTTP/1.1 response.

    Args:
        status: The status code.
        body: Sent with a Content-Length, unless `close_delimited`.
        headers: Its headers; by default JSON's content type.
        chunks: Sent as chunks instead of `body`, the last chunk included.
        close_delimited: Leave the length away: the body ends with the connection.
    """
    reasons = {known.value: known.phrase for known in HTTPStatus}
    lines = [f"HTTP/1.1 {status} {reasons.get(status, 'Unknown')}"]
    fields = dict({"Content-Type": "application/json"} if headers is None else headers)
    if chunks is not None:
        fields["Transfer-Encoding"] = "chunked"
        body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks if chunk) + b"0\r\n\r\n"
    elif close_delimited:
        fields["Connection"] = "close"
    else:
        fields["Content-Length"] = str(len(body))
    lines += [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def reset(transport: asyncio.WriteTransport) -> None:
    """Close a connection with a reset: what isn't sent yet is thrown away, and the peer gets ECONNRESET."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def stop_accepting(server: asyncio.Server) -> None:
    """Stop listening, so that no connection is lost on the way from the kernel to its protocol.

    asyncio forgets a socket, without closing it, whose accept is half done when its server is closed.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener.fileno())
    for _ in range(3):  # turns of the loop between an accept and the first step of the connection's task
        await asyncio.sleep(0)
    server.close()


class Step(ABC):
    """One thing that a connection does; make your own by giving it a `run`."""

    @abstractmethod
    async def run(self, connection: Connection) -> None:
        """Do it."""


@frozen
class Connection:
    """An open connection, as the steps see it.

    Attributes:
        reader: What the client sends.
        writer: What it is sent.
        requests: Every request read so far, of all the server's connections.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    requests: list[bytes]


@frozen
class ReadRequest(Step):
    """Read one whole HTTP request and record it; a client that leaves ends the script."""

    async def run(self, connection: Connection) -> None:
        """Read the head, then as much body as its headers promise."""
        reader = connection.reader
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:-2])
        body = b""
        if b"chunked" in fields.get(b"transfer-encoding", b""):
            size = b"first"
            while size.strip() != b"0":
                size = await reader.readuntil(b"\r\n")
                body += size + await reader.readexactly(int(size, 16) + 2)
        else:
            body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
        connection.requests.append(head + body)


@frozen
class Send(Step):
    """Send bytes, all at once or in pieces.

    Attributes:
        data: The bytes.
        piece: Bytes sent at a time; `None`: all.
        pause: Seconds between two pieces.
    """

    data: bytes
    piece: int | None = field(default=None, kw_only=True)
    pause: float = field(default=0.0, kw_only=True)

    async def run(self, connection: Connection) -> None:
        """Send, and wait while the client doesn't read."""
        size = self.piece or max(len(self.data), 1)
        for start in range(0, len(self.data), size):
            if start:
                await asyncio.sleep(self.pause)
            connection.writer.write(self.data[start : start + size])
            await connection.writer.drain()


@frozen
class Wait(Step):
    """Do nothing.

    Attributes:
        seconds: For how long; `None`: until the client closes the connection or the server is closed.
    """

    seconds: float | None = None

    async def run(self, connection: Connection) -> None:
        """Wait."""
        if self.seconds is not None:
            await asyncio.sleep(self.seconds)
            return
        while await connection.reader.read(65536):
            pass


@frozen
class Close(Step):
    """Close the connection with a FIN.

    Read the request first: over unread bytes, the kernel sends a reset instead.
    """

    async def run(self, connection: Connection) -> None:
        """Send what is left, then the FIN."""
        connection.writer.close()


@frozen
class Reset(Step):
    """Close the connection with a reset.

    Attributes:
        after: Seconds to wait first, so that the client has read what was sent before; a reset overtakes it otherwise.
    """

    after: float = 0.01

    async def run(self, connection: Connection) -> None:
        """Wait, then reset."""
        await asyncio.sleep(self.after)
        reset(connection.writer.transport)


@frozen
class Repeat(Step):
    """Do some steps again and again.

    Attributes:
        steps: What to do.
        times: How often; `None`: until the client or the server closes the connection.
    """

    steps: Sequence[Step]
    times: int | None = None

    async def run(self, connection: Connection) -> None:
        """Do the steps."""
        done = 0
        while (self.times is None or done < self.times) and not connection.writer.is_closing():
            for step in self.steps:
                await step.run(connection)
            await asyncio.sleep(0)  # a client that leaves must be noticed
            done += 1


class RawServer:
    """Serves scripts on loopback; use it with `async with`.

    Attributes:
        requests: The bytes of every request that a `ReadRequest` read, in order.
        connections: How many connections were accepted so far.
    """

    def __init__(self, *scripts: Sequence[Step], ssl_context: ssl.SSLContext | None = None) -> None:
        """Remember the scripts; nothing is opened yet.

        Args:
            *scripts: The first connection runs the first one, and so on; connections after that run the last one.
            ssl_context: Speak TLS.
        """
        if not scripts:
            raise ValueError("RawServer needs a script")
        self.requests: list[bytes] = []
        self.connections = 0
        self._scripts = scripts
        self._ssl = ssl_context
        self._server: asyncio.Server | None = None
        self._port: int | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def port(self) -> int:
        """The port, once started; a server that is started again keeps it."""
        if self._port is None:
            raise RuntimeError("this server has no port before it is started: use it with `async with`")
        return self._port

    @property
    def base_url(self) -> str:
        """`http://127.0.0.1:PORT/v1`."""
        return f"{'https' if self._ssl else 'http'}://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self._port or 0, ssl=self._ssl, backlog=1024, limit=1 << 20
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and end every connection at once; does nothing a second time."""
        if self._server is None:
            return
        server, self._server = self._server, None
        await stop_accepting(server)
        for task, writer in self._open.items():
            writer.transport.abort()  # a client that doesn't read must not hold us up
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def __aenter__(self) -> RawServer:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        if self._server is None:  # closed during the TLS handshake
            writer.close()
            return
        self._open[task] = writer
        script = self._scripts[min(self.connections, len(self._scripts) - 1)]
        self.connections += 1
        connection = Connection(reader, writer, self.requests)
        # A client that leaves in the middle is nothing special here: most tests end so.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            for step in script:
                await step.run(connection)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()
        del self._open[task]
