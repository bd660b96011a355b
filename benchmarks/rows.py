"""The rows of the table: what each measures, which bar it must meet, and how measurements become ratios.

Nothing here runs anything. How the client fares in outages, under faults and when a batch is killed is tested in
`tests`, not measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import median, quantiles

import attrs

from benchmarks.worker import Measurement, Task

LABELS = {
    "bare": "bare loop",
    "ours": "piapi-async",
    "kept": "bare loop, memory kept",
    "openai": "OpenAI SDK",
    "openai-aiohttp": "OpenAI SDK on aiohttp",
    "litellm": "litellm",
    "httpx": "httpx + httpx-sse",
    "pyreqwest": "pyreqwest",
    "httpx-sse": "httpx-sse",
}
"""Name of a peer → how the table calls it."""

NOT_INSTALLED = "not installed"

UVLOOP = "+uvloop"
"""Ends the name of a peer that runs on uvloop whatever the others do."""

STREAMING = ("bare", "ours", "kept", "openai", "openai-aiohttp", "litellm", "httpx")
"""The peers that can stream."""

PEERS = (*STREAMING, "pyreqwest")
"""The peers that can complete."""


@attrs.frozen(kw_only=True)
class Row:
    """One figure.

    Attributes:
        name: What ``--rows`` calls it.
        figure: What the table calls it; ``{count}`` and ``{width}`` stand for what they are after scaling.
        job: Name in `worker.JOBS`.
        count: Calls, streams, events or imports of one round, at full scale.
        width: Most calls in flight.
        depth: Tokens that each paced stream gets in a round.
        length: Tokens of an answer that arrives fast.
        collect: Whether Python's cyclic garbage collector runs during the rounds.
        metric: The figure of one measurement, in ``unit``; raises `ZeroDivisionError` when nothing was right.
        unit: Unit of the figure.
        bar: What ours must reach: a ratio to the baseline, or the figure itself where ``ratio`` is false; `None` where
            nothing is set.
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
    bar: float | None
    width: int = 1
    depth: int = 1
    length: int = 200
    collect: bool = True
    at_least: bool = False
    ratio: bool = True
    peers: tuple[str, ...] = STREAMING
    fresh: bool = False
    rounds: int = 1_000

    def task(self, peer: str, scale: float, *, uvloop: bool = False) -> Task:
        """Returns what a worker must do for one peer, with the count multiplied by ``scale``."""
        count = max(1, round(self.count * scale))
        return Task(
            peer=peer.removesuffix(UVLOOP),
            job=self.job,
            count=count,
            width=min(self.width, count),
            depth=self.depth,
            length=self.length,
            collect=self.collect,
            uvloop=uvloop or peer.endswith(UVLOOP),
        )

    def title(self, scale: float) -> str:
        """Returns the figure's name with its counts."""
        task = self.task("", scale)
        return self.figure.format(count=f"{task.count:,}", width=f"{task.width:,}")

    def only(self, peers: Collection[str]) -> Row:
        """Returns the row with these peers and the baseline."""
        return attrs.evolve(self, peers=tuple(p for p in self.peers if p in peers or p == self.peers[0]))

    def meets(self, value: float | None) -> bool | None:
        """Returns whether a ratio or figure is on the right side of the bar, `None` if there is no bar or no value."""
        if self.bar is None or value is None:
            return None
        return value >= self.bar if self.at_least else value <= self.bar


def cpu_us(result: Measurement) -> float:
    """Returns the CPU time of one unit, in microseconds."""
    return result.cpu / result.units * 1e6


def growth_mib(result: Measurement) -> float:
    """Returns how much the resident set grew, in MiB."""
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
        metric=cpu_us,
        unit="µs",
        bar=1.15,
        peers=PEERS,
    ),
    Row(
        name="tokens",
        figure="CPU per streamed token, 200-token answers arriving fast",
        job="tokens",
        count=128,
        width=64,
        metric=cpu_us,
        unit="µs",
        bar=1.00,
    ),
    Row(
        name="chunks",
        figure="the same by chunks()",
        job="chunks",
        count=128,
        width=64,
        metric=cpu_us,
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
        metric=cpu_us,
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
        metric=growth_mib,
        unit="MiB",
        bar=5,
        ratio=False,
        peers=("bare", "ours"),
        fresh=True,
        rounds=1,
    ),
    Row(
        name="slow",
        figure="one stream of {count} × 16 KiB, read slowly: memory growth",
        job="slow",
        count=3_200,
        metric=growth_mib,
        unit="MiB",
        bar=1,
        ratio=False,
        peers=("bare", "ours"),
        fresh=True,
        rounds=3,
    ),
    Row(
        name="import",
        figure="import ÷ (import aiohttp + import cattrs)",
        job="import",
        count=1,
        metric=lambda result: result.cpu / result.units * 1e3,
        unit="ms",
        bar=1.15,
        peers=("bare", "ours", "openai", "litellm", "httpx", "pyreqwest"),
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
        added: Median of the rounds' differences, each to the baseline in the same round; `None` if there is none.
        failed: Calls that failed or answered wrongly, over all rounds.
        error: The first failure, or that the peer is not installed.
    """

    values: list[float | None]
    median: float | None
    ratio: float | None
    spread: tuple[float, float] | None
    added: float | None
    failed: int
    error: str


@attrs.frozen(kw_only=True)
class Outcome:
    """One row, measured.

    Attributes:
        name: The row's name.
        figure: What was measured.
        unit: Unit of the values.
        bar: What ours must reach, `None` if nothing is set.
        at_least: Whether more is better.
        meets: Whether ours reached it, `None` if there is no bar, or no figure of ours.
        peers: Peer → what it reached; the first is the baseline.
    """

    name: str
    figure: str
    unit: str
    bar: float | None
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
        figure=row.title(scale),
        unit=row.unit,
        bar=row.bar,
        at_least=row.at_least,
        meets=row.meets(reached),
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
    pairs = [(value, other) for value, other in zip(values, base, strict=False) if value is not None and other]
    ratios = [value / other for value, other in pairs]
    return Cell(
        values=values,
        median=median(known) if known else None,
        ratio=median(ratios) if ratios else None,
        spread=_quartiles(ratios) if ratios else None,
        added=median(value - other for value, other in pairs) if pairs else None,
        failed=sum(result.failed for result in results),
        error=next((result.error for result in results if result.error), "" if results else NOT_INSTALLED),
    )


def _quartiles(ratios: list[float]) -> tuple[float, float]:
    if len(ratios) == 1:
        return ratios[0], ratios[0]
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return low, high


def table(outcomes: Sequence[Outcome], *, added: bool = False) -> str:
    """Returns a Markdown table: for each peer the ratio, and in brackets the median and the ratio's quartiles.

    Args:
        outcomes: The rows.
        added: Whether to say also what the peer adds to the baseline.
    """
    others = [peer for peer in LABELS if any(peer in list(outcome.peers)[1:] for outcome in outcomes)]
    lines = [["figure", "must reach", "baseline", *(LABELS[peer] for peer in others)]]
    for outcome in outcomes:
        baseline = next(iter(outcome.peers))
        bar = "" if outcome.bar is None else f"{'≥' if outcome.at_least else '≤'} {outcome.bar:g}"
        cells = (_show(outcome, peer, added=added) for peer in others)
        lines.append([outcome.figure, bar, f"{LABELS[baseline]}: {_show(outcome, baseline)}", *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """Returns a line for each peer with failed calls."""
    return [
        f"{outcome.name}, {peer}: {cell.failed:,} failed; first: {cell.error}"
        for outcome in outcomes
        for peer, cell in outcome.peers.items()
        if cell.failed
    ]


def ours_failed(outcomes: Iterable[Outcome]) -> bool:
    """Returns whether a call of ours failed or answered wrongly."""
    return any(outcome.peers["ours"].failed for outcome in outcomes if "ours" in outcome.peers)


def _show(outcome: Outcome, peer: str, *, added: bool = False) -> str:
    cell = outcome.peers.get(peer)
    if cell is None or cell.median is None:
        return NOT_INSTALLED if cell is not None and not cell.values else "n/a"
    figure = f"{_number(cell.median)} {outcome.unit}"
    missed = " ✗" if peer == "ours" and outcome.meets is False else ""
    if cell.ratio is None or cell.spread is None or peer == next(iter(outcome.peers)):
        return figure + missed
    if added and cell.added is not None:
        figure += f", {'-' if cell.added < 0 else '+'}{_number(abs(cell.added))}"
    low, high = cell.spread
    return f"{cell.ratio:.2f}{missed} ({figure}; {low:.2f} to {high:.2f})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:.3g}"
