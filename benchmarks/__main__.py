"""``python -m benchmarks``: all rows, each with its peers taking turns in many short rounds, then the table."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, cast

import attrs
import msgspec

from benchmarks.rows import LABELS, ROWS, Outcome, Row, evaluate, table
from benchmarks.worker import Measurement, Task

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 20
SITTING = 4
"""Rounds that a worker lives for. One process can be a tenth faster than the next that does the same (how its memory
happens to lie), which no number of rounds in it would show."""

QUICK_SCALE, QUICK_ROUNDS = 0.1, SITTING

PACKAGES = ("piapi-async", "aiohttp", "cattrs", "msgspec", "openai", "httpx-sse", "uvloop")


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
    """A worker process. One that can't do its job fails all its calls, and its last words say why."""

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
        """Has it do one round."""
        try:
            self._stdin.write(b"round\n")
        except BrokenPipeError:
            return self._failure()
        line = self._stdout.readline()
        return msgspec.json.decode(line, type=Measurement) if line else self._failure()

    def close(self) -> Measurement:
        """Ends it; returns the failure if it doesn't end well, else an empty measurement."""
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


def measure(rows: Sequence[Row], scale: float, rounds: int, *, uvloop: bool = False) -> list[Outcome]:
    """Measures the rows one after the other, each with all its peers taking turns."""
    with load_server() as ports:
        outcomes: list[Outcome] = []
        for row in rows:
            print(f"{row.name}: {', '.join(row.peers)}", file=sys.stderr)
            tasks = {peer: attrs.evolve(row.task(peer, scale, uvloop=uvloop), ports=ports) for peer in row.peers}
            runs = (_take_turns_afresh if row.fresh else _take_turns)(tasks, min(rounds, row.rounds))
            outcomes.append(evaluate(row, scale, runs))
    return outcomes


def _take_turns(tasks: dict[str, Task], rounds: int) -> dict[str, list[Measurement]]:
    """Starts all workers, then lets each do a short round in its turn; every round begins with another of them."""
    runs: dict[str, list[Measurement]] = {peer: [] for peer in tasks}
    order = list(tasks)
    for begin in range(0, rounds, SITTING):
        workers = {peer: Worker(task) for peer, task in tasks.items()}
        for _ in range(begin, min(begin + SITTING, rounds)):
            for peer in order:
                runs[peer].append(workers[peer].one_round())
            order.append(order.pop(0))
        for peer, worker in workers.items():
            _book_end(runs[peer][-1], worker.close())
    return runs


def _take_turns_afresh(tasks: dict[str, Task], rounds: int) -> dict[str, list[Measurement]]:
    """Starts a worker for each round, alone."""
    runs: dict[str, list[Measurement]] = {peer: [] for peer in tasks}
    for _ in range(rounds):
        for peer, task in tasks.items():
            worker = Worker(task)
            runs[peer].append(worker.one_round())
            _book_end(runs[peer][-1], worker.close())
    return runs


def _book_end(result: Measurement, end: Measurement) -> None:
    result.failed = max(result.failed, end.failed)
    result.error = result.error or end.error


def environment() -> dict[str, str]:
    """Returns what the figures depend on: Python, platform and package versions."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the counts, few rounds: a rough look in under a minute"
    )
    parser.add_argument(
        "--rows", default=",".join(names), help="which rows, separated by commas (default: %(default)s)"
    )
    parser.add_argument("--peers", help="which peers besides the baseline, separated by commas (default: all)")
    parser.add_argument("--rounds", type=int, help=f"how many rounds (default: {ROUNDS})")
    parser.add_argument("--scale", type=float, help="multiply the counts by this (default: 1)")
    parser.add_argument("--uvloop", action="store_true", help="run the clients on uvloop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    options = parser.parse_args(arguments)
    unknown = set(options.rows.split(",")) - set(names)
    if unknown:
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}; known: {', '.join(names)}")
    if options.peers is not None:
        unknown = set(options.peers.split(",")) - set(LABELS)
        if unknown:
            parser.error(f"unknown peers: {', '.join(sorted(unknown))}; known: {', '.join(LABELS)}")
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    options.scale = options.scale or (QUICK_SCALE if options.quick else 1.0)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, writes; returns 1 if a call of ours failed or answered wrongly, else 0."""
    options = parse(arguments)
    rows = [row for row in ROWS if row.name in options.rows.split(",")]
    if options.peers is not None:
        rows = [row.only(options.peers.split(",")) for row in rows]
    outcomes = measure(rows, options.scale, options.rounds, uvloop=options.uvloop)
    print(table(outcomes))
    print()
    print("Median of the rounds' ratios (median figure; quartiles of the ratios). CPU: user + system of the client.")
    for outcome in outcomes:
        for peer, cell in outcome.peers.items():
            if cell.failed:
                print(f"{outcome.name}, {peer}: {cell.failed:,} failed; first: {cell.error}")
    if options.json is not None:
        report = {
            "environment": environment(),
            "uvloop": options.uvloop,
            "scale": options.scale,
            "rounds": options.rounds,
            "rows": outcomes,
        }
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    return int(any(cell.failed for outcome in outcomes for peer, cell in outcome.peers.items() if peer == "ours"))


if __name__ == "__main__":
    sys.exit(main())
