"""What the charts show: percentiles, histograms, rates over time, and the ticks of their axes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async.report.chart_data import Histogram, Throughput, round_ticks
from piapi_async.report.summary import SHORTEST, Summary
from tests.report.pages import NOON, make_failure, make_note

SECONDS = st.floats(0, 1e11)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e9), st.integers(2, 8))
def test_ticks_are_few_and_round(low: float, width: float, most: int) -> None:
    ticks = round_ticks(low, low + width, most)
    assert len(ticks) <= most + 1
    steps = [later - tick for tick, later in pairwise(ticks)]
    for step in steps:
        assert step == pytest.approx(steps[0], rel=1e-6, abs=1e-9 * abs(low))


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 7, 4, [0, 2, 4, 6]),
        (0, 9, 4, [0, 5]),
        (1.5, 4.2, 5, [2, 3, 4]),
        (0, 100, 2, [0, 50, 100]),
        (0, 300, 4, [0, 100, 200, 300]),
    ],
)
def test_ticks_are_multiples_of_1_2_or_5(low: float, high: float, most: int, ticks: list[float]) -> None:
    assert round_ticks(low, high, most) == pytest.approx(ticks)


def test_ticks_of_whole_numbers_are_whole() -> None:
    assert round_ticks(0, 2, 4) == [0, 0.5, 1, 1.5, 2]
    assert round_ticks(0, 2, 4, is_whole=True) == [0, 1, 2]


def test_percentiles_are_by_nearest_rank() -> None:
    histogram = Histogram.from_values(number / 100 for number in range(100, 0, -1))
    assert histogram.percentiles == [0.5, 0.9, 0.99]
    assert histogram.longest == 1.0
    assert Histogram.from_values([3.0]).percentiles == [3.0, 3.0, 3.0]
    assert Histogram.from_values([1.0, 2.0]).percentiles == [1.0, 2.0, 2.0]


@given(st.lists(SECONDS, min_size=1, max_size=60))
def test_a_histogram_counts_every_value_once(values: list[float]) -> None:
    histogram = Histogram.from_values(values)
    assert histogram.count == sum(histogram.counts) == len(values)
    assert len(histogram.edges) == len(histogram.counts) + 1
    assert min(histogram.counts) >= 0
    assert all(edge < later for edge, later in pairwise(histogram.edges))


@given(st.lists(SECONDS, min_size=1, max_size=60))
def test_the_axis_of_a_histogram_holds_its_values(values: list[float]) -> None:
    histogram = Histogram.from_values(values)
    assert all(-1e-9 <= histogram.position(value) <= 1 + 1e-9 for value in values)
    assert histogram.is_log == (max(*values, SHORTEST) > 5 * max(min(values), SHORTEST))
    assert all(histogram.edges[0] <= tick <= histogram.edges[-1] for tick in histogram.ticks)
    assert 1 <= len(histogram.ticks) <= 7


def test_each_bar_holds_what_is_between_its_edges() -> None:
    """A value on an edge belongs to the bar that begins there; the last bar takes the largest value too."""
    histogram = Histogram.from_values([1.0, 1.1, 1.5, 2.0, 2.4, 4.0])
    assert not histogram.is_log
    assert histogram.edges == [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
    assert histogram.counts == [2, 1, 2, 0, 0, 1]


@pytest.mark.parametrize(("longest", "is_log"), [(5.0, False), (5.1, True)])
def test_the_axis_is_logarithmic_past_a_factor_of_five(longest: float, is_log: bool) -> None:
    assert Histogram.from_values([1.0, longest]).is_log is is_log


def test_values_that_are_almost_equal_stand_in_the_middle() -> None:
    edges = Histogram.from_values([1.0, 1.005]).edges
    assert (edges[0], edges[-1]) == (0.5, 1.5)
    edges = Histogram.from_values([1.0, 1.02]).edges
    assert (edges[0], edges[-1]) == (1.0, 1.02)


def test_more_values_have_more_bars() -> None:
    assert [len(Histogram.from_values(range(1, count)).counts) for count in (2, 101, 10_001)] == [6, 10, 36]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([2.0], [1.0, 1.5, 2.0, 2.5, 3.0]),
        ([0.0, 0.0], [6e-5, 8e-5, 1e-4, 1.2e-4, 1.4e-4]),
        ([1.0, 1.5, 2.0], [1.0, 1.2, 1.4, 1.6, 1.8, 2.0]),
        ([0.1, 5.0], [0.1, 0.2, 0.5, 1.0, 2.0, 5.0]),
        ([0.01, 1.0], [0.01, 0.1, 1.0]),
        ([0.01, 10000.0], [0.01, 1.0, 100.0, 10000.0]),
        ([0.0, 1e11], [1e-4, 1e-1, 1e2, 1e5, 1e8, 1e11]),
    ],
)
def test_a_histogram_has_a_scale_that_suits_it(values: list[float], ticks: list[float]) -> None:
    assert Histogram.from_values(values).ticks == pytest.approx(ticks)


def test_positions_are_by_ratio_on_a_logarithmic_axis() -> None:
    histogram = Histogram.from_values([0.01, 1.0])
    assert histogram.position(0.1) == pytest.approx(0.5)
    assert histogram.position(0.0) == 0
    assert Histogram.from_values([1.0, 2.0]).position(1.25) == pytest.approx(0.25)


def throughput_of(span: float, rows: int = 41, *, every_failure: int = 1000) -> Throughput:
    """Rows that end evenly within so many seconds, from noon on; one in so many fails."""
    summary = Summary()
    for number in range(rows):
        finished = NOON + span * number / (rows - 1)
        make = make_failure if number % every_failure == every_failure - 1 else make_note
        summary.add(make(number, elapsed=0.0, finished=finished))
    return Throughput.from_summary(summary)


@pytest.mark.parametrize(("rows", "periods"), [(2, 1), (41, 10), (1000, 60)])
def test_every_row_is_in_one_period(rows: int, periods: int) -> None:
    throughput = throughput_of(100.0, rows, every_failure=4)
    assert len(throughput.answered) == len(throughput.failed) == len(throughput.edges) - 1 == periods
    assert sum(throughput.failed) == rows // 4
    assert sum(throughput.answered) == rows - rows // 4
    assert throughput.edges[0] == NOON
    assert throughput.edges[-1] == pytest.approx(NOON + 100)
    assert throughput.period == 100 / periods


@pytest.mark.parametrize(
    ("span", "unit", "rate"),
    [
        (0.0, "a second", 40),
        (20.0, "a second", 2),
        (3000.0, "a minute", 0.8),
        (1e5, "an hour", 1.44),
        (4e6, "a day", 0.864),
    ],
)
def test_rates_are_by_the_smallest_unit_that_gives_one_or_more(span: float, unit: str, rate: float) -> None:
    throughput = throughput_of(span)
    assert throughput.unit.name == unit
    assert max(throughput.rates(throughput.answered)) >= rate
    average = sum(throughput.rates(throughput.answered)) / len(throughput.answered)
    assert average == pytest.approx(41 / max(span, 1.0) * throughput.unit.seconds)


def test_failures_alone_may_set_the_unit() -> None:
    assert throughput_of(20.0, every_failure=1).unit.name == "a second"


@pytest.mark.parametrize(
    ("span", "labels"),
    [
        (0.0, ["12:00:00.0", "12:00:00.2", "12:00:00.4", "12:00:00.6", "12:00:00.8", "12:00:01.0"]),
        (20.0, ["12:00:00", "12:00:05", "12:00:10", "12:00:15", "12:00:20"]),
        (3000.0, ["12:00", "12:10", "12:20", "12:30", "12:40", "12:50"]),
        (100_000.0, ["12:00", "18:00", "11-19", "06:00", "12:00"]),
        (4e6, ["2026-11-23", "2026-12-03", "2026-12-13", "2026-12-23", "2027-01-02"]),
    ],
)
def test_the_time_has_a_scale_that_suits_it(span: float, labels: list[str]) -> None:
    assert [label for _, label in throughput_of(span).ticks] == labels


@given(st.floats(0, 2e11))
def test_the_ticks_of_the_time_are_few_and_in_their_place(span: float) -> None:
    ticks = throughput_of(span, 2).ticks
    assert 2 <= len(ticks) <= 6
    assert all(0 <= at <= 1 for at, _ in ticks)
    assert all(at < later for (at, _), (later, _) in pairwise(ticks))
    assert all(label != later for (_, label), (_, later) in pairwise(ticks))
