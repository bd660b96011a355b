"""Where rows come from: a file, a pipe, or any iterable."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from functools import partial
from typing import BinaryIO, TypeAlias, TypeVar, cast

import anyio.lowlevel

from piapi_async.batch.records import LINES_A_TURN
from piapi_async.batch.rows import MAX_LINE, Item, Row, RowReader
from piapi_async.errors import BatchError
from piapi_async.fanout import close_generator

__all__ = ["FileInput", "Input", "ItemInput", "PipeInput", "Requests", "open_input"]

T = TypeVar("T")

Requests: TypeAlias = "str | os.PathLike[str] | Iterable[Item] | AsyncIterable[Item]"
"""An input: a file, `"-"` for standard input, or any iterable of rows."""

READ = 1 << 16
"""Most bytes read from a pipe at once: what a pipe holds on Linux."""


class FileInput:
    """Rows of a file, which can be read more than once.

    Attributes:
        position: Number and offset of the line that was read last; of the end, once all were read.
        start: Number and offset of the line to begin with.
    """

    def __init__(self, name: str, file: BinaryIO, reader: RowReader) -> None:
        self._name = _shown(name)
        self._file = file
        self._reader = reader
        self.start: tuple[int, int] = (1, 0)
        self.position = self.start

    async def rows(self) -> AsyncGenerator[Row, None]:
        """Read the rows, from `start` on."""
        number, offset = self.start
        self._file.seek(offset)
        for line in iter(partial(self._file.readline, MAX_LINE), b""):
            if not number % LINES_A_TURN:
                await anyio.lowlevel.checkpoint()
            self.position = (number, offset)
            row, size = self._reader.read_line(self._name, number, line), len(line)
            del line
            if isinstance(row, BatchError):
                raise row
            if row is not None:
                yield row
            number, offset = number + 1, offset + size
        self.position = (number, offset)


class PipeInput:
    """Rows of standard input or of a named pipe, as they come. They can be read only once."""

    def __init__(self, name: str, reader: RowReader) -> None:
        self._name = name
        self._reader = reader

    async def rows(self) -> AsyncGenerator[Row, None]:
        """Read the rows."""
        name, lines = self._name, _LineJoiner()
        fd = 0 if name == "-" else await _in_thread(name, partial(os.open, name, os.O_RDONLY))
        try:
            number, ended = 0, False
            while not ended:
                data = await _in_thread(name, partial(os.read, fd, READ))
                ended = not data
                found = deque(lines.feed(data))
                del data
                while found:
                    number += 1
                    row = self._reader.read_line(_shown(name), number, found.popleft())
                    if isinstance(row, BatchError):
                        found.clear()
                        raise row
                    if row is not None:
                        yield row
        finally:
            if fd:
                os.close(fd)


class _LineJoiner:
    """Makes lines of what reads return, whatever its size."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that end in `data`; without data, what is left. A line too long is not waited for."""
        first, *others = data.split(b"\n")
        self._parts.append(first)
        self._size += len(first)
        lines: list[bytes] = []
        if others:
            *whole, rest = others
            lines = [b"".join(self._parts), *whole]
            self._parts, self._size = [rest], len(rest)
        if not data or self._size >= MAX_LINE:
            lines.append(b"".join(self._parts))
        return lines


async def _in_thread(name: str, function: Callable[[], T]) -> T:
    """Wait for the other end of a pipe, in a thread that keeps neither the run nor the program from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: OSError | None) -> None:
        if not future.done():
            future.set_result(cast("T", result)) if error is None else future.set_exception(_unreadable(name, error))

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except OSError as failure:
            error = failure
        with suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=work, name=f"waiting for {name}", daemon=True).start()
    return await future


class ItemInput:
    """Rows of any iterable, async or not."""

    def __init__(self, items: Iterable[Item] | AsyncIterable[Item], reader: RowReader) -> None:
        self._items = items
        self._reader = reader

    async def rows(self) -> AsyncGenerator[Row, None]:
        """Read the rows."""
        number = 0
        try:
            if isinstance(self._items, AsyncIterable):
                async for item in self._items:
                    number += 1
                    row = self._reader.read_item(number, item)
                    del item
                    yield _row(row)
            else:
                for item in self._items:
                    number += 1
                    row = self._reader.read_item(number, item)
                    del item
                    yield _row(row)
        finally:
            await close_generator(self._items)


def _row(row: Row | BatchError) -> Row:
    if isinstance(row, BatchError):
        raise row
    return row


Input: TypeAlias = "FileInput | PipeInput | ItemInput"


@contextmanager
def open_input(requests: Requests, reader: RowReader, output: str | os.PathLike[str] | None) -> Generator[Input]:
    """Open an input.

    Args:
        requests: What `run_batch` was given.
        reader: Makes the rows.
        output: The file of results, which must be another file.

    Raises:
        BatchError: It can't be read, or it is the file of results.
    """
    if not isinstance(requests, (str, os.PathLike)):
        if not isinstance(cast("object", requests), (Iterable, AsyncIterable)):
            raise BatchError(f"requests: a {type(requests).__name__} is no input; pass a path or an iterable")
        yield ItemInput(requests, reader)
        return
    name = os.fspath(requests)
    file = _open_file(name)
    if file is None:
        yield PipeInput(name, reader)
        return
    with file:
        if output is not None and _is_same(file, output):
            raise BatchError(f"{name}: it is the file of results too; name another")
        yield FileInput(name, file, reader)


def _open_file(name: str) -> BinaryIO | None:
    """Open a file of requests; None if it is a pipe or the like, which can't be read twice."""
    try:
        mode = os.stat(0 if name == "-" else name).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode):
            return None
        return open(0 if name == "-" else name, "rb", closefd=name != "-")
    except OSError as error:
        problem = _unreadable(name, error)
    raise problem


def _shown(name: str) -> str:
    return "standard input" if name == "-" else name


def _unreadable(name: str, error: OSError) -> BatchError:
    return BatchError(f"{_shown(name)}: it can't be read: {error.strerror}; name a file of requests")


def _is_same(file: BinaryIO, output: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(output))
    except OSError:
        return False
