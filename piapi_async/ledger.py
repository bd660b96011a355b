"""What was spent, reserved, saved; and the budget. Pure: no IO, no clock; whole picodollars, so sums are exact.

`Books` is where money moves, one way: `reserve` the worst case before sending; then `settle` it to what the answer
cost, `release` it when nothing can have been billed, or `keep` it when the bill is unknown. Spent, reserved and unknown
together never pass the budget, whatever the order in which callers come, because `reserve` checks and takes in one
step; only what single bills come to above their reservations does, and `overrun` tells it. `Ledger` shows the books to
the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import cast

import attrs

from piapi_async.catalog import from_dollars, to_dollars
from piapi_async.errors import BudgetExceededError, ConfigurationError
from piapi_async.models.checks import plain_number

__all__ = ["Books", "Ledger", "LedgerEntry", "Row", "carry_forward", "read_budget", "show_dollars"]


@attrs.define(eq=False, repr=False, slots=False)
class Row:
    """What one provider's model cost so far, as in `LedgerEntry`, in picodollars."""

    calls: int = 0
    spent: int = 0
    estimated: int = 0
    unknown: int = 0
    saved: int = 0
    unpriced: int = 0
    overrun: int = 0


@attrs.frozen(slots=False)
class LedgerEntry:
    """What one provider's model cost so far. Amounts in US dollars.

    Attributes:
        provider: Name of the provider.
        model: The provider's name of the model.
        calls: Answers.
        spent: For answers, the estimated ones included.
        estimated: Part of `spent` that rests on an estimate of the tokens.
        unknown: The worst case of attempts that failed and were maybe billed.
        saved: Against the vendor's own price, where it is known.
        unpriced: Answers whose price is unknown; they are not in `spent`.
        overrun: Part of `spent` and `unknown` that bills came to above what was reserved for them.
    """

    provider: str
    model: str
    calls: int
    spent: Decimal
    estimated: Decimal
    unknown: Decimal
    saved: Decimal
    unpriced: int
    overrun: Decimal


@attrs.define(eq=False, repr=False, slots=False)
class Books:
    """The books of one client, in picodollars.

    Attributes:
        budget: What spent, reserved and unknown together never pass, but for overruns; None for no limit.
        spent: For answers.
        reserved: What the requests under way may cost at most.
        unknown: What failed attempts may have cost at most.
        rows: By provider and the provider's name of the model, in the order they were first used.
    """

    budget: int | None = None
    spent: int = 0
    reserved: int = 0
    unknown: int = 0
    rows: dict[tuple[str, str], Row] = attrs.field(factory=dict[tuple[str, str], Row])

    @property
    def taken(self) -> int:
        """What counts against the budget."""
        return self.spent + self.reserved + self.unknown

    def row(self, provider: str, model: str) -> Row:
        """Return the row of one provider's model, made where there is none yet."""
        return self.rows.setdefault((provider, model), Row())

    def fits(self, amount: int) -> bool:
        """Whether the budget has room for so much."""
        return self.budget is None or self.taken + amount <= self.budget

    def reserve(self, amount: int) -> None:
        """Take the worst case of a request out of the budget.

        Raises:
            BudgetExceededError: It does not fit; nothing was taken.
        """
        if self.budget is not None and not self.fits(amount):
            free = max(0, self.budget - self.taken)
            raise BudgetExceededError(
                f"the call may cost {show_dollars(amount)}, and of the budget of {show_dollars(self.budget)} only "
                f"{show_dollars(free)} is free; nothing was sent. Lower max_tokens, wait for calls "
                "under way, or raise the budget"
            )
        self.reserved += amount

    def release(self, amount: int) -> None:
        """Give back what was reserved for a request that can't have been billed."""
        self.reserved -= amount

    def keep(self, row: Row, reserved: int, amount: int) -> None:
        """Turn what was reserved, 0 where nothing was, into the most that a request may cost whose bill is unknown."""
        self.reserved -= reserved
        self.unknown += amount
        row.unknown += amount
        row.overrun += max(0, amount - reserved) if reserved else 0

    def settle(self, row: Row, reserved: int, cost: int | None, *, saved: int = 0, estimated: bool = False) -> None:
        """Turn what was reserved, 0 where nothing was, into what the answer cost; None where the price is unknown."""
        self.reserved -= reserved
        row.calls += 1
        if cost is None:
            row.unpriced += 1
            return
        self.spent += cost
        row.spent += cost
        row.saved += saved
        row.overrun += max(0, cost - reserved) if reserved else 0
        if estimated:
            row.estimated += cost


@attrs.frozen(eq=False, repr=False, slots=False)
class Ledger:
    """What a client spent, has reserved, and saved. Prints as a table. All amounts are US dollars."""

    _books: Books

    @property
    def budget(self) -> Decimal | None:
        """What may be spent; None for no limit."""
        return None if self._books.budget is None else to_dollars(self._books.budget)

    @property
    def spent(self) -> Decimal:
        """Spent for answers."""
        return to_dollars(self._books.spent)

    @property
    def reserved(self) -> Decimal:
        """What the requests under way may cost at most."""
        return to_dollars(self._books.reserved)

    @property
    def unknown(self) -> Decimal:
        """What failed attempts may have cost at most; it counts against the budget."""
        return to_dollars(self._books.unknown)

    @property
    def saved(self) -> Decimal:
        """Saved against the vendors' own prices."""
        return to_dollars(sum(row.saved for row in self._books.rows.values()))

    @property
    def overrun(self) -> Decimal:
        """Part of `spent` and `unknown` that bills came to above what was reserved: only so is a budget ever passed."""
        return to_dollars(sum(row.overrun for row in self._books.rows.values()))

    @property
    def left(self) -> Decimal | None:
        """What is free of the budget, below 0 where bills passed it; None without a budget."""
        return None if self._books.budget is None else to_dollars(self._books.budget - self._books.taken)

    @property
    def entries(self) -> tuple[LedgerEntry, ...]:
        """By provider and model, in the order they were first used."""
        return tuple(
            LedgerEntry(
                provider,
                model,
                row.calls,
                to_dollars(row.spent),
                to_dollars(row.estimated),
                to_dollars(row.unknown),
                to_dollars(row.saved),
                row.unpriced,
                to_dollars(row.overrun),
            )
            for (provider, model), row in self._books.rows.items()
        )

    @property
    def by_provider(self) -> Mapping[str, Decimal]:
        """Spent, by provider."""
        sums: dict[str, int] = {}
        for (provider, _), row in self._books.rows.items():
            sums[provider] = sums.get(provider, 0) + row.spent
        return {provider: to_dollars(amount) for provider, amount in sums.items()}

    def _table(self) -> list[tuple[str, ...]]:
        """The entries as text, below their heading, and the sum in the last line."""
        lines: list[tuple[str, ...]] = [("provider", "model", "calls", "spent", "unknown", "saved")]
        books = self._books
        lines += [
            (
                provider,
                model,
                f"{row.calls:,}",
                show_dollars(row.spent),
                show_dollars(row.unknown),
                show_dollars(row.saved),
            )
            for (provider, model), row in books.rows.items()
        ]
        calls = sum(row.calls for row in books.rows.values())
        saved = sum(row.saved for row in books.rows.values())
        lines.append(
            ("all", "", f"{calls:,}", show_dollars(books.spent), show_dollars(books.unknown), show_dollars(saved))
        )
        return lines

    def _budget_line(self) -> str:
        books = self._books
        if books.budget is None:
            return ""
        overrun = sum(row.overrun for row in books.rows.values())
        return (
            f"budget {show_dollars(books.budget)}, reserved {show_dollars(books.reserved)}, "
            f"free {show_dollars(books.budget - books.taken)}"
            + (f", bills above their reservations {show_dollars(overrun)}" if overrun else "")
        )

    def __str__(self) -> str:
        table = self._table()
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in table
        ]
        return "\n".join(line.rstrip() for line in (*lines, self._budget_line())).rstrip("\n")

    def _repr_markdown_(self) -> str:
        """Show the table in a notebook."""
        head, *rows = (f"| {' | '.join(line)} |" for line in self._table())
        budget = self._budget_line()
        table = "\n".join((head, "| --- | --- | ---: | ---: | ---: | ---: |", *rows))
        return f"{table}\n\n{budget}".rstrip()

    def __repr__(self) -> str:
        budget = "" if self._books.budget is None else f" budget={self.budget:f}"
        return f"<Ledger spent={self.spent:f} reserved={self.reserved:f} unknown={self.unknown:f}{budget}>"


def read_budget(budget: object) -> int | None:
    """Return a budget in picodollars; None for no limit.

    Args:
        budget: US dollars as a whole number, Decimal or str; a float is refused, as its decimals aren't what was meant.

    Raises:
        ConfigurationError: It is no amount above 0.
    """
    if budget is None:
        return None
    amount: Decimal | None = None
    whole = plain_number(budget)
    if isinstance(budget, (str, Decimal)) or isinstance(whole, int):
        with suppress(InvalidOperation):
            amount = Decimal(whole if isinstance(whole, int) else cast("str", budget))
    if amount is None or not amount.is_finite() or amount <= 0:
        raise ConfigurationError(
            "budget: it is no amount above 0, or a float, which is inexact; pass US dollars as a whole number, Decimal "
            "or str, such as '5.00'"
        )
    return from_dollars(amount)


def carry_forward(ledger: Ledger, spent: Decimal, unknown: Decimal, saved: Decimal = Decimal(0)) -> None:
    """Enter what was spent before this client, in US dollars, for answers and on unknown bills; and what was saved."""
    books = ledger._books  # pyright: ignore[reportPrivateUsage]  # both classes are of this module
    row = books.row("earlier", "")
    row.spent += from_dollars(spent)
    row.unknown += from_dollars(unknown)
    row.saved += from_dollars(saved)
    books.spent += from_dollars(spent)
    books.unknown += from_dollars(unknown)


def show_dollars(picodollars: int) -> str:
    """Write picodollars as US dollars, to the last digit that counts, two decimals at least; nothing is $0."""
    whole, _, part = f"{to_dollars(abs(picodollars)):f}".partition(".")
    sign = "-" if picodollars < 0 else ""
    return f"{sign}${whole}.{part:0<2}" if picodollars else "$0"
