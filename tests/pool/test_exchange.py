"""One exchange: its headers, its body, and the timers of its waits."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.http_exceptions import HttpProcessingError

from piapi_async import APIConnectionError, APITimeoutError
from piapi_async.errors import StreamTooLargeError
from piapi_async.policy import Deadline
from piapi_async.pool import MAX_BODY_BYTES, Exchange, SessionPool
from piapi_async.pool.foreign import translate
from piapi_async.testing import Close, RawServer, ReadRequest, Reset, Send, Step, Wait, http_response
from tests.pool.sending import ask, endpoint, send
from tests.wires import jumping_clock, server_in_a_thread

pytestmark = pytest.mark.anyio

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


# -- headers -----------------------------------------------------------------------------------------------------------


async def test_headers_are_the_pools_own_mapping() -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nX-Request-ID: R-1\r\nRateLimit: a;r=1\r\nRATELIMIT: b;r=0\r\nContent-Length: 2\r\n\r\n{}"
    )
    async with RawServer([ReadRequest(), Send(head)]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await send(pool, target)
            assert exchange.status == 200
            assert type(exchange.headers) is dict
            assert exchange.headers == {"x-request-id": "R-1", "ratelimit": "a;r=1\nb;r=0"}  # what is read
            assert {type(text) for pair in exchange.headers.items() for text in pair} == {str}
            exchange.close()


# -- bodies ------------------------------------------------------------------------------------------------------------


async def test_the_largest_body() -> None:
    answers = [http_response(200, b"x" * size) for size in (MAX_BODY_BYTES, MAX_BODY_BYTES + 1)]
    async with RawServer([step for answer in answers for step in (ReadRequest(), Send(answer))]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            assert len(await ask(pool, target)) == MAX_BODY_BYTES
            with pytest.raises(StreamTooLargeError) as caught:
                await ask(pool, target)
            assert caught.value.maybe_billed
            await asyncio.sleep(0.01)
            assert repr(pool) == "<SessionPool open=0 idle=0 in_flight=0>"


async def test_a_body_is_read_behind_what_was_read_before() -> None:
    async with RawServer(
        [ReadRequest(), Send(CHUNKED + b"1\r\na\r\n"), Wait(0.01), Send(b"1\r\nb\r\n0\r\n\r\n")]
    ) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await send(pool, target)
            start = await exchange.read(Deadline())
            assert (start, await exchange.read_all(Deadline(), start)) == (b"a", b"ab")


@pytest.mark.parametrize(("size", "kept"), [(10, 1), (1 << 20, 0)])
async def test_the_start_of_a_body(size: int, kept: int) -> None:
    async with RawServer([ReadRequest(), Send(http_response(500, b"x" * size)), Wait()]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await send(pool, target)
            start = await exchange.read_start(Deadline(), 1000)
            assert min(size, 1000) <= len(start) <= 1000 + (1 << 18)
            assert "in_flight=0" in repr(pool)
            await asyncio.sleep(0.15)  # a body that goes on for longer costs the connection
            assert f"open={kept} idle={kept}" in repr(pool)


@pytest.mark.parametrize(("pause", "connections"), [(0.02, 1), (0.3, 2)])
async def test_a_connection_is_kept_if_its_body_ends_soon(pause: float, connections: int) -> None:
    script = [ReadRequest(), Send(CHUNKED + b"1\r\na\r\n"), Wait(pause), Send(b"0\r\n\r\n"), Wait(0.01)]
    async with RawServer([*script, *script, Wait()]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            for _ in range(2):
                exchange = await send(pool, target)
                await exchange.read(Deadline())
                exchange.finish()
                exchange.finish()
                assert "in_flight=0" in repr(pool)
                await asyncio.sleep(0.15)
        assert server.connections == connections


async def test_closed_while_a_body_is_left_to_end() -> None:
    async with RawServer([ReadRequest(), Send(CHUNKED + b"1\r\na\r\n"), Wait()]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await send(pool, target)
            exchange.finish()
            exchange.close()
            exchange.close()
            assert "open=0" in repr(pool) or "idle=1" in repr(pool)
            await asyncio.sleep(0.01)
            assert "open=0" in repr(pool)
            exchange = await send(pool, target)
            exchange.finish()
        assert repr(pool) == "<SessionPool closed>"


@pytest.mark.parametrize("end", [Close(), Reset()])
async def test_a_body_that_breaks_off(end: Step) -> None:
    async with RawServer([ReadRequest(), Send(http_response(200, b"{}")[:-1]), end]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            with pytest.raises(APIConnectionError) as caught:
                await ask(pool, target)
            assert (caught.value.kind, caught.value.maybe_billed) == ("truncated body", True)
            assert "in_flight=0" in repr(pool)


OK = b"HTTP/1.1 200 OK\r\n"


async def _protocol_fault(data: bytes, end: Step) -> str:
    """What is said of bytes that come in place of an answer."""
    async with RawServer([ReadRequest(), Send(data), end]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            with pytest.raises(APIConnectionError) as caught:
                await send(pool, target)
            error = caught.value
            assert (error.kind, error.maybe_billed) == ("protocol", True)
            assert error.__cause__ is None
            assert error.__context__ is None
            return str(error)


@pytest.mark.parametrize(
    "data",
    [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b"220 mail ESMTP\r\n", b'{"a": 1}', b"HTTX/1.1"],
)
async def test_an_answer_that_is_not_http(data: bytes) -> None:
    assert await _protocol_fault(data, Wait()) == "127.0.0.1 does not answer in HTTP; check the base URL's port"


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("it ends within its headers", OK + b"X-Half: "),
        ("it ends within its headers", b"HTT"),
        ("a bad status line", b"HTTP/1.1 abc OK\r\n\r\n"),
        ("a bad status line", b"HTTP/2 200 OK\r\n\r\n"),
        ("a bad header", OK + b"X y: secret\r\n\r\n"),
        ("a bad header", OK + b"X: chunk\0secret\r\n\r\n"),
        ("a line that is too long", OK + b"X: " + b"secret" * 2000 + b"\r\n\r\n"),
        ("too many headers", OK + b"".join(b"X-%d: 1\r\n" % i for i in range(5000)) + b"\r\n"),
        ("a bad Content-Length", OK + b"Content-Length: secret\r\n\r\n"),
        ("a bad Content-Length", OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
        ("a bad Content-Length", OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("a bad chunk", CHUNKED + b"ZZ\r\n{}\r\n"),
        ("bytes behind its end", OK + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}{}"),
    ],
)
async def test_an_answer_that_breaks_the_rules_of_http(what: str, data: bytes) -> None:
    text = f"127.0.0.1's answer breaks the rules of HTTP ({what}); try again or use a backup"
    assert await _protocol_fault(data, Close()) == text


def test_what_the_parser_says_in_new_words_is_not_handed_on() -> None:
    text = str(translate(HttpProcessingError(message="secret"), "host"))
    assert text == "host's answer breaks the rules of HTTP (it is malformed); try again or use a backup"


async def test_a_read_that_is_cancelled_closes_the_connection() -> None:
    async with RawServer([ReadRequest(), Send(CHUNKED + b"1\r\na\r\n"), Wait()]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await send(pool, target)
            assert await exchange.read(Deadline()) == b"a"
            reading = asyncio.ensure_future(exchange.read(Deadline()))
            await asyncio.sleep(0.01)
            reading.cancel()
            await asyncio.wait([reading])
            assert reading.cancelled()
            await asyncio.sleep(0.01)
            assert repr(pool) == "<SessionPool open=0 idle=0 in_flight=0>"


# -- timers ------------------------------------------------------------------------------------------------------------


async def test_one_timer_serves_many_waits() -> None:
    loop = asyncio.get_running_loop()
    steps = [step for _ in range(30) for step in (Send(b"1\r\nx\r\n"), Wait(0.002))]
    async with RawServer([ReadRequest(), Send(CHUNKED), *steps, Wait()]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await send(pool, target, deadline=Deadline(loop.time() + 5, "first_event", 5))
            size = 0
            while size < 30:  # each wait is 20 ms from its own start; all of them together take longer
                size += len(await exchange.read(Deadline().or_within(loop.time(), "progress", 0.02)))
            with pytest.raises(APITimeoutError) as caught:
                await exchange.read(Deadline().or_within(loop.time(), "progress", 0.02))
            assert caught.value.kind == "progress"


async def test_bytes_that_arrived_while_the_loop_was_blocked_win_over_the_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head, _, body = http_response(200, b"{}").partition(b"Content-Length")
    with server_in_a_thread(head, b"Content-Length" + body) as server:
        target = endpoint(server.base_url)
        jump = jumping_clock(monkeypatch)
        async with SessionPool([target]) as pool:
            deadline = Deadline(asyncio.get_running_loop().time() + 5, "total", 5)
            sending = asyncio.create_task(send(pool, target, deadline=deadline))
            await asyncio.to_thread(server.started.wait, 5)
            server.send_the_rest()
            jump(6)
            exchange = await sending
            assert await exchange.read_all(Deadline()) == b"{}"


async def test_the_timer_does_not_run_between_reads() -> None:
    script = [ReadRequest(), Send(CHUNKED), Wait(0.005), Send(b"1\r\na\r\n"), Wait(0.04), Send(b"1\r\nb\r\n"), Wait()]
    async with RawServer(script) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await send(pool, target)
            loop = asyncio.get_running_loop()
            assert await exchange.read(Deadline().or_within(loop.time(), "progress", 0.02)) == b"a"
            await asyncio.sleep(0.03)  # the caller holds what it read; the timer of that read comes and goes
            assert await exchange.read(Deadline().or_within(loop.time(), "progress", 0.5)) == b"b"


async def test_a_call_that_is_due_soon_does_not_wait_for_one_that_is_due_later() -> None:
    loop = asyncio.get_running_loop()
    async with RawServer([ReadRequest(), Wait()]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            calls: dict[float, asyncio.Task[Exchange]] = {}
            for seconds in (0.3, 0.1, 0.2):
                deadline = Deadline(loop.time() + seconds, "total", seconds)
                calls[seconds] = asyncio.create_task(send(pool, target, deadline=deadline))
            ended: list[float] = []
            for seconds, call in calls.items():
                call.add_done_callback(lambda _, seconds=seconds: ended.append(seconds))  # type: ignore[misc]  # mypy can't infer it
            answers = await asyncio.gather(*calls.values(), return_exceptions=True)
            assert ended == [0.1, 0.2, 0.3]
            for answer in answers:
                assert isinstance(answer, APITimeoutError)
                assert (answer.kind, answer.maybe_billed) == ("total", True)
            assert repr(pool) == "<SessionPool open=0 idle=0 in_flight=0>"


async def test_a_pause_of_the_caller_ends_no_exchange() -> None:
    """Between the headers and the first read nothing is waited for, so nothing is late."""
    loop = asyncio.get_running_loop()
    async with RawServer([ReadRequest(), Send(CHUNKED), Wait(0.1), Send(b"1\r\na\r\n0\r\n\r\n")]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await send(pool, target, deadline=Deadline(loop.time() + 0.05, "first_event", 0.05))
            await asyncio.sleep(0.08)
            assert await exchange.read(Deadline()) == b"a"
            assert await exchange.read(Deadline()) == b""
