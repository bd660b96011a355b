"""Runs of a batch, each of which may be killed, cancelled or told to end, until every row has its result."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterable, Iterable, Mapping
from pathlib import Path
from typing import Any

import anyio
import attrs

from piapi_async import BatchStatus, run_batch
from tests.simulation.callers import OwnError, inputs, stumble
from tests.simulation.history import Caller
from tests.simulation.loop import Strike
from tests.simulation.world import World, prompt_of

_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None

MOST_RUNS = 3
"""Runs of a batch: the one that is ended, one more with the same providers, and one with providers that are well."""

STOPS: Mapping[str, tuple[str | None, ...]] = {"told": ("interrupted",), "deadline": ("deadline",)}
"""Why a run may end early, by `history.ENDINGS`; besides what any run may be stopped by."""


async def run_batches(world: World, caller: Caller) -> None:
    """Run a batch until every row has its result."""
    folder = Path(tempfile.mkdtemp(prefix="piapi-async-", dir=_MEMORY))
    files = _open_files()
    try:
        path = folder / "first" / "results.jsonl"
        path.parent.mkdir()
        path = await _run(world, caller, path)
        again = attrs.evolve(caller, ending="none", input="list", stumbles=0)
        world.begin_again()
        path = await _run(world, again, path)
        world.begin_again(healed=True)
        await _run(world, again, path)
        _check_results(world, caller, path)
        if _open_files() != files:
            world.wrong("a file stays open")
    finally:
        shutil.rmtree(folder)


async def _run(world: World, caller: Caller, path: Path) -> Path:
    """Run it once, and return where its results are: a process that is killed leaves the files as they are then."""
    client = world.client
    await client.open()
    copy = path.parent.with_name(f"{path.parent.name}-killed")

    def strike_before() -> None:
        world.note(f"the run is {caller.ending}")
        if caller.ending == "killed":
            shutil.copytree(path.parent, copy)
            world.kill()

    strike = Strike(caller.at if caller.ending in ("killed", "cancelled") else 0, before=strike_before)
    task = strike.start(_batch(world, caller, path))
    await asyncio.wait([task])
    if task.cancelled():
        world.note("the run was cancelled")
        if not strike.struck:
            world.wrong("the run raised CancelledError, and nobody cancelled it")
    elif error := task.exception():
        world.note(f"the run raised {error!r}")
        if not isinstance(error, OwnError) or not (caller.stumbles or caller.input == "raises"):
            world.wrong(f"the run raised {error!r}")
    else:
        _check_status(world, caller, task.result())
    await world.check_idle()
    if not world.provider.dead:
        world.check_bills()
    await client.aclose()
    return copy / path.name if copy.is_dir() else path


async def _batch(world: World, caller: Caller, path: Path) -> BatchStatus:
    step = stumble(caller)
    ending = anyio.Event() if caller.ending == "told" else None
    timer = None if ending is None else asyncio.get_running_loop().call_later(caller.at, ending.set)
    try:
        return await run_batch(
            _rows(caller, path),
            path,
            client=world.client,
            concurrency=caller.width,
            stream=caller.via_stream is True,
            retry_failed=caller.retry_failed,
            deadline=caller.at or 0.1 if caller.ending == "deadline" else None,
            ending=ending,
            progress=None if step is None else lambda _: step(),
            n=caller.choices,
            max_tokens=caller.most,
        )
    finally:
        if timer is not None:
            timer.cancel()


def _rows(caller: Caller, path: Path) -> str | Iterable[Any] | AsyncIterable[Any]:
    rows = [{"custom_id": f"r{i}", "prompt": prompt_of(f"r{i}")} for i in range(caller.items)]
    if caller.input != "file":
        return inputs(caller, rows)
    file = path.with_name("rows.jsonl")
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(file)


def _check_status(world: World, caller: Caller, status: BatchStatus) -> None:
    world.note(f"the run ended: {status}")
    usual = (None, "failures", "key", *(("budget",) if world.budget is not None else ()))
    if status.stopped not in (*usual, *STOPS.get(caller.ending, ())):
        world.wrong(f"the run stopped: {status.stopped}")
    if status.stopped is None and (status.done + status.failed, status.pending) != (caller.items, status.pending and 0):
        world.wrong(f"{status.done} rows done, {status.failed} failed, and there are {caller.items}")


def _check_results(world: World, caller: Caller, path: Path) -> None:
    """Each row has exactly one result, and no request is taken for one in flight any more."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    ids = sorted(line["custom_id"] for line in lines)
    if ids != [f"r{i}" for i in range(caller.items)]:
        world.wrong(f"{caller.items} rows have the results {ids}")
    for line in lines:
        if line["error"] is None:
            message = line["response"]["body"]["choices"][0]["message"]
            calls = message.get("tool_calls")
            text = calls[0]["function"]["arguments"] if calls else message.get("content") or ""
            world.check_text(line["custom_id"], text)
    others = {each.name for each in path.parent.iterdir()} - {path.name, "rows.jsonl"}
    if others:
        world.wrong(f"beside the results there are {others}")


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
