from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

TEST = """
import aiohttp, pytest

pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"

async def status(server, model):
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"Authorization": "Bearer " + server.api_key}
    async with aiohttp.ClientSession() as session:
        async with session.post(server.base_url + "/chat/completions", json=body, headers=headers) as response:
            return response.status

async def test_default(piapi_server):
    assert await status(piapi_server, "gpt-4o") == 200

@pytest.mark.piapi_server(plan="free")
async def test_options(piapi_server):
    assert await status(piapi_server, "gpt-4o") == 403
"""


def test_the_fixture_serves_and_takes_options(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    # By name, so that it makes no difference whether the package is installed with its entry point.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(TEST)
    plugins = ["-p", "anyio", "-p", "piapi_async.testing.pytest_plugin"]
    result = pytester.runpytest_inprocess("--strict-markers", "-W", "error", *plugins)
    result.assert_outcomes(passed=2)
