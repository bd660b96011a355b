"""The file of what is in flight, as ended and killed runs leave it; `faults.md` K3."""

from __future__ import annotations

import stat
from decimal import Decimal
from pathlib import Path

import pytest

from piapi_async.batch.inflight import SLOT
from piapi_async.batch.records import Note, key_of, make_line
from tests.batch.checkpoints import NOTHING, REQUEST, inflight, line, opened, replace, row


def test_what_was_in_flight(out: Path) -> None:
    with opened(out, room=3) as found:
        slots = {n: found.mark_sent(row(n), Decimal("0.25")) for n in range(5)}  # more than room
        assert len(set(slots.values())) == 5
        found.save(line(0), slots[0])
        found.mark_unbilled(slots[1])
        assert found.sent == ("row-2", "row-3", "row-4")
        found.keep_sent(slots[2])
        assert found.unknown_kept("") == Decimal("0.25")
        assert found.unknown_kept(key_of("row-2")) == 0
    assert stat.S_IMODE(inflight(out).stat().st_mode) == 0o600
    with opened(out, room=3) as found:
        assert set(found.maybe_billed) == {"row-2", "row-3", "row-4"}
        assert found.earlier.unknown == Decimal("0.75")
        again = found.mark_sent(row(3), Decimal("0.5"))
        assert again == slots[3]  # in the same place, with what it may have cost before
        assert found.unknown_kept("") == Decimal("0.75")
    with opened(out) as found:
        assert found.earlier.unknown == Decimal("1.25")
        found.mark_unbilled(found.mark_sent(row(3), Decimal("7")))  # not billed; what was before may be
    with opened(out) as found:
        assert found.earlier.unknown == Decimal("1.25")
        for n in (2, 3, 4):
            found.save(line(n, unknown="1.25"), found.mark_sent(row(n), NOTHING))
    with opened(out) as found:
        assert (found.earlier.done, found.maybe_billed, found.earlier.unknown) == (4, (), Decimal("1.25"))
    assert not inflight(out).exists()


def test_killed_between_the_result_and_its_slot(out: Path) -> None:
    with opened(out) as found:
        found.mark_sent(row(1), Decimal("0.5"))
        found.save(line(1, unknown="0.1"))
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
        found.save(
            make_line(name, None, None, Note(key=key_of(name), request=REQUEST)),
            found.mark_sent(row(name), NOTHING),
        )
    assert not inflight(out).exists()


def test_a_file_cut_anywhere(out: Path) -> None:
    with opened(out, room=3) as found:
        for n in range(3):
            found.mark_sent(row(n), Decimal(1))
    content = inflight(out).read_bytes()
    for cut in range(0, len(content), 5):
        replace(inflight(out), content[:cut])
        with opened(out) as found:
            left = len(found.maybe_billed)
            slots = [found.mark_sent(row(f"new-{n}"), NOTHING) for n in range(9)]
            assert len(found.sent) == left + 9
            assert len(set(slots)) == 9


def test_K3_any_byte_flipped(out: Path) -> None:
    with opened(out) as found:
        found.mark_sent(row(1), Decimal("0.5"))
    content = inflight(out).read_bytes()
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1
        replace(inflight(out), flipped)
        with opened(out) as found:
            assert len(found.maybe_billed) <= 1
            assert found.admit(row(1))
