"""Files of results that earlier runs left: cut, flipped, foreign, old and large; `faults.md` K2, K3, K22, K23."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
import zlib
from decimal import Decimal
from pathlib import Path

import pytest

from piapi_async import BatchError
from piapi_async.batch.checkpoint import Checkpoint
from piapi_async.batch.ids import CACHE_KIB
from piapi_async.batch.records import LINES_A_TURN, key_of, read_notes
from tests.batch.checkpoints import NOTHING, REQUEST, aside, file_limit, line, opened, pending, put, replace, row

# -- what earlier runs left ------------------------------------------------------------------------------------------


def test_sums_of_earlier_runs(out: Path) -> None:
    lines = [line(1, cost="0.1"), line(2, cost="0.2", unknown="0.5"), line(3, failed=True, unknown="0.3"), line(4)]
    out.write_bytes(b"".join(lines))
    with opened(out) as found:
        assert (found.earlier.done, found.earlier.failed) == (3, 1)
        assert (found.earlier.spent, found.earlier.unknown) == (
            Decimal("0.3"),
            Decimal("0.5"),
        )  # each line has the sum so far
        assert pending(found, range(1, 6)) == [5]
    assert out.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("newline", [b"\n", b""])
def test_retry_failed_takes_failures_out(out: Path, newline: bytes) -> None:
    out.write_bytes(line(1) + line(2, failed=True, unknown="0.5") + line(3) + line(4, failed=True)[:-1] + newline)
    out.chmod(0o640)
    with opened(out, retry_failed=True) as found:
        assert (found.earlier.done, found.earlier.failed, found.earlier.broken) == (2, 0, 0)
        assert found.earlier.unknown == Decimal("0.5")
        assert pending(found, range(1, 5)) == [2, 4]
        last = line(2, run=found.run, unknown="0.5")
        put(found, last)
    assert out.read_bytes() == line(1) + line(3) + last
    assert stat.S_IMODE(out.stat().st_mode) == 0o640
    assert list(out.parent.iterdir()) == [out]


def test_retry_failed_with_one_failure_and_no_newline(out: Path) -> None:
    out.write_bytes(line(1) + line(2, failed=True)[:-1])
    with opened(out, retry_failed=True) as found:
        assert found.admit(row(2))
    assert out.read_bytes() == line(1)


def test_looking_changes_nothing(out: Path) -> None:
    content = line(1) + b"broken\n" + line(2, failed=True) + line(3)[:-1]
    out.write_bytes(content)
    with opened(out, read_only=True, retry_failed=True) as found, opened(out, read_only=True) as other:
        assert (found.earlier.done, found.earlier.failed, found.earlier.broken) == (2, 0, 1)
        assert (other.earlier.done, other.earlier.failed, other.earlier.broken, other.maybe_billed, other.sent) == (
            2,
            1,
            1,
            (),
            (),
        )
    out.write_bytes(content + b'\n{"id":"bat')
    with opened(out, read_only=True) as found:
        assert (found.earlier.done, found.earlier.torn) == (2, True)
    assert out.read_bytes() == content + b'\n{"id":"bat'
    assert list(out.parent.iterdir()) == [out]
    with opened(out.parent / "missing", read_only=True) as found:
        assert found.admit(row(1))
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
    "deep": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_other_files_are_left_alone(out: Path, content: bytes) -> None:
    out.write_bytes(content)
    with pytest.raises(BatchError, match="something else than results"), opened(out):
        pass
    assert out.read_bytes() == content
    assert list(out.parent.iterdir()) == [out]


def test_others_have_their_turn(out: Path) -> None:
    out.write_bytes(b"".join(line(n) for n in range(2 * LINES_A_TURN + 1)))
    found = Checkpoint(out)
    assert sum(1 for _ in found.load()) == 3
    assert found.earlier.done == 2 * LINES_A_TURN + 1
    found.close()


def test_the_first_of_two_results_counts(out: Path) -> None:
    others = [f"{n:016x}" for n in (0, 1 << 63, (1 << 64) - 1)]
    out.write_bytes(line(1) + b"".join(line(1, request=request) for request in others))
    with opened(out) as found:
        assert not found.admit(row(1))
    with opened(out) as found, pytest.raises(BatchError, match="answers another request"):
        found.admit(row(1, request=others[0]))


def test_an_empty_file_will_do(out: Path) -> None:
    out.touch()
    with opened(out) as found:
        put(found, line(1))
    assert out.read_bytes() == line(1)


def test_the_rest_of_a_killed_repair(out: Path) -> None:
    out.write_bytes(line(1) + b"broken\n" + line(2))
    out.with_name("results.jsonl.repaired").write_bytes(line(1)[:50])
    with opened(out) as found:
        assert (found.earlier.done, found.earlier.broken) == (2, 1)
    assert out.read_bytes() == line(1) + line(2)
    assert set(out.parent.iterdir()) == {out, aside(out)}
    assert aside(out).read_bytes() == b"broken\n"


def test_no_room_for_a_repair(out: Path) -> None:
    content = line(1) + b"broken\n" + b"".join(line(n) for n in range(2, 9))
    out.write_bytes(content)
    with file_limit(len(line(1)) + 300), pytest.raises(BatchError, match="can not be written: File too large"):
        with opened(out):
            pass
    assert out.read_bytes() == content
    assert list(out.parent.iterdir()) == [out]
    with opened(out) as found:
        assert found.earlier.done == 8


# -- K2, K3: torn and broken lines -----------------------------------------------------------------------------------


def check_cut(out: Path, lines: list[bytes], cut: int) -> None:
    """Cut the file after so many bytes: whole lines stay, and the next result goes on a new line."""
    content = b"".join(lines)
    replace(out, content[:cut])
    whole = [n for n in range(len(lines)) if len(b"".join(lines[: n + 1])) <= cut + 1]
    good = b"".join(lines[n] for n in whole)
    with opened(out) as found:
        assert found.earlier.torn is (cut > len(good)), cut
        assert (found.earlier.done, found.earlier.broken) == (len(whole), 0)
        assert [n for n in range(len(lines)) if not found.admit(row(n))] == whole
        put(found, line(99))
    assert out.read_bytes() == good + line(99), cut


@pytest.mark.parametrize("count", [1, 4])
def test_K2_cut(out: Path, count: int) -> None:
    """At the ends of lines and here and there between them; every byte is tested in `test_records`."""
    lines = [line(n) for n in range(count)]
    ends = [len(b"".join(lines[:n])) for n in range(count + 1)]
    near = {end + step for end in ends for step in range(-3, 4)}
    for cut in sorted(near | set(range(0, ends[-1], 13))):
        if 0 <= cut <= ends[-1]:
            check_cut(out, lines, cut)


def test_K2_torn_after_a_broken_line(out: Path) -> None:
    out.write_bytes(line(1) + b"broken\n" + line(2) + line(3)[:-20])
    with opened(out) as found:
        assert (found.earlier.done, found.earlier.broken, found.earlier.torn) == (2, 1, True)
    assert out.read_bytes() == line(1) + line(2)


def test_K2_last_line_without_its_end_after_a_broken_one(out: Path) -> None:
    out.write_bytes(line(1) + b"broken\n" + line(2)[:-1])
    with opened(out) as found:
        assert (found.earlier.done, found.earlier.broken, found.earlier.torn) == (2, 1, False)
    assert out.read_bytes() == line(1) + line(2)


@pytest.mark.parametrize("victim", [0, 1])
def test_K3_a_byte_flipped(out: Path, victim: int) -> None:
    """What a damaged line does to the file. That any damage is noticed is tested in `test_records`."""
    lines = [line(n) for n in range(3)]
    start = len(b"".join(lines[:victim]))
    content = b"".join(lines)
    for at in range(start, start + len(lines[victim]) - 1, 11):
        flipped = bytearray(content)
        flipped[at] ^= 1
        replace(out, flipped)
        with opened(out) as found:
            assert (found.earlier.done, found.earlier.broken, found.earlier.torn) == (2, 1, False), at
            assert pending(found, range(3)) == [victim]
            put(found, lines[victim])
        kept = [each for n, each in enumerate(lines) if n != victim]
        assert out.read_bytes() == b"".join(kept) + lines[victim]


def test_K3_random_damage(out: Path) -> None:
    dice = random.Random(20)
    lines = [line(n) for n in range(20)]
    for _ in range(50):
        damaged = list(lines)
        victims = dice.sample(range(20), dice.randrange(1, 11))
        for victim in victims:
            content = bytearray(lines[victim])
            for at in dice.sample(range(len(content) - 1), 9):
                content[at] = dice.choice(b"\0 {}\"'\\\xff\xc3x0")
            damaged[victim] = bytes(content)
        replace(out, b"".join(damaged))
        aside(out).unlink(missing_ok=True)
        with opened(out) as found:
            assert found.earlier.broken == sum(a != b for a, b in zip(lines, damaged, strict=True))
        assert aside(out).read_bytes() == b"".join(b for a, b in zip(lines, damaged, strict=True) if a != b)
        assert out.read_bytes() == b"".join(a for a, b in zip(lines, damaged, strict=True) if a == b)


def test_K3_a_lost_line_end_costs_both_lines(out: Path) -> None:
    out.write_bytes(line(1) + line(2)[:-1] + b"\x0b" + line(3) + line(4))
    with opened(out) as found:
        assert (found.earlier.done, found.earlier.broken) == (2, 1)
        assert pending(found, range(1, 5)) == [2, 3]


# -- K22, K23: versions and size -------------------------------------------------------------------------------------


def versioned(note: bytes) -> bytes:
    head = b'{"id":"batch_req_1","custom_id":"row-1","response":{},"error":null,"piapi_async":' + note
    return b'%b,"crc":"%08x"}}\n' % (head, zlib.crc32(head))


def test_K22_an_older_version_is_read(out: Path) -> None:
    key = key_of("row-1").encode()
    out.write_bytes(versioned(b'{"version":0,"key":"%b","request":"%b"' % (key, REQUEST.encode())))
    with opened(out) as found:
        assert (found.earlier.done, found.earlier.spent, found.earlier.unknown) == (1, NOTHING, NOTHING)
        assert not found.admit(row(1))
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


def test_K22_whole_lines_of_another_format(out: Path) -> None:
    strange = versioned(b'{"version":1,"id":5') + versioned(b'{"version":"x"')
    out.write_bytes(line(1) + strange + line(2))
    with opened(out) as found:
        assert (found.earlier.done, found.earlier.broken) == (2, 2)
    assert aside(out).read_bytes() == strange


MEASURE = """
import re, sys, time
from piapi_async.batch.checkpoint import Checkpoint
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])  # maxrss counts the parent's
before, began = peak(), time.perf_counter()
found = Checkpoint(sys.argv[1], room=256)
for _ in found.load():
    pass
print(found.earlier.done, before, peak(), time.perf_counter() - began)
"""


RECORDS = int(os.environ.get("PIAPI_RECORDS", "20000"))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_K23_a_large_file(out: Path) -> None:
    """Resuming from 10⁶ records must take less than 5 s and 200 MiB: run it with PIAPI_RECORDS=1000000 and -s."""
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
    assert peak - before < (8 << 10) + 48 * RECORDS / 1024 + CACHE_KIB * min(1, RECORDS / 500_000)
