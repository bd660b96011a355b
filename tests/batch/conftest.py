"""What the tests of batches share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from piapi_async.testing import LocalServer
from tests.leaks import KEY

pytest.register_assert_rewrite("tests.batch.runs")

from tests.batch.runs import echo  # noqa: E402  # asserts are rewritten only in what is imported after that


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    """A server that repeats the prompt."""
    async with LocalServer(api_key=KEY, answer=echo, faults=[]) as server:
        yield server


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the results go."""
    return tmp_path / "results.jsonl"
