"""Files of results as the tests of them share them."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from piapi_async.batch.checkpoint import Checkpoint
from piapi_async.batch.records import Note, key_of, make_line, read_short_note
from piapi_async.batch.rows import Row

REQUEST = "0123456789abcdef"
NOTHING = Decimal(0)


def row(number: int | str, *, request: str = REQUEST) -> Row:
    """Row `row-N` of an input, or one of that name."""
    name = number if isinstance(number, str) else f"row-{number}"
    return Row(f"line {number}", name, key_of(name), request, {})


def line(number: int, *, request: str = REQUEST, **note: Any) -> bytes:
    """The result of row `row-N`."""
    name = f"row-{number}"
    body = {"choices": [{"message": {"content": f"answer {number}, \N{SNOWMAN}"}}]}
    response = None if note.get("failed") else {"status_code": 200, "request_id": "", "body": body}
    return make_line(name, response, None, Note(key=key_of(name), request=request, **note))


def put(found: Checkpoint, content: bytes) -> None:
    """Save a result."""
    note = read_short_note(content)
    assert note is not None
    found.save(content, note.key, Decimal(note.unknown))


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


def pending(found: Checkpoint, numbers: range) -> list[int]:
    """Which of these rows are yet to be done."""
    return [number for number in numbers if found.admit(row(number))]


def inflight(out: Path) -> Path:
    """The file of what is in flight."""
    return out.with_name(f"{out.name}.inflight")


def aside(out: Path) -> Path:
    """The file of what was damaged."""
    return out.with_name(f"{out.name}.set-aside")


def replace(path: Path, content: bytes | bytearray) -> None:
    """Write a file anew. To cut the old one to nothing first costs some file systems milliseconds."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, which looks like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
