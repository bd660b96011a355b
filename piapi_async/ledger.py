"""What was spent, reserved, saved; and the budget. Pure: no IO, no clock; whole picodollars, so sums are exact.

Money moves one way: `reserve` the worst case before sending; then `settle` it to what the answer cost, `release` it
when nothing can have been billed, or `keep` it when the bill is unknown. Spent, reserved and unknown together never
pass the budget, whatever the order in which callers come, because `reserve` checks and takes in one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import msgspec

from piapi_async.catalog import from_dollars, to_dollars
from piapi_async.errors import BudgetExceededError

__all__ = ["Entry", "Ledger", "Row"]


class Row:
    """What one provider's model cost so far, as in `Entry`, in picodollars."""

    __slots__ = ("calls", "estimated", "saved", "spent", "unknown", "unpriced")

    def __init__(self) -> None:
        self.calls = self.spent = self.estimated = self.unknown = self.saved = self.unpriced = 0


class Entry(msgspec.Struct, frozen=True):
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
    """

    provider: str
    model: str
    calls: int
    spent: Decimal
    estimated: Decimal
    unknown: Decimal
    saved: Decimal
    unpriced: int


class Ledger:
    """The books of one client. Prints as a table.

    Attributes:
        limited: Whether there is a budget.

    Args:
        budget: Picodollars that spent, reserved and unknown together never pass; None for no limit.
    """

    def __init__(self, budget: int | None = None) -> None:
        self._budget = budget
        self.limited = budget is not None
        self._spent = 0
        self._reserved = 0
        self._unknown = 0
        self._rows: dict[tuple[str, str], Row] = {}

    @property
    def budget(self) -> Decimal | None:
        """US dollars that may be spent; None for no limit."""
        return None if self._budget is None else to_dollars(self._budget)

    @property
    def spent(self) -> Decimal:
        """US dollars for answers."""
        return to_dollars(self._spent)

    @property
    def reserved(self) -> Decimal:
        """US dollars that the requests under way may cost at most."""
        return to_dollars(self._reserved)

    @property
    def unknown(self) -> Decimal:
        """US dollars that failed attempts may have cost at most; they count against the budget."""
        return to_dollars(self._unknown)

    @property
    def saved(self) -> Decimal:
        """US dollars saved against the vendors' own prices."""
        return to_dollars(sum(row.saved for row in self._rows.values()))

    @property
    def left(self) -> Decimal | None:
        """US dollars of the budget that are free; None without a budget."""
        return None if self._budget is None else to_dollars(self._budget - self._taken)

    @property
    def _taken(self) -> int:
        return self._spent + self._reserved + self._unknown

    @property
    def entries(self) -> tuple[Entry, ...]:
        """By provider and model, in the order they were first used."""
        return tuple(
            Entry(
                provider,
                model,
                row.calls,
                to_dollars(row.spent),
                to_dollars(row.estimated),
                to_dollars(row.unknown),
                to_dollars(row.saved),
                row.unpriced,
            )
            for (provider, model), row in self._rows.items()
        )

    @property
    def by_provider(self) -> Mapping[str, Decimal]:
        """US dollars spent, by provider."""
        sums: dict[str, int] = {}
        for (provider, _), row in self._rows.items():
            sums[provider] = sums.get(provider, 0) + row.spent
        return {provider: to_dollars(amount) for provider, amount in sums.items()}

    def reserve(self, amount: int) -> int:
        """Take the worst case of a request out of the budget, and return it.

        Raises:
            BudgetExceededError: It does not fit; nothing was taken.
        """
        if self._budget is not None and self._taken + amount > self._budget:
            raise BudgetExceededError(
                f"the call may cost {_dollars(to_dollars(amount))}, and of the budget of "
                f"{_dollars(to_dollars(self._budget))} only {_dollars(to_dollars(self._budget - self._taken))} is "
                "free; nothing was sent. Lower max_tokens, wait for calls under way, or raise the budget"
            )
        self._reserved += amount
        return amount

    def release(self, reserved: int) -> None:
        """Give back what was reserved for a request that can't have been billed."""
        self._reserved -= reserved

    def keep(self, row: Row, reserved: int) -> None:
        """Keep what was reserved for a request whose bill is unknown."""
        self._reserved -= reserved
        self._unknown += reserved
        row.unknown += reserved

    def lose(self, row: Row, amount: int) -> None:
        """Note a bill that is unknown, where nothing had been reserved."""
        self._reserved += amount
        self.keep(row, amount)

    def bring_forward(self, spent: Decimal, unknown: Decimal) -> None:
        """Enter what was spent before this client: US dollars for answers, and of unknown bills. They count too."""
        row = self.row("earlier", "")
        row.spent += from_dollars(spent)
        row.unknown += from_dollars(unknown)
        self._spent += from_dollars(spent)
        self._unknown += from_dollars(unknown)

    def settle(self, row: Row, reserved: int, cost: int | None, saved: int = 0, estimated: bool = False) -> None:
        """Turn what was reserved into what the answer cost; None where the price is unknown."""
        self._reserved -= reserved
        row.calls += 1
        if cost is None:
            row.unpriced += 1
            return
        self._spent += cost
        row.spent += cost
        row.saved += saved
        if estimated:
            row.estimated += cost

    def row(self, provider: str, model: str) -> Row:
        """The row of one provider's model, made where there is none yet."""
        row = self._rows.get((provider, model))
        if row is None:
            row = self._rows[provider, model] = Row()
        return row

    def __str__(self) -> str:
        head = ("provider", "model", "calls", "spent", "unknown", "saved")
        rows = [
            (e.provider, e.model, f"{e.calls:,}", _dollars(e.spent), _dollars(e.unknown), _dollars(e.saved))
            for e in self.entries
        ]
        calls = f"{sum(row.calls for row in self._rows.values()):,}"
        rows.append(("all", "", calls, _dollars(self.spent), _dollars(self.unknown), _dollars(self.saved)))
        widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in (head, *rows)
        ]
        if self._budget is not None:
            lines.append(
                f"budget {_dollars(to_dollars(self._budget))}, reserved {_dollars(self.reserved)}, "
                f"free {_dollars(to_dollars(self._budget - self._taken))}"
            )
        return "\n".join(line.rstrip() for line in lines)

    def __repr__(self) -> str:
        budget = "" if self._budget is None else f" budget={to_dollars(self._budget):f}"
        return f"<Ledger spent={self.spent:f} reserved={self.reserved:f} unknown={self.unknown:f}{budget}>"


def _dollars(amount: Decimal) -> str:
    """To the last digit that counts, two decimals at least."""
    digits = f"{amount:f}".rstrip("0")
    whole, _, part = digits.partition(".")
    return f"${whole}.{part:0<2}"
