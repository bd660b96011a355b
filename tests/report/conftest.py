"""What the tests of the report share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.pages import Page, make_failure, make_note, many_notes, report, write_results


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A small file of results."""
    return write_results(tmp_path / "results.jsonl", [make_note(0), make_failure(1)])


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of `many_notes`: nothing is missing on it. Drawn once, as it takes longest."""
    return report(tmp_path_factory.mktemp("many"), many_notes())
