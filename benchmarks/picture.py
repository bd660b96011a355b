"""``python -m benchmarks.picture results.json -o benchmarks/speed.svg``: the ratios of the table as one picture.

Each figure that is compared to the bare loop becomes a group of bars on one logarithmic axis, with ours on top. Bars
start at 1, which is the bare loop: a client that costs exactly as much has no bar. The same file always gives the same
bytes, as the picture holds no date and no random names. Its background is opaque, so it looks the same on a light and
on a dark page.

Needs matplotlib, and a file that ``python -m benchmarks --json`` wrote.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import msgspec

from benchmarks.rows import LABELS, NOT_INSTALLED, Cell, Outcome

TITLES = {
    "complete": "CPU of a completion",
    "tokens": "CPU of a token, arriving fast",
    "paced": "CPU of a token, many streams",
    "memory": "memory of a live stream",
    "import": "CPU of the import",
}
"""Rows of the picture, from top to bottom → their titles."""

OURS, OTHERS, GOAL = "#0969da", "#b6bec8", "#cf222e"
INK, FAINT, GRID, PAPER = "#1f2328", "#59636e", "#eaeef2", "#ffffff"

HEADLINE = "Cost of the client, as a multiple of an aiohttp loop written by hand"
LEGEND = "1 × and no bar: as cheap as that loop. The scale is logarithmic. Red: what piapi-async must reach."

FIRST = 0.4
"""Left end of the axis. A bar that would go farther left ends here; the number beside it says how far."""

WIDTH, LEFT, MARGIN, ABOVE, BELOW = 8.4, 2.2, 0.2, 0.72, 0.66
STEP, GAP = 0.19, 0.33
"""Height of a bar, and of the title of a group. These, like those of the line above, are in inches."""

SOURCES = ("python", "piapi-async", "aiohttp", "openai", "litellm", "flexllm", "httpx", "httpx2", "pyreqwest")
"""The versions that the foot of the picture names."""

SETTINGS = {
    "svg.hashsalt": "piapi-async",
    "svg.fonttype": "none",  # keeps text as text: the file is a quarter of the size, and can be searched and read aloud
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],  # the first comes with matplotlib
    "font.size": 8.5,
}


@attrs.frozen(kw_only=True)
class Bar:
    """One bar.

    Attributes:
        label: Name of the client.
        ratio: Where the bar ends.
        note: The text beside it.
        ours: Whether the client is ours.
    """

    label: str
    ratio: float
    note: str
    ours: bool


@attrs.frozen(kw_only=True)
class Group:
    """The bars of one figure.

    Attributes:
        title: What was measured.
        bars: The bars, from top to bottom, ours first.
        goal: What ours must reach, `None` if there is no bar to reach.
    """

    title: str
    bars: tuple[Bar, ...]
    goal: float | None


@attrs.frozen(kw_only=True)
class Report:
    """The parts of a report that the picture needs.

    Attributes:
        environment: Versions by name.
        rows: What was measured.
    """

    environment: dict[str, str]
    rows: list[Outcome]

    def source(self) -> str:
        """Returns a line with the versions that the figures depend on."""
        packages = [f"{name} {found}" for name, found in self.environment.items() if name in SOURCES]
        return " · ".join(package for package in packages if not package.endswith(NOT_INSTALLED))


def groups(outcomes: Sequence[Outcome]) -> list[Group]:
    """Returns the groups of the picture. A peer without a ratio, such as one that is not installed, has no bar."""
    found = {outcome.name: outcome for outcome in outcomes}
    chosen = [(title, found[name]) for name, title in TITLES.items() if name in found]
    return [Group(title=title, bars=_bars(outcome), goal=outcome.bar) for title, outcome in chosen if _bars(outcome)]


def _bars(outcome: Outcome) -> tuple[Bar, ...]:
    others = [peer for peer in LABELS if peer in list(outcome.peers)[1:]]
    return tuple(bar for peer in others if (bar := _bar(peer, outcome.peers[peer])) is not None)


def _bar(peer: str, cell: Cell) -> Bar | None:
    if cell.ratio is None:
        return None
    digits = 2 if cell.ratio < 10 else 0
    note = f"{cell.ratio:.{digits}f} ×" + (", calls failed" if cell.failed else "")
    return Bar(label=LABELS[peer], ratio=cell.ratio, note=note, ours=peer == "ours")


def draw(shown: Sequence[Group], source: str) -> Any:
    """Returns the picture as a figure of matplotlib. Draw and save it under `SETTINGS`.

    Args:
        shown: The groups, from top to bottom.
        source: The line at the foot, which says what the figures depend on.
    """
    height = sum(GAP + STEP * len(group.bars) for group in shown)
    whole = ABOVE + height + BELOW
    figure = import_module("matplotlib.figure").Figure(figsize=(WIDTH, whole), facecolor=PAPER)
    box = (LEFT / WIDTH, BELOW / whole, 1 - (LEFT + MARGIN) / WIDTH, height / whole)
    axes = figure.add_axes(box, facecolor=PAPER)
    _draw_scale(axes, max((bar.ratio for group in shown for bar in group.bars), default=1.0))
    axes.set_ylim(height, 0)  # inches from the top
    place = 0.0
    for group in shown:
        place += GAP
        _write(axes, MARGIN - LEFT, place - 0.1, group.title, weight="bold")
        for bar in group.bars:
            goal = group.goal if bar.ours else None
            _draw_bar(axes, place + STEP / 2, bar, clear=goal or 1)
            if goal is not None:
                axes.vlines(goal, place, place + STEP, color=GOAL, linewidth=1.8)
            place += STEP
    _write(axes, MARGIN - LEFT, -0.48, HEADLINE, weight="bold", size=11)
    _write(axes, MARGIN - LEFT, -0.24, LEGEND, color=FAINT)
    _write(axes, MARGIN - LEFT, height + 0.48, source, color=FAINT, size=7)
    return figure


def _draw_scale(axes: Any, last: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(FIRST, max(last, 10) * 2.5)  # leaves room for the number beside the longest bar
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= max(last, 10)]
    axes.set_xticks(ticks, [f"{tick:g} ×" for tick in ticks], color=FAINT)
    axes.set_yticks([])
    axes.minorticks_off()
    axes.tick_params(length=0)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_frame_on(False)
    axes.axvline(1, color=INK, linewidth=1)


def _draw_bar(axes: Any, middle: float, bar: Bar, *, clear: float) -> None:
    """Draws a bar and the number beside it. The number stands to the right of ``clear``, where a goal may be drawn."""
    color, weight = (OURS, "bold") if bar.ours else (OTHERS, "normal")
    end = max(bar.ratio, FIRST)
    axes.barh(middle, end - 1, left=1, height=STEP * 0.72, color=color)
    _write(axes, -0.12, middle, bar.label, color=OURS if bar.ours else INK, weight=weight, ha="right")
    beside = {"textcoords": "offset points", "va": "center", "color": OURS if bar.ours else INK, "weight": weight}
    axes.annotate(bar.note, (max(end, clear, 1), middle), xytext=(6, 0), **beside)


def _write(axes: Any, across: float, down: float, text: str, color: str = INK, **style: object) -> None:
    """Writes at a place in inches from the upper left corner of the axes."""
    share = across / (WIDTH - LEFT - MARGIN)
    axes.text(share, down, text, transform=axes.get_yaxis_transform(), color=color, va="center", **style)


def save(report: Path, picture: Path) -> None:
    """Draws the picture of a report, as SVG or PNG by the name of the file.

    Raises:
        ValueError: The report has no ratio to the bare loop.
    """
    results = msgspec.json.decode(report.read_bytes(), type=Report)
    shown = groups(results.rows)
    if not shown:
        raise ValueError(
            f"{report} has none of the rows {', '.join(TITLES)}; write it with python -m benchmarks --json"
        )
    with import_module("matplotlib").rc_context(SETTINGS):
        kind = picture.suffix.removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else None
        draw(shown, results.source()).savefig(picture, format=kind, dpi=150, metadata=metadata)


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the report, writes the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture", description="Draws the table as an SVG.")
    parser.add_argument("report", type=Path, help="what python -m benchmarks --json wrote")
    parser.add_argument("-o", "--output", type=Path, default=Path("speed.svg"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    if find_spec("matplotlib") is None:
        parser.error("matplotlib is not installed; pip install --group bench has it")
    try:
        save(options.report, options.output)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
