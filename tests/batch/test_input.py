"""Where rows come from: files, pipes, standard input, iterables; `faults.md` K11."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from piapi_async import BatchError, BatchStatus, quote_batch
from piapi_async.batch import MAX_LINE
from piapi_async.batch.records import LINES_A_TURN
from piapi_async.testing import LocalServer
from tests.batch.runs import (
    check_whole,
    content_of,
    exists,
    names_in,
    opened,
    prompts,
    records,
    refused,
    run,
    save,
    standard_streams,
    until,
    write,
)

pytestmark = pytest.mark.anyio


# -- files and pipes -------------------------------------------------------------------------------------------------


async def test_impossible_inputs(server: LocalServer, tmp_path: Path, out: Path) -> None:
    await refused(server, 5, out, "requests: a int is no input")
    await refused(server, tmp_path / "missing", out, "missing: it can't be read: No such file or directory")
    await refused(server, tmp_path, out, "it can't be read: Is a directory")
    assert not exists(out)


def pipe_with(content: bytes) -> int:
    """A pipe that holds this; its reading end."""
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    return reading


async def test_standard_input_as_a_pipe(server: LocalServer, tmp_path: Path, out: Path) -> None:
    content = content_of(write(tmp_path / "in.jsonl", prompts(5)))
    with standard_streams(stdin=pipe_with(content.rstrip())):
        status = await run(server, "-", out)
    assert (status.done, status.total) == (5, None)
    check_whole(out, 5)
    with standard_streams(stdin=pipe_with(content + b"\n{}\n")):
        with pytest.raises(BatchError, match="line 7: it has neither"):
            await run(server, "-", out)


async def test_standard_input_and_output_as_files(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(5))
    with standard_streams(stdin=os.open(source, os.O_RDONLY), stdout=os.open(out, os.O_WRONLY | os.O_CREAT)):
        status = await run(server, "-", "-")
    assert (status.done, status.total) == (5, 5)
    check_whole(out, 5)
    with standard_streams(stdin=os.open(out, os.O_RDONLY)):
        await refused(server, "-", out, "-: it is the file of results too; name another")
    check_whole(out, 5)


async def test_standard_output_as_a_pipe(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(5))
    reading, writing = os.pipe()
    with standard_streams(stdout=writing):
        status = await run(server, source, "-")
    save(out, os.read(reading, 1 << 16))
    os.close(reading)
    assert (status.done, status.total) == (5, 5)
    check_whole(out, 5)
    assert names_in(tmp_path) == {source.name, out.name}


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A named pipe."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@contextmanager
def feeding(pipe: Path, content: bytes, size: int) -> Iterator[None]:
    """Write this into a named pipe, in pieces of such a size."""

    def feed() -> None:
        with suppress(BrokenPipeError), pipe.open("wb", buffering=0) as file:
            for at in range(0, len(content), size):
                file.write(content[at : at + size])

    thread = threading.Thread(target=feed)
    thread.start()
    yield
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
async def test_a_named_pipe(server: LocalServer, tmp_path: Path, out: Path, pipe: Path, size: int) -> None:
    content = content_of(write(tmp_path / "in.jsonl", prompts(3)))
    with feeding(pipe, content, size):
        status = await run(server, pipe, out)
    assert (status.done, status.total) == (3, None)
    check_whole(out, 3)
    with pytest.raises(OSError, match="No such device or address"):  # nobody reads it any more
        os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)


async def test_a_line_too_long_in_a_pipe(server: LocalServer, out: Path, pipe: Path) -> None:
    content = b'{"custom_id": "id-0", "prompt": "short"}\n{"prompt": "' + b"long" * (MAX_LINE >> 2)
    end = os.open(pipe, os.O_RDWR)  # the pipe stays open, so the line never ends
    with feeding(pipe, content, 1 << 20), pytest.raises(BatchError, match="line 2: it is longer than 67,108,864 bytes"):
        await run(server, pipe, out)
    os.close(end)
    assert set(records(out)) == {"id-0"}


async def test_a_pipe_that_nobody_writes_to(server: LocalServer, out: Path, pipe: Path) -> None:
    def waits() -> bool:
        return any(thread.name == f"waiting for {pipe}" for thread in threading.enumerate())

    status = await run(server, pipe, out, deadline=0.02, grace=0.02)
    assert status.stopped == "deadline"
    assert waits()
    os.close(os.open(pipe, os.O_RDWR))  # the thread that waits is let go, and nobody listens to it any more
    await until(lambda: not waits())
    await anyio.lowlevel.checkpoint()


async def test_a_socket_is_no_input(server: LocalServer, tmp_path: Path, out: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        await refused(server, tmp_path / "socket", out, "socket: it can't be read: No such device or address")


async def test_a_long_file_lets_other_tasks_run(server: LocalServer, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_bytes(b"x\n" * (3 * LINES_A_TURN))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with opened(server) as client, anyio.create_task_group() as group:
        group.start_soon(count)
        (quote,) = await quote_batch(source, client=client)
        group.cancel_scope.cancel()
    assert quote.rows == 3 * LINES_A_TURN
    assert turns >= 2


async def test_the_input_as_output(server: LocalServer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(2))
    content = source.read_bytes()
    twin = tmp_path / "twin"
    twin.hardlink_to(source)
    for output in (source, str(source), twin):
        await refused(server, source, output, "it is the file of results too")
    with pytest.raises(BatchError, match="it is the file of results too"):
        async with opened(server) as client:
            await quote_batch(source, twin, client=client)
    assert source.read_bytes() == content


# -- K11: iterables and their troubles -------------------------------------------------------------------------------


async def test_finished_rows_are_read_once(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(5))
    await run(server, prompts(3), out)

    def overwrite(status: BatchStatus) -> None:
        with source.open("r+b") as file:
            file.write(b"no row ")

    status = await run(server, source, out, progress=overwrite)
    assert (status.before, status.done) == (3, 5)
    check_whole(out, 5)


@pytest.mark.parametrize("how", ["iterable", "async iterable"])
async def test_K11_an_input_that_breaks_off(server: LocalServer, out: Path, how: str) -> None:
    def rows() -> Iterator[Any]:
        yield from prompts(5)
        raise LookupError("the database is gone")

    async def slow_rows() -> AsyncIterator[Any]:
        for row in rows():
            await anyio.lowlevel.checkpoint()
            yield row

    server.latency = 0.01
    with pytest.raises(LookupError, match="the database is gone"):
        await run(server, rows() if how == "iterable" else slow_rows(), out)
    check_whole(out, 5)
    status = await run(server, prompts(7), out)
    assert (status.before, status.done) == (5, 7)
    assert len(server.requests) == 7


@pytest.mark.parametrize("how", ["iterable", "async iterable"])
async def test_K11_an_endless_input(server: LocalServer, out: Path, how: str) -> None:
    pulled, most = 0, 0
    done: list[int] = [0]
    ending = anyio.Event()

    def rows() -> Iterator[Any]:
        nonlocal pulled, most
        for n in itertools.count():
            pulled += 1
            most = max(most, pulled - done[0])
            yield prompts(1, n)[0]

    async def slow_rows() -> AsyncIterator[Any]:
        for row in rows():
            yield row

    def watch(status: BatchStatus) -> None:
        done[0] = status.done
        if status.done >= 40:
            ending.set()

    source = rows() if how == "iterable" else slow_rows()
    status = await run(server, source, out, concurrency=4, ending=ending, progress=watch)
    assert (status.stopped, status.cut, status.total) == ("interrupted", (), None)
    assert most <= 2 * 4 + 1  # one may be counted as it is handed over
    assert len(server.requests) == status.done >= 40
    check_whole(out, status.done)


async def test_K11_an_input_that_falls_silent(server: LocalServer, out: Path) -> None:
    ending = anyio.Event()

    async def rows() -> AsyncIterator[Any]:
        for row in prompts(3):
            yield row
        await anyio.sleep_forever()

    def watch(status: BatchStatus) -> None:
        if status.done == 3:
            ending.set()

    status = await run(server, rows(), out, ending=ending, progress=watch)
    assert (status.stopped, status.done) == ("interrupted", 3)
    status = await run(server, rows(), out, deadline=0.01, grace=0.01)
    assert (status.stopped, status.done) == ("deadline", 3)
