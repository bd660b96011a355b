"""The pool alone: sessions, connections, what goes on the wire, timers."""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
import platform
import resource
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, cast

import aiohttp
import pytest

from piapi_async import APIConnectionError, APIResponseError, APITimeoutError, Client
from piapi_async.errors import Secret
from piapi_async.policy import Due
from piapi_async.pool import BURST, INFLATED_PIECE, Endpoint, SessionPool, _Content
from piapi_async.testing import Close, LocalServer, RawServer, ReadRequest, Repeat, Send, Wait, http_response
from piapi_async.wire import Body
from tests.leaks import KEY, PROMPT, assert_tight
from tests.wires import server_in_a_thread

pytestmark = pytest.mark.anyio

BODY = Body(b"{}")


def endpoint(server: RawServer | LocalServer, name: str = "piapi") -> Endpoint:
    return Endpoint(name, f"{server.base_url}/chat/completions", Secret("sk-secret-secret"), {"X-Team": "blue"})


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with RawServer([Repeat([ReadRequest(), Send(http_response(200, b'{"a": 1}'))])]) as server:
        yield server


async def test_open_idle_in_flight(server: RawServer) -> None:
    target = endpoint(server)
    pool = SessionPool([target])
    assert repr(pool) == "<SessionPool closed>"
    async with pool:
        assert repr(pool) == "<SessionPool open=0 idle=0 in_flight=0>"
        exchange = await pool.send(target, BODY, {}, Due())
        assert repr(pool) == "<SessionPool open=1 idle=0 in_flight=1>"
        assert await exchange.read_all(Due()) == b'{"a": 1}'
        assert repr(pool) == "<SessionPool open=1 idle=1 in_flight=0>"
    assert repr(pool) == "<SessionPool closed>"
    await pool.close()
    with pytest.raises(APIConnectionError) as caught:
        await pool.send(target, BODY, {}, Due())
    assert caught.value.kind == "closed"


async def test_a_key_has_a_session_of_its_own(server: RawServer) -> None:
    first, second = endpoint(server), endpoint(server)
    async with SessionPool([first, second]) as pool:
        for target in (first, second):
            await (await pool.send(target, BODY, {}, Due())).read_all(Due())
    assert server.connections == 2


async def test_what_is_sent(server: RawServer) -> None:
    target = endpoint(server)
    async with SessionPool([target]) as pool:
        await (await pool.send(target, Body(b"x" * (2 << 20)), {"X-Attempt": "1"}, Due())).read_all(Due())
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
    assert fields[b"authorization"] == b"bearer sk-secret-secret"
    assert fields[b"accept-encoding"] == b"identity"
    assert (fields[b"x-team"], fields[b"x-attempt"]) == (b"blue", b"1")
    assert fields[b"content-length"] == str(2 << 20).encode()
    assert body == b"x" * (2 << 20)


async def test_cookies_are_forgotten() -> None:
    answer = http_response(200, b"{}", {"Set-Cookie": "a=b", "Content-Type": "application/json"})
    async with RawServer([Repeat([ReadRequest(), Send(answer)])]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            for _ in range(2):
                await (await pool.send(target, BODY, {}, Due())).read_all(Due())
        assert b"cookie" not in server.requests[1].lower()


async def test_proxy_and_environment(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Endpoint("piapi", "http://api.invalid/v1/chat/completions", Secret("sk-x"))
    async with SessionPool([elsewhere], proxy=server.base_url.removesuffix("/v1")) as pool:
        await (await pool.send(elsewhere, BODY, {}, Due())).read_all(Due())
    assert server.requests[0].startswith(b"POST http://api.invalid/v1/chat/completions")
    monkeypatch.setenv("HTTP_PROXY", server.base_url.removesuffix("/v1"))
    async with SessionPool([elsewhere], trust_env=True) as pool:
        await (await pool.send(elsewhere, BODY, {}, Due())).read_all(Due())
    assert len(server.requests) == 2
    async with SessionPool([elsewhere]) as pool:  # the environment does not count unless asked
        with pytest.raises(APIConnectionError) as caught:
            await pool.send(elsewhere, BODY, {}, Due())
    assert caught.value.kind == "dns"


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_refuses(scheme: str) -> None:
    target = Endpoint("piapi", f"{scheme}://api.invalid/v1/chat/completions", Secret("sk-x"))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    async with RawServer([ReadRequest(), Send(http_response(407, b""))]) as server:
        for proxy in (f"http://me:pw-canary@127.0.0.1:{port}", server.base_url.replace("127", "me:pw-canary@127")):
            if scheme == "http" and str(server.port) in proxy:
                continue  # without a tunnel a proxy's 407 is an answer like any other
            async with SessionPool([target], proxy=proxy) as pool:
                with pytest.raises(APIConnectionError) as caught:
                    await pool.send(target, BODY, {}, Due())
            assert caught.value.kind == "proxy"
            assert "pw-canary" not in repr(caught.value)


@contextmanager
def no_files_left() -> Iterator[None]:
    """Take every descriptor the process may still have. Entered when all that needs one is open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(name) for name in os.listdir("/proc/self/fd")), hard))
    taken = []
    try:
        with pytest.raises(OSError, match=f"{errno.EMFILE}"):
            while True:
                taken.append(socket.socket())
        yield
    finally:
        for each in taken:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_no_file_left(server: RawServer) -> None:
    target = endpoint(server)
    async with SessionPool([target]) as pool:
        with no_files_left(), pytest.raises(APIConnectionError) as caught:
            await pool.send(target, BODY, {}, Due())
    assert (caught.value.kind, caught.value.maybe_billed) == ("local", False)


async def test_a_compressed_body_is_undone_in_pieces() -> None:
    plain = bytes(1000) * 5000
    packed = zlib.compress(plain)
    answers = [http_response(200, packed[:cut], {"Content-Encoding": "deflate"}) for cut in (None, 100)]
    async with RawServer(*([ReadRequest(), Send(answer), Close()] for answer in answers)) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await pool.send(target, BODY, {}, Due())
            pieces = [piece async for piece in _pieces(exchange)]
            assert b"".join(pieces) == plain
            assert max(map(len, pieces)) <= INFLATED_PIECE
            exchange = await pool.send(target, BODY, {}, Due(), fresh=True)
            with pytest.raises(APIResponseError) as caught:
                await exchange.read_all(Due())
            assert caught.value.kind == "encoding"


async def _pieces(exchange) -> AsyncIterator[bytes]:  # type: ignore[no-untyped-def]  # pool.Exchange
    while piece := await exchange.read(Due()):
        yield piece
    exchange.finish()


async def test_thousands_at_once_begin_in_turns() -> None:
    count = BURST + 10  # each takes two files, one here and one at the server
    loop = asyncio.get_running_loop()
    most = [0]

    async with LocalServer() as server:
        target = Endpoint("piapi", f"{server.base_url}/chat/completions", Secret(server.api_key))
        async with SessionPool([target]) as pool:

            def look() -> None:
                most.append(pool.in_flight)
                if len(most) < 1000:
                    loop.call_soon(look)

            async def ask() -> int:
                exchange = await pool.send(target, BODY, {}, Due())
                await exchange.read_all(Due())
                return exchange.status

            calls = [asyncio.create_task(ask()) for _ in range(count)]
            look()
            await asyncio.sleep(0)
            calls[BURST + 5].cancel()  # one that never begins leaves its turn to the next
            answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(answer == 400 for answer in answers) == count - 1  # it is no request that the server knows
    assert max(after - before for before, after in pairwise(most)) == BURST


async def test_thousands_at_once_take_several_turns() -> None:
    # Nobody listens there: each call takes a file for a moment only, and so many would not do with 1,024 of them else.
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        target = Endpoint("piapi", f"http://127.0.0.1:{nobody.getsockname()[1]}/chat/completions", Secret("sk-x"))
        begun = [0]
        async with SessionPool([target]) as pool:
            loop = asyncio.get_running_loop()
            calls = [asyncio.create_task(pool.send(target, BODY, {}, Due())) for _ in range(2 * BURST + 10)]

            def look() -> None:
                begun.append(pool.in_flight + sum(call.done() for call in calls))
                if len(begun) < 100:
                    loop.call_soon(look)

            look()
            answers = await asyncio.gather(*calls, return_exceptions=True)
    assert {answer.kind for answer in answers if isinstance(answer, APIConnectionError)} == {"connect"}
    assert [after - before for before, after in pairwise(begun) if after > before] == [BURST, BURST, 10]


FAULTS = """
import resource, socket

def faults():
    one, other = socket.socketpair()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        one.send(b"a little")
        other.recv(1 << 18)  # as asyncio reads
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())  # before anything else has freed a large block

import asyncio
from piapi_async import Client

async def main():
    async with Client("sk-x"):
        print(faults())

asyncio.run(main())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators map no block for each read")
def test_an_open_pool_has_the_memory_for_reads_kept() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    out = subprocess.check_output([sys.executable, "-c", FAULTS], env=environment, text=True)
    before, after = map(int, out.split())
    assert before >= 100  # else this test shows nothing
    assert after < 20


async def test_closed_before_its_turn(server: RawServer) -> None:
    target = endpoint(server)
    async with SessionPool([target]) as pool:
        calls = [asyncio.create_task(pool.send(target, BODY, {}, Due())) for _ in range(BURST + 2)]
        await asyncio.sleep(0)
        calls[-1].cancel()
        await pool.close()
        answers = await asyncio.gather(*calls, return_exceptions=True)
    late = answers[-2]
    assert isinstance(late, APIConnectionError)
    assert late.kind == "closed"


async def test_one_timer_serves_many_waits() -> None:
    loop = asyncio.get_running_loop()
    steps = [step for _ in range(30) for step in (Send(b"1\r\nx\r\n"), Wait(0.002))]
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with RawServer([ReadRequest(), Send(head), *steps, Wait()]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await pool.send(target, BODY, {}, Due(loop.time() + 5, "first_event", 5))
            size = 0
            while size < 30:  # each wait is 20 ms from its own start; all of them together take longer
                size += len(await exchange.read(Due().after(loop.time(), "progress", 0.02)))
            with pytest.raises(APITimeoutError) as caught:
                await exchange.read(Due().after(loop.time(), "progress", 0.02))
            assert caught.value.kind == "progress"


async def test_bytes_that_arrived_while_the_loop_was_blocked_win_over_the_timer() -> None:
    head, _, body = http_response(200, b"{}").partition(b"Content-Length")
    with server_in_a_thread(head, b"Content-Length" + body) as (base_url, started):
        target = Endpoint("piapi", f"{base_url}/chat/completions", Secret("sk-x"))
        async with SessionPool([target]) as pool:
            loop = asyncio.get_running_loop()
            sending = asyncio.create_task(pool.send(target, BODY, {}, Due(loop.time() + 0.05, "total", 0.05)))
            await asyncio.to_thread(started.wait, 5)
            time.sleep(0.1)  # noqa: ASYNC251  # no await: the loop must be blocked past the timer
            exchange = await sending
            assert await exchange.read_all(Due()) == b"{}"


async def test_a_cancel_from_outside_is_not_taken_for_the_timer() -> None:
    async with RawServer([ReadRequest(), Wait()]) as server, Client("sk-x", base_url=server.base_url) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await client.complete("x", model="m")


async def test_the_timer_does_not_run_between_reads() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    script = [ReadRequest(), Send(head), Wait(0.005), Send(b"1\r\na\r\n"), Wait(0.04), Send(b"1\r\nb\r\n"), Wait()]
    async with RawServer(script) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await pool.send(target, BODY, {}, Due())
            loop = asyncio.get_running_loop()
            assert await exchange.read(Due().after(loop.time(), "progress", 0.02)) == b"a"
            await asyncio.sleep(0.03)  # the caller holds what it read; the timer of that read comes and goes
            assert await exchange.read(Due().after(loop.time(), "progress", 0.5)) == b"b"


async def test_a_compressed_body_that_comes_byte_by_byte() -> None:
    packed = gzip.compress(b"plain text")
    head = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    async with RawServer([ReadRequest(), Send(http_response(200, packed, head), piece=1, pause=0.0001)]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await pool.send(target, BODY, {}, Due())
            assert await exchange.read_all(Due()) == b"plain text"


async def test_a_request_goes_out_without_a_task(server: RawServer) -> None:
    target = endpoint(server)
    async with SessionPool([target]) as pool:
        await (await pool.send(target, BODY, {}, Due())).read_all(Due())
        before = asyncio.all_tasks()
        call = asyncio.create_task(pool.send(target, BODY, {}, Due()))
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {*before, call}
        await (await call).read_all(Due())
    assert [request.partition(b"\r\n\r\n")[2] for request in server.requests] == [BODY.content] * 2


async def test_nothing_goes_to_a_connection_that_was_closed_in_the_same_turn(server: RawServer) -> None:
    target = endpoint(server)
    async with SessionPool([target]) as pool:
        await (await pool.send(target, BODY, {}, Due())).read_all(Due())
        call = asyncio.create_task(pool.send(target, BODY, {}, Due()))
        await asyncio.sleep(0)  # it has handed its bytes over, and the turn in which they are written comes next
        await pool.close()
        with pytest.raises(APIConnectionError) as caught:
            await call
        assert caught.value.kind == "closed"
    assert len(server.requests) == 1


async def test_a_body_that_aiohttp_writes_itself(server: RawServer) -> None:
    """As it would if it did not ask for `send`; but never one that is sent apart."""
    content = _Content(b'{"a": 1}', cast("Any", None))
    async with aiohttp.ClientSession() as session, session.post(f"{server.base_url}/chat", data=content) as response:
        assert await response.json(content_type=None) == {"a": 1}
    assert server.requests[0].endswith(b'\r\n\r\n{"a": 1}')
    content.apart = True
    await content.write_with_length(cast("Any", "no writer"), None)


async def test_a_cancelled_request_shows_neither_key_nor_prompt() -> None:
    async with RawServer([ReadRequest(), Wait()]) as server:
        target = Endpoint("piapi", f"{server.base_url}/chat/completions", Secret(KEY))
        async with SessionPool([target]) as pool:
            call = asyncio.create_task(pool.send(target, Body(PROMPT.encode()), {}, Due()))
            while not server.requests:
                await asyncio.sleep(0.001)
            call.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await call
            assert_tight(caught.value)
