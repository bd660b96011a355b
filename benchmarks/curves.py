"""``python -m benchmarks.curves``: how cost grows with the calls in flight, the length of an answer, and the prompts.

Each curve has a few points, measured like the rows of the table: the peers take turns, and every reply is checked. What
to expect:

- *first*: the CPU and the time that a stream takes until its first token, when so many begin together. One client
  begins them all, so the last of 2,000 waits for the CPU of 1,999 others, and the seconds mostly show CPU. The seconds
  are those of the streams that got a token; the CPU is that of all, even of those that a client never opened.
- *flight*: a lone call pays for whole turns of the event loop. A call among thousands pays for Python's garbage
  collector, which walks over every object alive; *uncollected* is the same without the collector, and flat. Memory is
  the peak per call, with its connection. For few calls it can't be seen, as they fit into pages that the process has.
- *length*: the cost of a call is spread over its tokens, so short answers look dear for every client.
- *map*: CPU per prompt is flat. Memory doesn't grow, as nothing is kept of what was handed over.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Sequence

import attrs

from benchmarks.options import add_common, check, write_report
from benchmarks.rounds import load_server, run
from benchmarks.rows import LABELS, STREAMING, Outcome, Row, cpu_us, evaluate, failures, growth_mib, ours_failed, table
from benchmarks.worker import Measurement

ROUNDS = 8

VISIBLE = 100
"""How many calls must be in flight before their memory can be told apart from the rest of the process."""


@attrs.frozen(kw_only=True)
class Figure:
    """One figure of a curve, taken at each of its points.

    Attributes:
        figure: Its name in the table.
        metric: As in `Row`.
        unit: As in `Row`.
        ratio: As in `Row`.
        flat: Whether the figure should be the same at each point.
    """

    figure: str
    metric: Callable[[Measurement], float]
    unit: str
    ratio: bool = True
    flat: bool = False


@attrs.frozen(kw_only=True)
class Curve:
    """Points along one axis.

    Attributes:
        name: Its name for ``--curves``.
        points: How to measure each point. The ``figure`` of a point says where on the axis it is.
        figures: The figures that are taken at each point.
    """

    name: str
    points: tuple[Row, ...]
    figures: tuple[Figure, ...]

    def only(self, peers: Collection[str]) -> Curve:
        """Returns the curve with these peers and the baseline."""
        return attrs.evolve(self, points=tuple(point.only(peers) for point in self.points))

    def evaluate(self, scale: float, runs: Sequence[dict[str, list[Measurement]]]) -> list[Outcome]:
        """Turns the measurements of each point into an outcome for each figure and point."""
        return [
            evaluate(figure_at(point, figure), scale, measured)
            for figure in self.figures
            for point, measured in zip(self.points, runs, strict=True)
        ]


def figure_at(point: Row, figure: Figure) -> Row:
    """Returns the row of one figure at one point."""
    name = f"{figure.figure}, {point.figure}"
    return attrs.evolve(point, figure=name, metric=figure.metric, unit=figure.unit, ratio=figure.ratio)


def _milliseconds(place: int) -> Callable[[Measurement], float]:
    def metric(result: Measurement) -> float:
        if result.first is None:
            raise ZeroDivisionError
        return result.first[place] * 1e3

    return metric


def _memory_kib(result: Measurement) -> float:
    return result.memory / (result.live if result.live >= VISIBLE else 0) / 1024


def _point(name: str, figure: str, job: str, count: int, peers: tuple[str, ...] = ("bare", "ours")) -> Row:
    return Row(name=name, figure=figure, job=job, count=count, metric=cpu_us, unit="µs", bar=None, peers=peers)


def _first(streams: int) -> Row:
    point = _point(f"first {streams}", "{width} at once", "first", max(streams, 500), STREAMING)
    # Few rounds, as a client that can't open all streams costs seconds of waiting in each of them.
    return attrs.evolve(point, width=streams, rounds=4 if streams > 500 else ROUNDS)


def _flight(calls: int, *, collect: bool = True) -> Row:
    point = _point(
        f"{'flight' if collect else 'uncollected'} {calls}", "{width} in flight", "flight", max(2 * calls, 2_000)
    )
    return attrs.evolve(point, width=calls, collect=collect, fresh=True, rounds=4)


def _length(tokens: int) -> Row:
    point = _point(f"length {tokens}", f"{tokens:,} tokens", "tokens", max(8, 40_000 // tokens))
    return attrs.evolve(point, width=8, length=tokens)


def _map(prompts: int) -> Row:
    point = _point(f"map {prompts}", "{count} prompts", "map", prompts)
    return attrs.evolve(point, width=64, fresh=True, rounds=1 if prompts >= 100_000 else 4)


CURVES = (
    Curve(
        name="first",
        points=tuple(map(_first, (1, 100, 2_000))),
        figures=(
            Figure(figure="CPU to first token", metric=cpu_us, unit="µs"),
            Figure(figure="first token, p50", metric=_milliseconds(0), unit="ms"),
            Figure(figure="first token, p90", metric=_milliseconds(1), unit="ms"),
            Figure(figure="first token, p99", metric=_milliseconds(2), unit="ms"),
        ),
    ),
    Curve(
        name="flight",
        points=tuple(map(_flight, (1, 10, 100, 1_000, 8_000))),
        figures=(
            Figure(figure="CPU per complete()", metric=cpu_us, unit="µs", flat=True),
            Figure(figure="memory per call", metric=_memory_kib, unit="KiB", flat=True),
        ),
    ),
    Curve(
        name="uncollected",
        points=tuple(_flight(calls, collect=False) for calls in (10, 100, 1_000, 8_000)),
        figures=(Figure(figure="CPU per complete(), collector off", metric=cpu_us, unit="µs", flat=True),),
    ),
    Curve(
        name="length",
        points=tuple(map(_length, (10, 100, 1_000, 10_000))),
        figures=(Figure(figure="CPU per streamed token", metric=cpu_us, unit="µs", flat=True),),
    ),
    Curve(
        name="map",
        points=tuple(map(_map, (1_000, 10_000, 100_000, 200_000))),
        figures=(
            Figure(figure="CPU per prompt of a map", metric=cpu_us, unit="µs", flat=True),
            Figure(figure="memory growth after the first 5 %", metric=growth_mib, unit="MiB", ratio=False),
        ),
    ),
)


def measure(curve: Curve, ports: dict[str, int], scale: float, rounds: int, *, uvloop: bool = False) -> list[Outcome]:
    """Measures the points of a curve one after the other."""
    runs: list[dict[str, list[Measurement]]] = []
    for point in curve.points:
        print(f"{curve.name}, {point.title(scale)}: {', '.join(point.peers)}", file=sys.stderr)
        runs.append(run(point, ports, scale, rounds, uvloop=uvloop))
    return curve.evaluate(scale, runs)


def flatness(curve: Curve, outcomes: Sequence[Outcome]) -> list[str]:
    """Returns a line for each figure that should be flat, which says how flat it is for ours and for the baseline."""
    lines: list[str] = []
    for place, figure in enumerate(curve.figures):
        count = len(curve.points)
        cells = [outcome.peers for outcome in outcomes[place * count : (place + 1) * count]]
        for peer in ("bare", "ours"):
            known = [cell[peer].median for cell in cells if peer in cell]
            values = [value for value in known if value]
            if figure.flat and len(values) > 1:
                ends = f"{values[0]:.3g} to {values[-1]:.3g} {figure.unit}"
                lines.append(
                    f"{figure.figure}, {LABELS[peer]}: {ends}; dearest ÷ cheapest: {max(values) / min(values):.2f}"
                )
    return lines


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    names = [curve.name for curve in CURVES]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.curves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,  # the list keeps its lines
    )
    parser.add_argument("--curves", default=",".join(names), help="which, separated by commas (default: %(default)s)")
    add_common(parser, ROUNDS)
    parser.add_argument("--uvloop", action="store_true", help="run the clients on uvloop")
    options = parser.parse_args(arguments)
    check(parser, options, "curves", names)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes. Returns 1 if a call of ours failed or gave a wrong answer, else 0."""
    options = parse(arguments)
    curves = [curve for curve in CURVES if curve.name in options.curves.split(",")]
    if options.peers is not None:
        curves = [curve.only(options.peers.split(",")) for curve in curves]
    measured: dict[str, list[Outcome]] = {}
    with load_server() as ports:
        for curve in curves:
            outcomes = measure(curve, ports, options.scale, options.rounds, uvloop=options.uvloop)
            measured[curve.name] = outcomes
            failed = failures(outcomes[: len(curve.points)])  # the other figures are about the same calls
            print(table(outcomes, added=True), "", *flatness(curve, outcomes), *failed, "", sep="\n")
    print("Median of the rounds' ratios (median figure, its difference to the baseline's; quartiles of the ratios).")
    if options.json is not None:
        write_report(options, curves=measured)
    return int(ours_failed(outcome for outcomes in measured.values() for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
