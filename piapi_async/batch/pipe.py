"""Results to a pipe or a terminal, by a thread of its own: a reader that stops reading must not stop the event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from contextlib import suppress

__all__ = ["PipeWriter"]

PATIENCE = 0.5
"""Seconds that lines get at the end to go out, where nobody has waited for them (ours)."""


class PipeWriter:
    """Writes lines one after the other. The thread keeps the program from ending no more than the reader does.

    Args:
        fd: Where to.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._error: OSError | None = None
        self._closing = False
        self._begun = False  # whether the first line is being written
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._thread = threading.Thread(target=self._work, name="writing results", daemon=True)

    def put(self, line: bytes) -> None:
        """Have a line written.

        Raises:
            OSError: One before it could not be written.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            if self._thread.ident is None:
                self._thread.start()
            self._lines.append(line)
            self._changed.notify_all()

    async def written(self) -> None:
        """Wait until all lines are written.

        Raises:
            OSError: One could not be written.
        """
        with self._changed:
            if self._lines and self._error is None:
                loop = asyncio.get_running_loop()
                turn = loop.create_future()
                self._waiting.append((loop, turn))
            else:
                turn = None
        if turn is not None:
            await turn
        if self._error is not None:
            raise self._error

    def close(self) -> list[bytes]:
        """End it, and return the lines that were not written; the last one may be there in part."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is None:
            os.close(self._fd)
        else:
            self._thread.join(PATIENCE)
        with self._changed:
            left = list(self._lines)
            self._lines.clear()  # the thread may be in the midst of the first, and writes no other
        return left

    def _work(self) -> None:
        try:
            while line := self._next():
                self._write(line)
        except OSError as error:
            with self._changed:
                self._error = error.with_traceback(None)
                self._wake()
        finally:
            os.close(self._fd)

    def _next(self) -> bytes | None:
        """Wait for a line; the one before is written. None at the end."""
        with self._changed:
            if self._lines and self._begun:
                self._lines.popleft()
            if not self._lines:
                self._wake()
            self._changed.wait_for(lambda: self._lines or self._closing)
            self._begun = bool(self._lines)
            return self._lines[0] if self._lines else None

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._fd, line) :]

    def _wake(self) -> None:
        """Tell those who wait; the lock is held."""
        waiting, self._waiting = self._waiting, []
        for loop, turn in waiting:
            with suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(_finish, turn)


def _finish(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
