"""A limit on open files below the concurrency: the command raises it, the library asks fewer at once."""

from __future__ import annotations

import io
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from piapi_async import Client, run_batch
from piapi_async.cli.batch import raise_open_files
from piapi_async.client.options import FILES_LEFT, fit_open_files
from piapi_async.testing import LocalServer

pytestmark = pytest.mark.anyio

HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@contextmanager
def soft_limit(number: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_the_library_asks_fewer_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (FILES_LEFT + 40, HARD))
    rows = [{"custom_id": f"r{n}", "prompt": f"p{n}"} for n in range(150)]
    at_once: list[int] = []
    async with LocalServer(latency=0.02) as server:
        async with Client(server.api_key, base_url=server.base_url, model="gpt-4o-mini") as client:

            def note(_: object) -> None:
                at_once.append(client.statistics().in_flight)

            status = await run_batch(rows, tmp_path / "out.jsonl", client=client, progress=note)
            assert (status.done, status.failed) == (150, 0)
            assert "so 40 requests go out at once instead of 256; raise the limit with `ulimit -n`" in caplog.text
            caplog.clear()
            async with client.map(map(str, range(150))) as results:
                async for result in results:
                    note(result)
                    assert result.error is None
    assert "so 40 requests go out at once instead of 256" in caplog.text
    assert 20 < max(at_once) <= 40


def test_a_concurrency_that_fits_is_left_as_it_is() -> None:
    with soft_limit(FILES_LEFT + 30):
        assert fit_open_files(30) == 30
        assert fit_open_files(31) == 30


def test_a_limit_so_low_that_nothing_is_left() -> None:
    with soft_limit(FILES_LEFT - 10):
        assert fit_open_files(256) == 1


def test_where_there_is_no_such_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert fit_open_files(10**9) == 10**9
    monkeypatch.setitem(sys.modules, "resource", None)
    assert fit_open_files(10**9) == 10**9


def test_the_command_raises_it() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    with soft_limit(256):
        raise_open_files(100, console)
        assert screen.getvalue() == ""
        raise_open_files(256, console)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == HARD
        said = screen.getvalue()
        assert said.startswith("The limit on open files was 256, too few for 256 requests at once; it is ")
        raise_open_files(10**9, console)  # no further
        assert screen.getvalue() == said


def test_the_command_raises_it_to_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    screen = io.StringIO()
    raise_open_files(256, Console(file=screen, width=200))
    assert "it is any number now" in screen.getvalue()
