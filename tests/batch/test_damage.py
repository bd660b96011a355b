"""What other programs do to the files of a batch: editors, `cat`, copies put in their place; `faults.md` K3."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from piapi_async import BatchError, BatchStatus
from piapi_async.batch.output import Output
from piapi_async.batch.records import read_notes
from piapi_async.testing import LocalServer, Status
from tests.batch.checkpoints import aside, file_limit, line, opened, put
from tests.batch.runs import check_whole, content_of, exists, prompts, refused, run, save, worst_case

pytestmark = pytest.mark.anyio

EDITED: dict[str, Callable[[bytes], bytes]] = {
    "CRLF": lambda content: content.replace(b"\n", b"\r\n"),
    "CRLF, but for the last": lambda content: content.replace(b"\n", b"\r\n")[:-2],
    "BOM": lambda content: b"\xef\xbb\xbf" + content,
    "BOM and CRLF": lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"),
    "blank lines": lambda content: b"\n" + content.replace(b"\n", b"\n \n") + b"\r\n",
}


@pytest.mark.parametrize("edit", EDITED.values(), ids=EDITED)
async def test_what_an_editor_changes_costs_nothing(
    server: LocalServer, out: Path, edit: Callable[[bytes], bytes]
) -> None:
    first = await run(server, prompts(6), out)
    save(out, edit(content_of(out)))
    assert len(list(read_notes(out))) == 6
    again = await run(server, prompts(8), out)
    assert (again.before, again.broken, again.torn, again.aside) == (6, 0, False, None)
    assert again.spent > first.spent
    assert len(server.requests) == 8
    last = await run(server, prompts(8), out)
    assert (last.before, last.spent, len(server.requests)) == (8, again.spent, 8)


async def test_most_lines_broken(server: LocalServer, out: Path) -> None:
    await run(server, prompts(5), out)
    content = content_of(out).replace(b'"custom_id":"id-', b'"custom_id": "id-', 3)
    save(out, content)
    await refused(
        server, prompts(5), out, "3 of its 5 lines are damaged, the first is line 1; nothing was sent or chang"
    )
    assert content_of(out) == content
    assert not exists(aside(out))
    await run(server, prompts(7), out.with_name("others"))


async def test_half_of_the_lines_broken(server: LocalServer, out: Path) -> None:
    await run(server, prompts(4), out)
    broken = [each.replace(b"echo", b"ECHO") for each in content_of(out).splitlines(keepends=True)[:2]]
    save(out, b"".join(broken) + b"".join(content_of(out).splitlines(keepends=True)[2:]) + b'{"id":"batch_req_torn')
    status = await run(server, prompts(4), out)
    assert (status.broken, status.torn, status.aside) == (2, True, str(aside(out)))
    assert content_of(aside(out)) == b"".join(broken) + b'{"id":"batch_req_torn\n'
    check_whole(out, 4)


# -- results of two runs in one file ---------------------------------------------------------------------------------


async def test_two_runs_joined_are_one_batch(server: LocalServer, tmp_path: Path, out: Path) -> None:
    worst = await worst_case(server)
    parts = [tmp_path / "a", tmp_path / "b"]
    statuses: list[BatchStatus] = []
    for start, part in zip((0, 3), parts, strict=True):
        server.faults = [Status(504)]
        statuses.append(await run(server, prompts(3, start), part, concurrency=1, max_tokens=100))
        server.faults = []
        statuses[-1] = await run(server, prompts(3, start), part, retry_failed=True, max_tokens=100)
    assert [status.unknown for status in statuses] == [worst, worst]
    save(out, b"".join(map(content_of, parts)))
    status = await run(server, prompts(6), out, max_tokens=100)
    assert (status.before, status.unknown) == (6, 2 * worst)
    assert status.spent == sum(each.spent for each in statuses)


async def test_a_row_in_both_counts_once(server: LocalServer, tmp_path: Path, out: Path) -> None:
    other = tmp_path / "other"
    server.faults = [Status(503)] * 2
    assert (await run(server, prompts(2), out, concurrency=1)).failed == 2
    await run(server, prompts(1), other)
    save(out, content_of(out) + content_of(other))
    status = await run(server, prompts(2), out)
    assert (status.before, status.done, status.failed) == (2, 1, 1)


# -- None for a parameter --------------------------------------------------------------------------------------------


async def test_none_for_a_parameter_is_the_parameter_left_out(server: LocalServer, out: Path) -> None:
    await run(server, prompts(2), out, temperature=None, max_tokens=None)
    assert (await run(server, prompts(2), out)).before == 2
    assert len(server.requests) == 2


# -- during the run --------------------------------------------------------------------------------------------------


def put_a_copy_in_its_place(out: Path) -> None:
    copy = out.with_name("copy")
    copy.write_bytes(out.read_bytes())
    copy.replace(out)


CHANGED: dict[str, Callable[[Path], object]] = {
    "replaced": put_a_copy_in_its_place,
    "deleted": Path.unlink,
    "cut": lambda out: os.truncate(out, 100),
    "written to": lambda out: os.truncate(out, out.stat().st_size + 1),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
async def test_results_changed_during_the_run(server: LocalServer, out: Path, change: Callable[[Path], object]) -> None:
    saved: list[int] = []

    def progress(status: BatchStatus) -> None:
        if status.done >= 5 and not saved:
            saved.append(status.done)
            change(out)

    with pytest.raises(BatchError, match="another program replaced, cut or wrote it during the run") as caught:
        await run(server, prompts(40), out, concurrency=2, progress=progress)
    assert 1 <= len(caught.value.unsaved) == len(server.requests) - saved[0] <= 2


async def test_the_lock_does_not_live_on_in_a_forked_child(out: Path) -> None:
    (read, write), ready = os.pipe(), os.pipe()
    with opened(out):
        child = os.fork()
        if not child:
            os.write(ready[1], b"x")
            os.read(read, 1)
            os._exit(0)
        os.read(ready[0], 1)
    try:
        with opened(out) as found:  # the child lives, and holds no lock
            assert found.earlier.done == 0
    finally:
        os.write(write, b"x")
        await asyncio.to_thread(os.waitpid, child, 0)
        for fd in (read, write, *ready):
            os.close(fd)


def test_a_lock_that_was_let_go(out: Path) -> None:
    """As a forked child does."""
    output = Output(out, read_only=False)
    output.let_go()
    with opened(out) as found:
        put(found, line(1))
    output.close()
    assert content_of(out) == line(1)


def test_no_room_to_set_aside(out: Path) -> None:
    content = line(1) + b"broken\n" + line(2)
    save(out, content)
    save(aside(out), b"x" * 5000)
    with file_limit(5003), pytest.raises(BatchError, match="File too large"), opened(out):
        pass
    assert (content_of(out), len(content_of(aside(out)))) == (content, 5000)


def test_long_lines_are_copied(out: Path) -> None:
    lines = [line(n, model="m" * (1 << 19)) for n in range(4)]
    save(out, b"broken\n" + b"".join(lines))
    with opened(out) as found:
        assert (found.earlier.done, found.earlier.broken) == (4, 1)
    assert content_of(out) == b"".join(lines)


def test_an_amount_that_is_none(out: Path) -> None:
    for amount in ("x", "NaN", "1e9999999999"):
        out.write_bytes(line(1) + line(2, cost=amount))
        with pytest.raises(BatchError, match="line 2 holds an amount that is no number"), opened(out):
            pass
    out.write_bytes(line(1, unknown="Infinity"))
    with pytest.raises(BatchError, match="line 1 holds an amount"), opened(out):
        pass
    out.write_bytes(line(1, cost="0.5"))
    with opened(out) as found:
        assert found.earlier.spent == Decimal("0.5")
