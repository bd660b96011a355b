"""Sums over a file of results."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from piapi_async.report.summary import (
    MAX_ATTEMPTS,
    MAX_NAMES,
    MAX_SHOWN,
    PAUSE,
    SHORTEST,
    Totals,
    TotalsByName,
    WorkTime,
    summarize,
)
from tests.report.pages import NOON, make_failure, make_note, many_notes, write_results


def test_totals_are_sums(tmp_path: Path) -> None:
    answers = [make_note(number, cost="0.1", cost_estimated=number < 3) for number in range(8)]
    uncounted = make_note(8, cost=None, tokens_in=None, tokens_out=None)
    summary = summarize(write_results(tmp_path / "results", [*answers, uncounted, make_failure(9)]))
    assert summary.total == Totals(
        rows=10,
        failed=1,
        tokens_in=80,
        tokens_out=160,
        uncounted=1,
        dollars=Decimal("0.8"),
        estimated=Decimal("0.3"),
        unpriced=1,
    )


def test_a_failure_may_have_a_cost(tmp_path: Path) -> None:
    summary = summarize(write_results(tmp_path / "results", [make_failure(cost="0.25", tokens_in=7)]))
    assert summary.total == Totals(rows=1, failed=1, tokens_in=7, dollars=Decimal("0.25"))


def test_times_are_those_of_the_answers(tmp_path: Path) -> None:
    notes = [make_note(0, first_token=0.5), make_failure(1, first_token=9.0), make_note(2, latency=2.5, elapsed=4.0)]
    summary = summarize(write_results(tmp_path / "results", notes))
    assert list(summary.latency) == [2.0, 2.5]
    assert list(summary.elapsed) == [3.0, 4.0]
    assert list(summary.first_token) == [0.5]
    assert list(summary.answered_at) == [NOON, NOON + 2]
    assert list(summary.failed_at) == [NOON + 1]


def test_the_last_note_of_unknown_bills_counts_them_all(tmp_path: Path) -> None:
    notes = [make_note(0), make_failure(1, unknown="0.5"), make_note(2, unknown="0.75"), make_note(3, unknown="0.5")]
    assert summarize(write_results(tmp_path / "results", notes)).unknown == Decimal("0.75")


def test_answers_are_by_model_and_failures_by_kind(tmp_path: Path) -> None:
    notes = [make_note(0), make_note(1, provider="backup"), make_note(2), make_failure(3), make_failure(4, provider="")]
    summary = summarize(write_results(tmp_path / "results", notes))
    answers = [(names, totals.rows) for names, totals in summary.answers.top(lambda totals: totals.rows)]
    failures = [(names, totals.rows) for names, totals in summary.failures.top(lambda totals: totals.rows)]
    assert answers == [(("gpt-4o", "piapi"), 2), (("gpt-4o", "backup"), 1)]
    assert failures == [(("status 503", ""), 1), (("status 503", "piapi"), 1)]


def test_rows_of_many_attempts_are_counted_together(tmp_path: Path) -> None:
    attempts = (0, 1, 1, MAX_ATTEMPTS, MAX_ATTEMPTS + 1, 40)
    notes = [make_note(number, attempts=count) for number, count in enumerate(attempts)]
    summary = summarize(write_results(tmp_path / "results", notes))
    assert {count: totals.rows for count, totals in summary.by_attempts.items()} == {0: 1, 1: 2, MAX_ATTEMPTS: 3}


def totals_by(names: Sequence[str]) -> TotalsByName:
    totals = TotalsByName()
    for number, name in enumerate(names):
        totals.add((name,), make_note(number), Decimal("0.5"))
    return totals


def test_the_names_of_least_weight_are_added_up() -> None:
    """They come last, whatever their sum."""
    names = [f"name {number:02}" for number in range(MAX_SHOWN + 2)]
    top = totals_by([*names, names[-1], names[-2]]).top(lambda totals: totals.dollars)
    assert [key for key, _ in top] == [(names[-2],), (names[-1],), *((name,) for name in names[: MAX_SHOWN - 2]), ()]
    assert top[-1][1] == Totals(rows=2, tokens_in=20, tokens_out=40, dollars=Decimal(1))
    assert [names for names, _ in totals_by(["only"]).top(lambda totals: totals.rows)] == [("only",)]


def test_names_of_equal_weight_are_sorted_by_rows_and_then_by_name() -> None:
    top = totals_by(["c", "b", "d", "d", "a"]).top(lambda _: 1)
    assert [names for names, _ in top] == [("d",), ("a",), ("b",), ("c",)]


def test_past_a_thousand_names_new_ones_are_not_told_apart() -> None:
    names = [f"name {number}" for number in range(MAX_NAMES + 500)]
    last, first_beyond = names[MAX_NAMES - 1], names[MAX_NAMES]
    top = totals_by([*names, last, first_beyond, first_beyond]).top(lambda totals: totals.rows)
    assert [totals.rows for _, totals in top] == [2] + [1] * (MAX_SHOWN - 1) + [MAX_NAMES + 500 - MAX_SHOWN + 2]
    assert top[0][0] == (last,)
    assert top[-1][0] == ()


def test_names_are_shortened_before_they_are_told_apart() -> None:
    ((names, totals),) = totals_by(["x" * 500 + "1", "x" * 500 + "2"]).top(lambda totals: totals.rows)
    assert names == ("x" * 79 + "…",)
    assert totals.rows == 2


@pytest.mark.parametrize(
    ("spans", "seconds", "paused"),
    [
        ([(0.0, 10.0)], 10.0, 0.0),
        ([(5.0, 5.0)], SHORTEST, -SHORTEST),
        ([(0.0, 10.0), (5.0, 20.0), (1.0, 2.0)], 20.0, 0.0),
        ([(0.0, 10.0), (10.0 + PAUSE, 80.0)], 80.0, 0.0),
        ([(0.0, 10.0), (100.0, 110.0)], 20.0, 90.0),
        ([(0.0, 10.0), (100.0, 110.0), (0.0, 105.0)], 110.0, 0.0),
        ([(100.0, 110.0), (0.0, 10.0)], 20.0, 90.0),
        ([(0.0, 10.0), (1000.0, 1010.0), (300.0, 320.0), (5.0, 12.0)], 42.0, 968.0),
    ],
)
def test_pauses_are_no_work(spans: list[tuple[float, float]], seconds: float, paused: float) -> None:
    work = WorkTime()
    for begin, end in spans:
        work.add(begin, end)
    assert work.began == min(begin for begin, _ in spans)
    assert work.ended == max(end for _, end in spans)
    assert work.seconds == seconds
    assert work.paused == paused


def test_rows_without_a_pause_make_one_span() -> None:
    work = WorkTime()
    for number in range(1000):
        work.add(number, number + 5.0)
    assert work.spans == [(0.0, 1004.0)]


def test_no_row_began_before_all_times(tmp_path: Path) -> None:
    summary = summarize(write_results(tmp_path / "results", [make_note(elapsed=2e11, finished=5.0)]))
    assert (summary.work.began, summary.work.ended) == (0.0, 5.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"cost": "much"},
        {"cost": "NaN"},
        {"cost": "-1"},
        {"cost": "1e999999"},
        {"unknown": "Infinity"},
        {"latency": -1.0},
        {"elapsed": 2.5e11},
        {"first_token": 1e300},
        {"finished": 1e12},
        {"tokens_in": -1},
        {"tokens_out": 10**15},
        {"attempts": -1},
    ],
)
def test_numbers_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    results = write_results(tmp_path / "results", [make_note(0), make_note(1, **changes)])
    with pytest.raises((ArithmeticError, ValueError)):
        summarize(results)


def peak_memory(results: Path) -> int:
    """Bytes that are allocated at most while a file is added up."""
    tracemalloc.start()
    try:
        summarize(results)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_row_takes_32_bytes(tmp_path: Path) -> None:
    small = write_results(tmp_path / "small", many_notes(1000))
    large = tmp_path / "large"
    large.write_bytes(small.read_bytes() * 4)
    summarize(small)  # what is allocated once is there now
    growth = peak_memory(large) - peak_memory(small)
    assert growth < 3000 * 32 * 1.2  # arrays that grow have some room to spare
