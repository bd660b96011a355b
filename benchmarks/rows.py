"""The rows of the table: what each row measures, what ours must reach, and how measurements become ratios.

Nothing in this module runs anything. Outages, faults and batches that are killed are covered by `tests`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from statistics import median, quantiles

import attrs

from benchmarks.worker import Measurement, Task

LABELS = {
    "bare": "bare loop",
    "ours": "piapi-async",
    "lean": "lean loop",
    "openai": "OpenAI SDK",
    "openai-aiohttp": "OpenAI SDK on aiohttp",
    "litellm": "litellm",
    "flexllm": "flexllm",
    "httpx": "httpx + httpx-sse",
    "httpx2": "httpx2",
    "pyreqwest": "pyreqwest",
    "httpx-sse": "httpx-sse",
}
"""Name of a peer → its name in the table. The table has its columns in this order."""

NOT_INSTALLED = "not installed"

UVLOOP = "+uvloop"
"""Suffix of a peer that runs on uvloop, whatever loop the others run on."""

STREAMING = ("bare", "ours", "lean", "openai", "openai-aiohttp", "litellm", "flexllm", "httpx", "httpx2")
"""The peers that can stream."""

PEERS = (*STREAMING, "pyreqwest")
"""The peers that can complete."""


@attrs.frozen(kw_only=True)
class Row:
    """One figure.

    Attributes:
        name: Its name for ``--rows``.
        figure: Its name in the table. ``{count}`` and ``{width}`` become the scaled counts.
        job: Name in `worker.JOBS`.
        count: How many calls, streams, events or imports one round has at full scale.
        width: How many calls are in flight at most.
        depth: How many tokens each paced stream gets in a round.
        length: How many tokens an answer has that arrives fast.
        collect: Whether Python's cyclic garbage collector runs during the rounds.
        metric: Returns the figure of one measurement, in ``unit``. It raises `ZeroDivisionError` if no call succeeded.
        unit: Unit of the figure.
        bar: What ours must reach: a ratio to the baseline, or the figure itself if ``ratio`` is false. `None`: no bar.
        aim: What ours should reach one day, in the same terms as ``bar``. `None`: no aim beyond the bar.
        at_least: Whether more is better.
        ratio: Whether ``bar`` and ``aim`` are ratios to the baseline.
        peers: The peers that are measured. The first is the baseline.
        fresh: Whether each round needs a new process, and the machine to itself.
        rounds: How many rounds make sense at most.
    """

    name: str
    figure: str
    job: str
    count: int
    metric: Callable[[Measurement], float]
    unit: str
    bar: float | None
    aim: float | None = None
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
        """Returns a worker's task for one peer, with the count multiplied by ``scale``."""
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
        """Returns the row's name in the table, with the scaled counts."""
        task = self.task("", scale)
        return self.figure.format(count=f"{task.count:,}", width=f"{task.width:,}")

    def only(self, peers: Collection[str]) -> Row:
        """Returns the row with these peers and the baseline."""
        return attrs.evolve(self, peers=tuple(p for p in self.peers if p in peers or p == self.peers[0]))

    def meets(self, value: float | None) -> bool | None:
        """Returns whether a value reaches the bar, `None` if there is no bar or no value."""
        if self.bar is None or value is None:
            return None
        return value >= self.bar if self.at_least else value <= self.bar


def cpu_us(result: Measurement) -> float:
    """Returns the CPU time of one unit, in microseconds."""
    return result.cpu / result.units * 1e6


def growth_mib(result: Measurement) -> float:
    """Returns the growth of the resident set, in MiB."""
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
        bar=1.50,
        aim=1.25,
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
        bar=0.95,
        aim=0.80,
    ),
    Row(
        name="chunks",
        figure="the same by chunks()",
        job="chunks",
        count=128,
        width=64,
        metric=cpu_us,
        unit="µs",
        bar=1.00,
        aim=0.85,
        peers=("bare", "ours"),
    ),
    Row(
        name="paced",
        figure="CPU per streamed token, {count} streams, one token at a time",
        job="streams",
        count=2_000,
        width=2_000,
        depth=5,
        metric=cpu_us,
        unit="µs",
        bar=1.35,
        aim=1.10,
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
        aim=1.1,
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
        aim=1.10,
        peers=("bare", "ours", "openai", "litellm", "flexllm", "httpx", "httpx2", "pyreqwest"),
    ),
    Row(
        name="sse",
        figure="SSE decoder ÷ httpx-sse, events a second of CPU",
        job="decode",
        count=20_000,
        metric=lambda result: result.units / result.cpu,
        unit="/s",
        bar=2,
        aim=3,
        at_least=True,
        peers=("httpx-sse", "ours", "openai", "httpx2"),
    ),
)


@attrs.frozen(kw_only=True)
class Cell:
    """What one peer reached in one row.

    Attributes:
        values: The figure of each round, in the row's unit. `None` for a round without one.
        median: Median of the values, `None` if there is none.
        ratio: Median of the rounds' ratios, each to the baseline in the same round. `None` if there is none.
        spread: Lower and upper quartile of those ratios.
        added: Median of the rounds' differences, each to the baseline in the same round. `None` if there is none.
        failed: How many calls failed or gave a wrong answer, over all rounds.
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
    """What was measured for one row.

    Attributes:
        name: The row's name.
        figure: The row's name in the table, with its counts.
        unit: Unit of the values.
        bar: As in `Row`.
        aim: As in `Row`.
        at_least: Whether more is better.
        meets: Whether ours reached the bar. `None` if there is no bar, or no figure of ours.
        peers: Peer → what it reached. The first is the baseline.
    """

    name: str
    figure: str
    unit: str
    bar: float | None
    aim: float | None
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
        aim=row.aim,
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
    # Round by round: a machine that is slow for a while is slow for all peers, and that cancels here. It would not in a
    # ratio of medians.
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
    """Returns a Markdown table. A cell has the peer's ratio, and in brackets its median and the ratio's quartiles.

    Args:
        outcomes: The rows.
        added: Whether a cell also says what the peer adds to the baseline.
    """
    others = [peer for peer in LABELS if any(peer in list(outcome.peers)[1:] for outcome in outcomes)]
    lines = [["figure", "must reach", "aim", "baseline", *(LABELS[peer] for peer in others)]]
    for outcome in outcomes:
        baseline = next(iter(outcome.peers))
        goals = (_show_goal(outcome, outcome.bar), _show_goal(outcome, outcome.aim))
        cells = (_show(outcome, peer, added=added) for peer in others)
        lines.append([outcome.figure, *goals, f"{LABELS[baseline]}: {_show(outcome, baseline)}", *cells])
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
    """Returns whether a call of ours failed or gave a wrong answer."""
    return any(outcome.peers["ours"].failed for outcome in outcomes if "ours" in outcome.peers)


def _show_goal(outcome: Outcome, goal: float | None) -> str:
    return "" if goal is None else f"{'≥' if outcome.at_least else '≤'} {goal:g}"


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
