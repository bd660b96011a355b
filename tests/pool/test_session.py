"""The pool's sessions: opened and closed, what goes on the wire, and when it begins to go."""

from __future__ import annotations

import asyncio
import copy
import errno
import importlib.metadata
import os
import resource
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import anyio
import pytest
import trustme

from piapi_async import APIConnectionError, APITimeoutError, Client, Retry
from piapi_async.policy import Deadline
from piapi_async.pool import SessionPool, Transport
from piapi_async.provider import Endpoint
from piapi_async.testing import Close, RawServer, ReadRequest, Repeat, Send, Step, Wait, http_response
from piapi_async.wire import Body
from tests.leaks import KEY, PROMPT, assert_tight
from tests.pool.sending import ask, endpoint, send

pytestmark = pytest.mark.anyio

ANSWER = [ReadRequest(), Send(http_response(200, b'{"a": 1}'))]


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with RawServer([Repeat(ANSWER)]) as server:
        yield server


async def fails(pool: SessionPool, target: Endpoint, **options: Any) -> APIConnectionError:
    with pytest.raises(APIConnectionError) as caught:
        await send(pool, target, **options)
    return caught.value


# -- opened and closed -------------------------------------------------------------------------------------------------


async def test_open_idle_in_flight(server: RawServer) -> None:
    target = endpoint(server)
    pool = SessionPool([target])
    assert repr(pool) == "<SessionPool closed>"
    transport: Transport = pool  # which type checkers check
    async with pool as opened:
        assert opened is transport
        assert repr(pool) == "<SessionPool open=0 idle=0 in_flight=0>"
        exchange = await send(pool, target)
        assert repr(pool) == "<SessionPool open=1 idle=0 in_flight=1>"
        assert await exchange.read_all(Deadline()) == b'{"a": 1}'
        assert repr(pool) == "<SessionPool open=1 idle=1 in_flight=0>"
    assert repr(pool) == "<SessionPool closed>"
    await pool.aclose()
    error = await fails(pool, target)
    assert (error.kind, error.maybe_billed) == ("closed", False)


async def test_a_key_has_a_session_of_its_own(server: RawServer) -> None:
    first, second = endpoint(server), endpoint(server)
    async with SessionPool([first, second]) as pool:
        for target in (first, second):
            await ask(pool, target)
    assert server.connections == 2


async def test_a_request_that_wants_one_gets_a_new_connection_each_time(server: RawServer) -> None:
    target = endpoint(server)
    async with SessionPool([target]) as pool:
        for connections in (1, 1, 2, 3):  # the first two share one
            await ask(pool, target, fresh=connections > 1)
            assert server.connections == connections


def test_opened_again_on_another_loop() -> None:
    server = RawServer([Repeat(ANSWER)])
    made: list[tuple[SessionPool, Endpoint]] = []

    async def use() -> bytes:
        async with server:
            if not made:
                target = endpoint(server)
                made.append((SessionPool([target]), target))
            pool, target = made[0]
            async with pool:
                return await ask(pool, target)

    assert [asyncio.run(use()) for _ in range(2)] == [b'{"a": 1}'] * 2
    assert server.connections == 2


async def test_closing_ends_what_is_under_way() -> None:
    async with RawServer(
        [ReadRequest(), Send(http_response(200, b"{}")[:-1]), Wait()], [ReadRequest(), Wait()]
    ) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await send(pool, target)
            assert await exchange.read(Deadline()) == b"{"
            reading = asyncio.ensure_future(exchange.read(Deadline()))
            waiting = asyncio.create_task(send(pool, target))
            while len(server.requests) < 2:
                await asyncio.sleep(0.001)
            await pool.aclose()
            for call in (reading, waiting):
                with pytest.raises(APIConnectionError) as caught:
                    await call
                assert (caught.value.kind, caught.value.maybe_billed) == ("closed", True)
        assert repr(pool) == "<SessionPool closed>"


async def cancelled_after(steps: int, closing: asyncio.Task[None]) -> None:
    for _ in range(steps):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])


@pytest.mark.parametrize("steps", range(5))
async def test_a_close_that_was_cancelled_can_be_done_again(server: RawServer, steps: int) -> None:
    first, second = endpoint(server), endpoint(server)
    async with SessionPool([first, second]) as pool:
        for target in (first, second):
            await ask(pool, target)
            await ask(pool, target, fresh=True)
        assert "open=0" not in repr(pool)
        await cancelled_after(steps, asyncio.create_task(pool.aclose()))
        await pool.aclose()
        assert repr(pool) == "<SessionPool closed>"
        for target in (first, second):
            assert (await fails(pool, target)).kind == "closed"


@pytest.mark.parametrize("steps", range(5))
async def test_opened_again_after_a_close_that_was_cancelled(server: RawServer, steps: int) -> None:
    first, second = endpoint(server), endpoint(server)
    pool = SessionPool([first, second])
    await pool.__aenter__()
    for target in (first, second):
        await ask(pool, target)
    await cancelled_after(steps, asyncio.create_task(pool.aclose()))
    async with pool:
        assert "open=0" in repr(pool)  # what was left is closed by now
        assert await ask(pool, second) == b'{"a": 1}'


async def test_an_open_that_is_cancelled_leaves_nothing(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def slow() -> dict[str, str]:  # as asking the system for its proxies may be
        go_on.wait(5)
        return {}

    monkeypatch.setattr("piapi_async.pool.session.getproxies", slow)
    target = endpoint(server.base_url.replace("127.0.0.1", "piapi.localhost"))
    pool = SessionPool([target], trust_env=True)
    opening = asyncio.create_task(pool.__aenter__())
    await asyncio.sleep(0.01)
    opening.cancel()
    await asyncio.wait([opening])
    go_on.set()
    assert opening.cancelled()
    assert repr(pool) == "<SessionPool closed>"


# -- what goes on the wire ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, (1 << 20) - 1, 1 << 20, 2 << 20])
async def test_what_is_sent(server: RawServer, size: int) -> None:
    target = endpoint(server, **{"X-Team": "blue", "X-Attempt": "0"})
    async with SessionPool([target]) as pool:
        for _ in range(2):  # on a new connection, and on a kept one
            await ask(pool, target, Body(b"x" * size), headers={"X-Attempt": "1"})
    assert server.connections == 1
    for request in server.requests:
        head, _, body = request.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
        assert fields[b"authorization"] == b"bearer sk-secret-secret"
        assert fields[b"accept-encoding"] == b"identity"
        assert fields[b"content-type"] == b"application/json"
        assert fields[b"user-agent"].startswith(b"piapi-async/")
        assert (fields[b"x-team"], fields[b"x-attempt"]) == (b"blue", b"1")  # a request's own win
        assert fields[b"content-length"] == str(size).encode()
        assert body == b"x" * size


async def test_cookies_are_forgotten() -> None:
    answer = http_response(200, b"{}", {"Set-Cookie": "a=b", "Content-Type": "application/json"})
    async with RawServer([Repeat([ReadRequest(), Send(answer)])]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            for _ in range(2):
                await ask(pool, target)
        assert b"cookie" not in server.requests[1].lower()


async def test_proxy_and_environment(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = endpoint("http://api.invalid/v1")
    async with SessionPool([elsewhere], proxy=server.base_url.removesuffix("/v1")) as pool:
        await ask(pool, elsewhere)
    assert server.requests[0].startswith(b"POST http://api.invalid/v1/chat/completions")
    monkeypatch.setenv("HTTP_PROXY", server.base_url.removesuffix("/v1"))
    async with SessionPool([elsewhere], trust_env=True) as pool:
        await ask(pool, elsewhere)
    assert len(server.requests) == 2
    async with SessionPool([elsewhere]) as pool:  # the environment does not count unless asked
        with pytest.raises(APIConnectionError) as caught:
            await send(pool, elsewhere)
    assert caught.value.kind == "dns"


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_refuses(scheme: str) -> None:
    target = endpoint(f"{scheme}://api.invalid/v1")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    async with RawServer([ReadRequest(), Send(http_response(407, b""))]) as server:
        for proxy in (f"http://me:pw-canary@127.0.0.1:{port}", server.base_url.replace("127", "me:pw-canary@127")):
            if scheme == "http" and str(server.port) in proxy:
                continue  # without a tunnel a proxy's 407 is an answer like any other
            async with SessionPool([target], proxy=proxy) as pool:
                with pytest.raises(APIConnectionError) as caught:
                    await send(pool, target)
            assert caught.value.kind == "proxy"
            assert "pw-canary" not in repr(caught.value)


@pytest.mark.parametrize("answer", [[Close()], [Send(b"HTTP/1.1 200"), Close()], [Send(b"garbage\r\n\r\n"), Close()]])
async def test_a_proxy_that_breaks_off_before_the_tunnel_is_there(answer: list[Step]) -> None:
    """Nothing was sent to the provider, so nothing can have been billed, and nobody need ask again there."""
    async with RawServer([Repeat([ReadRequest(), *answer])]) as server:
        proxy = server.base_url.removesuffix("/v1")
        async with Client(KEY, base_url="https://api.invalid/v1", model="m", proxy=proxy, retry=Retry(1)) as client:
            with pytest.raises(APIConnectionError) as caught:
                await client.complete(PROMPT)
    assert server.requests[0].startswith(b"CONNECT api.invalid:443")
    assert (caught.value.kind, caught.value.maybe_billed) == ("proxy", False)
    assert client.ledger.unknown == 0


async def test_a_proxy_that_breaks_off_behind_the_request() -> None:
    async with RawServer([ReadRequest(), Close()]) as server:
        target = endpoint("http://api.invalid/v1")
        async with SessionPool([target], proxy=server.base_url.removesuffix("/v1")) as pool:
            failure = await fails(pool, target)
    assert (failure.kind, failure.maybe_billed) == ("reset", True)


async def test_a_package_without_its_metadata(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    target = endpoint(server)
    async with SessionPool([target]) as pool:
        assert await ask(pool, target) == b'{"a": 1}'
    assert b"user-agent: piapi-async\r\n" in server.requests[0].lower()


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
            await send(pool, target)
    assert (caught.value.kind, caught.value.maybe_billed) == ("local", False)


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What aiohttp is asked to send: what tools that record HTTP take hold of, and copy."""
    seen: list[dict[str, Any]] = []
    original = aiohttp.ClientSession._request

    async def request(session: aiohttp.ClientSession, *args: Any, **options: Any) -> aiohttp.ClientResponse:
        seen.append(options)
        return await original(session, *args, **options)

    monkeypatch.setattr(aiohttp.ClientSession, "_request", request)
    return seen


async def test_aiohttp_gets_plain_values(server: RawServer, handed_over: list[dict[str, Any]]) -> None:
    target = endpoint(server)
    async with SessionPool([target]) as pool:
        await ask(pool, target, Body(b"x" * 100), headers={"X-Attempt": "1"})
        await ask(pool, target, Body(b"x" * (2 << 20)))
    small, large = handed_over
    assert (type(small["data"]), small["data"]) == (bytes, b"x" * 100)
    assert (type(small["headers"]), small["headers"].keys()) == (dict, {"Authorization", "X-Attempt"})
    assert copy.deepcopy(small) == small
    assert copy.deepcopy(large["data"]).getvalue() == b"x" * (2 << 20)


# -- when it begins to go ----------------------------------------------------------------------------------------------


async def test_told_of_each_request_that_begins_to_go_out(server: RawServer) -> None:
    target = endpoint(server)
    seen: list[int] = []

    def on_sent() -> None:
        seen.append(len(server.requests))

    async with SessionPool([target]) as pool:
        for options in ({}, {}, {"fresh": True}, {"body": Body(b"x" * (2 << 20))}):
            await ask(pool, target, **options, on_sent=on_sent)
    assert seen == [0, 1, 2, 3]  # once each, on new and kept connections, before the server has it
    assert server.connections == 2


async def test_told_though_no_answer_comes() -> None:
    async with RawServer([ReadRequest()]) as server:
        target, sent = endpoint(server), list[int]()
        async with SessionPool([target]) as pool:
            error = await fails(pool, target, on_sent=lambda: sent.append(1))
    assert (error.kind, error.maybe_billed, sent) == ("reset", True, [1])


def not_sent() -> None:
    raise AssertionError("nothing was sent")


@contextmanager
def nobody_accepts() -> Iterator[int]:
    """A port whose backlog is full: connecting to it takes for ever."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


async def test_not_told_when_connecting_is_refused() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        target = endpoint(f"http://127.0.0.1:{bound.getsockname()[1]}/v1")
        async with SessionPool([target]) as pool:
            error = await fails(pool, target, on_sent=not_sent)
    assert (error.kind, error.maybe_billed) == ("connect", False)


async def test_not_told_when_tls_fails() -> None:
    async with RawServer([Send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Wait()]) as server:
        target = endpoint(server.base_url.replace("http:", "https:"))
        async with SessionPool([target]) as pool:
            error = await fails(pool, target, on_sent=not_sent)
    assert (error.kind, error.maybe_billed) == ("tls", False)


async def test_not_told_when_the_certificate_is_not_trusted() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with RawServer(ANSWER, ssl_context=context) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            error = await fails(pool, target, on_sent=not_sent)
    assert (error.kind, error.maybe_billed) == ("certificate", False)


@pytest.mark.parametrize("timer", ["connect", "deadline"])
async def test_not_told_when_connecting_takes_too_long(timer: str) -> None:
    with nobody_accepts() as port:
        await asyncio.sleep(0.01)
        target = endpoint(f"http://127.0.0.1:{port}/v1")
        loop = asyncio.get_running_loop()
        async with SessionPool([target], connect_timeout=0.05 if timer == "connect" else None) as pool:
            deadline = Deadline() if timer == "connect" else Deadline(loop.time() + 0.05, "deadline", 0.05)
            error = await fails(pool, target, deadline=deadline, on_sent=not_sent)
            assert "in_flight=0" in repr(pool)
    assert isinstance(error, APITimeoutError)
    assert (error.kind, error.maybe_billed) == (timer, False)


async def test_not_told_when_it_is_cancelled_while_it_connects() -> None:
    with nobody_accepts() as port:
        await asyncio.sleep(0.01)
        target = endpoint(f"http://127.0.0.1:{port}/v1")
        async with SessionPool([target]) as pool:
            call = asyncio.create_task(send(pool, target, on_sent=not_sent))
            await asyncio.sleep(0.01)
            assert "in_flight=1" in repr(pool)
            call.cancel("mine")
            with pytest.raises(asyncio.CancelledError) as caught:
                await call
            assert caught.value.args == ("mine",)
            with anyio.fail_after(1):
                while "open=0" not in repr(pool):
                    await asyncio.sleep(0.001)
            assert "in_flight=0" in repr(pool)


@pytest.mark.parametrize("steps", range(12))
async def test_a_request_that_is_cancelled_at_each_step(server: RawServer, steps: int) -> None:
    """Until it was told of, nothing goes out; and whatever the step, nothing is left."""
    target, sent = endpoint(server), list[int]()
    async with SessionPool([target]) as pool:
        call = asyncio.create_task(ask(pool, target, on_sent=lambda: sent.append(1)))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        assert "in_flight=0" in repr(pool)
        await asyncio.sleep(0.01)
        assert len(server.requests) <= len(sent) <= 1


async def test_a_request_that_is_cancelled_on_a_kept_connection() -> None:
    async with RawServer([*ANSWER, ReadRequest(), Wait()]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            await ask(pool, target)
            call = asyncio.create_task(send(pool, target))
            while len(server.requests) < 2:
                await asyncio.sleep(0.001)
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
            await asyncio.sleep(0.01)
            assert repr(pool) == "<SessionPool open=0 idle=0 in_flight=0>"


async def test_a_cancel_from_outside_is_not_taken_for_the_timer() -> None:
    async with RawServer([ReadRequest(), Wait()]) as server, Client("sk-x", base_url=server.base_url) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await client.complete("x", model="m")


async def test_nothing_goes_to_a_connection_that_was_closed_in_the_same_turn(server: RawServer) -> None:
    target = endpoint(server)
    async with SessionPool([target]) as pool:
        await ask(pool, target)
        call = asyncio.create_task(send(pool, target))
        await asyncio.sleep(0)  # it has handed its bytes over, and the turn in which they are written comes next
        await pool.aclose()
        with pytest.raises(APIConnectionError) as caught:
            await call
        assert caught.value.kind == "closed"
    assert len(server.requests) == 1


async def test_a_cancelled_request_shows_neither_key_nor_prompt() -> None:
    async with RawServer([ReadRequest(), Wait()]) as server:
        target = endpoint(server, KEY)
        async with SessionPool([target]) as pool:
            call = asyncio.create_task(send(pool, target, Body(PROMPT.encode())))
            while not server.requests:
                await asyncio.sleep(0.001)
            call.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await call
            assert_tight(caught.value)
