"""The pytest fixture `piapi_server`: a fresh `LocalServer` for a test.

It runs in the test's own event loop by anyio's pytest plugin, so the test is marked `anyio`. Options come with a mark:

    @pytest.mark.anyio
    @pytest.mark.piapi_server(plan="free")
    async def test_refused(piapi_server): ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from piapi_async.testing.server import LocalServer


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known, for `--strict-markers`."""
    config.addinivalue_line("markers", "piapi_server(**options): options of LocalServer for the fixture piapi_server")


@pytest.fixture
async def piapi_server(request: pytest.FixtureRequest, anyio_backend: object) -> AsyncIterator[LocalServer]:
    """Serve PiAPI's API on loopback while the test runs; see `LocalServer`."""
    # Here, not above: most test runs that load this plugin never start a server.
    from piapi_async.testing.server import LocalServer

    mark: pytest.Mark | None = request.node.get_closest_marker("piapi_server")
    async with LocalServer(**(mark.kwargs if mark else {})) as server:
        yield server
