"""The rows of the table: what each measures, which bar it must meet, and how measurements become ratios.

Nothing here runs anything. How the client fares in outages, under faults and when a batch is killed is tested in
`tests`, not measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import median, quantiles

import attrs

from benchmarks.worker import Measurement, Task

LABELS = {"bare": "bare loop", "ours": "piapi-async", "openai": "OpenAI SDK", "httpx-sse": "httpx-sse"}
"""Name of a peer → how the table calls it."""


@attrs.frozen(kw_only=True)
class Row:
    """One figure.

    Attributes:
        name: What ``--rows`` calls it.
        figure: What the table calls it; ``{count}`` stands for the count after scaling.
        job: Name in `worker.JOBS`.
        count: Calls, streams, events or imports of one round, at full scale.
        width: Most calls in flight.
        depth: Tokens that each paced stream gets in a round.
        metric: The figure of one measurement, in ``unit``; raises `ZeroDivisionError` when nothing was right.
        unit: Unit of the figure.
        bar: What ours must reach: a ratio to the baseline, or the figure itself where ``ratio`` is false.
        at_least: Whether more is better.
        ratio: Whether the bar is on the ratio.
        peers: Who is measured; the first is the baseline.
        fresh: Whether each round needs a new process, and the machine for itself.
        rounds: Most rounds that make sense.
    """

    name: str
    figure: str
    job: str
    count: int
    metric: Callable[[Measurement], float]
    unit: str
    bar: float
    width: int = 1
    depth: int = 1
    at_least: bool = False
    ratio: bool = True
    peers: tuple[str, ...] = ("bare", "ours", "openai")
    fresh: bool = False
    rounds: int = 1_000

    def task(self, peer: str, scale: float, *, uvloop: bool = False) -> Task:
        """Returns what a worker must do for one peer, with the count multiplied by ``scale``."""
        count = max(1, round(self.count * scale))
        width = min(self.width, count)
        return Task(peer=peer, job=self.job, count=count, width=width, depth=self.depth, uvloop=uvloop)

    def only(self, peers: Collection[str]) -> Row:
        """Returns the row with these peers and the baseline."""
        return attrs.evolve(self, peers=tuple(p for p in self.peers if p in peers or p == self.peers[0]))

    def meets(self, value: float) -> bool:
        """Returns whether a ratio or figure is on the right side of the bar."""
        return value >= self.bar if self.at_least else value <= self.bar


def _cpu_us(result: Measurement) -> float:
    return result.cpu / result.units * 1e6


def _growth_mib(result: Measurement) -> float:
    if not result.units:
        raise ZeroDivisionError
    return result.memory / 2**20


ROWS = (
    Row(
        name="complete",
        figure="CPU per complete(), 64 in flight",
        job="complete",
        count=1_024,
        width=64,
        metric=_cpu_us,
        unit="µs",
        bar=1.15,
    ),
    Row(
        name="tokens",
        figure="CPU per streamed token, 200-token answers arriving fast",
        job="tokens",
        count=128,
        width=64,
        metric=_cpu_us,
        unit="µs",
        bar=1.00,
    ),
    Row(
        name="chunks",
        figure="the same by chunks()",
        job="chunks",
        count=128,
        width=64,
        metric=_cpu_us,
        unit="µs",
        bar=1.15,
        peers=("bare", "ours"),
    ),
    Row(
        name="paced",
        figure="CPU per streamed token, {count} streams, one token a time",
        job="streams",
        count=2_000,
        width=2_000,
        depth=5,
        metric=_cpu_us,
        unit="µs",
        bar=1.10,
    ),
    Row(
        name="memory",
        figure="memory per live stream, {count} streams",
        job="streams",
        count=2_000,
        width=2_000,
        depth=3,
        metric=lambda result: result.memory / result.live / 1024,
        unit="KiB",
        bar=1.3,
        fresh=True,
        rounds=3,
    ),
    Row(
        name="live",
        figure="failed of {count} live streams in one process",
        job="streams",
        count=8_000,
        width=8_000,
        depth=3,
        metric=lambda result: result.failed,
        unit="failed",
        bar=0,
        ratio=False,
        fresh=True,
        rounds=1,
    ),
    Row(
        name="map",
        figure="map over {count} prompts: memory growth after the first 5 %",
        job="map",
        count=200_000,
        width=64,
        metric=_growth_mib,
        unit="MiB",
        bar=5,
        ratio=False,
        peers=("bare", "ours"),
        fresh=True,
        rounds=1,
    ),
    Row(
        name="import",
        figure="import ÷ (import aiohttp + import cattrs)",
        job="import",
        count=1,
        metric=lambda result: result.cpu / result.units * 1e3,
        unit="ms",
        bar=1.15,
    ),
    Row(
        name="sse",
        figure="SSE decoder ÷ httpx-sse, events a second of CPU",
        job="decode",
        count=20_000,
        metric=lambda result: result.units / result.cpu,
        unit="/s",
        bar=2,
        at_least=True,
        peers=("httpx-sse", "ours", "openai"),
    ),
)


@attrs.frozen(kw_only=True)
class Cell:
    """What one peer reached in one row.

    Attributes:
        values: The figure of each round, in the row's unit; `None` where a round gave none.
        median: Median of the values, `None` if there is none.
        ratio: Median of the rounds' ratios, each to the baseline in the same round; `None` if there is none.
        spread: Lower and upper quartile of those ratios.
        failed: Calls that failed or answered wrongly, over all rounds.
        error: The first failure.
    """

    values: list[float | None]
    median: float | None
    ratio: float | None
    spread: tuple[float, float] | None
    failed: int
    error: str


@attrs.frozen(kw_only=True)
class Outcome:
    """One row, measured.

    Attributes:
        name: The row's name.
        figure: What was measured.
        unit: Unit of the values.
        bar: What ours must reach.
        at_least: Whether more is better.
        meets: Whether ours reached it, `None` if ours has no figure.
        peers: Peer → what it reached; the first is the baseline.
    """

    name: str
    figure: str
    unit: str
    bar: float
    at_least: bool
    meets: bool | None
    peers: dict[str, Cell]


def evaluate(row: Row, scale: float, runs: Mapping[str, Sequence[Measurement]]) -> Outcome:
    """Turns the measurements of each peer, in the order of the rounds, into medians and ratios."""
    values = {peer: [_value(row, result) for result in runs[peer]] for peer in row.peers if peer in runs}
    base = values[row.peers[0]] if row.ratio else []
    cells = {peer: _cell(values[peer], base, runs[peer]) for peer in values}
    ours = cells.get("ours")
    reached = (ours.ratio if row.ratio else ours.median) if ours is not None else None
    return Outcome(
        name=row.name,
        figure=row.figure.format(count=f"{row.task('', scale).count:,}"),
        unit=row.unit,
        bar=row.bar,
        at_least=row.at_least,
        meets=None if reached is None else row.meets(reached),
        peers=cells,
    )


def _value(row: Row, result: Measurement) -> float | None:
    try:
        return row.metric(result)
    except ZeroDivisionError:
        return None


def _cell(values: list[float | None], base: list[float | None], results: Sequence[Measurement]) -> Cell:
    known = [value for value in values if value is not None]
    # Round by round, because a machine that is slow for a while is slow for all: that cancels here, not in the medians.
    ratios = [value / other for value, other in zip(values, base, strict=False) if value is not None and other]
    return Cell(
        values=values,
        median=median(known) if known else None,
        ratio=median(ratios) if ratios else None,
        spread=_quartiles(ratios) if ratios else None,
        failed=sum(result.failed for result in results),
        error=next((result.error for result in results if result.error), ""),
    )


def _quartiles(ratios: list[float]) -> tuple[float, float]:
    if len(ratios) == 1:
        return ratios[0], ratios[0]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return low, high


def table(outcomes: Sequence[Outcome]) -> str:
    """Returns a Markdown table with, for each peer, the ratio and in brackets the median and the ratio's quartiles."""
    others = [peer for peer in LABELS if any(peer in list(outcome.peers)[1:] for outcome in outcomes)]
    lines = [["figure", "must reach", "baseline", *(LABELS[peer] for peer in others)]]
    for outcome in outcomes:
        baseline = next(iter(outcome.peers))
        bar = f"{'≥' if outcome.at_least else '≤'} {outcome.bar:g}"
        cells = (_show(outcome, peer) for peer in others)
        lines.append([outcome.figure, bar, f"{LABELS[baseline]}: {_show(outcome, baseline)}", *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _show(outcome: Outcome, peer: str) -> str:
    cell = outcome.peers.get(peer)
    if cell is None or cell.median is None:
        return "n/a"
    figure = f"{_number(cell.median)} {outcome.unit}"
    missed = " ✗" if peer == "ours" and outcome.meets is False else ""
    if cell.ratio is None or cell.spread is None or peer == next(iter(outcome.peers)):
        return figure + missed
    low, high = cell.spread
    return f"{cell.ratio:.2f}{missed} ({figure}; {low:.2f} to {high:.2f})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:.3g}"
