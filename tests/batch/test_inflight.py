"""The file of what is in flight, as ended and killed runs leave it; `faults.md` K3."""

from __future__ import annotations

import stat
import zlib
from decimal import Decimal
from pathlib import Path

import pytest

from piapi_async import BatchError
from piapi_async.batch.inflight import SLOT
from piapi_async.batch.records import Note, key_of, make_line
from tests.batch.checkpoints import NOTHING, REQUEST, aside, file_limit, inflight, line, opened, put, replace, row


def test_what_was_in_flight(out: Path) -> None:
    with opened(out, room=3) as found:
        for n in range(5):  # more than room
            found.mark_sent(row(n), Decimal("0.25"))
        put(found, line(0))
        found.mark_unbilled(row(1))
        assert found.sent == ("row-2", "row-3", "row-4")
        found.keep_sent(row(2))
        assert found.unknown_kept() == Decimal("0.25")
        assert found.unknown_kept(key_of("row-2")) == 0
    assert stat.S_IMODE(inflight(out).stat().st_mode) == 0o600
    with opened(out, room=3) as found:
        assert set(found.maybe_billed) == {"row-2", "row-3", "row-4"}
        assert found.earlier.unknown == Decimal("0.75")
        found.mark_sent(row(3), Decimal("0.5"))
        assert found.unknown_kept() == Decimal("0.75")
    with opened(out) as found:
        assert set(found.maybe_billed) == {"row-2", "row-3", "row-4"}  # each once
        assert found.earlier.unknown == Decimal("1.25")
        found.mark_sent(row(3), Decimal("7"))
        found.mark_unbilled(row(3))  # what was before may be
    with opened(out) as found:
        assert found.earlier.unknown == Decimal("1.25")
        for n in (2, 3, 4):
            found.mark_sent(row(n), NOTHING)
            put(found, line(n, unknown="1.25"))
    with opened(out) as found:
        assert (found.earlier.done, found.maybe_billed, found.earlier.unknown) == (4, (), Decimal("1.25"))
    assert not inflight(out).exists()


def test_two_requests_at_once_for_a_row(out: Path) -> None:
    """As where a slow one is hedged: both are on record until they have ended, and the row's name longer."""

    def unknown() -> tuple[Decimal, tuple[str, ...]]:
        copy = out.with_name("copy")
        replace(copy, out.read_bytes())
        replace(inflight(copy), inflight(out).read_bytes())
        with opened(copy) as found:
            return found.earlier.unknown, found.maybe_billed

    with opened(out, room=2) as found:
        for at_most in ("0.25", "0.25"):
            found.mark_sent(row(0), Decimal(at_most))
        assert unknown() == (Decimal("0.5"), ("row-0",))
        found.mark_settled(row(0))
        assert unknown() == (Decimal("0.25"), ("row-0",))
        found.mark_settled(row(0))
        assert unknown() == (NOTHING, ("row-0",))
        found.mark_sent(row(0), Decimal("0.5"))
        assert unknown() == (Decimal("0.5"), ("row-0",))
        found.mark_settled(row(0))
        found.mark_unbilled(row(0))
        found.mark_settled(row(0))  # of which nothing is on record
        assert unknown() == (NOTHING, ())


def test_unknown_bills_of_a_run_are_noted_until_a_line_tells_of_them(out: Path) -> None:
    out.write_bytes(line(1, run="a", unknown="1") + line(2, run="b", unknown="2"))
    with opened(out) as found:
        found.note_unknown(Decimal(4))
        found.note_unknown(Decimal(3))  # less than is on record
        found.note_unknown(Decimal(5))
    with opened(out) as found:
        assert (found.earlier.told, found.earlier.unknown) == (Decimal(3), Decimal(8))
        found.note_unknown(Decimal(5))  # on record, by the run before
        found.note_unknown(Decimal(6))
    with opened(out) as found:
        assert found.earlier.unknown == 9
        put(found, line(3, run=found.run, unknown="6"))
    assert not inflight(out).exists()
    with opened(out) as found:
        assert (found.earlier.told, found.earlier.unknown) == (Decimal(9), Decimal(9))


def test_killed_between_the_result_and_its_slot(out: Path) -> None:
    with opened(out) as found:
        found.mark_sent(row(1), Decimal("0.5"))
        put(found, line(1, unknown="0.1"))
    with opened(out) as found:
        assert (found.maybe_billed, found.earlier.unknown) == ((), Decimal("0.1"))
    assert not inflight(out).exists()


@pytest.mark.parametrize("name", ["x" * 10_000, "\0" * 300, "\N{SNOWMAN}" * 300, "\U0001f600" * 300, '"\\' * 300])
def test_a_long_id_fits_in_a_slot(out: Path, name: str) -> None:
    with opened(out) as found:
        found.mark_sent(row(name), Decimal("123456.123456789012"))
        assert found.sent == (name,)
    assert inflight(out).stat().st_size == SLOT
    with opened(out) as found:
        (cut,) = found.maybe_billed
        assert cut == f"{name[:24]}…"
        assert found.earlier.unknown == Decimal("123456.123456789012")
        found.mark_sent(row(name), NOTHING)
        put(found, make_line(name, None, None, Note(key=key_of(name), request=REQUEST)))
    assert not inflight(out).exists()


def test_a_file_cut_anywhere(out: Path) -> None:
    with opened(out, room=3) as found:
        for n in range(3):
            found.mark_sent(row(n), Decimal(1))
    content = inflight(out).read_bytes()
    for cut in range(0, len(content), 5):
        replace(inflight(out), content[:cut])
        with opened(out) as found:
            assert len(found.maybe_billed) == cut // SLOT + (cut % SLOT == SLOT - 1)
            for n in range(9):
                found.mark_sent(row(f"new-{n}"), NOTHING)
            assert len(found.sent) == len(found.maybe_billed) + 9


def test_K3_any_byte_flipped(out: Path) -> None:
    with opened(out) as found:
        found.mark_sent(row(1), Decimal("0.5"))
    content = inflight(out).read_bytes()
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1
        replace(inflight(out), flipped)
        aside(out).unlink(missing_ok=True)
        with opened(out) as found:
            assert found.maybe_billed in ((), ("row-1",))
            assert found.admit(row(1))
            if not found.maybe_billed:
                assert found.aside == str(aside(out))
                assert aside(out).read_bytes().replace(b"\n", b"") == bytes(flipped).replace(b"\n", b"")


@pytest.mark.parametrize("change", ["CRLF", "BOM", "no blanks"])
def test_an_editor_has_been_at_it(out: Path, change: str) -> None:
    with opened(out, room=4) as found:
        for n in range(3):
            found.mark_sent(row(n), Decimal(n))
    content = inflight(out).read_bytes()
    changed = {
        "CRLF": content.replace(b"\n", b"\r\n"),
        "BOM": b"\xef\xbb\xbf" + content,
        "no blanks": b"\n".join(each.rstrip() for each in content.splitlines()),
    }
    replace(inflight(out), changed[change])
    with opened(out) as found:
        assert (set(found.maybe_billed), found.earlier.unknown) == ({"row-0", "row-1", "row-2"}, Decimal(3))
    assert len(inflight(out).read_bytes()) % SLOT == 0
    assert not aside(out).exists()


def test_something_else_in_its_place(out: Path) -> None:
    inflight(out).write_bytes(b"My novel\n" + b"x" * 1000)
    with opened(out) as found:
        found.mark_sent(row(1), NOTHING)
        put(found, line(1))
    assert aside(out).read_bytes().replace(b"\n", b"").replace(b" ", b"") == b"Mynovel" + b"x" * 1000
    assert not inflight(out).exists()


def test_a_slot_of_another_release(out: Path) -> None:
    content = b'{"key":5}'
    slot = content.ljust(SLOT - 9) + b"%08x\n" % zlib.crc32(content)
    inflight(out).write_bytes(slot)
    with opened(out):
        pass
    assert aside(out).read_bytes() == slot


def test_no_room_to_align(out: Path) -> None:
    with opened(out, room=8) as found:
        for n in range(8):
            found.mark_sent(row(n), Decimal(n))
    content = inflight(out).read_bytes().replace(b"\n", b"\r\n")
    inflight(out).write_bytes(content)
    with file_limit(3 * SLOT), pytest.raises(BatchError, match="No space left"), opened(out):
        pass
    assert inflight(out).read_bytes() == content
    with opened(out) as found:
        assert len(found.maybe_billed) == 8


def test_a_bill_that_turned_out_smaller_is_told_by_the_line_before(out: Path) -> None:
    with opened(out) as found:
        found.note_unknown(Decimal(6))
        put(found, line(1, run=found.run, unknown="5"))
        found.note_unknown(Decimal(5))
    with opened(out) as found:
        assert found.earlier.unknown == 5
