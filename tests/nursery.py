"""Processes that start in milliseconds: they are forked from one that has imported everything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Self

import anyio
import attrs

LOOP = """
import json, os, resource, sys

for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if not pid:
        os.chdir(job["directory"])
        os.environ.update(job["environment"])
        os.dup2(os.open(job["stdin"], os.O_RDONLY), 0)
        for number, name in enumerate(job["outputs"], 1):
            os.dup2(os.open(name, os.O_WRONLY), number)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit"] or limits[0], limits[1]))
        status = main(*job["arguments"])
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)  # what measures coverage writes a file at the end
        sys.exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """A process that starts others, one at a time.

    Args:
        code: Imports what they need, and defines what they do: `main`, whose result is the exit status.
        flags: For Python.
    """

    def __init__(self, code: str, *flags: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *flags, "-c", code + LOOP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @asynccontextmanager
    async def child(
        self, *arguments: object, directory: Path, stdin: str = os.devnull, file_limit: int | None = None
    ) -> AsyncIterator[Child]:
        """Start a process with the environment of this one. If it has not ended by the end, it is killed.

        Args:
            arguments: Of `main`.
            directory: Where it runs.
            stdin: Its standard input.
            file_limit: Bytes that no file may grow beyond.
        """
        outputs = {name: directory / name for name in ("stdout", "stderr")}
        job = {
            "arguments": arguments,
            "directory": str(directory),
            "environment": dict(os.environ),
            "stdin": stdin,
            "outputs": [str(path) for path in outputs.values()],
            "file_limit": file_limit,
        }
        assert self._process.stdin is not None
        with ExitStack() as pipes:
            ends = {name: pipes.enter_context(_named_pipe(path)) for name, path in outputs.items()}
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            child = Child(self, await self.read(), ends)
            try:
                yield child
            finally:
                if child.status is None:
                    child.send_signal(signal.SIGKILL)
                    with anyio.CancelScope(shield=True):
                        await child.wait()

    async def read(self) -> int:
        """Read the next number that the nursery writes."""
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            await anyio.wait_readable(self._process.stdout)
            data = os.read(self._process.stdout.fileno(), 100)
            assert data, "the nursery has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return int(line)


@contextmanager
def _named_pipe(path: Path) -> Iterator[int]:
    """A pipe: an `RLIMIT_FSIZE` does not hold for it. What a test writes is small enough that nobody waits."""
    os.mkfifo(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)
        path.unlink()


@attrs.define(eq=False)
class Child:
    """A process that a nursery has started.

    Attributes:
        nursery: The nursery.
        pid: Its id.
        ends: Where its standard output and standard error can be read.
        status: Its exit status, or the number of the signal that killed it, negative; None until it was waited for.
    """

    nursery: Nursery
    pid: int
    ends: Mapping[str, int]
    status: int | None = None
    _said: dict[str, bytes] = attrs.field(factory=dict[str, bytes], init=False)

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def said(self, name: str) -> str:
        """Return what it has written so far, to `stdout` or `stderr`."""
        with suppress(BlockingIOError):
            self._said[name] = self._said.get(name, b"") + os.read(self.ends[name], 1 << 16)
        return self._said.get(name, b"").decode()

    async def wait(self) -> int:
        """Wait for its end, and return its status."""
        self.status = await self.nursery.read()
        return self.status
