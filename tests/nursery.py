"""Processes that start in milliseconds: they are forked from one that has imported everything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Self

import anyio
import attrs

LOOP = """
import json, os, resource, sys

for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if not pid:
        os.environ.update(job["environment"])
        for number, name in enumerate(job["streams"]):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), number)
        if job["file_limit"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit"], job["file_limit"]))
        sys.exit(main(*job["arguments"]))
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
        self,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        streams: Sequence[str] = (),
        file_limit: int | None = None,
    ) -> AsyncIterator[Child]:
        """Start a process. It is killed at the end, if it has not ended by then.

        Args:
            arguments: Of `main`.
            environment: Variables that are set beside those of the nursery.
            streams: Files for standard input, output and error. Without them, they are the nursery's own.
            file_limit: Bytes that no file may grow beyond.
        """
        job = {"arguments": arguments, "environment": environment or {}, "streams": streams, "file_limit": file_limit}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        child = Child(self, await self.read())
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


@attrs.define(eq=False)
class Child:
    """A process that a nursery has started.

    Attributes:
        nursery: The nursery.
        pid: Its id.
        status: Its exit status, or the number of the signal that killed it, negative; None until it was waited for.
    """

    nursery: Nursery
    pid: int
    status: int | None = None

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def wait(self) -> int:
        """Wait for its end, and return its status."""
        self.status = await self.nursery.read()
        return self.status
