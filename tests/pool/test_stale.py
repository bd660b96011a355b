"""A kept connection that ends without an answer: closed before, or after the prompt was worked on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from piapi_async.testing import Close, ReadRequest, Reset, Send, Step
from piapi_async.testing.raw import Connection
from tests.leaks import PROMPT
from tests.wires import BOTH, DONE, WHOLE, ask, dialled, failure, jumping_clock, ok, sse

pytestmark = pytest.mark.anyio


@attrs.frozen
class Work(Step):
    """Work on a request for some seconds of a clock that jumps, then end the connection."""

    jump: Callable[[float], None]
    seconds: float
    end: Step

    async def run(self, connection: Connection) -> None:
        self.jump(self.seconds)
        await self.end.run(connection)


@pytest.mark.parametrize("end", [Reset(), Close()])
@pytest.mark.parametrize(
    ("seconds", "connect", "stale"), [(0.2, 0, True), (0.4, 0, False), (0.4, 0.3, True), (0.7, 0.3, False)]
)
@BOTH
async def test_B3_stale_only_within_a_round_trip(
    how: Any, seconds: float, connect: float, stale: bool, end: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later than that the prompt may have been worked on: a failed attempt, whose bill is unknown."""
    loop, jump = asyncio.get_running_loop(), jumping_clock(monkeypatch)
    dial = loop.sock_connect

    async def sock_connect(sock: socket.socket, address: Any) -> None:
        await dial(sock, address)
        jump(connect)

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    answer = ok() if how is ask else sse(WHOLE + DONE)
    kept = [ReadRequest(), Send(answer), ReadRequest(), Work(jump, seconds, end)]
    async with dialled(kept, [ReadRequest(), Send(answer)], budget="1") as (client, server):
        await how(client)
        if stale:
            assert [attempt.kind for attempt in (await how(client)).attempts] == ["stale", "ok"]
            assert client.ledger.unknown == 0
            return
        worst = client.quote(PROMPT, model="gpt-4o").most
        error = await failure(how(client))  # `Retry(attempts=1)`: never again
        assert (error.kind, error.maybe_billed, len(error.attempts)) == ("reset", True, 1)
        assert (len(server.requests), client.ledger.unknown) == (2, worst)


async def test_B3_the_quickest_connect_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, jump = asyncio.get_running_loop(), jumping_clock(monkeypatch)
    dial, seconds = loop.sock_connect, iter([0.0, 3.0, 0.0])

    async def sock_connect(sock: socket.socket, address: Any) -> None:
        await dial(sock, address)
        jump(next(seconds))

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    once, kept = (
        [ReadRequest(), Send(ok()), Close()],
        [ReadRequest(), Send(ok()), ReadRequest(), Work(jump, 1, Close())],
    )
    async with dialled(once, kept) as (client, _):
        await ask(client)
        while "idle=1" in repr(client):
            await asyncio.sleep(0.001)
        await ask(client)
        assert (await failure(ask(client))).kind == "reset"
