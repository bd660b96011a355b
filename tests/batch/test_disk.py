"""Runs whose results can't be written; `faults.md` K4 and K5."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from piapi_async import BatchError, BatchStatus
from piapi_async.batch.recorder import Flight, Recorder
from piapi_async.batch.records import read_notes
from piapi_async.testing import LocalServer, Status
from tests.batch.checkpoints import file_limit, inflight
from tests.batch.runs import (
    check_whole,
    content_of,
    exists,
    names_in,
    prompts,
    records,
    refused,
    run,
    save,
    until,
    write,
)

pytestmark = pytest.mark.anyio


# -- K4: a full disk -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
async def test_K4_dev_full(server: LocalServer, tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="No space left on device") as caught:
        await run(server, write(tmp_path / "in.jsonl", prompts(50)), "/dev/full", concurrency=4)
    unsaved = [json.loads(line)["custom_id"] for line in caught.value.unsaved]
    assert 1 <= len(unsaved) == len(server.requests) <= 4


async def test_K4_a_row_that_is_let_go_as_it_is_sent(
    server: LocalServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = Recorder.sent

    def late(self: Recorder, flight: Flight) -> None:
        flight.scope.cancel()  # the run has stopped, and the row's task is not told before its next wait
        sent(self, flight)

    monkeypatch.setattr(Recorder, "sent", late)
    status = await run(server, prompts(5), out, concurrency=1)
    assert (status.done, len(status.cut)) == (0, 0)
    assert status.unknown == 0
    assert not server.requests


async def test_K4_disk_full(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(50))
    server.latency = 0.005
    with pytest.raises(BatchError, match="File too large") as caught, file_limit(5000):
        await run(server, source, out, concurrency=4)
    sent, saved = len(server.requests), records(out)
    assert 4 <= len(saved) < sent < 20
    unsaved = [json.loads(line)["custom_id"] for line in caught.value.unsaved]
    assert len(unsaved) + len(saved) == sent
    assert not set(unsaved) & set(saved)
    status = await run(server, source, out)  # there is room again
    assert (status.done, status.before, set(status.maybe_billed)) == (50, len(saved), set(unsaved))
    assert len(server.requests) == 50 + len(unsaved)
    check_whole(out, 50)


async def test_K4_unsaved_results_are_added_by_hand(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(12))
    with pytest.raises(BatchError) as caught, file_limit(3000):
        await run(server, source, out, concurrency=2)
    with out.open("ab") as file:
        file.writelines(caught.value.unsaved)
    sent = len(server.requests)
    status = await run(server, source, out)
    assert status.maybe_billed == ()
    assert status.spent == sum(Decimal(note.cost or 0) for note in read_notes(out))
    assert len(server.requests) == 12 == status.done > sent
    check_whole(out, 12)


async def test_K4_room_again_by_the_end(server: LocalServer, out: Path) -> None:
    async def rows() -> AsyncIterator[dict[str, object]]:
        for row in prompts(9):
            yield row

    with ExitStack() as limit:
        limit.enter_context(file_limit(2000))

        def give_room(status: BatchStatus) -> None:
            if status.stopped:
                limit.close()

        status = await run(server, rows(), out, concurrency=1, progress=give_room)
    assert (status.stopped, status.cut) == ("disk", ())
    assert len(records(out)) == status.done == len(server.requests)
    assert not exists(inflight(out))


async def test_K4_no_room_to_note_what_is_sent(server: LocalServer, out: Path) -> None:
    server.faults = lambda _number, _body: Status(503)  # held back, each with its slot
    with file_limit(1024), pytest.raises(BatchError, match="File too large") as caught:
        await run(server, prompts(50), out, concurrency=1)
    assert len(server.requests) == 4  # the fifth slot had no room, so its request did not go out
    assert [json.loads(line)["custom_id"] for line in caught.value.unsaved]


async def test_K4_a_full_disk_comes_before_a_bad_row(server: LocalServer, out: Path) -> None:
    async def rows() -> AsyncIterator[Any]:
        for row in prompts(3):
            yield row
        await until(lambda: len(server.requests) == 3)
        yield 5

    server.latency = 0.02
    with file_limit(1100), pytest.raises(BatchError, match="File too large") as caught:
        await run(server, rows(), out, concurrency=4)
    assert len(caught.value.unsaved) == 3 - len(records(out)) > 0


# -- K5: paths -------------------------------------------------------------------------------------------------------


async def test_K5_impossible_paths(server: LocalServer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(2))
    target = write(tmp_path / "target", [])
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, match in (
        ("missing/out.jsonl", "its directory does not exist; make it first"),
        (".", "it is a directory; name a file"),
        ("link", "it is a symbolic link, and none is followed"),
        ("dangling", "it is a symbolic link, and none is followed"),
        ("in.jsonl/out.jsonl", "it can not be written: Not a directory"),
    ):
        await refused(server, source, tmp_path / name, match)
    assert not (tmp_path / "nowhere").exists()
    assert target.read_bytes() == b""


async def test_K5_read_only_directory(server: LocalServer, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user may write anywhere")
    await refused(server, write(tmp_path / "in.jsonl", prompts(2)), closed / "out.jsonl", "Permission denied")


@pytest.mark.parametrize("content", [b"My novel\n", b"My novel", b'{"custom_id": "a"}'])
async def test_a_foreign_file_as_output(server: LocalServer, tmp_path: Path, out: Path, content: bytes) -> None:
    save(out, content)
    await refused(server, write(tmp_path / "in.jsonl", prompts(2)), out, "something else than results of a batch")
    assert content_of(out) == content
    assert names_in(tmp_path) == {"in.jsonl", out.name}
