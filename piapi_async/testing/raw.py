"""A TCP server that sends exactly the bytes that a script says, for faults below HTTP.

    async with RawServer([ReadRequest(), Send(http_response(200, b"{}")[:40]), Reset()]) as server:
        ...  # connect to server.base_url

A script is a sequence of steps. Each connection runs one script and is closed at its end.
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
        body: The body, with a Content-Length unless `close_delimited` is set.
        headers: The headers; `None`: JSON's content type.
        chunks: Send these as chunks, with the last (empty) chunk, in place of `body`.
        close_delimited: Leave out the length: the body ends with the connection.
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
    """Close a connection with a reset: what is not sent yet is dropped, and the peer gets ECONNRESET."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def stop_accepting(server: asyncio.Server) -> None:
    """Stop listening, but first let the connections that were just accepted get under way.

    If asyncio's server is closed while a connection is half accepted, asyncio forgets the socket and never closes it.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener.fileno())
    for _ in range(3):  # the turns of the loop from the accept to the first step of the connection's task
        await asyncio.sleep(0)
    server.close()


class Step(ABC):
    """One thing that a connection does. To make your own, subclass it and write `run`."""

    @abstractmethod
    async def run(self, connection: Connection) -> None:
        """Carry out the step."""


@frozen
class Connection:
    """An open connection, as the steps see it.

    Attributes:
        reader: Reads what the client sends.
        writer: Sends to the client.
        requests: All requests that the server has read so far, on any connection.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    requests: list[bytes]


@frozen
class ReadRequest(Step):
    """Read one whole HTTP request and record it. If the client leaves, the script ends."""

    async def run(self, connection: Connection) -> None:
        """Read the head, and then the body that its headers announce."""
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
        piece: How many bytes to send at a time; `None`: all.
        pause: Seconds between two pieces.
    """

    data: bytes
    piece: int | None = field(default=None, kw_only=True)
    pause: float = field(default=0.0, kw_only=True)

    async def run(self, connection: Connection) -> None:
        """Send, and wait while the client does not read."""
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
        seconds: How long to wait; `None`: until the client closes the connection or the server is closed.
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
    """Close the connection in order, with a FIN.

    Read the request first: if there are unread bytes, the kernel sends a reset instead.
    """

    async def run(self, connection: Connection) -> None:
        """Send what is left, then the FIN."""
        connection.writer.close()


@frozen
class Reset(Step):
    """Close the connection with a reset.

    Attributes:
        after: Seconds to wait first. Without a pause, the reset overtakes what was sent before it.
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
        steps: The steps to repeat.
        times: How often; `None`: until the client or the server closes the connection.
    """

    steps: Sequence[Step]
    times: int | None = None

    async def run(self, connection: Connection) -> None:
        """Carry out the steps."""
        done = 0
        while (self.times is None or done < self.times) and not connection.writer.is_closing():
            for step in self.steps:
                await step.run(connection)
            await asyncio.sleep(0)  # so that we notice when the client leaves
            done += 1


class RawServer:
    """Runs scripts on loopback. Use it with `async with`.

    Attributes:
        requests: The bytes of each request that a `ReadRequest` has read, in order.
        connections: How many connections it has accepted so far.
    """

    def __init__(self, *scripts: Sequence[Step], ssl_context: ssl.SSLContext | None = None) -> None:
        """Take the scripts. Nothing is opened yet.

        Args:
            *scripts: The first connection runs the first script, and so on. Further connections run the last one.
            ssl_context: Speak TLS with this context.

        Raises:
            ValueError: There is no script.
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
        """The port. It is known once the server is started, and stays the same if it is started again."""
        if self._port is None:
            raise RuntimeError("the server has no port until it is started: use it with `async with`")
        return self._port

    @property
    def base_url(self) -> str:
        """`http://127.0.0.1:PORT/v1`."""
        return f"{'https' if self._ssl else 'http'}://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self._port or 0, ssl=self._ssl, backlog=1024, limit=1 << 20
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and end every connection at once. Closing it again does nothing."""
        if self._server is None:
            return
        server, self._server = self._server, None
        await stop_accepting(server)
        for task, writer in self._open.items():
            writer.transport.abort()  # don't wait for a client that does not read
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
        # That a client leaves in the middle is normal here: most tests end that way.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            for step in script:
                await step.run(connection)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()
        del self._open[task]
