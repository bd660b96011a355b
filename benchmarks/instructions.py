"""``python -m benchmarks.instructions``: how many instructions of the client a call or a token takes.

This is a count, not a time. It is the same whatever else the machine does, so a change of one per cent shows at once.
It leaves out what the kernel does for the client and how long the CPU waits for memory, so what ours must reach is set
in CPU time.

valgrind runs the worker for one round, and again for some more. The difference, divided by the units of the additional
rounds, is the figure. Python's garbage collector is off, as too few of its full collections would fall into so short a
run. Needs valgrind, and takes some minutes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

import attrs
import msgspec

from benchmarks.options import check
from benchmarks.rounds import ROOT, load_server
from benchmarks.rows import LABELS, ROWS
from benchmarks.worker import DEADLINE, Measurement, Task

COUNTED = "complete,tokens,chunks,paced"
"""The rows that can be counted, all of them by default. Those about memory and imports can't."""

SCALE = 0.1
MORE = 3
"""How many more rounds the longer run has."""


def count(task: Task, rounds: int) -> tuple[int, int]:
    """Returns the instructions of a worker that does so many rounds, and the units of those rounds."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command += [sys.executable, "-m", "benchmarks.worker", msgspec.json.encode(task).decode()]
    done = subprocess.run(
        command,
        cwd=ROOT,
        input=b"round\n" * rounds,
        capture_output=True,
        env=os.environ | {"PYTHONHASHSEED": "0"},
        timeout=DEADLINE,
        check=True,
    )
    results = [msgspec.json.decode(line, type=Measurement) for line in done.stdout.splitlines()[1:]]
    for result in results:
        if result.failed:
            raise RuntimeError(f"{result.failed} failed; first: {result.error}")
    total = re.search(rb"refs:\s*([\d,]+)", done.stderr)
    assert total is not None
    return int(total[1].replace(b",", b"")), sum(result.units for result in results)


def per_unit(task: Task) -> float:
    """Returns the instructions of one unit."""
    (few, units), (many, more) = count(task, 1), count(task, 1 + MORE)
    return (many - few) / (more - units)


def main(arguments: Sequence[str] | None = None) -> int:
    """Counts and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--rows", default=COUNTED, help="which rows, separated by commas (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=SCALE, help="multiply the counts by this (default: %(default)s)")
    parser.set_defaults(peers=None, uvloop=False, rounds=MORE)
    options = parser.parse_args(arguments)
    check(parser, options, "rows", COUNTED.split(","))
    if shutil.which("valgrind") is None:
        parser.error("valgrind is not installed: apt-get install valgrind")
    print(f"| instructions | {LABELS['bare']} | {LABELS['ours']} | ratio |\n| --- | ---: | ---: | ---: |")
    with load_server() as ports:
        for row in (row for row in ROWS if row.name in options.rows.split(",")):
            bare, ours = (
                per_unit(attrs.evolve(row.task(peer, options.scale), ports=ports, collect=False))
                for peer in ("bare", "ours")
            )
            print(f"| {row.title(options.scale)} | {bare:,.0f} | {ours:,.0f} | {ours / bare:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
