"""Damage of any kind to a batch's files: no foreign error, no lock left behind, no result that was paid for lost; K3.

`PIAPI_MUTATIONS` sets how many pairs of files the slow test damages, and `PIAPI_SEED` how.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from piapi_async import BatchError
from piapi_async.batch.records import key_of, read_short_note
from tests.batch.checkpoints import aside, inflight, line, opened, replace, row

MUTATIONS = int(os.environ.get("PIAPI_MUTATIONS", "12000"))
SEED = int(os.environ.get("PIAPI_SEED", "2026"))
ROWS = 8

Damage = Callable[[random.Random, bytearray], object]


def flip(dice: random.Random, content: bytearray) -> None:
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)


def overwrite(dice: random.Random, content: bytearray) -> None:
    at, size = dice.randrange(len(content)), dice.choice((1, 3, 20, 300))
    content[at : at + size] = dice.choice((bytes(size), dice.randbytes(size), b"9" * size, b"[" * size, b'"' * size))


def insert(dice: random.Random, content: bytearray) -> None:
    at = dice.randrange(len(content) + 1)
    content[at:at] = dice.choice((b"\n", b"\r", b"\0", b"\xff", b"\\u", b"1e999", b"-", dice.randbytes(9), b"[" * 5000))


def delete(dice: random.Random, content: bytearray) -> None:
    at = dice.randrange(len(content))
    del content[at : at + dice.choice((1, 2, 50, 256, 700))]


def cut(dice: random.Random, content: bytearray) -> None:
    del content[dice.randrange(len(content)) :]


def cut_front(dice: random.Random, content: bytearray) -> None:
    del content[: dice.randrange(len(content))]


def repeat(dice: random.Random, content: bytearray) -> None:
    at = dice.randrange(len(content))
    content += content[at : at + dice.choice((10, 256, 2000))]


def shuffle(dice: random.Random, content: bytearray) -> None:
    lines = bytes(content).splitlines(keepends=True)
    dice.shuffle(lines)
    content[:] = b"".join(lines)


def rename(dice: random.Random, content: bytearray) -> None:
    """Another word or number in the place of one."""
    words = (b'"version":1', b'"cost":"0.1"', b'"unknown":"1"', b"false", b"null", b'"key"', b'"at_most":"1"', b'"crc"')
    others = (
        b'"version":1e999',
        b'"version":2',
        b'"cost":NaN',
        b'"unknown":"x"',
        b"true",
        b"[]",
        b'"at_most":"-1"',
        b"{",
    )
    word = dice.choice(words)
    content[:] = bytes(content).replace(word, dice.choice(others), dice.choice((1, 2, -1)))


def crlf(_: random.Random, content: bytearray) -> None:
    content[:] = bytes(content).replace(b"\n", b"\r\n")


def bom(_: random.Random, content: bytearray) -> None:
    content[:0] = b"\xef\xbb\xbf"


DAMAGES: tuple[Damage, ...] = (flip, overwrite, insert, delete, cut, cut_front, repeat, shuffle, rename, crlf, bom)


def whole_pair(out: Path) -> tuple[bytes, bytes]:
    """The files as a killed run leaves them."""
    lines = [line(n, cost="0.1", unknown="1", run="r", failed=n == 2) for n in range(ROWS - 3)]
    out.write_bytes(b"".join(lines))
    with opened(out, room=3) as found:
        found.note_unknown(Decimal(2))
        for n in range(ROWS - 3, ROWS):
            found.mark_sent(row(n), Decimal(1))
    return out.read_bytes(), inflight(out).read_bytes()


def good_lines(content: bytes) -> list[bytes]:
    lines = (each.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r") + b"\n" for each in content.split(b"\n"))
    return [each for each in lines if read_short_note(each) is not None]


PARTS = 8
"""Into so many tests the slow one is divided."""


@pytest.mark.parametrize(
    "numbers",
    [range(150), *(pytest.param(range(part, MUTATIONS, PARTS), marks=pytest.mark.slow) for part in range(PARTS))],
    ids=repr,
)
def test_K3_mutated_pairs_of_files(out: Path, numbers: range) -> None:
    results, slots = whole_pair(out)
    opened_whole = 0
    for number in numbers:
        dice = random.Random(f"{SEED}/{number}")
        pair = bytearray(results), bytearray(slots)
        for _ in range(dice.choice((1, 1, 1, 2, 5))):
            victim = dice.choice(pair)
            if victim:
                dice.choice(DAMAGES)(dice, victim)
        opened_whole += check(out, bytes(pair[0]), bytes(pair[1]), number, retry_failed=dice.random() < 0.2)
    assert opened_whole > len(numbers) / 2


def check(out: Path, results: bytes, slots: bytes, number: int, *, retry_failed: bool) -> bool:
    """Go on from damaged files, and tell whether that was possible."""
    replace(out, results)
    replace(inflight(out), slots)
    aside(out).unlink(missing_ok=True)
    paid = good_lines(results)
    try:
        with opened(out, retry_failed=retry_failed) as found:
            for n in range(ROWS):
                if found.admit(row(n)):
                    found.mark_sent(row(n), Decimal(1))
                    found.save(line(n, run=found.run), key_of(f"row-{n}"))
            unknown = found.earlier.unknown
            assert unknown.is_finite(), number
    except BatchError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert str(out) in refusal, number
        assert "line" in refusal or "something else than results" in refusal, number
        assert out.read_bytes() == results, number
        return False
    after = out.read_bytes() + (aside(out).read_bytes() if aside(out).exists() else b"")
    for each in paid:
        note = read_short_note(each)
        assert (note is not None and note.failed and retry_failed) or each[:-1] in after, number
    with opened(out) as found:  # the lock was let go, and all is whole by now
        assert (found.earlier.broken, found.earlier.torn) == (0, False), number
        assert not any(found.admit(row(n)) for n in range(ROWS)), number
    return True
