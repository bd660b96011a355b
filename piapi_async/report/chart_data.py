"""What the charts show: a histogram of times, rows over time, and the ticks of an axis. No drawing here."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import attrs

from piapi_async.report.formatting import DAY, time_label
from piapi_async.report.summary import SHORTEST, Summary

__all__ = ["PERCENTILES", "Histogram", "RateUnit", "Throughput", "round_ticks"]

PERCENTILES = 0.5, 0.9, 0.99
"""The percentiles that are marked, as shares."""

MAX_BARS = 36
"""Bars of a histogram. On the widest page each is about 10 points wide (ours)."""

MAX_PERIODS = 60
"""Periods that the time of a batch is divided into (ours)."""

TIME_STEPS = 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, DAY
"""Seconds between two ticks of an axis of times, as clocks divide them."""


def round_ticks(low: float, high: float, most: int, *, is_whole: bool = False) -> list[float]:
    """Place ticks at multiples of 1, 2 or 5 times a power of ten.

    Args:
        low: Where the axis begins.
        high: Where it ends; above `low`.
        most: Steps between ticks, at most.
        is_whole: Whether ticks must be whole numbers.
    """
    power = math.floor(math.log10((high - low) / most))
    # A step that falls short by a rounding error still does.
    step = next(step for step in _decade(power, 1, 2, 5, 10) if step * most * 1.000001 >= high - low)
    return _multiples(max(step, 1.0) if is_whole else step, low, high)


def _decade(power: int, *digits: int) -> list[float]:
    return [digit * 10.0**power for digit in digits]


def _multiples(step: float, low: float, high: float) -> list[float]:
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


@attrs.frozen
class Histogram:
    """How a set of times is distributed.

    Attributes:
        count: Number of values.
        percentiles: The value at each of `PERCENTILES`, by nearest rank, in seconds.
        longest: The largest value, in seconds.
        is_log: Whether the axis is logarithmic.
        edges: Edges of the bars, in seconds; one more than there are bars.
        counts: Values in each bar.
    """

    count: int
    percentiles: Sequence[float]
    longest: float
    is_log: bool
    edges: Sequence[float]
    counts: Sequence[int]

    @classmethod
    def from_values(cls, values: Iterable[float]) -> Histogram:
        """Count values, in seconds, at least one of them.

        The axis is logarithmic where the longest is more than five times the shortest.
        """
        ordered = sorted(values)
        count = len(ordered)
        low, high = max(ordered[0], SHORTEST), max(ordered[-1], SHORTEST)
        is_log = high > 5 * low
        bars = max(6, min(MAX_BARS, math.isqrt(count)))
        edges = _logarithmic_edges(low, high, bars) if is_log else _linear_edges(low, high, bars)
        # The first and the last bar take what a rounding error puts outside of them.
        cuts = [0, *(bisect_left(ordered, edge) for edge in edges[1:-1]), count]
        return cls(
            count=count,
            percentiles=[ordered[math.ceil(part * count) - 1] for part in PERCENTILES],
            longest=ordered[-1],
            is_log=is_log,
            edges=edges,
            counts=[cuts[bar + 1] - cuts[bar] for bar in range(bars)],
        )

    def position(self, value: float) -> float:
        """Where a value stands on the axis, from 0 at the first edge to 1 at the last."""
        low, value, high = self.edges[0], max(value, self.edges[0]), self.edges[-1]
        return math.log(value / low) / math.log(high / low) if self.is_log else (value - low) / (high - low)

    @property
    def ticks(self) -> list[float]:
        """Ticks of the axis, in seconds; about six of them."""
        low, high = self.edges[0], self.edges[-1]
        return _logarithmic_ticks(low, high) if self.is_log else round_ticks(low, high, 5)


def _linear_edges(low: float, high: float, bars: int) -> list[float]:
    low, high = (low, high) if high > 1.01 * low else (0.5 * low, 1.5 * low)
    return [low + (high - low) * bar / bars for bar in range(bars + 1)]


def _logarithmic_edges(low: float, high: float, bars: int) -> list[float]:
    return [low * (high / low) ** (bar / bars) for bar in range(bars + 1)]


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with twice and five times each where there is room."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [tick for power in powers for tick in _decade(power, 1, 2, 5) if low <= tick <= high]
    if len(fine) <= 6:
        return fine
    coarse = [tick for power in powers for tick in _decade(power, 1) if low <= tick <= high]
    return coarse[:: math.ceil(len(coarse) / 6)]


@attrs.frozen
class RateUnit:
    """What a rate is given by.

    Attributes:
        seconds: Its length.
        name: Its name, as in "10 answers a minute".
    """

    seconds: float
    name: str


RATE_UNITS = RateUnit(1.0, "a second"), RateUnit(60.0, "a minute"), RateUnit(3600.0, "an hour"), RateUnit(DAY, "a day")


@attrs.frozen
class Throughput:
    """How many rows ended when. The time is divided into periods of one length.

    Attributes:
        edges: Edges of the periods, in seconds since 1970; one more than there are periods.
        period: Seconds of a period.
        answered: Rows answered in each period.
        failed: Rows that failed in each period.
        unit: The unit of the rates, such that the highest rate is at least 1 where possible.
    """

    edges: Sequence[float]
    period: float
    answered: Sequence[int]
    failed: Sequence[int]
    unit: RateUnit

    @classmethod
    def from_summary(cls, summary: Summary) -> Throughput:
        """Count the rows of a summary, of which there is at least one."""
        begin = summary.work.began
        periods = max(1, min(MAX_PERIODS, summary.total.rows // 4))
        period = max(summary.work.ended - begin, 1.0) / periods
        answered = _count_by_period(summary.answered_at, begin, period, periods)
        failed = _count_by_period(summary.failed_at, begin, period, periods)
        peak = max(*answered, *failed) / period
        return cls(
            edges=[begin + period * number for number in range(periods + 1)],
            period=period,
            answered=answered,
            failed=failed,
            unit=next((unit for unit in RATE_UNITS if peak * unit.seconds >= 1), RATE_UNITS[-1]),
        )

    def rates(self, counts: Sequence[int]) -> list[float]:
        """Turn rows in each period into rows by `unit`."""
        return [count / self.period * self.unit.seconds for count in counts]

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """At most six ticks of the time axis: position, from 0 at the first edge to 1 at the last, and label."""
        low, high = self.edges[0], self.edges[-1]
        step = next((step for step in TIME_STEPS if step * 5 >= high - low), math.ceil((high - low) / 5 / DAY) * DAY)
        return [((time - low) / (high - low), time_label(time, step)) for time in _multiples(step, low, high)]


def _count_by_period(times: Iterable[float], begin: float, period: float, periods: int) -> list[int]:
    counts = [0] * periods
    for time in times:
        counts[min(int((time - begin) / period), periods - 1)] += 1
    return counts
