"""What every test shares.

The property tests have three sizes: `quick` (the default), `ci` (with `--slow`), and `nightly` (10⁶ examples each,
hours), which the environment variable HYPOTHESIS_PROFILE chooses: `HYPOTHESIS_PROFILE=nightly pytest -k property`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Never the clock: a busy machine must not fail a test.
_COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("quick", _COMMON, max_examples=60)
settings.register_profile("ci", _COMMON, max_examples=200)
settings.register_profile("nightly", _COMMON, max_examples=1_000_000)


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples each property test tries."""
    usual = "ci" if config.getoption("--slow") else "quick"
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", usual))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The library is asyncio's: aiohttp knows no other loop."""
    return "asyncio"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")
    parser.addoption("--histories", type=int, default=2000, help="how many histories tests/simulation runs")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run folders in two workers. A file or a single test starts sooner, and can be debugged, without."""
    return 2 if all(Path(argument).is_dir() for argument in config.args) else 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests with the mark `slow` out, unless they are asked for."""
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]
