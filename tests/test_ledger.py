"""The books: sums, the budget under every order of callers, how it prints."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest

from piapi_async import BudgetExceededError
from piapi_async.catalog import to_dollars
from piapi_async.ledger import Books, Ledger, carry_forward, show_dollars

CENT = 10**10
"""In picodollars."""


def opened(budget: int | None = None) -> tuple[Books, Ledger]:
    """Books, and what the caller sees of them."""
    books = Books(budget)
    return books, Ledger(books)


def test_money_moves_one_way() -> None:
    books, ledger = opened(5 * CENT)
    assert (ledger.budget, ledger.left) == (Decimal("0.05"), Decimal("0.05"))
    for amount in (CENT, 2 * CENT, CENT):
        books.reserve(amount)
    assert (ledger.reserved, ledger.left) == (Decimal("0.04"), Decimal("0.01"))
    row = books.row("piapi", "gpt-4o")
    books.settle(row, CENT, CENT // 2, saved=CENT // 4, estimated=True)
    books.keep(row, 2 * CENT, 2 * CENT)
    books.release(CENT)
    assert (ledger.spent, ledger.unknown, ledger.reserved) == (Decimal("0.005"), Decimal("0.02"), Decimal(0))
    assert ledger.left == Decimal("0.025")
    (entry,) = ledger.entries
    assert (entry.provider, entry.model, entry.calls, entry.unpriced) == ("piapi", "gpt-4o", 1, 0)
    assert (entry.spent, entry.estimated, entry.unknown) == (Decimal("0.005"), Decimal("0.005"), Decimal("0.02"))
    assert (entry.saved, ledger.saved) == (Decimal("0.0025"), Decimal("0.0025"))


def test_past_the_budget() -> None:
    books, ledger = opened(CENT)
    books.reserve(CENT)
    with pytest.raises(BudgetExceededError, match=r"budget of \$0\.01 only \$0 is free"):
        books.reserve(1)
    assert ledger.reserved == Decimal("0.01")


def test_without_a_budget() -> None:
    books, ledger = opened()
    assert (ledger.budget, ledger.left) == (None, None)
    books.keep(books.row("backup", "m"), 0, CENT)
    books.settle(books.row("backup", "m"), 0, None)
    books.settle(books.row("piapi", "m"), 0, 3)
    assert (ledger.unknown, ledger.reserved, ledger.spent) == (Decimal("0.01"), Decimal(0), Decimal("3e-12"))
    assert ledger.by_provider == {"backup": Decimal(0), "piapi": Decimal("3e-12")}
    assert [(e.provider, e.calls, e.unpriced) for e in ledger.entries] == [("backup", 1, 1), ("piapi", 1, 0)]


def test_an_answer_without_a_price_frees_its_reservation() -> None:
    books, ledger = opened(CENT)
    books.reserve(CENT)
    books.settle(books.row("backup", "m"), CENT, None)
    assert (ledger.reserved, ledger.spent, ledger.left) == (Decimal(0), Decimal(0), Decimal("0.01"))


def test_what_an_earlier_run_spent_counts() -> None:
    books, ledger = opened(5 * CENT)
    carry_forward(ledger, Decimal("0.01"), Decimal("0.02"), Decimal("0.005"))
    assert ledger.saved == Decimal("0.005")
    assert (ledger.spent, ledger.unknown, ledger.left) == (Decimal("0.01"), Decimal("0.02"), Decimal("0.02"))
    assert [(e.provider, e.model, e.calls, e.spent, e.unknown) for e in ledger.entries] == [
        ("earlier", "", 0, Decimal("0.01"), Decimal("0.02"))
    ]
    with pytest.raises(BudgetExceededError):
        books.reserve(2 * CENT + 1)
    books.reserve(2 * CENT)


def test_it_prints_well() -> None:
    books, ledger = opened(500 * CENT)
    books.reserve(CENT)
    books.settle(books.row("piapi", "gpt-4o-mini"), CENT, CENT // 3, saved=CENT // 9)
    books.keep(books.row("backup", "m"), 0, CENT)
    assert str(ledger) == (
        "provider  model        calls            spent  unknown            saved\n"
        "piapi     gpt-4o-mini      1  $0.003333333333       $0  $0.001111111111\n"
        "backup    m                0               $0    $0.01               $0\n"
        "all                        1  $0.003333333333    $0.01  $0.001111111111\n"
        "budget $5.00, reserved $0, free $4.986666666667"
    )
    assert repr(ledger).startswith("<Ledger spent=0.003333333333 reserved=0 unknown=0.01 budget=5")
    unbounded = opened()[1]
    assert "budget" not in f"{unbounded!r} {unbounded}"


def test_it_is_a_table_in_a_notebook() -> None:
    books, ledger = opened(CENT)
    books.settle(books.row("piapi", "gpt-4o"), 0, CENT // 2)
    assert ledger._repr_markdown_().splitlines() == [
        "| provider | model | calls | spent | unknown | saved |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| piapi | gpt-4o | 1 | $0.005 | $0 | $0 |",
        "| all |  | 1 | $0.005 | $0 | $0 |",
        "",
        "budget $0.01, reserved $0, free $0.005",
    ]
    assert opened()[1]._repr_markdown_().splitlines()[-1].startswith("| all |")


@pytest.mark.parametrize("seed", range(100))
def test_K17_no_order_of_64_callers_passes_the_budget(seed: int) -> None:
    """A hundred runs of a hundred steps: ten thousand interleavings of callers that reserve, settle, keep, release."""
    rng = random.Random(seed)
    budget = 100
    books, ledger = opened(budget)
    row = books.row("piapi", "m")
    held: dict[int, int] = {}
    refused = 0
    for _ in range(100):
        caller = rng.randrange(64)
        if caller not in held:
            worst = rng.randint(1, 20)
            try:
                books.reserve(worst)
            except BudgetExceededError:
                refused += 1
            else:
                held[caller] = worst
        else:
            reserved = held.pop(caller)
            end = rng.choice(("settle", "keep", "release"))
            if end == "settle":
                books.settle(row, reserved, rng.randint(0, reserved))
            elif end == "keep":
                books.keep(row, reserved, reserved)
            else:
                books.release(reserved)
        taken = ledger.spent + ledger.reserved + ledger.unknown
        assert taken <= Decimal(budget).scaleb(-12)
        assert ledger.reserved == Decimal(sum(held.values())).scaleb(-12)
    assert refused


def test_K18_sums_are_exact() -> None:
    books, ledger = opened()
    row = books.row("piapi", "m")
    for _ in range(1_000_000):
        books.settle(row, 0, 112_501)
    assert ledger.spent == Decimal("0.112501")


@pytest.mark.parametrize(
    ("picodollars", "printed", "said"),
    [
        (0, "0", "$0"),
        (10**12, "1", "$1.00"),
        (10**14, "100", "$100.00"),
        (25 * 10**11, "2.5", "$2.50"),
        (16_875_000, "0.000016875", "$0.000016875"),
        (-(10**11), "-0.1", "-$0.10"),
    ],
)
def test_amounts_print_as_people_write_them(picodollars: int, printed: str, said: str) -> None:
    assert str(to_dollars(picodollars)) == printed
    assert show_dollars(picodollars) == said
