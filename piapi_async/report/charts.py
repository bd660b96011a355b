"""The three kinds of chart, each returned as an `<svg>` element. All lengths are in points.

They must be drawn inside `matplotlib_settings`.
"""

# matplotlib's stubs leave the types of most keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from piapi_async.report.chart_data import PERCENTILES, Histogram, Throughput, round_ticks
from piapi_async.report.formatting import format_rate, format_seconds, number_label, seconds_label, shorten
from piapi_async.report.svg import BAD, INK, MAIN, MUTED, RULE, Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Bar", "draw_bars", "draw_histogram", "draw_throughput"]

HEIGHT = 232.0
"""Height of a histogram and of the throughput. Bars take as much as they need."""

AXIS = 42.0
"""Room for the ticks and the name of an axis, below a panel."""

BAR_STEP = 31.0
"""From one bar to the next, the name above it included."""

NAME_LENGTH = 42
"""Characters of the name of a bar, as the bar's amount stands on the same line (ours)."""


@attrs.frozen
class Bar:
    """One bar of a bar chart.

    Attributes:
        name: What it is about; may come from outside.
        text: Its amount, in words.
        parts: The amounts it is made of, each with a colour.
    """

    name: str
    text: str
    parts: Sequence[tuple[float, str]]


def draw_histogram(histogram: Histogram, name: str, rows: str) -> str:
    """Draw how times are distributed.

    Args:
        histogram: The times.
        name: What they are.
        rows: What was counted.
    """
    drawing = Drawing(HEIGHT)
    axes = drawing.panel(bottom=AXIS, height=130)
    # The flag of the last percentile is the lowest, so its text needs room at the right.
    axes.set_xlim(0, max(1.0, histogram.position(histogram.percentiles[-1]) / 0.8))
    _add_scale(axes, max(histogram.counts), 4, is_whole=True)
    positions = [histogram.position(edge) for edge in histogram.edges]
    axes.stairs(histogram.counts, positions, fill=True, color=MAIN, clip_on=False)
    ticks = histogram.ticks
    axes.set_xticks([histogram.position(tick) for tick in ticks], [seconds_label(tick) for tick in ticks])
    axes.set_xlabel(f"{name}{', logarithmic scale' if histogram.is_log else ''}", color=MUTED)
    _name_scale(axes, rows, 44)
    _add_flags(axes, histogram)
    return drawing.to_svg(f"Histogram of the {name}: {_percentiles_in_words(histogram)}.")


def _add_flags(axes: Axes, histogram: Histogram) -> None:
    """Mark the percentiles by flags at three heights, so that none covers another."""
    for level, (part, value) in enumerate(zip(PERCENTILES, histogram.percentiles, strict=True)):
        text = f"p{part * 100:g}  {format_seconds(value)}"
        _add_flag(axes, histogram.position(value), 1 + (34 - 15 * level) / 130, text)


def _add_flag(axes: Axes, at: float, height: float, text: str) -> None:
    """Draw a line up from the axis, and a text to the right of its top, where no lower percentile can be."""
    transform = axes.get_xaxis_transform()
    axes.plot([at, at], [0, height], transform=transform, color=INK, linewidth=1, clip_on=False)
    axes.annotate(text, (at, height), (4, 0), transform, "offset points", color=INK, va="top")


def _percentiles_in_words(histogram: Histogram) -> str:
    values = zip(PERCENTILES, histogram.percentiles, strict=True)
    within = (f"{part:.0%} within {format_seconds(value)}" for part, value in values)
    return f"{', '.join(within)}, all in {format_seconds(histogram.longest)}"


def draw_throughput(throughput: Throughput) -> str:
    """Draw answers and failures over time, each on a scale of its own, as failures are usually few."""
    drawing = Drawing(HEIGHT)
    answers, failures = throughput.rates(throughput.answered), throughput.rates(throughput.failed)
    unit = throughput.unit.name
    bottom = 110.0 if any(failures) else AXIS
    axes = drawing.panel(bottom, HEIGHT - 24 - bottom)
    _draw_rates(axes, answers, 4, MAIN, f"answers {unit}")
    if any(failures):
        axes = drawing.panel(bottom=AXIS, height=38)
        _draw_rates(axes, failures, 2, BAD, f"failures {unit}")
    axes.set_xticks([at for at, _ in throughput.ticks], [label for _, label in throughput.ticks])
    axes.set_xlabel("time, UTC", color=MUTED)
    at_most = f"{format_rate(max(answers))} answers and {format_rate(max(failures))} failures {unit}"
    return drawing.to_svg(f"Throughput over time: at most {at_most}.")


def _draw_rates(axes: Axes, rates: Sequence[float], most_steps: int, colour: str, name: str) -> None:
    axes.set_xlim(0, 1)
    _add_scale(axes, max(rates) or 1.0, most_steps, is_whole=False)
    positions = [number / len(rates) for number in range(len(rates) + 1)]
    axes.stairs(rates, positions, fill=True, color=colour, clip_on=False)
    _name_scale(axes, name, 8)


def draw_bars(bars: Sequence[Bar], unit: str, title: str, *, is_whole: bool = True) -> str:
    """Draw horizontal bars, each below its name: names are long, and a phone is narrow.

    Args:
        bars: At least one.
        unit: What the amounts are.
        title: What the chart is about, for its description.
        is_whole: Whether amounts are whole numbers.
    """
    drawing = Drawing(BAR_STEP * len(bars) + AXIS + 2)
    axes = drawing.panel(bottom=AXIS, height=BAR_STEP * len(bars), left=0, right=0)
    longest = max(sum(amount for amount, _ in bar.parts) for bar in bars)
    longest = longest if longest > 1e-9 else 1.0  # even where every amount is zero there is an axis
    axes.set_ylim(-len(bars), 0)
    _add_amounts(axes, round_ticks(0, longest, 5, is_whole=is_whole), longest, unit)
    for row, bar in enumerate(bars):
        _draw_bar(axes, -row, bar, longest)
        axes.text(0, -row - 0.4, drawing.placeholder(shorten(bar.name, NAME_LENGTH)), color=INK, clip_on=False)
        axes.text(1, -row - 0.4, bar.text, color=INK, ha="right", clip_on=False)
    return drawing.to_svg(f"{title}: {'; '.join(f'{bar.name} {bar.text}' for bar in bars)}.")


def _add_amounts(axes: Axes, ticks: Sequence[float], longest: float, unit: str) -> None:
    """Give the horizontal axis its numbers, and draw a line for each but zero."""
    axes.set_xlim(0, 1)
    positions = [tick / longest for tick in ticks]
    axes.set_xticks(positions, [number_label(tick) for tick in ticks])
    bottom, top = axes.get_ylim()
    axes.vlines(positions[1:], bottom, top, colors=RULE, linewidth=0.8, zorder=0, clip_on=False)
    axes.set_xlabel(unit, color=MUTED)


def _draw_bar(axes: Axes, top: float, bar: Bar, longest: float) -> None:
    begin = 0.0
    for amount, colour in bar.parts:
        width = amount / longest
        axes.barh(top - 0.7, width, 0.32, left=begin, color=colour, linewidth=0, clip_on=False)
        begin += width


def _add_scale(axes: Axes, top: float, most_steps: int, *, is_whole: bool) -> None:
    """Give the vertical axis its numbers, and draw a line for each."""
    axes.set_ylim(0, top * 1.04)
    ticks = round_ticks(0, top, most_steps, is_whole=is_whole)
    axes.set_yticks(ticks, [number_label(tick) for tick in ticks])
    axes.hlines(ticks, 0, 1, transform=axes.get_yaxis_transform(), colors=RULE, linewidth=0.8, zorder=0, clip_on=False)


def _name_scale(axes: Axes, name: str, above: float) -> None:
    """Write what the vertical axis shows above its numbers, where it is read more easily than turned beside them."""
    axes.annotate(name, (0, 1), (-40, above), xycoords="axes fraction", textcoords="offset points", color=MUTED)
