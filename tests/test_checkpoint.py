"""The files of a batch, byte by byte: cut, flipped, locked, full, old and large; `faults.md` K2 to K7, K22, K23."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import stat
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async import BatchError, checkpoint
from piapi_async.checkpoint import NO_SLOT, SLOT, Checkpoint, Note, key_of, make_line, read_notes

REQUEST = "0123456789abcdef"
NOTHING = Decimal(0)


def line(number: int, *, request: str = REQUEST, **note: Any) -> bytes:
    """The result of row `row-N`."""
    name = f"row-{number}"
    body = {"choices": [{"message": {"content": f"answer {number}, \N{SNOWMAN}"}}]}
    response = None if note.get("failed") else {"status_code": 200, "request_id": "", "body": body}
    return make_line(name, response, None, Note(key=key_of(name), request=request, **note))


@contextmanager
def opened(path: str | os.PathLike[str], **options: Any) -> Iterator[Checkpoint]:
    """A checkpoint that has read what is there."""
    found = Checkpoint(path, **options)
    try:
        for _ in found.load():
            pass
        yield found
    except BaseException:
        found.close()
        raise
    found.close()


def is_pending(found: Checkpoint, number: int, request: str = REQUEST) -> bool:
    name = f"row-{number}"
    return found.admit(name, key_of(name), request, f"line {number}")


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: a disk that is full, as writing sees it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def inflight(out: Path) -> Path:
    return out.with_name(f"{out.name}.inflight")


# -- a line ----------------------------------------------------------------------------------------------------------


def test_a_line_is_json_with_a_note(out: Path) -> None:
    note = Note(key=key_of("a"), request=REQUEST, cost="0.25", tokens_in=3, latency=1.5)
    record = json.loads(make_line("a", {"status_code": 200}, None, note))
    assert record.pop("piapi_async")["crc"]
    assert record == {
        "id": f"batch_req_{key_of('a')}",
        "custom_id": "a",
        "response": {"status_code": 200},
        "error": None,
    }
    out.write_bytes(make_line("a", None, None, note) + b"garbage\n" + line(2)[:-9])
    assert list(read_notes(out)) == [note]


@pytest.mark.parametrize(
    "name", ['", "piapi_async":{"version":9', ',"piapi_async":{"crc":"', "\n\0\u2028", "\N{SNOWMAN}" * 9]
)
def test_an_id_can_hold_anything(out: Path, name: str) -> None:
    content = make_line(name, {"body": {"x": ',"piapi_async":'}}, None, Note(key=key_of(name), request=REQUEST))
    assert content.count(b"\n") == 1
    assert json.loads(content)["custom_id"] == name
    out.write_bytes(content)
    with opened(out) as found:
        assert (found.done, found.broken, found.torn) == (1, 0, False)
        assert not found.admit(name, key_of(name), REQUEST, "line 1")


# -- what is there already -------------------------------------------------------------------------------------------


def test_sums_of_earlier_runs(out: Path) -> None:
    lines = [line(1, cost="0.1"), line(2, cost="0.2", unknown="0.5"), line(3, failed=True, unknown="0.3"), line(4)]
    out.write_bytes(b"".join(lines))
    with opened(out) as found:
        assert (found.done, found.failed) == (3, 1)
        assert (found.spent, found.unknown) == (Decimal("0.3"), Decimal("0.5"))  # unknown is what it was in the end
        assert [n for n in range(1, 6) if is_pending(found, n)] == [5]
    assert out.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("newline", [b"\n", b""])
def test_retry_failed_takes_failures_out(out: Path, newline: bytes) -> None:
    out.write_bytes(line(1) + line(2, failed=True, unknown="0.5") + line(3) + line(4, failed=True)[:-1] + newline)
    out.chmod(0o640)
    with opened(out, retry_failed=True) as found:
        assert (found.done, found.failed, found.broken) == (2, 0, 0)
        assert found.unknown == Decimal("0.5")
        assert [n for n in range(1, 5) if is_pending(found, n)] == [2, 4]
        found.save(line(2))
    assert out.read_bytes() == line(1) + line(3) + line(2)
    assert stat.S_IMODE(out.stat().st_mode) == 0o640
    assert list(out.parent.iterdir()) == [out]


def test_retry_failed_with_one_failure_and_no_newline(out: Path) -> None:
    out.write_bytes(line(1) + line(2, failed=True)[:-1])
    with opened(out, retry_failed=True) as found:
        assert is_pending(found, 2)
    assert out.read_bytes() == line(1)


def test_looking_changes_nothing(out: Path) -> None:
    content = line(1) + b"broken\n" + line(2, failed=True) + line(3)[:-1]
    out.write_bytes(content)
    with opened(out, read_only=True, retry_failed=True) as found, opened(out, read_only=True) as other:
        assert (found.done, found.failed, found.broken) == (2, 0, 1)
        assert (other.done, other.failed, other.broken, other.maybe_billed, other.sent) == (2, 1, 1, (), ())
    out.write_bytes(content + b'\n{"id":"bat')
    with opened(out, read_only=True) as found:
        assert (found.done, found.torn) == (2, True)
    assert out.read_bytes() == content + b'\n{"id":"bat'
    assert list(out.parent.iterdir()) == [out]
    with opened(out.parent / "missing", read_only=True) as found:
        assert is_pending(found, 1)
    assert list(out.parent.iterdir()) == [out]


FOREIGN = {
    "text": b"My novel\n\nIt was a dark and stormy night.\n",
    "one line": b"My novel",
    "a brace": b'{"a": 1}',
    "requests": b'{"custom_id":"a","body":{}}\n{"custom_id":"b","body":{}}',
    "another's results": b'{"id": "batch_req_1", "custom_id": "a", "response": {}, "error": null}\n',
    "the same in fewer bytes": b'{"id":"batch_req_1","custom_id":"a","response":{},"error":null}',
    "blank": b"\n",
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_file_of_results_is_left_alone(out: Path, content: bytes) -> None:
    out.write_bytes(content)
    with pytest.raises(BatchError, match="something else than results"), opened(out):
        pass
    assert out.read_bytes() == content
    assert list(out.parent.iterdir()) == [out]


def test_an_empty_file_will_do(out: Path) -> None:
    out.touch()
    with opened(out) as found:
        found.save(line(1))
    assert out.read_bytes() == line(1)


def test_what_a_killed_repair_left(out: Path) -> None:
    out.write_bytes(line(1) + b"broken\n" + line(2))
    out.with_name("results.jsonl.repaired").write_bytes(line(1)[:50])
    with opened(out) as found:
        assert (found.done, found.broken) == (2, 1)
    assert out.read_bytes() == line(1) + line(2)
    assert list(out.parent.iterdir()) == [out]


def test_no_room_for_a_repair(out: Path) -> None:
    content = line(1) + b"broken\n" + b"".join(line(n) for n in range(2, 9))
    out.write_bytes(content)
    with file_limit(len(line(1)) + 300), pytest.raises(BatchError, match="can not be written: File too large"):
        with opened(out):
            pass
    assert out.read_bytes() == content
    assert list(out.parent.iterdir()) == [out]
    with opened(out) as found:
        assert found.done == 8


# -- K2, K3: torn and broken lines -----------------------------------------------------------------------------------


def check_cut(out: Path, lines: list[bytes], cut: int) -> None:
    """Cut the file after so many bytes: what was whole stays, and one more goes on a fresh line."""
    content = b"".join(lines)
    out.write_bytes(content[:cut])
    whole = [n for n in range(len(lines)) if len(b"".join(lines[: n + 1])) <= cut + 1]
    good = b"".join(lines[n] for n in whole)
    with opened(out) as found:
        assert found.torn is (cut > len(good)), cut
        assert (found.done, found.broken) == (len(whole), 0)
        assert [n for n in range(len(lines)) if not is_pending(found, n)] == whole
        found.save(line(99))
    assert out.read_bytes() == good + line(99), cut


def test_K2_cut_at_every_byte_of_the_last_two_lines(out: Path) -> None:
    lines = [line(n) for n in range(4)]
    for cut in range(len(lines[0] + lines[1]), len(b"".join(lines)) + 1):
        check_cut(out, lines, cut)


def test_K2_cut_at_every_byte_of_the_only_line(out: Path) -> None:
    for cut in range(len(line(0)) + 1):
        check_cut(out, [line(0)], cut)


def test_K2_torn_after_a_broken_line(out: Path) -> None:
    out.write_bytes(line(1) + b"broken\n" + line(2) + line(3)[:-20])
    with opened(out) as found:
        assert (found.done, found.broken, found.torn) == (2, 1, True)
    assert out.read_bytes() == line(1) + line(2)


def test_K2_last_line_without_its_end_after_a_broken_one(out: Path) -> None:
    out.write_bytes(line(1) + b"broken\n" + line(2)[:-1])
    with opened(out) as found:
        assert (found.done, found.broken, found.torn) == (2, 1, False)
    assert out.read_bytes() == line(1) + line(2)


@pytest.mark.parametrize(("victim", "step"), [(0, 11), (1, 1)])
def test_K3_any_byte_flipped(out: Path, victim: int, step: int) -> None:
    lines = [line(n) for n in range(3)]
    start = len(b"".join(lines[:victim]))
    content = b"".join(lines)
    for at in range(start, start + len(lines[victim]) - 1, step):
        flipped = bytearray(content)
        flipped[at] ^= 1
        out.write_bytes(flipped)
        with opened(out) as found:
            assert (found.done, found.broken, found.torn) == (2, 1, False), at
            assert [n for n in range(3) if is_pending(found, n)] == [victim]
            found.save(lines[victim])
        kept = [each for n, each in enumerate(lines) if n != victim]
        assert out.read_bytes() == b"".join(kept) + lines[victim]


def test_K3_random_damage(out: Path) -> None:
    dice = random.Random(20)
    lines = [line(n) for n in range(20)]
    for _ in range(50):
        damaged = list(lines)
        victims = dice.sample(range(20), dice.randrange(1, 19))
        for victim in victims:
            content = bytearray(lines[victim])
            for at in dice.sample(range(len(content) - 1), 9):
                content[at] = dice.choice(b"\0 {}\"'\\\xff\xc3x0")
            damaged[victim] = bytes(content)
        out.write_bytes(b"".join(damaged))
        with opened(out) as found:
            assert found.broken == sum(a != b for a, b in zip(lines, damaged, strict=True))
        assert out.read_bytes() == b"".join(a for a, b in zip(lines, damaged, strict=True) if a == b)


def test_K3_a_lost_line_end_costs_both_lines(out: Path) -> None:
    out.write_bytes(line(1) + line(2)[:-1] + b"\x0b" + line(3) + line(4))
    with opened(out) as found:
        assert (found.done, found.broken) == (2, 1)
        assert [n for n in range(1, 5) if is_pending(found, n)] == [2, 3]


def test_K3_any_byte_of_what_is_under_way_flipped(out: Path) -> None:
    with opened(out) as found:
        found.begin(key_of("row-1"), "row-1", Decimal("0.5"))
    content = inflight(out).read_bytes()
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1
        inflight(out).write_bytes(flipped)
        with opened(out) as found:
            assert len(found.maybe_billed) <= 1
            assert is_pending(found, 1)


# -- K4: a full disk -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_K4_a_line_to_dev_full() -> None:
    found = Checkpoint("/dev/full")
    for _ in found.load():
        pytest.fail("there is nothing to read in a device")
    assert found.begin(key_of("row-1"), "row-1", NOTHING) == NO_SLOT
    found.save(line(1))
    assert found.is_full
    found.save(line(2))
    with pytest.raises(BatchError, match="No space left on device") as caught:
        found.close()
    assert caught.value.unsaved == (line(1), line(2))


@pytest.mark.parametrize("room", range(1, len(line(3)), 41))
def test_K4_a_write_that_is_cut_short(out: Path, room: int) -> None:
    lines = [line(n, model="m" * 400) for n in range(5)]  # longer than what is under way
    good = b"".join(lines[:2])
    with file_limit(len(good) + room), pytest.raises(BatchError, match="File too large") as caught:
        with opened(out, room=4) as found:
            slots = [found.begin(key_of(f"row-{n}"), f"row-{n}", Decimal(n)) for n in range(4)]
            for n in range(4):
                found.save(lines[n], slots[n])
                assert found.is_full is (n >= 2)
            assert out.read_bytes() == good
            assert found.sent == ()  # their results are there, though not in the file
    assert caught.value.unsaved == (lines[2], lines[3])
    assert out.read_bytes() == good
    with opened(out) as found:  # there is room again
        assert (found.done, found.torn, found.broken) == (2, False, False)
        assert set(found.maybe_billed) == {"row-2", "row-3"}
        assert found.unknown == 2 + 3
        for n in (2, 3, 4):
            found.save(lines[n], found.begin(key_of(f"row-{n}"), f"row-{n}", NOTHING))
    assert out.read_bytes() == b"".join(lines)
    assert not inflight(out).exists()


def test_K4_room_again_before_it_closes(out: Path) -> None:
    found = Checkpoint(out)
    for _ in found.load():
        pytest.fail("there is nothing to read")
    slot = found.begin(key_of("row-1"), "row-1", NOTHING)
    with file_limit(SLOT):
        found.save(line(1), slot)
        found.save(line(2))
    assert list(found.unsaved) == [line(1), line(2)]
    found.close()
    assert list(found.unsaved) == []
    assert out.read_bytes() == line(1) + line(2)
    assert not inflight(out).exists()


def test_K4_no_room_for_what_is_under_way(out: Path) -> None:
    with file_limit(3 * SLOT + 9), pytest.raises(BatchError, match="No space left on device"):
        Checkpoint(out, room=4)  # the fourth slot is cut short
    inflight(out).unlink()
    with file_limit(3 * SLOT):
        with pytest.raises(BatchError, match="File too large"):
            Checkpoint(out, room=4)
        with opened(out, room=3) as found:
            slots = [found.begin(key_of(f"row-{n}"), f"row-{n}", NOTHING) for n in range(4)]
            assert slots == [2, 1, 0, NO_SLOT]
            assert found.is_full
            found.save(line(0), slots[0])
            found.take_back(slots[3])
            found.leave(slots[3])
            assert list(found.unsaved) == [line(0)]
    assert list(found.unsaved) == []  # there was room for it
    assert out.read_bytes() == line(0)


def test_no_room_for_ids(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A cache of no size: so that a few thousand ids go to the temporary file, as a million do.
    monkeypatch.setattr(checkpoint, "CACHE_KIB", 0)
    lines = [line(n) for n in range(5000)]
    with opened(out) as found, file_limit(1 << 14):
        with pytest.raises(BatchError, match="no room for its ids in a temporary file"):
            for n in range(5000):
                is_pending(found, n)
    out.write_bytes(b"".join(lines))
    with file_limit(1 << 14), pytest.raises(BatchError, match="no room for its ids in a temporary file"):
        with opened(out):
            pass
    assert out.read_bytes() == b"".join(lines)


# -- K5 to K7: the paths and the lock --------------------------------------------------------------------------------


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
        found.save(line(1))


def test_K6_two_on_one_file(out: Path) -> None:
    out.write_bytes(line(1) + b"broken\n")
    with opened(out) as first:
        for options in ({}, {"retry_failed": True}):
            with pytest.raises(BatchError, match="another batch is writing it"):
                Checkpoint(out, **cast("Any", options))
        first.save(line(2))
    with opened(out) as second:
        assert second.done == 2


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
        assert found.done == 2
    assert len(calls) == 2


HOLD = """
import sys
from piapi_async.checkpoint import Checkpoint
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
        found.save(line(1))
    assert out.read_bytes() == line(1)


# -- what is under way -----------------------------------------------------------------------------------------------


def test_what_was_under_way(out: Path) -> None:
    with opened(out, room=3) as found:
        slots = {n: found.begin(key_of(f"row-{n}"), f"row-{n}", Decimal("0.25")) for n in range(5)}  # more than room
        assert len(set(slots.values())) == 5
        found.save(line(0), slots[0])
        found.take_back(slots[1])
        assert found.sent == ("row-2", "row-3", "row-4")
        found.leave(slots[2])
        assert found.unknown_left("") == Decimal("0.25")
        assert found.unknown_left(key_of("row-2")) == 0
    assert stat.S_IMODE(inflight(out).stat().st_mode) == 0o600
    with opened(out, room=3) as found:
        assert set(found.maybe_billed) == {"row-2", "row-3", "row-4"}
        assert found.unknown == Decimal("0.75")
        again = found.begin(key_of("row-3"), "row-3", Decimal("0.5"))
        assert again == slots[3]  # in the same place, with what it may have cost before
        assert found.unknown_left("") == Decimal("0.75")
    with opened(out) as found:
        assert found.unknown == Decimal("1.25")
        found.take_back(found.begin(key_of("row-3"), "row-3", Decimal("7")))  # not billed; what was before may be
    with opened(out) as found:
        assert found.unknown == Decimal("1.25")
        for n in (2, 3, 4):
            found.save(line(n, unknown="1.25"), found.begin(key_of(f"row-{n}"), f"row-{n}", NOTHING))
    with opened(out) as found:
        assert (found.done, found.maybe_billed, found.unknown) == (4, (), Decimal("1.25"))
    assert not inflight(out).exists()


def test_killed_between_the_result_and_its_slot(out: Path) -> None:
    with opened(out) as found:
        found.begin(key_of("row-1"), "row-1", Decimal("0.5"))
        found.save(line(1, unknown="0.1"))
    with opened(out) as found:
        assert (found.maybe_billed, found.unknown) == ((), Decimal("0.1"))
    assert not inflight(out).exists()


@pytest.mark.parametrize("name", ["x" * 10_000, "\0" * 300, "\N{SNOWMAN}" * 300, "\U0001f600" * 300, '"\\' * 300])
def test_a_long_id_fits_in_a_slot(out: Path, name: str) -> None:
    with opened(out) as found:
        found.begin(key_of(name), name, Decimal("123456.123456789012"))
        assert found.sent == (name,)
    assert inflight(out).stat().st_size == SLOT
    with opened(out) as found:
        (cut,) = found.maybe_billed
        assert cut == f"{name[:24]}…"
        assert found.unknown == Decimal("123456.123456789012")
        found.save(
            make_line(name, None, None, Note(key=key_of(name), request=REQUEST)),
            found.begin(key_of(name), name, NOTHING),
        )
    assert not inflight(out).exists()


def test_a_list_cut_anywhere(out: Path) -> None:
    with opened(out, room=3) as found:
        for n in range(3):
            found.begin(key_of(f"row-{n}"), f"row-{n}", Decimal(1))
    content = inflight(out).read_bytes()
    for cut in range(0, len(content), 5):
        inflight(out).write_bytes(content[:cut])
        with opened(out) as found:
            left = len(found.maybe_billed)
            slots = [found.begin(key_of(f"new-{n}"), f"new-{n}", NOTHING) for n in range(9)]
            assert len(found.sent) == left + 9
            assert len(set(slots)) == 9


# -- K22, K23: versions and size -------------------------------------------------------------------------------------


def versioned(note: bytes) -> bytes:
    head = b'{"id":"batch_req_1","custom_id":"row-1","response":{},"error":null,"piapi_async":' + note
    return b'%b,"crc":"%08x"}}\n' % (head, zlib.crc32(head))


def test_K22_an_older_version_is_read(out: Path) -> None:
    key = key_of("row-1").encode()
    out.write_bytes(versioned(b'{"version":0,"key":"%b","request":"%b"' % (key, REQUEST.encode())))
    with opened(out) as found:
        assert (found.done, found.spent, found.unknown) == (1, NOTHING, NOTHING)
        assert not is_pending(found, 1)
    (note,) = read_notes(out)
    assert (note.version, note.kind, note.cost) == (0, "ok", None)


NEWER = {
    "more fields": versioned(
        b'{"version":2,"key":"%b","request":"0123456789abcdef","new":{}' % key_of("row-1").encode()
    ),
    "other fields": versioned(b'{"version":2,"id":5'),
    "another checksum": b'{"id":"x","custom_id":"row-1","piapi_async":{"version":2,"sha":"0"}}\n',
    "no newline": b'{"id":"x","custom_id":"row-1","piapi_async":{"version":2,"sha":"0"}}',
}


@pytest.mark.parametrize("content", NEWER.values(), ids=NEWER)
@pytest.mark.parametrize("before", [b"", line(7), b"broken\n"])
def test_K22_a_newer_version_is_refused(out: Path, content: bytes, before: bytes) -> None:
    out.write_bytes(before + content)
    with pytest.raises(BatchError, match=r"format 2, and this one knows 1.*upgrade"), opened(out):
        pass
    assert out.read_bytes() == before + content
    assert list(out.parent.iterdir()) == [out]


def test_K22_whole_but_not_understood(out: Path) -> None:
    out.write_bytes(line(1) + versioned(b'{"version":1,"id":5') + versioned(b'{"version":"x"'))
    with opened(out) as found:
        assert (found.done, found.broken) == (1, 2)


MEASURE = """
import re, sys, time
from piapi_async.checkpoint import Checkpoint
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])  # maxrss counts the parent's
before, began = peak(), time.perf_counter()
found = Checkpoint(sys.argv[1], room=256)
for _ in found.load():
    pass
print(found.done, before, peak(), time.perf_counter() - began)
"""
RECORDS = int(os.environ.get("PIAPI_RECORDS", "50000"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_K23_a_large_file(out: Path) -> None:
    """Run it with PIAPI_RECORDS=1000000 and -s for the figures that are promised: 5 s, 200 MiB."""
    with out.open("wb") as file:
        for n in range(RECORDS):
            file.write(line(n, cost="0.000123", tokens_in=12, tokens_out=34, provider="piapi", model="gpt-4o-mini"))
    shown = subprocess.run([sys.executable, "-c", MEASURE, str(out)], capture_output=True, text=True, check=True)
    done, before, peak = (int(float(figure)) for figure in shown.stdout.split()[:3])
    seconds = float(shown.stdout.split()[3])
    size = out.stat().st_size >> 20
    sys.stdout.write(f"\n{done:,} records, {size} MiB: {seconds:.2f} s, {peak >> 10} MiB, {before >> 10} before\n")
    assert done == RECORDS
    assert peak < 200 << 10
    assert peak - before < (8 << 10) + 48 * RECORDS / 1024 + checkpoint.CACHE_KIB * min(1, RECORDS / 500_000)


# -- any history -----------------------------------------------------------------------------------------------------

ROWS = 6
runs = st.lists(
    st.tuples(
        st.permutations(range(ROWS)),  # the order in which rows finish
        st.integers(0, ROWS),  # how many do
        st.sets(st.integers(0, ROWS - 1)),  # which of them fail
        st.one_of(st.none(), st.floats(0, 1)),  # where the kill cuts what this run has written; None: no kill
        st.booleans(),  # whether failures are retried
    ),
    max_size=6,
)


def parse(content: bytes) -> Any:
    """A record; None if it is not whole."""
    try:
        return json.loads(content)
    except ValueError:
        return None


@given(history=runs)
def test_property_each_id_once_whatever_happens(tmp_path_factory: pytest.TempPathFactory, history: Any) -> None:
    out = tmp_path_factory.mktemp("history") / "results.jsonl"
    model: dict[int, bool] = {}  # rows that are finished, and whether they failed
    everything: Any = (list(range(ROWS)), ROWS, set(), None, True)
    for order, count, failing, kill, retry in [*history, everything]:
        expected = {n: failed for n, failed in model.items() if not (failed and retry)}
        content = b""
        with opened(out, retry_failed=retry, room=2) as found:
            start = out.stat().st_size
            assert (found.done, found.failed) == (len(expected) - sum(expected.values()), sum(expected.values()))
            pending = [n for n in order if is_pending(found, n)]
            assert set(pending) == set(range(ROWS)) - set(expected)
            saved = pending[:count]
            for n in saved:
                slot = found.begin(key_of(f"row-{n}"), f"row-{n}", Decimal(1))
                found.save(line(n, failed=n in failing), slot)
            under_way = [found.begin(key_of(f"row-{n}"), f"row-{n}", Decimal(1)) for n in pending[count : count + 2]]
            content = out.read_bytes()
            if kill is None:
                for slot in under_way:
                    found.take_back(slot)
        if kill is not None:
            out.write_bytes(content[: start + round((len(content) - start) * kill)])
        records = [record for each in out.read_bytes().split(b"\n") if (record := parse(each))]
        model = {int(record["custom_id"][4:]): record["piapi_async"]["failed"] for record in records}
        assert len(model) == len(records)
        assert all(model[n] == failed for n, failed in expected.items())
    assert sorted(model) == list(range(ROWS))
    assert out.read_bytes().count(b"\n") == ROWS
    assert not any(model.values())
