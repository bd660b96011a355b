"""The format of a line of the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from piapi_async.batch.records import Note, is_cut_short, key_of, make_line, read_notes, read_short_note
from tests.batch.checkpoints import REQUEST, line, opened, row


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
        assert (found.earlier.done, found.earlier.broken, found.earlier.torn) == (1, 0, False)
        assert not found.admit(row(name))


def test_K3_any_bit_flipped() -> None:
    """Any damage is noticed. What becomes of damaged lines is tested in `test_earlier`."""
    good = line(1, cost="0.1")
    note = read_short_note(good)
    assert note is not None
    assert (note.key, note.request, note.cost) == (key_of("row-1"), REQUEST, "0.1")
    for at in range(len(good)):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[at] ^= 1 << bit
            assert read_short_note(bytes(damaged)) is None, (at, bit)


def test_K2_cut_at_every_byte() -> None:
    """However much is left of a line, it is known to be cut. What becomes of such files is tested in `test_earlier`."""
    good = line(1)
    for cut in range(len(good)):
        assert read_short_note(good[:cut]) is None, cut
        assert is_cut_short(good[:cut]), cut
    for cut in range(len(good) - 1):
        assert read_short_note(good[:cut] + b"\n") is None, cut
    assert read_short_note(good[:-1] + b"\n") is not None
