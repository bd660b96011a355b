"""Read a file of results and add it up.

Only sums and numbers are kept, at most 32 bytes for each row, so a batch of a million rows fits in memory.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TypeAlias

import attrs

from piapi_async.batch.records import Note, read_notes
from piapi_async.report.formatting import shorten

__all__ = ["MAX_ATTEMPTS", "PAUSE", "SHORTEST", "Names", "Summary", "Totals", "TotalsByName", "WorkTime", "summarize"]

PAUSE = 60.0
"""Seconds without a row under way that count as a pause between two runs, not as work (ours)."""

MAX_NAMES = 1000
"""Names that are told apart. A provider may make up a new kind of failure for every row (ours)."""

MAX_SHOWN = 12
"""Names in a table or chart. The others are added up (ours)."""

NAME_LENGTH = 80
"""Characters of a name that are kept (ours)."""

MAX_ATTEMPTS = 9
"""Rows that took more requests than this are counted with those that took this many (ours)."""

LIMIT = 250_000_000_000
"""Every number of a batch is below this. As seconds since 1970 it is the year 9892, and dates end in 9999 (ours)."""

SHORTEST = 1e-4
"""Seconds. Shorter times count as this long where one divides by them or takes their logarithm (ours)."""

Names: TypeAlias = tuple[str, ...]
"""What totals are kept by, as model and provider. Empty for all that are not kept apart."""


@attrs.define
class Totals:
    """Sums over some rows.

    Attributes:
        rows: Number of rows.
        failed: Rows that failed.
        tokens_in: Tokens of the prompts, where they were counted.
        tokens_out: Tokens of the answers, where they were counted.
        uncounted: Answers whose tokens were not counted.
        dollars: US dollars, where the price is known.
        estimated: The part of `dollars` that rests on estimated tokens.
        unpriced: Answers whose price is unknown.
    """

    rows: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    uncounted: int = 0
    dollars: Decimal = Decimal(0)
    estimated: Decimal = Decimal(0)
    unpriced: int = 0

    def add(self, note: Note, dollars: Decimal | None) -> None:
        """Add one row.

        Args:
            note: The row.
            dollars: Its cost; None when it is unknown.
        """
        self.rows += 1
        self.failed += note.failed
        self.tokens_in += note.tokens_in or 0
        self.tokens_out += note.tokens_out or 0
        if dollars is not None:
            self.dollars += dollars
            self.estimated += dollars if note.cost_estimated else 0
        if not note.failed:
            self.uncounted += note.tokens_out is None
            self.unpriced += dollars is None

    def merge(self, other: Totals) -> None:
        """Add the rows of another total."""
        for field in attrs.fields(Totals):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def _new_totals() -> defaultdict[Names, Totals]:
    return defaultdict(Totals)


@attrs.define
class TotalsByName:
    """Totals for each combination of names. Beyond `MAX_NAMES` of them, new ones share one total without a name."""

    _totals: defaultdict[Names, Totals] = attrs.field(factory=_new_totals, init=False)

    def add(self, names: Names, note: Note, dollars: Decimal | None) -> None:
        """Add one row to the total of these names."""
        kept = tuple(shorten(name, NAME_LENGTH) for name in names)
        if kept not in self._totals and len(self._totals) >= MAX_NAMES:
            kept = ()
        self._totals[kept].add(note, dollars)

    def top(self, weight: Callable[[Totals], Decimal | int]) -> list[tuple[Names, Totals]]:
        """The `MAX_SHOWN` names of most weight. All others follow as one total without a name, if there are any."""
        named = [(names, totals) for names, totals in self._totals.items() if names]
        named.sort(key=lambda item: (-weight(item[1]), -item[1].rows, item[0]))
        rest = Totals()
        for _, totals in named[MAX_SHOWN:]:
            rest.merge(totals)
        rest.merge(self._totals.get((), Totals()))
        return named[:MAX_SHOWN] + ([((), rest)] if rest.rows else [])


@attrs.define
class WorkTime:
    """When rows were under way.

    Attributes:
        spans: From when to when, in seconds since 1970. Spans less than `PAUSE` apart are joined.
    """

    spans: list[tuple[float, float]] = attrs.field(factory=list[tuple[float, float]], init=False)

    def add(self, begin: float, end: float) -> None:
        """Add a row. Rows come roughly in the order in which they ended, so only the last spans can touch this one."""
        while self.spans and begin <= self.spans[-1][1] + PAUSE and end >= self.spans[-1][0] - PAUSE:
            earlier = self.spans.pop()
            begin, end = min(begin, earlier[0]), max(end, earlier[1])
        self.spans.append((begin, end))

    @property
    def began(self) -> float:
        """When the first row began, in seconds since 1970."""
        return min(begin for begin, _ in self.spans)

    @property
    def ended(self) -> float:
        """When the last row ended, in seconds since 1970."""
        return max(end for _, end in self.spans)

    @property
    def seconds(self) -> float:
        """Seconds with rows under way, without the pauses between runs; at least `SHORTEST`."""
        total, until = 0.0, -math.inf
        for begin, end in sorted(self.spans):
            total += max(end, until) - max(begin, until)
            until = max(end, until)
        return max(total, SHORTEST)

    @property
    def paused(self) -> float:
        """Seconds of pauses between the first row and the last."""
        return self.ended - self.began - self.seconds


def _new_array() -> array[float]:
    return array("d")


@attrs.define
class Summary:
    """A file of results, added up. Its numbers are in the order of the file.

    Attributes:
        total: Totals of all rows.
        answers: Totals of the answers, by model and provider.
        failures: Totals of the failures, by kind and provider.
        by_attempts: Totals by how many requests were sent for a row, `MAX_ATTEMPTS` meaning that many or more.
        unknown: US dollars that requests without a known bill may have cost.
        latency: Of each answer, the seconds that its last request took.
        elapsed: Of each answer, the seconds that it took in all.
        first_token: Of each streamed answer, the seconds to its first event.
        answered_at: When each answer came, in seconds since 1970.
        failed_at: When each row that failed was given up, in seconds since 1970.
        work: When rows were under way.
    """

    total: Totals = attrs.field(factory=Totals, init=False)
    answers: TotalsByName = attrs.field(factory=TotalsByName, init=False)
    failures: TotalsByName = attrs.field(factory=TotalsByName, init=False)
    by_attempts: dict[int, Totals] = attrs.field(factory=dict[int, Totals], init=False)
    unknown: Decimal = attrs.field(default=Decimal(0), init=False)
    latency: array[float] = attrs.field(factory=_new_array, init=False)
    elapsed: array[float] = attrs.field(factory=_new_array, init=False)
    first_token: array[float] = attrs.field(factory=_new_array, init=False)
    answered_at: array[float] = attrs.field(factory=_new_array, init=False)
    failed_at: array[float] = attrs.field(factory=_new_array, init=False)
    work: WorkTime = attrs.field(factory=WorkTime, init=False)

    def add(self, note: Note) -> None:
        """Add one row.

        Raises:
            ArithmeticError: An amount of the note is no number.
            ValueError: A number of the note is negative, or `LIMIT` or more.
        """
        _check(note)
        dollars = None if note.cost is None else _amount(note.cost)
        self.total.add(note, dollars)
        self.by_attempts.setdefault(min(note.attempts, MAX_ATTEMPTS), Totals()).add(note, dollars)
        self.unknown = max(self.unknown, _amount(note.unknown))
        self.work.add(max(note.finished - note.elapsed, 0.0), note.finished)
        if note.failed:
            self.failed_at.append(note.finished)
            self.failures.add((note.kind, note.provider), note, dollars)
        else:
            self._add_answer(note, dollars)

    def _add_answer(self, note: Note, dollars: Decimal | None) -> None:
        self.answered_at.append(note.finished)
        self.answers.add((note.model, note.provider), note, dollars)
        self.latency.append(note.latency)
        self.elapsed.append(note.elapsed)
        if note.first_token is not None:
            self.first_token.append(note.first_token)


def _check(note: Note) -> None:
    counts = note.tokens_in or 0, note.tokens_out or 0, note.attempts
    times = note.latency, note.elapsed, note.first_token or 0.0, note.finished
    if min(counts) < 0 or min(times) < 0 or max(counts) >= LIMIT or max(times) >= LIMIT:
        raise ValueError("a number of a note is negative or far too large")


def _amount(text: str) -> Decimal:
    amount = Decimal(text)
    if not 0 <= amount < LIMIT:
        raise ValueError("an amount of a note is negative or far too large")
    return amount


def summarize(results: Path) -> Summary:
    """Read a file of results and add it up.

    Raises:
        OSError: The file can't be read.
        msgspec.DecodeError: A newer release wrote it.
        ArithmeticError: A number in it makes no sense.
        ValueError: A number in it makes no sense.
    """
    summary = Summary()
    for note in read_notes(results):
        summary.add(note)
    return summary
