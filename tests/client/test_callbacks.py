"""Functions of the caller that raise, or would have to be awaited: their error comes out, and nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from piapi_async import Client, InvalidRequestError, Limits, run_batch
from piapi_async.testing import LocalServer, Status

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def client_of(server: LocalServer, **options: Any) -> AsyncIterator[Client]:
    """A client of which nothing may be left."""
    async with Client(server.api_key, base_url=server.base_url, model="gpt-4o-mini", budget="5", **options) as client:
        yield client
        statistics = client.statistics()
        assert (statistics.in_flight, statistics.queued, client.ledger.reserved) == (0, 0, Decimal(0))
        assert "in_flight=0" in repr(client)


async def ask(client: Client, stream: bool, **options: Any) -> str:
    if not stream:
        return (await client.complete("hi", max_tokens=10, **options)).text
    async with client.stream("hi", max_tokens=10, **options) as opened:
        return (await opened.completion()).text


class OwnError(Exception):
    """An error of the caller's."""


async def journal() -> None:
    """It would write down that a request goes out."""


class Journal:
    async def __call__(self) -> None:
        """The same."""


ASYNC: dict[str, Callable[[], object]] = {
    "a function": journal,
    "a partial of one": partial(journal),
    "an object": Journal(),
    "a function that returns a coroutine": lambda: journal(),
}


@pytest.mark.parametrize("which", ASYNC)
@pytest.mark.parametrize("stream", [False, True])
async def test_on_send_that_would_have_to_be_awaited(piapi_server: LocalServer, which: str, stream: bool) -> None:
    async with client_of(piapi_server) as client:
        with pytest.raises(InvalidRequestError, match=r"on_send: .*pass a function that is not async"):
            await ask(client, stream, on_send=ASYNC[which])
        assert (client.ledger.unknown, client.ledger.spent) == (Decimal(0), Decimal(0))
        assert not piapi_server.requests


async def test_on_send_may_start_a_task(piapi_server: LocalServer) -> None:
    tasks: list[asyncio.Task[None]] = []

    def start() -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(journal()))
        return tasks[-1]

    async with client_of(piapi_server) as client:
        assert await ask(client, False, on_send=start)
    await tasks[0]


@pytest.mark.parametrize("on_send", [5, "print"])
async def test_on_send_that_is_no_function(piapi_server: LocalServer, on_send: Any) -> None:
    async with client_of(piapi_server) as client:
        for stream in (False, True):
            with pytest.raises(InvalidRequestError, match=r"on_send: this (int|str) does not fit"):
                await ask(client, stream, on_send=on_send)


@pytest.mark.parametrize("error", [OwnError("mine"), TypeError("mine"), ValueError("mine")])
async def test_a_tokenizer_that_raises_ends_a_map_with_its_error(piapi_server: LocalServer, error: Exception) -> None:
    def count(text: str) -> int:
        if text == "bad":
            raise error
        return 1

    async with client_of(piapi_server, tokenizer=count, limits=Limits(tokens_per_minute=1e6)) as client:
        found: list[int] = []
        with pytest.raises(type(error)) as caught:
            async with client.map(["good", "bad", "good"], max_tokens=10, concurrency=1) as results:
                async for result in results:
                    found.append(result.index)  # what came before the error counts
        assert caught.value is error
        assert (found, len(piapi_server.requests), client.ledger.unknown) == ([0], 1, Decimal(0))


@pytest.mark.parametrize("at", range(8))
async def test_progress_that_raises_loses_no_result(piapi_server: LocalServer, tmp_path: Path, at: int) -> None:
    """What was answered is written, the lock is free, and the next run goes on."""
    error = OwnError("mine")
    calls = 0

    def progress(status: object) -> None:
        nonlocal calls
        calls += 1
        if calls > at:
            raise error

    rows, output = [f"Question {i}?" for i in range(6)], tmp_path / "out.jsonl"
    async with client_of(piapi_server) as client:
        ask_all = partial(run_batch, rows, output, client=client, concurrency=2, max_tokens=10)
        with pytest.raises(OwnError) as caught:
            await ask_all(progress=progress)
        assert caught.value is error
    async with client_of(piapi_server) as client:
        status = await run_batch(rows, output, client=client, max_tokens=10)
    assert (status.done, output.read_bytes().count(b"\n")) == (6, 6)


async def test_an_input_that_raises_loses_no_result(piapi_server: LocalServer, tmp_path: Path) -> None:
    error = OwnError("mine")

    def rows() -> Any:
        yield from ("a", "b", "c")
        raise error

    output = tmp_path / "out.jsonl"
    async with client_of(piapi_server) as client:
        with pytest.raises(OwnError) as caught:
            await run_batch(rows(), output, client=client, max_tokens=10)
        assert caught.value is error
    assert output.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_on_send_that_raises_before_a_second_attempt(piapi_server: LocalServer, stream: bool) -> None:
    error = OwnError("mine")
    calls = 0

    def on_send() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error

    piapi_server.faults = [Status(500)]
    async with client_of(piapi_server) as client:
        with pytest.raises(OwnError) as caught:
            await ask(client, stream, on_send=on_send)
        assert caught.value is error
        assert len(piapi_server.requests) == 1
