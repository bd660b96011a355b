"""Numbers as people read them: times with units, dollars, shares, rates, and the labels of an axis."""

from __future__ import annotations

import html
from datetime import UTC, datetime
from decimal import Decimal

from piapi_async.errors import CONTROLS

__all__ = [
    "DAY",
    "decimal_places",
    "escape",
    "format_count",
    "format_dollars",
    "format_rate",
    "format_seconds",
    "format_share",
    "number_label",
    "seconds_label",
    "shorten",
    "time_label",
]

DAY = 86400.0
"""Seconds."""


def escape(text: str) -> str:
    """Make a text from outside fit for the page: no markup, no control characters."""
    return html.escape(text.translate(CONTROLS))


def shorten(text: str, length: int) -> str:
    """Cut a text to `length` characters, the last of them an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def format_count(number: int, name: str) -> str:
    """Write a number of things: "1 answer", "2,000 answers"."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def format_share(part: int, whole: int) -> str:
    """Write a part in percent. Rounding never turns something into "0.0%", nor less than all into "100.0%"."""
    tenths = round(part / whole * 1000)
    if part and not tenths:
        return "<0.1%"
    return f"{tenths / 10:.1f}%" if tenths < 1000 or part == whole else ">99.9%"


def format_rate(value: float) -> str:
    """Write a rate with three digits, or with all before the point if there are more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def format_seconds(value: float) -> str:
    """Write a time in the units that suit it, from "0.42 ms" to "1 d 1 h"."""
    if value < 0.9995:
        return f"{value * 1000:.3g} ms"
    if value < 59.95:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def decimal_places(largest: Decimal) -> int:
    """Digits after the point for amounts of which `largest` is the largest: small amounts need more."""
    return 2 if largest >= 100 or not largest else 4 if largest >= Decimal("0.1") else 6


def format_dollars(amount: Decimal, places: int) -> str:
    """Write US dollars with so many digits after the point; nothing is $0."""
    return f"${amount:,.{places}f}" if amount else "$0"


def seconds_label(value: float) -> str:
    """Label a tick of a time axis that starts at zero, in milliseconds or seconds."""
    return f"{value * 1000:g} ms" if value < 0.9995 else f"{value:,.10g} s"


def number_label(value: float) -> str:
    """Label a tick of an axis of numbers: "4,000", "40k", "4M", "50G"."""
    for power, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= (10 * power if power == 1e3 else power):
            return f"{value / power:g}{name}"
    return f"{value:,.10g}"


def time_label(time: float, step: float) -> str:
    """Label a tick of an axis of dates and times, UTC.

    Args:
        time: Seconds since 1970.
        step: Seconds to the next tick. The label is no finer than that.
    """
    moment = datetime.fromtimestamp(time, UTC)
    if step >= DAY:
        return f"{moment:%Y-%m-%d}"
    if time % DAY == 0:
        return f"{moment:%m-%d}"
    if step >= 60:
        return f"{moment:%H:%M}"
    return f"{moment:%H:%M:%S}" + (f".{moment:%f}"[:2] if step < 1 else "")
