"""The file of results: its path and its lock; `faults.md` K5 to K7."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from piapi_async import BatchError
from piapi_async.batch.checkpoint import Checkpoint
from tests.batch.checkpoints import line, opened, put

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
