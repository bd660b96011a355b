"""The rounds: a load server, a worker for each peer, and short rounds in which the workers take turns."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import attrs
import msgspec

from benchmarks.clients import installed
from benchmarks.rows import UVLOOP, Row
from benchmarks.worker import Measurement, Task

ROOT = Path(__file__).resolve().parents[1]
SITTING = 4
"""How many rounds a worker does before a new process replaces it. One process can be a tenth faster than the next one,
just by how its memory happens to be laid out, and more rounds in the same process would never show that."""


@contextmanager
def load_server() -> Generator[dict[str, int]]:
    """Runs the load server in a process of its own, and yields its ports by name."""
    command = [sys.executable, "-m", "benchmarks.server"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ports: dict[str, int] = json.loads(process.stdout.readline())
            yield ports
        finally:
            process.kill()


class Worker:
    """A worker process. If it can't do its job, all its calls count as failed, and its last line of output says why."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        command = [sys.executable, "-m", "benchmarks.worker", msgspec.json.encode(task).decode()]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words, bufsize=0
        )
        self._stdin, self._stdout = cast("tuple[IO[bytes], IO[bytes]]", (self._process.stdin, self._process.stdout))
        self._stdout.readline()  # "ready", or nothing if it died

    def one_round(self) -> Measurement:
        """Has the process do one round."""
        try:
            self._stdin.write(b"round\n")
        except BrokenPipeError:
            return self._failure()
        line = self._stdout.readline()
        return msgspec.json.decode(line, type=Measurement) if line else self._failure()

    def close(self) -> Measurement:
        """Ends the process. Returns the failure if it ended badly, else an empty measurement."""
        self._stdin.close()
        result = self._failure() if self._process.wait() else Measurement()
        self._stdout.close()
        self._words.close()
        return result

    def _failure(self) -> Measurement:
        status = self._process.wait()
        self._words.seek(0)
        words = self._words.read().decode(errors="replace").strip().splitlines()
        return Measurement(failed=self._task.count, error=words[-1] if words else f"exit status {status}")


def run(
    row: Row, ports: dict[str, int], scale: float, rounds: int, *, uvloop: bool = False
) -> dict[str, list[Measurement]]:
    """Measures all peers of a row, in turns. A peer that is not installed gets no measurements."""
    tasks = {
        peer: attrs.evolve(row.task(peer, scale, uvloop=uvloop), ports=ports)
        for peer in row.peers
        if installed(peer.removesuffix(UVLOOP))
    }
    runs = (_take_turns_afresh if row.fresh else _take_turns)(tasks, min(rounds, row.rounds))
    return {peer: runs.get(peer, []) for peer in row.peers}


def _take_turns(tasks: dict[str, Task], rounds: int) -> dict[str, list[Measurement]]:
    """Starts all workers, then has each do a short round in its turn. Each round begins with another worker."""
    runs: dict[str, list[Measurement]] = {peer: [] for peer in tasks}
    order = list(tasks)
    for begin in range(0, rounds, SITTING):
        # In reverse, so that slow peers open their streams before ours does. While they open, ours would get no token,
        # and its timers would end its streams.
        workers = {peer: Worker(task) for peer, task in reversed(tasks.items())}
        for _ in range(begin, min(begin + SITTING, rounds)):
            for peer in order:
                runs[peer].append(workers[peer].one_round())
            order.append(order.pop(0))
        for peer, worker in reversed(workers.items()):
            _count_end(runs[peer][-1], worker.close())
    return runs


def _take_turns_afresh(tasks: dict[str, Task], rounds: int) -> dict[str, list[Measurement]]:
    """Starts a new worker for each round, and runs no other meanwhile."""
    runs: dict[str, list[Measurement]] = {peer: [] for peer in tasks}
    for _ in range(rounds):
        for peer, task in tasks.items():
            worker = Worker(task)
            runs[peer].append(worker.one_round())
            _count_end(runs[peer][-1], worker.close())
    return runs


def _count_end(result: Measurement, end: Measurement) -> None:
    result.failed = max(result.failed, end.failed)
    result.error = result.error or end.error
