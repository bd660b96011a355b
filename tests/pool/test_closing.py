"""What a close that is slow, cancelled or overtaken leaves: nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import anyio
import pytest

from piapi_async import APIConnectionError, Client
from piapi_async.pool import SessionPool
from piapi_async.testing import LocalServer, RawServer, ReadRequest, Repeat, Send, Wait, http_response
from tests.pool.sending import ask, endpoint, send

pytestmark = pytest.mark.anyio

ANSWER = [ReadRequest(), Send(http_response(200, b'{"a": 1}'))]


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with RawServer([Repeat(ANSWER)]) as server:
        yield server


@pytest.mark.parametrize("steps", range(5))
async def test_opened_again_while_a_close_goes_on(server: RawServer, steps: int) -> None:
    target = endpoint(server)
    pool = SessionPool([target])
    await pool.__aenter__()
    await ask(pool, target)
    closing = asyncio.create_task(pool.aclose())
    for _ in range(steps):
        await asyncio.sleep(0)
    async with pool:
        await closing
        assert await ask(pool, target) == b'{"a": 1}'
    assert repr(pool) == "<SessionPool closed>"


async def test_a_close_that_is_cancelled_at_once_has_ended_all_calls() -> None:
    """Not those of the first session only."""
    async with RawServer([Repeat([ReadRequest(), Wait()])]) as server:
        targets = [endpoint(server), endpoint(server)]
        pool = SessionPool(targets)
        await pool.__aenter__()
        calls = [asyncio.create_task(send(pool, target)) for target in targets]
        while len(server.requests) < 2:
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(pool.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        for target in targets:
            with pytest.raises(APIConnectionError) as caught, anyio.fail_after(5):
                await send(pool, target)
            assert caught.value.kind == "closed"
        await pool.aclose()
        for call in calls:
            with pytest.raises(APIConnectionError) as caught:
                await call
            assert caught.value.kind == "closed"


@pytest.mark.parametrize("how", ["closed", "cancelled", "forgotten"])
def test_a_client_is_opened_again_on_another_loop(how: str) -> None:
    """Also after a close that was cancelled half-way, and after a loop that ended without one."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    client = Client("sk-test", base_url=f"http://127.0.0.1:{port}/v1", model="gpt-4o-mini")

    async def use(end: str) -> None:
        async with LocalServer(port=port, api_key="sk-test"):
            await client.aclose()
            await client.open()
            assert (await client.complete("hi")).text
            if end == "closed":
                await client.aclose()
            elif end == "cancelled":
                closing = asyncio.create_task(client.aclose())
                await asyncio.sleep(0)
                closing.cancel()
                await asyncio.wait([closing])

    for end in (how, how, "closed"):
        asyncio.run(use(end))
    assert client.statistics().outcomes == {"ok": 3}
