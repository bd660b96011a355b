"""The files of a batch, when the disk is full and through any history of runs; `faults.md` K4."""

from __future__ import annotations

import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from piapi_async import BatchError
from piapi_async.batch import ids
from piapi_async.batch.checkpoint import Checkpoint
from piapi_async.batch.inflight import SLOT
from tests.batch.checkpoints import NOTHING, file_limit, inflight, line, opened, put, replace, row

# -- K4: a full disk -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_K4_a_line_to_dev_full() -> None:
    found = Checkpoint("/dev/full")
    for _ in found.load():
        pytest.fail("there is nothing to read in a device")
    found.mark_sent(row(1), NOTHING)
    assert found.sent == ()
    put(found, line(1))
    assert found.is_full
    put(found, line(2))
    with pytest.raises(BatchError, match="No space left on device") as caught:
        found.close()
    assert caught.value.unsaved == (line(1), line(2))


@pytest.mark.parametrize("room", range(1, len(line(3)), 41))
def test_K4_a_write_that_is_cut_short(out: Path, room: int) -> None:
    lines = [line(n, model="m" * 400) for n in range(5)]  # longer than what is under way
    good = b"".join(lines[:2])
    with file_limit(len(good) + room), pytest.raises(BatchError, match="File too large") as caught:
        with opened(out, room=4) as found:
            for n in range(4):
                found.mark_sent(row(n), Decimal(n))
            for n in range(4):
                put(found, lines[n])
                assert found.is_full is (n >= 2)
            assert out.read_bytes() == good
            assert found.sent == ()  # their results are there, though not in the file
    assert caught.value.unsaved == (lines[2], lines[3])
    assert out.read_bytes() == good
    with opened(out) as found:  # there is room again
        assert (found.earlier.done, found.earlier.torn, found.earlier.broken) == (2, False, False)
        assert set(found.maybe_billed) == {"row-2", "row-3"}
        assert found.earlier.unknown == 2 + 3
        for n in (2, 3, 4):
            found.mark_sent(row(n), NOTHING)
            put(found, lines[n])
    assert out.read_bytes() == b"".join(lines)
    assert not inflight(out).exists()


def test_K4_room_again_before_it_closes(out: Path) -> None:
    found = Checkpoint(out)
    for _ in found.load():
        pytest.fail("there is nothing to read")
    found.mark_sent(row(1), NOTHING)
    with file_limit(SLOT):
        put(found, line(1))
        put(found, line(2))
    assert list(found.unsaved) == [line(1), line(2)]
    found.close()
    assert list(found.unsaved) == []
    assert out.read_bytes() == line(1) + line(2)
    assert not inflight(out).exists()


def test_K4_no_room_to_note_what_is_in_flight(out: Path) -> None:
    with file_limit(3 * SLOT + 9), pytest.raises(BatchError, match="No space left on device"):
        Checkpoint(out, room=4)  # the fourth slot is cut short
    inflight(out).unlink()
    with file_limit(3 * SLOT):
        with pytest.raises(BatchError, match="File too large"):
            Checkpoint(out, room=4)
        with opened(out, room=3) as found:
            for n in range(4):
                found.mark_sent(row(n), NOTHING)
                assert found.is_full == (n == 3)
            assert found.sent == ("row-0", "row-1", "row-2")
            put(found, line(0))
            found.mark_unbilled(row(3))
            found.keep_sent(row(3))
            assert list(found.unsaved) == [line(0)]
    assert list(found.unsaved) == []  # there was room for it
    assert out.read_bytes() == line(0)


def test_no_room_for_ids(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A cache of no size: so that a few thousand ids go to the temporary file, as a million do.
    monkeypatch.setattr(ids, "CACHE_KIB", 0)
    lines = [line(n) for n in range(5000)]
    with opened(out) as found, file_limit(1 << 14):
        with pytest.raises(BatchError, match="no room for its ids in a temporary file"):
            for n in range(5000):
                found.admit(row(n))
    out.write_bytes(b"".join(lines))
    with file_limit(1 << 14), pytest.raises(BatchError, match="no room for its ids in a temporary file"):
        with opened(out):
            pass
    assert out.read_bytes() == b"".join(lines)


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
    """Return a record, or None if it is cut."""
    try:
        return json.loads(content)
    except ValueError:
        return None


@settings(
    max_examples=settings().max_examples // 4,  # each is a dozen files
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(history=runs)
def test_property_each_id_once_whatever_happens(out: Path, history: Any) -> None:
    for path in (out, inflight(out)):
        path.unlink(missing_ok=True)  # of the example before
    model: dict[int, bool] = {}  # rows that are finished, and whether they failed
    everything: Any = (list(range(ROWS)), ROWS, set(), None, True)
    for order, count, failing, kill, retry in [*history, everything]:
        expected = {n: failed for n, failed in model.items() if not (failed and retry)}
        content = b""
        with opened(out, retry_failed=retry, room=2) as found:
            start = out.stat().st_size
            assert found.earlier.failed == sum(expected.values()) == len(expected) - found.earlier.done
            todo = [n for n in order if found.admit(row(n))]
            assert set(todo) == set(range(ROWS)) - set(expected)
            saved = todo[:count]
            for n in saved:
                found.mark_sent(row(n), Decimal(1))
                put(found, line(n, failed=n in failing))
            under_way = [row(n) for n in todo[count : count + 2]]
            for each in under_way:
                found.mark_sent(each, Decimal(1))
            content = out.read_bytes()
            if kill is None:
                for each in under_way:
                    found.mark_unbilled(each)
        if kill is not None:
            replace(out, content[: start + round((len(content) - start) * kill)])
        records = [record for each in out.read_bytes().split(b"\n") if (record := parse(each))]
        model = {int(record["custom_id"][4:]): record["piapi_async"]["failed"] for record in records}
        assert len(model) == len(records)
        assert all(model[n] == failed for n, failed in expected.items())
    assert sorted(model) == list(range(ROWS))
    assert out.read_bytes().count(b"\n") == ROWS
    assert not any(model.values())
