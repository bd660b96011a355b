"""Runs of a batch against a local server, and what they leave."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import openai.types.chat
import pytest

from piapi_async import BatchError, BatchStatus, Client, Timeout, run_batch
from piapi_async.testing import LocalServer
from tests.batch.checkpoints import inflight
from tests.leaks import KEY, PROMPT, assert_tight
from tests.wires import ONCE

MODEL = "gpt-4o-mini"


def echo(messages: Any) -> str:
    return f"echo: {messages[-1]['content']}"


@asynccontextmanager
async def opened(server: LocalServer, **options: Any) -> AsyncIterator[Client]:
    """A client of the server, without retries."""
    options = {"model": MODEL, "retry": ONCE, "timeout": Timeout(connect=5), **options}
    async with Client(KEY, base_url=server.base_url, **options) as client:
        yield client


# -- runs ------------------------------------------------------------------------------------------------------------


async def run(
    server: LocalServer, requests: Any, out: Any, *, options: Mapping[str, Any] | None = None, **arguments: Any
) -> BatchStatus:
    """One run, with a client of its own. It never takes more than half a minute."""
    with anyio.fail_after(30):
        async with opened(server, **(options or {})) as client:
            return await run_batch(requests, out, client=client, **arguments)


async def refused(server: LocalServer, requests: Any, out: Any, match: str, **arguments: Any) -> None:
    """A run that must not begin."""
    sent = len(server.requests)
    with pytest.raises(BatchError, match=match) as caught:
        await run(server, requests, out, **arguments)
    assert_tight(caught.value)
    assert len(server.requests) == sent


async def ended(server: LocalServer, source: Any, out: Path, *, sent: int = 4, **arguments: Any) -> BatchStatus:
    """A run that is told to end when so many requests are in flight."""
    ending = anyio.Event()
    before = len(server.requests)
    found: list[BatchStatus] = []

    async def begin() -> None:
        found.append(await run(server, source, out, ending=ending, **{"concurrency": sent, "grace": 10, **arguments}))

    async with anyio.create_task_group() as group:
        group.start_soon(begin)
        await until(lambda: len(server.requests) - before == sent)
        ending.set()
    return found[0]


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)


async def worst_case(server: LocalServer) -> Decimal:
    """What a row of `prompts` may cost with `max_tokens=100`."""
    async with opened(server) as client:
        worst = client.quote(f"{PROMPT} 0", max_tokens=100).most
    assert worst is not None
    return worst


# -- what goes in ----------------------------------------------------------------------------------------------------


def prompts(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"custom_id": f"id-{n}", "prompt": f"{PROMPT} {n}"} for n in range(start, start + count)]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@contextmanager
def standard_streams(*, stdin: int = 0, stdout: int = 1) -> Iterator[None]:
    """Put other files in the places of standard input and output. They are closed at the end."""
    with ExitStack() as undo:
        for number, fd in ((0, stdin), (1, stdout)):
            if fd != number:
                undo.callback(os.close, fd)
                before = os.dup(number)
                undo.callback(os.close, before)
                undo.callback(os.dup2, before, number)
                os.dup2(fd, number)
        yield


# -- what comes out --------------------------------------------------------------------------------------------------


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def save(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def exists(path: Path) -> bool:
    return path.exists()


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def records(out: Path) -> dict[str, Any]:
    """The records of a file of results, by id. Each is there once, and each answer is what the SDK takes for one."""
    lines = [json.loads(line) for line in out.read_bytes().splitlines()]
    found = {record["custom_id"]: record for record in lines}
    assert len(found) == len(lines)
    for record in lines:
        assert record["id"].startswith("batch_req_")
        if record["error"] is None:
            assert record["response"]["status_code"] == 200
            openai.types.chat.ChatCompletion.model_validate(record["response"]["body"])
    return found


def text(record: Any) -> str:
    return str(record["response"]["body"]["choices"][0]["message"]["content"])


def check_whole(out: Path, count: int) -> None:
    """Every row has its own answer."""
    found = records(out)
    assert {name: text(record) for name, record in found.items()} == {
        f"id-{n}": f"echo: {PROMPT} {n}" for n in range(count)
    }
    assert not inflight(out).exists()
