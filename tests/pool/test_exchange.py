"""One exchange: its headers, its body, and the timers of its waits."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator

import pytest

from piapi_async import APIConnectionError, APIResponseError, APITimeoutError
from piapi_async.errors import StreamTooLargeError
from piapi_async.policy import Deadline
from piapi_async.pool import INFLATED_PIECE, MAX_BODY_BYTES, Exchange, SessionPool
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


async def test_a_compressed_body_is_undone_in_pieces() -> None:
    plain = bytes(1000) * 5000
    packed = zlib.compress(plain)
    answers = [http_response(200, packed[:cut], {"Content-Encoding": "deflate"}) for cut in (None, 100)]
    async with RawServer(*([ReadRequest(), Send(answer), Close()] for answer in answers)) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await send(pool, target)
            pieces = [piece async for piece in _pieces(exchange)]
            assert b"".join(pieces) == plain
            assert max(map(len, pieces)) <= INFLATED_PIECE
            exchange = await send(pool, target, fresh=True)
            with pytest.raises(APIResponseError) as caught:
                await exchange.read_all(Deadline())
            assert caught.value.kind == "encoding"


async def _pieces(exchange: Exchange) -> AsyncIterator[bytes]:
    while piece := await exchange.read(Deadline()):
        yield piece
    exchange.finish()


async def test_a_compressed_body_that_comes_byte_by_byte() -> None:
    packed = gzip.compress(b"plain text")
    head = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    async with RawServer([ReadRequest(), Send(http_response(200, packed, head), piece=1, pause=0.0001)]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await send(pool, target)
            assert await exchange.read_all(Deadline()) == b"plain text"


@pytest.mark.parametrize("encoding", ["identity", "Identity"])
async def test_a_body_that_is_labelled_as_it_is(encoding: str) -> None:
    async with RawServer([ReadRequest(), Send(http_response(200, b"{}", {"Content-Encoding": encoding}))]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            assert await ask(pool, target) == b"{}"


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


@pytest.mark.parametrize("script", [[Send(b"SSH-2.0\r\n"), Wait()], [Send(b"HTTP/1.1 200 OK\r\nX-Half: "), Close()]])
async def test_an_answer_that_is_not_http(script: list[Step]) -> None:
    async with RawServer([ReadRequest(), *script]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            with pytest.raises(APIConnectionError) as caught:
                await send(pool, target)
            assert (caught.value.kind, caught.value.maybe_billed) == ("protocol", True)


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
