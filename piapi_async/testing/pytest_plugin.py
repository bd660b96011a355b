"""The pytest fixture `piapi_server`: a new `LocalServer` for each test.

It runs in the test's own event loop, by way of anyio's pytest plugin, so mark the test `anyio`. A mark can set options:

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
    """Register the mark, for `--strict-markers`."""
    config.addinivalue_line("markers", "piapi_server(**options): options of LocalServer for the fixture piapi_server")


@pytest.fixture
async def piapi_server(request: pytest.FixtureRequest, anyio_backend: object) -> AsyncIterator[LocalServer]:
    """Serve PiAPI's API on loopback while the test runs; see `LocalServer`."""
    # Imported here because most test runs that load this plugin never start a server.
    from piapi_async.testing.server import LocalServer

    mark: pytest.Mark | None = request.node.get_closest_marker("piapi_server")
    async with LocalServer(**(mark.kwargs if mark else {})) as server:
        yield server
