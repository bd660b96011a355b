"""Many histories, each drawn from its seed: whatever happens in one, the promises hold."""

from __future__ import annotations

import pytest

from tests.simulation.history import draw
from tests.simulation.search import happen, no_collection, search, told

PARTS = 20
"""Tests among which the histories are shared out, so that all workers have some."""


@pytest.mark.parametrize("part", range(PARTS))
def test_no_history_is_wrong(part: int, request: pytest.FixtureRequest) -> None:
    seeds = range(part, request.config.getoption("--histories"), PARTS)
    outcome = search(seeds)
    assert outcome is None, told(outcome)


def test_a_seed_is_one_history() -> None:
    """The same seed gives the same events, whatever ran before."""
    with no_collection():
        for seed in range(60):
            first = happen(draw(seed), keep=True)
            happen(draw(seed + 1000))
            again = happen(draw(seed), keep=True)
            assert _timed(first.events) == _timed(again.events)
            assert len(first.events) > 3


def _timed(events: tuple[str, ...]) -> list[str]:
    """Events without what tells real time."""
    return [event.partition(", seconds=")[0] for event in events]
