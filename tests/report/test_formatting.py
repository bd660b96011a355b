"""Numbers as the page writes them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from piapi_async.report.formatting import (
    DAY,
    decimal_places,
    format_count,
    format_dollars,
    format_rate,
    format_seconds,
    format_share,
    number_label,
    seconds_label,
    shorten,
    time_label,
)
from tests.report.pages import NOON


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.00042, "0.42 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (7380.0, "2 h 3 min"),
        (90000.0, "1 d 1 h"),
        (1e8, "1,157 d 9 h"),
    ],
)
def test_a_time_has_the_units_that_suit_it(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 7, "0.0%"),
        (1, 8, "12.5%"),
        (7, 7, "100.0%"),
        (1, 4000, "<0.1%"),
        (3999, 4000, ">99.9%"),
        (1, 1000, "0.1%"),
        (999, 1000, "99.9%"),
    ],
)
def test_a_share_never_lies_by_rounding(part: int, whole: int, text: str) -> None:
    assert format_share(part, whole) == text


@pytest.mark.parametrize(
    ("rate", "text"), [(0.0, "0"), (0.01234, "0.0123"), (2.016, "2.02"), (99.94, "99.9"), (12345.6, "12,346")]
)
def test_a_rate_has_three_digits_or_more(rate: float, text: str) -> None:
    assert format_rate(rate) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 answers"), (1, "1 answer"), (2000, "2,000 answers")])
def test_a_count_has_its_plural(number: int, text: str) -> None:
    assert format_count(number, "answer") == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "$0"),
        ("0.0123", "$0.012300"),
        ("0.1", "$0.1000"),
        ("99.99", "$99.9900"),
        ("100", "$100.00"),
        ("12345.678", "$12,345.68"),
    ],
)
def test_small_amounts_have_more_digits(amount: str, text: str) -> None:
    assert format_dollars(Decimal(amount), decimal_places(Decimal(amount))) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.25, "0.25"), (4000, "4,000"), (10_000, "10k"), (2.5e6, "2.5M"), (5e10, "50G")],
)
def test_the_label_of_a_large_number_is_short(number: float, text: str) -> None:
    assert number_label(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0001, "0.1 ms"), (0.5, "500 ms"), (1.0, "1 s"), (1.2, "1.2 s"), (10_000.0, "10,000 s")]
)
def test_the_label_of_a_duration(seconds: float, text: str) -> None:
    assert seconds_label(seconds) == text


@pytest.mark.parametrize(
    ("time", "step", "text"),
    [
        (NOON + 0.25, 0.2, "12:00:00.2"),
        (NOON + 5, 5, "12:00:05"),
        (NOON, 60, "12:00"),
        (NOON + 3600, 3600, "13:00"),
        (NOON + DAY / 2, 43200, "11-19"),
        (NOON + DAY / 2, DAY, "2026-11-19"),
    ],
)
def test_the_label_of_a_time_is_as_fine_as_the_step(time: float, step: float, text: str) -> None:
    assert time_label(time, step) == text


def test_a_long_text_is_shortened() -> None:
    assert shorten("status 503", 10) == "status 503"
    assert shorten("status 503!", 10) == "status 50…"
