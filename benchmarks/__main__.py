"""``python -m benchmarks``: measures each row, its peers taking turns in many short rounds, and prints the table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import attrs

from benchmarks.options import add_common, check, write_report
from benchmarks.rounds import load_server, run
from benchmarks.rows import ROWS, UVLOOP, Outcome, Row, evaluate, failures, ours_failed, table

ROUNDS = 20
LOOPED = "complete,tokens,paced"
"""The rows that ``--loops`` measures by default."""


def measure(rows: Sequence[Row], scale: float, rounds: int, *, uvloop: bool = False) -> list[Outcome]:
    """Measures the rows one after the other. The peers of a row take turns."""
    with load_server() as ports:
        outcomes: list[Outcome] = []
        for row in rows:
            print(f"{row.name}: {', '.join(row.peers)}", file=sys.stderr)
            outcomes.append(evaluate(row, scale, run(row, ports, scale, rounds, uvloop=uvloop)))
    return outcomes


def measure_loops(rows: Sequence[Row], scale: float, rounds: int) -> list[Outcome]:
    """Measures ours and the baseline on asyncio's loop and on uvloop. All four take turns."""
    with load_server() as ports:
        outcomes: list[Outcome] = []
        for row in (row.only(["ours"]) for row in rows):
            print(f"{row.name}: {', '.join(row.peers)}, each on asyncio and on uvloop", file=sys.stderr)
            both = attrs.evolve(row, peers=(*row.peers, *(peer + UVLOOP for peer in row.peers)))
            runs = run(both, ports, scale, rounds)
            outcomes.append(evaluate(row, scale, runs))
            second = attrs.evolve(row, name=row.name + UVLOOP, figure=f"{row.figure}, on uvloop")
            outcomes.append(evaluate(second, scale, {peer: runs[peer + UVLOOP] for peer in row.peers}))
    return outcomes


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", help=f"which rows, separated by commas (default: all of {', '.join(names)})")
    add_common(parser, ROUNDS)
    loops = parser.add_mutually_exclusive_group()
    loops.add_argument("--uvloop", action="store_true", help="run the clients on uvloop")
    loops.add_argument(
        "--loops", action="store_true", help=f"ours and the baseline, on asyncio and on uvloop (default rows: {LOOPED})"
    )
    options = parser.parse_args(arguments)
    options.rows = options.rows or (LOOPED if options.loops else ",".join(names))
    check(parser, options, "rows", names)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes. Returns 1 if a call of ours failed or gave a wrong answer, else 0."""
    options = parse(arguments)
    rows = [row for row in ROWS if row.name in options.rows.split(",")]
    if options.peers is not None:
        rows = [row.only(options.peers.split(",")) for row in rows]
    if options.loops:
        outcomes = measure_loops(rows, options.scale, options.rounds)
    else:
        outcomes = measure(rows, options.scale, options.rounds, uvloop=options.uvloop)
    print(table(outcomes))
    print()
    print("Median of the rounds' ratios (median figure; quartiles of the ratios). CPU: user + system of the client.")
    print("✗: ours misses what it must reach. The lean loop is a limit, not a goal: the least that aiohttp allows.")
    print(*failures(outcomes), sep="\n")
    if options.json is not None:
        write_report(options, rows=outcomes)
    return int(ours_failed(outcomes))


if __name__ == "__main__":
    sys.exit(main())
