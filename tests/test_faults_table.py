"""`faults.md` and the tests agree: a reader finds the row of a numbered test, and the tests of a row."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = TESTS / "faults.md"
SECTIONS = {"A": 8, "B": 11, "C": 19, "D": 18, "E": 30, "F": 13, "G": 11, "H": 17, "I": 14, "J": 14, "K": 23}
"""The sections of the table, with their number of rows."""

NUMBERS = [f"{section}{row}" for section, rows in SECTIONS.items() for row in range(1, rows + 1)]


def read_table() -> list[tuple[str, list[str]]]:
    """Each row's number, with the tests that its last cell names."""
    rows = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if re.match(r"\| [A-Z]\d", line)]
    assert {len(cells) for cells in rows} == {5}
    return [(cells[0], re.findall(r"`(\w+)`", cells[-1])) for cells in rows]


@cache
def count_tests() -> Counter[str]:
    """How often each test function is defined. Files are parsed rather than imported, so that none is missed."""
    nodes = [node for path in TESTS.rglob("test_*.py") for node in ast.parse(path.read_bytes()).body]
    names = [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return Counter(name for name in names if name.startswith("test_"))


def numbers_of(test: str) -> list[str]:
    """The rows that a test is named after: `test_G1_G3_…` belongs to two."""
    found = re.match(r"test_((?:[A-Z]\d+_)+)", test)
    return found[1].rstrip("_").split("_") if found else []


def test_every_number_has_one_row() -> None:
    assert [number for number, _ in read_table()] == NUMBERS


def test_every_row_has_a_test_named_after_it() -> None:
    assert [row for row, named in read_table() if not any(row in numbers_of(test) for test in named)] == []


def test_every_test_that_is_named_exists_once() -> None:
    count = count_tests()
    assert {(row, test): count[test] for row, named in read_table() for test in named if count[test] != 1} == {}


def test_every_numbered_test_is_in_its_row() -> None:
    table = dict(read_table())
    numbered = {(row, test) for test in count_tests() for row in numbers_of(test)}
    assert numbered
    assert {(row, test) for row, test in numbered if test not in table.get(row, [])} == set()
