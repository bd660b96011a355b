"""``python -m tests.simulation --histories=1000000``: many histories, in as many processes as wanted.

It prints the seed, the shortened history and its events of the first one that is wrong, and ends with status 1. Else it
tells how many distinct states were reached, and how many histories a second of CPU time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator

from tests.simulation.search import search, told

PART = 500
"""Histories that a process runs before it tells."""


def _run(seeds: range) -> tuple[str, set[int], float]:
    began = time.process_time()
    states: set[int] = set()
    outcome = search(seeds, states=states)
    return "" if outcome is None else told(outcome), states, time.process_time() - began


def _parts(first: int, count: int) -> Iterator[range]:
    for at in range(first, first + count, PART):
        yield range(at, min(at + PART, first + count))


def main() -> int:
    """Run them, and tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--histories", type=int, default=50_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args()
    states: set[int] = set()
    done, seconds, tell_at = 0, 0.0, 1000
    with multiprocessing.Pool(options.jobs) as pool:
        parts = list(_parts(options.first, options.histories))
        for part, (wrong, reached, took) in zip(parts, pool.imap(_run, parts), strict=True):
            if wrong:
                sys.stdout.write(f"{wrong}\n")
                return 1
            states |= reached
            done += len(part)
            seconds += took
            if done >= tell_at or part is parts[-1]:
                tell_at *= 2
                sys.stdout.write(
                    f"{done:9,} histories, {len(states):9,} distinct states, "
                    f"{done / seconds:.0f} histories a second and core\n"
                )
                sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
