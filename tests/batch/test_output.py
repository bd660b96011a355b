"""The file of results: its path and its lock; `faults.md` K5 to K7."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from piapi_async import BatchError
from piapi_async.batch.checkpoint import Checkpoint
from piapi_async.batch.output import explain
from tests.batch.checkpoints import line, opened, put

pytestmark = pytest.mark.anyio

# -- K5 to K7: the path and the lock ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["results.jsonl", "results.jsonl.inflight"])
def test_K5_a_link_is_not_followed(out: Path, name: str) -> None:
    target = out.parent / "precious"
    target.write_bytes(b"precious")
    link = out.parent / name
    link.symlink_to(target)
    with pytest.raises(BatchError):
        Checkpoint(out)
    if link == out:
        with pytest.raises(BatchError, match="symbolic link"):
            Checkpoint(out, read_only=True)
    assert target.read_bytes() == b"precious"
    link.unlink()
    with opened(out) as found:  # it had let the lock go
        put(found, line(1))


@pytest.mark.parametrize("what", ["directory", "pipe", "link"])
@pytest.mark.parametrize("name", ["inflight", "set-aside"])
def test_something_else_has_the_name_of_a_file_beside_the_results(out: Path, name: str, what: str) -> None:
    out.write_bytes(line(1) + b"broken\n" + line(2))
    other = out.with_name(f"{out.name}.{name}")
    make: dict[str, Callable[[], None]] = {
        "directory": other.mkdir,
        "pipe": lambda: os.mkfifo(other),
        "link": lambda: other.symlink_to("nowhere"),
    }
    make[what]()
    with pytest.raises(BatchError, match=rf"jsonl\.{name}: it is no regular file.*move it away"), opened(out):
        pass
    assert out.read_bytes() == line(1) + b"broken\n" + line(2)
    (other.rmdir if what == "directory" else other.unlink)()
    with opened(out) as found:  # it had let the lock go
        assert found.earlier.done == 2


def test_a_directory_in_place_of_a_repair_leaves_no_lock(out: Path) -> None:
    other = out.with_name(f"{out.name}.repaired")
    other.mkdir()
    with pytest.raises(BatchError, match=r"jsonl\.repaired: it is no regular file"):
        Checkpoint(out)
    other.rmdir()
    with opened(out) as found:
        put(found, line(1))


def test_a_program_that_goes_to_another_directory(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = out.parent / "elsewhere"
    elsewhere.mkdir()
    out.write_bytes(line(1) + b"broken\n" + line(2))
    monkeypatch.chdir(out.parent)
    found = Checkpoint(out.name)
    monkeypatch.chdir(elsewhere)
    list(found.load())
    put(found, line(3))
    found.close()
    assert out.read_bytes() == line(1) + line(2) + line(3)
    assert not list(elsewhere.iterdir())
    assert {path.name for path in out.parent.iterdir()} == {out.name, f"{out.name}.set-aside", "elsewhere"}


def test_a_named_pipe_that_nobody_reads(out: Path) -> None:
    os.mkfifo(out)
    with pytest.raises(BatchError, match="nobody reads from it"):
        Checkpoint(out)


async def test_the_reader_of_a_named_pipe_leaves(out: Path) -> None:
    os.mkfifo(out)
    reader = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    found = Checkpoint(out)
    put(found, line(1))
    await found.written()
    assert os.read(reader, 1 << 16) == line(1)
    os.close(reader)
    put(found, line(2))
    await found.written()
    with pytest.raises(BatchError, match="its reader is gone") as caught:
        found.close()
    assert caught.value.unsaved == (line(2),)


def test_K6_two_on_one_file(out: Path) -> None:
    out.write_bytes(line(1) + b"broken\n")
    with opened(out) as first:
        for options in ({}, {"retry_failed": True}):
            with pytest.raises(BatchError, match="another batch is writing it"):
                Checkpoint(out, **cast("Any", options))
        put(first, line(2))
    with opened(out) as second:
        assert second.earlier.done == 2


def test_K6_a_repair_between_opening_and_locking(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out.write_bytes(line(1))
    repaired = out.with_name("repaired")
    repaired.write_bytes(line(1) + line(2))
    flock = fcntl.flock
    calls: list[int] = []

    def late(fd: int, how: int) -> None:
        if not calls:
            repaired.replace(out)
        calls.append(fd)
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with opened(out) as found:
        assert found.earlier.done == 2
    assert len(calls) == 2


HOLD = """
import sys
from piapi_async.batch.checkpoint import Checkpoint
from piapi_async.batch.output import explain
found = Checkpoint(sys.argv[1])
print("locked", flush=True)
sys.stdin.read()  # until it is killed
"""


def test_K7_the_lock_dies_with_its_process(out: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdin=pipe, stdout=pipe) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"locked\n"
            with pytest.raises(BatchError, match="another batch"):
                Checkpoint(out)
        finally:
            holder.kill()
    with opened(out) as found:
        put(found, line(1))
    assert out.read_bytes() == line(1)


def test_a_file_beside_the_results_that_may_not_be_written_is_named(out: Path) -> None:
    beside = f"{out}.inflight"
    error = explain(out, PermissionError(errno.EACCES, "Permission denied", beside))
    assert str(error) == f"{beside}: it can not be written: Permission denied; choose another place"
