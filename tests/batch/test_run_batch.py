"""`run_batch`: how a run goes and when it ends; `faults.md` K14 and K21."""

from __future__ import annotations

import gc
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from piapi_async import BatchStatus, ChatCompletion, Client, ConfigurationError, Limits, Retry, run_batch
from piapi_async.batch.records import read_notes
from piapi_async.testing import Garbage, LocalServer, Stall, Status
from tests.batch.runs import (
    MODEL,
    check_whole,
    content_of,
    ended,
    opened,
    prompts,
    records,
    run,
    text,
    until,
    write,
)
from tests.leaks import KEY, PROMPT
from tests.wires import completion

pytestmark = pytest.mark.anyio


def test_every_row_of_section_k_has_a_test() -> None:
    tests = (path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    tested = {name for text in tests for name in re.findall(r"def test_(K\d+)_", text)}
    assert tested == {f"K{row}" for row in range(1, 24)}


# -- K14: told to end ------------------------------------------------------------------------------------------------


async def test_K14_what_is_under_way_is_saved(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(20))
    server.latency = 0.1
    status = await ended(server, source, out)
    assert (status.stopped, status.done, status.pending, status.cut) == ("interrupted", 4, 16, ())
    assert len(server.requests) == 4
    check_whole(out, 4)
    server.latency = 0
    assert (await run(server, source, out)).done == 20
    assert len(server.requests) == 20


async def test_K14_what_does_not_come_in_is_listed(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(20))
    server.faults = lambda _number, _body: Stall()
    status = await ended(server, source, out, grace=0.02)
    assert (status.stopped, status.done, status.failed) == ("interrupted", 0, 0)
    assert set(status.cut) == {f"id-{n}" for n in range(4)}
    assert content_of(out) == b""
    server.faults = []
    status = await run(server, source, out)
    assert set(status.maybe_billed) == {f"id-{n}" for n in range(4)}
    assert status.cut == ()
    check_whole(out, 20)


async def test_K14_what_waits_to_be_sent_is_let_go(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(20))
    server.latency = 0.1
    status = await ended(server, source, out, concurrency=12, options={"limits": Limits(concurrency=4)})
    assert (status.done, status.failed, len(server.requests)) == (4, 0, 4)
    check_whole(out, 4)


async def test_K14_told_before_it_began(server: LocalServer, tmp_path: Path, out: Path) -> None:
    ending = anyio.Event()
    ending.set()
    status = await run(server, write(tmp_path / "in.jsonl", prompts(9)), out, ending=ending)
    assert (status.stopped, status.pending, server.requests) == ("interrupted", 9, [])


async def test_K14_a_task_that_is_cancelled(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(20))
    server.faults = [None] * 5 + [Stall()] * 4
    async with anyio.create_task_group() as group:

        async def begin() -> None:
            await run(server, source, out, concurrency=4)

        group.start_soon(begin)
        await until(lambda: len(server.requests) == 9)
        group.cancel_scope.cancel()
    check = records(out)
    assert len(check) == 5
    status = await run(server, source, out)
    assert len(status.maybe_billed) == 4
    assert not set(status.maybe_billed) & set(check)
    check_whole(out, 20)
    assert len(server.requests) == 24


async def test_K14_deadline(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(20))
    server.faults = [None] * 5 + [Stall()] * 4
    status = await run(server, source, out, concurrency=4, deadline=0.8)
    assert (status.stopped, status.done, status.failed, status.pending) == ("deadline", 5, 0, 15)
    assert len(status.cut) == 4
    assert len(server.requests) == 9
    assert (await run(server, source, out, deadline=60)).done == 20


async def test_the_status_is_up_to_date_while_nothing_comes_in(server: LocalServer, out: Path) -> None:
    server.faults = lambda _number, _body: Stall()
    seen: list[BatchStatus] = []
    async with anyio.create_task_group() as group:

        async def begin() -> None:
            await run(server, prompts(9), out, concurrency=4, progress=seen.append)

        group.start_soon(begin)
        await until(lambda: len(server.requests) == 4)
        assert [status.under_way for status in seen] == [4]
        group.cancel_scope.cancel()
    assert seen[0].under_way == 0


async def test_the_callers_errors_come_out(server: LocalServer, tmp_path: Path, out: Path) -> None:
    def complain(status: BatchStatus) -> None:
        raise LookupError("the window is closed")

    source = write(tmp_path / "in.jsonl", prompts(2))
    with pytest.raises(LookupError):
        await run(server, source, out, progress=complain)
    with pytest.raises(ConfigurationError, match="concurrency"):
        await run(server, source, out, concurrency=0)
    with pytest.raises(RuntimeError, match="the client is not open"):
        await run_batch(source, out, client=Client(KEY, base_url=server.base_url, model=MODEL))
    assert server.requests == []
    assert (await run(server, source, out)).done == 2


# -- K21: one slow row -----------------------------------------------------------------------------------------------


async def test_K21_a_slow_row_stops_no_other(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(50))
    server.faults = [Stall()]
    others = anyio.Event()

    def watch(status: BatchStatus) -> None:
        if status.done == 49:
            others.set()

    async def begin() -> None:
        await run(server, source, out, concurrency=2, progress=watch)

    async with anyio.create_task_group() as group:
        group.start_soon(begin)
        with anyio.fail_after(20):
            await others.wait()
        assert set(records(out)) == {f"id-{n}" for n in range(1, 50)}
        await server.close()  # the slow row fails, as the last one
    assert list(records(out))[-1] == "id-0"


# -- retries, odd answers, memory ------------------------------------------------------------------------------------


async def test_retries_run_beside_first_attempts(server: LocalServer, tmp_path: Path, out: Path) -> None:
    seen: list[str] = []

    def first_of_some(_number: int, body: Any) -> Status | None:
        prompt = body["messages"][0]["content"]
        seen.append(prompt)
        return Status(503) if seen.count(prompt) == 1 and prompt.endswith("7") else None

    server.faults = first_of_some
    source = write(tmp_path / "in.jsonl", prompts(60))
    status = await run(server, source, out, options={"retry": Retry(base=0.001)}, concurrency=8)
    assert (status.done, status.failed) == (60, 0)
    check_whole(out, 60)
    assert Counter(note.attempts for note in read_notes(out)) == {1: 54, 2: 6}


async def test_a_lone_surrogate_in_an_answer(out: Path) -> None:
    async with LocalServer(api_key=KEY, faults=[]) as server:
        half = completion("half \\").replace(b"half \\\\", b"half \\ud83d")
        server.faults = [Garbage(half)]
        status = await run(server, ["x"], out)
    assert (status.done, status.failed) == (1, 0)
    assert text(records(out)["row-1"]).startswith("half ")


class InstantClient(Client):
    """Has its answer at once, so that a long batch takes little time."""

    answer: ChatCompletion

    async def complete(self, prompt: Any, **options: Any) -> ChatCompletion:
        options["on_send"]()
        await anyio.lowlevel.checkpoint()
        return self.answer


async def test_memory_is_flat(server: LocalServer, out: Path) -> None:
    """Counted in blocks of memory: if each row left a single object behind, there would be 1,500 more."""
    blocks: list[int] = []

    def rows() -> Iterator[str]:
        for n in range(2000):
            if n in (499, 1999):
                gc.collect()
                blocks.append(sys.getallocatedblocks())
            yield f"{PROMPT} {n}"

    async with opened(server) as client:
        answer = await client.complete("x")
    async with InstantClient(KEY, model=MODEL) as client:
        client.answer = answer
        status = await run_batch(rows(), out, client=client, concurrency=64)
    assert status.done == 2000
    assert blocks[1] - blocks[0] < 750, blocks
