"""A storm over real sockets: every fault at once, callers that leave at any await, and a bill at the end.

`tests/simulation` does the same in virtual time, thousands of times. Here the sockets, the timers and aiohttp are real.
"""

from __future__ import annotations

import asyncio
import json
import random
import types
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from typing import Any

import anyio
import pytest

from piapi_async import APIError, BudgetExceededError, Client, Health, Limits, Provider, Retry, Timeout
from piapi_async.billing import MESSAGE_TOKENS
from piapi_async.catalog import ModelInfo, estimate_tokens
from piapi_async.pool.session import STALE_SECONDS

pytestmark = pytest.mark.anyio

MODEL = "storm-model"
PRICE = ModelInfo(MODEL, "1000", "4000", max_output_tokens=64)  # dollars for a million tokens
PROMPT_DOLLAR, ANSWER_DOLLAR = Decimal("0.001"), Decimal("0.004")
MAX_TOKENS = 12
PROMPT = "What is the weather like in the middle of a storm?"


OUTCOMES = {
    "good": 40,
    "slow": 5,
    "silent usage": 12,  # no token counts
    "cut": 5,
    "stall": 2,
    "reset": 3,  # at once, so that nobody has worked on the prompt
    "late reset": 3,
    "504": 3,
    "429": 6,
    "500": 3,
    "503": 3,
}
"""What may become of a request, and how often."""


class BillingServer:
    """A provider that draws what becomes of each request, and notes what it bills for it.

    A request that it works on is billed in whole, whether or not the caller is still there: an answer with token
    counts by them, a stream without any at one token a chunk and the client's own estimate of the prompt.
    """

    def __init__(self, seed: str, *, overruns: bool) -> None:
        self.billed = Decimal(0)
        self.above = Decimal(0)  # beyond what was reserved; a caller who left before the token counts can't know it
        self._outcomes = OUTCOMES | ({"above": 1} if overruns else {})  # a bill above its reservation
        self.connections = 0
        self._rng = random.Random(seed)
        self._server: asyncio.Server | None = None

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        try:
            yield f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        finally:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                    body = json.loads(await reader.readexactly(size))
                    if not await self._answer(body, writer):
                        return
        finally:
            self.connections -= 1
            writer.close()

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        """Answer a request, well or not; return whether the connection lives on."""
        rng, stream, choices = self._rng, bool(body.get("stream")), int(body.get("n") or 1)
        outcome = rng.choices(tuple(self._outcomes), tuple(self._outcomes.values()))[0]
        if outcome in ("429", "500", "503"):
            writer.write(_plain(int(outcome), b'{"error": {"message": "try again"}}', "retry-after-ms: 2\r\n"))
            return True
        if outcome == "reset":
            writer.transport.abort()
            return False
        # As many as the client reserves for, so that nothing it forgets is made up for by what it reserves too much.
        most = {"above": 20 * MAX_TOKENS, "silent usage": MAX_TOKENS - 1}  # as the chunk that ends it counts too
        tokens = [most.get(outcome, MAX_TOKENS)] * choices
        counted = outcome != "silent usage"
        prompt = len(PROMPT) + MESSAGE_TOKENS if counted else estimate_tokens(PROMPT)
        bill = prompt * PROMPT_DOLLAR + min(MAX_TOKENS * choices, sum(tokens)) * ANSWER_DOLLAR
        self.billed += bill
        self.above += prompt * PROMPT_DOLLAR + sum(tokens) * ANSWER_DOLLAR - bill
        usage = {"prompt_tokens": prompt, "completion_tokens": sum(tokens), "total_tokens": prompt + sum(tokens)}
        if outcome in ("504", "late reset"):
            return await self._fail_late(outcome, writer)
        if outcome == "slow":
            await asyncio.sleep(rng.uniform(0, 0.05))
        make = _events if stream else _completion
        return await self._send(make(tokens, usage if counted else None), outcome, writer)

    async def _fail_late(self, outcome: str, writer: asyncio.StreamWriter) -> bool:
        if outcome == "late reset":
            await asyncio.sleep(STALE_SECONDS + 0.02)
            writer.transport.abort()
            return False
        writer.write(_plain(504, b"<html>gateway timeout</html>"))
        return True

    async def _send(self, pieces: list[bytes], outcome: str, writer: asyncio.StreamWriter) -> bool:
        whole = outcome not in ("cut", "stall")
        for piece in pieces if whole else pieces[: self._rng.randrange(len(pieces))]:
            writer.write(piece)
            if self._rng.random() < 0.3:
                await asyncio.sleep(0)
        if outcome == "stall":
            await asyncio.sleep(3)  # longer than any timer of the client
        if whole:
            await writer.drain()
        else:
            writer.transport.abort()
        return whole


def _plain(status: int, body: bytes, more: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body


def _completion(tokens: list[int], usage: dict[str, int] | None) -> list[bytes]:
    choices = [
        {"index": i, "message": {"role": "assistant", "content": "word " * count}, "finish_reason": "stop"}
        for i, count in enumerate(tokens)
    ]
    answer = {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL, "choices": choices}
    whole = _plain(200, json.dumps(answer | ({"usage": usage} if usage else {})).encode())
    return [whole[:30], whole[30:150], whole[150:]]


def _events(tokens: list[int], usage: dict[str, int] | None) -> list[bytes]:
    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        fields = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": choices}
        data = b"data: " + json.dumps(fields | more).encode() + b"\n\n"
        return b"%x\r\n%s\r\n" % (len(data), data)

    events = [
        event(
            [{"index": i, "delta": {"content": "{"}, "finish_reason": None}]
        )  # JSON without blanks: no words to count
        for i, count in enumerate(tokens)
        for _ in range(count)
    ]
    events += [event([{"index": i, "delta": {}, "finish_reason": "stop"}]) for i in range(len(tokens))]
    if usage:
        events.append(event([], usage=usage))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return [head, *events, b"e\r\ndata: [DONE]\n\n\r\n", b"0\r\n\r\n"]


@types.coroutine
def cancelled_at(step: int, work: Coroutine[Any, Any, object]) -> Generator[Any, Any, object]:
    """Await some work, and cancel the task as it waits for the so-manieth time."""
    value: Any = None
    error: BaseException | None = None
    waits = 0
    while True:
        try:
            waited = work.throw(error) if error is not None else work.send(value)
        except StopIteration as end:
            return end.value
        waits += 1
        if waits == step:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
        try:
            value, error = (yield waited), None
        except BaseException as raised:
            value, error = None, raised


async def complete(client: Client, rng: random.Random) -> None:
    await client.complete(
        PROMPT, n=rng.choice((None, 1, 3)), max_tokens=MAX_TOKENS, via_stream=rng.choice((None, True))
    )


async def read_tokens(client: Client, rng: random.Random) -> None:
    async with client.stream(PROMPT, max_tokens=MAX_TOKENS, n=rng.choice((None, 2))) as stream:
        async for _ in stream:
            pass
        await stream.completion()


async def leave_early(client: Client, rng: random.Random) -> None:
    left = rng.randint(1, 4)
    async with client.stream(PROMPT, max_completion_tokens=MAX_TOKENS) as stream:
        async for _ in stream.chunks():
            left -= 1
            if not left:
                break


async def map_some(client: Client, rng: random.Random) -> None:
    left = rng.randint(1, 12)
    prompts = ((f"key {i}", PROMPT) for i in range(8))
    async with client.map(prompts, max_tokens=MAX_TOKENS, concurrency=3, ordered=rng.random() < 0.5) as results:
        async for _ in results:
            left -= 1
            if not left:
                break


CALLS: tuple[Callable[[Client, random.Random], Coroutine[Any, Any, None]], ...] = (
    complete,
    complete,
    read_tokens,
    leave_early,
    map_some,
)


@pytest.mark.parametrize(
    ("seed", "calls", "overruns"),
    [
        (1, 200, False),
        pytest.param(2, 3000, False, marks=pytest.mark.slow),
        pytest.param(3, 3000, True, marks=pytest.mark.slow),
    ],
)
async def test_a_storm(seed: int, calls: int, overruns: bool) -> None:
    rng = random.Random(seed)
    primary, backup = (BillingServer(f"{seed}/{each}", overruns=overruns) for each in "ab")
    before = len(asyncio.all_tasks())
    async with primary.listening() as url, backup.listening() as backup_url:
        cap = Decimal("0.12") * calls
        client = Client(
            "sk-storm-primary",
            base_url=url,
            model=MODEL,
            prices={MODEL: PRICE},
            backups=[Provider("backup", backup_url, "sk-storm-backup", prices={MODEL: PRICE})],
            budget=cap,
            limits=Limits(concurrency=24),
            retry=Retry(attempts=3, base=0.001, cap=0.01, throttle_base=0.001, throttle_cap=0.01, hedge=True),
            timeout=Timeout(connect=2, first_event=0.5, progress=0.2, total=0.6),
            health=Health(open=0.02, open_cap=0.1),
            seed=seed,
        )
        ends: Counter[str] = Counter()
        async with client:
            await _storm(client, rng, calls, ends, cap)
            ledger, statistics = client.ledger, client.statistics()
            assert statistics.in_flight == statistics.queued == 0
            assert ledger.reserved == 0
            assert ledger.spent + ledger.unknown <= cap + ledger.overrun
            assert ledger.spent + ledger.unknown - ledger.overrun >= primary.billed + backup.billed
            # Nothing but bills above their reservations, and streams of which more chunks came than tokens were asked.
            assert ledger.overrun <= primary.above + backup.above + cap / 100
            assert ledger.overrun > 0 or not overruns
            assert ends["ok"] > 0
            assert ends["BudgetExceededError"] > 0
        with anyio.fail_after(5):  # a stalled server notices late that its caller has left
            while len(asyncio.all_tasks()) > before or primary.connections or backup.connections:
                await asyncio.sleep(0.005)


async def _storm(client: Client, rng: random.Random, calls: int, ends: Counter[str], cap: Decimal) -> None:
    places = asyncio.Semaphore(48)

    async def one(number: int) -> None:
        own = random.Random(rng.random())
        work = own.choice(CALLS)(client, own)
        step = own.randint(1, 25) if own.random() < 0.5 else 0
        async with places:
            ends[await _end_of(asyncio.create_task(_run(step, work)))] += 1
        ledger = client.ledger
        assert ledger.spent + ledger.reserved + ledger.unknown <= cap + ledger.overrun, number

    async with asyncio.TaskGroup() as group:
        for number in range(calls):
            group.create_task(one(number))


async def _run(step: int, work: Coroutine[Any, Any, None]) -> None:
    await (cancelled_at(step, work) if step else work)


async def _end_of(task: Awaitable[None]) -> str:
    try:
        await task
    except (APIError, BudgetExceededError, asyncio.CancelledError) as end:
        return type(end).__name__
    return "ok"
