from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct

import aiohttp
import pytest
import trustme

from piapi_async.testing import (
    Close,
    RawServer,
    ReadRequest,
    Repeat,
    Reset,
    Send,
    Step,
    Wait,
    http_response,
)
from piapi_async.testing.raw import Connection

pytestmark = pytest.mark.anyio

REQUEST = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
EMPTY = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhel\r\n\r\n2\r\nlo\r\n0\r\n\r\n"


async def exchange(server: RawServer, sent: bytes = REQUEST) -> bytes:
    """Send a request, return all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(sent)
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


# --- http_response ---


def test_a_response_has_a_length() -> None:
    assert http_response(200, b"{}") == (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )


def test_a_response_in_chunks() -> None:
    assert http_response(503, headers={"X": "ü"}, chunks=[b"ab", b"", b"c" * 17]) == (
        b"HTTP/1.1 503 Service Unavailable\r\nX: \xfc\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nab\r\n11\r\n" + b"c" * 17 + b"\r\n0\r\n\r\n"
    )


def test_a_response_that_ends_with_the_connection() -> None:
    assert http_response(999, b"x", {}, close_delimited=True) == b"HTTP/1.1 999 Unknown\r\nConnection: close\r\n\r\nx"


# --- Steps ---


@pytest.mark.parametrize("request_bytes", [REQUEST, CHUNKED, b"GET / HTTP/1.1\r\n\r\n", EMPTY])
async def test_a_request_is_read_whole_and_recorded(request_bytes: bytes) -> None:
    async with RawServer([ReadRequest(), Send(b"one"), ReadRequest(), Send(b"two"), Close()]) as server:
        assert await exchange(server, request_bytes * 2) == b"onetwo"
        assert server.requests == [request_bytes] * 2
        assert server.connections == 1


async def test_several_answers_on_one_connection() -> None:
    answer = [ReadRequest(), Send(http_response(200, b"{}"))]
    async with RawServer([Repeat(answer)]) as server, aiohttp.ClientSession() as session:
        for _ in range(3):
            async with session.post(server.base_url, data=b"hi") as response:
                assert await response.read() == b"{}"
        assert (server.connections, len(server.requests)) == (1, 3)
        assert server.requests[0].endswith(b"hi")


async def test_each_connection_runs_its_script_and_the_last_one_stays() -> None:
    scripts = [[ReadRequest(), Send(data)] for data in (b"1", b"2", b"3")]
    async with RawServer(*scripts) as server:
        assert [await exchange(server) for _ in range(5)] == [b"1", b"2", b"3", b"3", b"3"]
        assert server.connections == 5


async def test_sending_in_pieces() -> None:
    async with RawServer([ReadRequest(), Send(b"abcdefg", piece=3, pause=0.001), Send(b"")]) as server:
        assert await exchange(server) == b"abcdefg"


async def test_waiting() -> None:
    async with RawServer([ReadRequest(), Wait(0.001), Send(b"late"), Close()]) as server:
        assert await exchange(server) == b"late"


async def test_repeating_so_many_times() -> None:
    async with RawServer([ReadRequest(), Repeat([Send(b"a"), Send(b"b")], times=3), Close()]) as server:
        assert await exchange(server) == b"ababab"


async def test_a_reset_comes_after_what_was_sent() -> None:
    async with RawServer([ReadRequest(), Send(b"abc"), Reset()]) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(REQUEST)
        assert await reader.readexactly(3) == b"abc"
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_waiting_for_the_client_to_leave() -> None:
    left = asyncio.Event()

    class Tell(Step):
        async def run(self, connection: Connection) -> None:
            left.set()

    async with RawServer([ReadRequest(), Wait(), Tell()]) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(REQUEST + b"more")
        await writer.drain()
        writer.close()
        async with asyncio.timeout(5):
            await left.wait()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", REQUEST[:-1], CHUNKED[:-3]])
async def test_a_client_that_leaves_early_is_no_error(sent: bytes) -> None:
    async with RawServer([ReadRequest(), Send(b"never")]) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        writer.close()
        await writer.wait_closed()
    assert server.requests == []


async def test_a_client_that_resets_ends_an_endless_script() -> None:
    async with RawServer([Repeat([Send(b"x" * 1000)])], [Send(b"done")]) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        assert await exchange(server, b"") == b"done"


# --- Starting and closing ---


async def test_an_address_comes_with_the_start() -> None:
    server = RawServer([Close()])
    with pytest.raises(RuntimeError, match="until it is started"):
        server.port  # noqa: B018
    addresses: set[str] = set()
    for _ in range(2):
        async with server:
            addresses.add(server.base_url)
            assert await exchange(server, b"") == b""
    await server.close()
    assert len(addresses) == 1


def test_a_script_is_needed() -> None:
    with pytest.raises(ValueError, match="needs a script"):
        RawServer()


@pytest.mark.parametrize(
    "script",
    [
        [ReadRequest(), Wait()],
        [ReadRequest(), Wait(60)],
        [ReadRequest(), Send(b"x" * 50_000_000)],
        [ReadRequest(), Repeat([Send(b": ka\n\n"), Wait(0.001)])],
    ],
)
async def test_closing_ends_every_script(script: list[Step]) -> None:
    async with asyncio.timeout(5):
        async with RawServer(script) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(REQUEST)
            while not server.requests:
                await asyncio.sleep(0.001)
    writer.close()
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readexactly(50_000_000)


@pytest.mark.parametrize("turns", range(8))
async def test_closing_at_any_moment_of_an_accept(turns: int) -> None:
    async with RawServer([Wait()]) as server:
        client = socket.create_connection(("127.0.0.1", server.port))  # the kernel accepts; the loop hasn't looked yet
        for _ in range(turns):
            await asyncio.sleep(0)
    with client:
        client.setblocking(False)
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(5):
                assert await asyncio.get_running_loop().sock_recv(client, 1) == b""


async def test_closing_during_a_tls_handshake() -> None:
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(ours)
    authority.configure_trust(theirs)
    async with RawServer([Send(b"never")], ssl_context=ours) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(5):
        await writer.start_tls(theirs, server_hostname="127.0.0.1")
        assert await reader.read() == b""
    writer.close()
