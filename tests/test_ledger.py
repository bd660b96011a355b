"""The books: sums, the budget under every order of callers, how it prints."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest

from piapi_async import BudgetExceededError
from piapi_async.ledger import Ledger

CENT = 10**10
"""In picodollars."""


def test_money_moves_one_way() -> None:
    ledger = Ledger(5 * CENT)
    assert (ledger.budget, ledger.left) == (Decimal("0.05"), Decimal("0.05"))
    first, second, third = ledger.reserve(CENT), ledger.reserve(2 * CENT), ledger.reserve(CENT)
    assert (ledger.reserved, ledger.left) == (Decimal("0.04"), Decimal("0.01"))
    row = ledger.row("piapi", "gpt-4o")
    ledger.settle(row, first, CENT // 2, saved=CENT // 4, estimated=True)
    ledger.keep(row, second)
    ledger.release(third)
    assert (ledger.spent, ledger.unknown, ledger.reserved) == (Decimal("0.005"), Decimal("0.02"), Decimal(0))
    assert ledger.left == Decimal("0.025")
    (entry,) = ledger.entries
    assert (entry.provider, entry.model, entry.calls, entry.unpriced) == ("piapi", "gpt-4o", 1, 0)
    assert (entry.spent, entry.estimated, entry.unknown) == (Decimal("0.005"), Decimal("0.005"), Decimal("0.02"))
    assert (entry.saved, ledger.saved) == (Decimal("0.0025"), Decimal("0.0025"))


def test_past_the_budget() -> None:
    ledger = Ledger(CENT)
    ledger.reserve(CENT)
    with pytest.raises(BudgetExceededError, match=r"budget of \$0\.01 only \$0\.00 is free"):
        ledger.reserve(1)
    assert ledger.reserved == Decimal("0.01")


def test_without_a_budget() -> None:
    ledger = Ledger()
    assert (ledger.budget, ledger.left) == (None, None)
    ledger.lose(ledger.row("backup", "m"), CENT)
    ledger.settle(ledger.row("backup", "m"), ledger.reserve(0), None)
    ledger.settle(ledger.row("piapi", "m"), ledger.reserve(0), 3)
    assert (ledger.unknown, ledger.reserved, ledger.spent) == (Decimal("0.01"), Decimal(0), Decimal("3e-12"))
    assert ledger.by_provider == {"backup": Decimal(0), "piapi": Decimal("3e-12")}
    assert [(e.provider, e.calls, e.unpriced) for e in ledger.entries] == [("backup", 1, 1), ("piapi", 1, 0)]


def test_it_prints_well() -> None:
    ledger = Ledger(500 * CENT)
    ledger.settle(ledger.row("piapi", "gpt-4o-mini"), ledger.reserve(CENT), CENT // 3, saved=CENT // 9)
    ledger.lose(ledger.row("backup", "m"), CENT)
    assert str(ledger) == (
        "provider  model        calls            spent  unknown            saved\n"
        "piapi     gpt-4o-mini      1  $0.003333333333    $0.00  $0.001111111111\n"
        "backup    m                0            $0.00    $0.01            $0.00\n"
        "all                        1  $0.003333333333    $0.01  $0.001111111111\n"
        "budget $5.00, reserved $0.00, free $4.986666666667"
    )
    assert repr(ledger).startswith(
        "<Ledger spent=0.003333333333 reserved=0.000000000000 unknown=0.010000000000 budget=5"
    )
    assert "budget" not in f"{Ledger()!r} {Ledger()}"


@pytest.mark.parametrize("seed", range(100))
def test_K17_no_order_of_64_callers_passes_the_budget(seed: int) -> None:
    """A hundred runs of a hundred steps: ten thousand interleavings of callers that reserve, settle, keep, release."""
    dice = random.Random(seed)
    budget = 100
    ledger = Ledger(budget)
    row = ledger.row("piapi", "m")
    held: dict[int, int] = {}
    refused = 0
    for _ in range(100):
        caller = dice.randrange(64)
        if caller not in held:
            try:
                held[caller] = ledger.reserve(dice.randint(1, 20))
            except BudgetExceededError:
                refused += 1
        else:
            reserved = held.pop(caller)
            end = dice.choice(("settle", "keep", "release"))
            if end == "settle":
                ledger.settle(row, reserved, dice.randint(0, reserved))
            elif end == "keep":
                ledger.keep(row, reserved)
            else:
                ledger.release(reserved)
        taken = ledger.spent + ledger.reserved + ledger.unknown
        assert taken <= Decimal(budget).scaleb(-12)
        assert ledger.reserved == Decimal(sum(held.values())).scaleb(-12)
    assert refused


def test_K18_sums_are_exact() -> None:
    ledger = Ledger()
    row = ledger.row("piapi", "m")
    for _ in range(1_000_000):
        ledger.settle(row, 0, 112_501)
    assert ledger.spent == Decimal("0.112501")
