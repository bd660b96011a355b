"""Results that go to a pipe: its reader may be slow, stop, or leave."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anyio
import pytest

from piapi_async import BatchError, BatchStatus, Retry
from piapi_async.batch.pipe import PipeWriter
from piapi_async.testing import LocalServer, Status
from tests.batch.runs import prompts, run, standard_streams, until
from tests.leaks import KEY

pytestmark = pytest.mark.anyio

LONG = "x" * 5000


@pytest.fixture
async def talkative() -> AsyncIterator[LocalServer]:
    """A server whose answers fill a pipe with a dozen lines."""
    async with LocalServer(api_key=KEY, answer=lambda _: LONG) as server:
        yield server


async def test_a_slow_reader_sets_the_pace(talkative: LocalServer) -> None:
    read, write = os.pipe()
    taken: list[bytes] = []

    def take() -> None:
        while piece := os.read(read, 1 << 16):
            taken.append(piece)

    with standard_streams(stdout=write):
        async with anyio.create_task_group() as group:
            statuses: list[BatchStatus] = []

            async def go() -> None:
                statuses.append(await run(talkative, prompts(60), "-", concurrency=4))

            group.start_soon(go)
            await until(lambda: len(talkative.requests) >= 12)
            await asyncio.sleep(0.1)
            sent = len(talkative.requests)
            assert sent < 30  # the pipe is full: rows wait for the reader
            reading = asyncio.get_running_loop().run_in_executor(None, take)
    await reading
    os.close(read)
    assert (statuses[0].done, statuses[0].stopped) == (60, None)
    assert b"".join(taken).count(b"\n") == 60


async def test_a_reader_that_stops_does_not_keep_the_run_from_ending(talkative: LocalServer) -> None:
    read, write = os.pipe()
    ending = anyio.Event()
    with standard_streams(stdout=write):
        async with anyio.create_task_group() as group:
            caught: list[BatchError] = []

            async def go() -> None:
                with pytest.raises(BatchError, match="standard output: its reader does not read") as error:
                    await run(talkative, prompts(60), "-", concurrency=4, ending=ending, grace=0.05)
                caught.append(error.value)

            group.start_soon(go)
            await until(lambda: len(talkative.requests) >= 12)
            await asyncio.sleep(0.1)
            ending.set()
    os.set_blocking(read, False)
    whole = 0
    for _ in range(5):  # the line that was begun may end now, and no other begins
        with suppress(BlockingIOError):
            whole += os.read(read, 1 << 20).count(b"\n")
        await asyncio.sleep(0.01)
    os.close(read)
    assert whole + len(caught[0].unsaved) <= len(talkative.requests) + 1
    assert whole + len(caught[0].unsaved) >= len(talkative.requests)  # one may be there in part


async def test_a_reader_that_leaves_ends_the_run(talkative: LocalServer) -> None:
    read, write = os.pipe()
    os.close(read)
    with standard_streams(stdout=write):
        with pytest.raises(BatchError, match="standard output: its reader is gone") as caught:
            await run(talkative, prompts(60), "-", concurrency=4)
    assert 1 <= len(caught.value.unsaved) == len(talkative.requests) <= 8


async def test_unknown_bills_have_no_place_beside_a_pipe(server: LocalServer) -> None:
    server.faults = [Status(504), Status(503), Status(503), Status(504)]
    options: Any = {"retry": Retry(attempts=2, base=0.001, cap=0.001)}
    read, write = os.pipe()
    with standard_streams(stdout=write):
        status = await run(server, prompts(2), "-", stop_after=1, concurrency=2, options=options)
    os.close(read)
    assert (status.stopped, status.done, status.unknown > 0) == ("failures", 0, True)


async def test_failures_held_back_are_written_too(server: LocalServer) -> None:
    server.faults = lambda _number, _body: Status(503)
    read, write = os.pipe()
    with standard_streams(stdout=write):
        status = await run(server, prompts(3), "-")
    content = os.read(read, 1 << 20)
    os.close(read)
    assert (status.failed, content.count(b"\n")) == (3, 3)


def test_no_line_is_taken_behind_one_that_could_not_be_written() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = PipeWriter(writing)

    async def write() -> None:
        writer.put(b"one\n")
        with pytest.raises(BrokenPipeError):
            await writer.written()

    anyio.run(write)
    with pytest.raises(BrokenPipeError):
        writer.put(b"two\n")
