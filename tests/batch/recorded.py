"""A directory whose every change is recorded, so that a test can have the state that a crash at any moment leaves.

The batch changes its files by `os.open`, `os.write`, `os.pwrite`, `os.ftruncate`, `os.unlink` and `os.replace` alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import pytest


@attrs.frozen
class Create:
    """A new file, empty."""

    name: str
    inode: int


@attrs.frozen
class Write:
    """Bytes in a file, at its end or over others."""

    inode: int
    at: int
    content: bytes


@attrs.frozen
class Truncate:
    """A file is cut."""

    inode: int
    size: int


@attrs.frozen
class Rename:
    """A file takes another's place."""

    old: str
    new: str


@attrs.frozen
class Unlink:
    """A file is deleted."""

    name: str


@attrs.frozen
class Sent:
    """No change, but a request that went out: to whom the row belongs, and what it is billed."""

    row: str
    bill: Any


Event: TypeAlias = "Create | Write | Truncate | Rename | Unlink | Sent"
State: TypeAlias = Mapping[str, bytes]
"""Names and contents of the files of a directory."""


@attrs.define(eq=False)
class Recording:
    """What was done to a directory.

    Attributes:
        start: Its files before.
        events: What happened since then, in order.
    """

    start: State
    events: list[Event] = attrs.field(factory=list[Event])

    def state(self, count: int, torn: int | None = None) -> State:
        """The files after so many events; the last of them a write of which only so many bytes were written."""
        names = {name: -number - 1 for number, name in enumerate(self.start)}
        inodes = {names[name]: bytearray(content) for name, content in self.start.items()}
        for number, event in enumerate(self.events[:count]):
            match event:
                case Create(name, inode):
                    names[name], inodes[inode] = inode, bytearray()
                case Write(inode, at, content):
                    if torn is not None and number == count - 1:
                        content = content[:torn]
                    inodes[self._number(inode)][at : at + len(content)] = content
                case Truncate(inode, size):
                    del inodes[self._number(inode)][size:]
                case Rename(old, new):
                    names[new] = names.pop(old)
                case Unlink(name):
                    del names[name]
                case Sent():
                    pass
        return {name: bytes(inodes[inode]) for name, inode in names.items()}

    def _number(self, inode: int) -> int:
        return inode

    def crashes(self) -> Iterator[tuple[int, int | None]]:
        """Each moment of a crash: after so many events, and how much was written of the last one (None: all)."""
        for count in range(len(self.events) + 1):
            yield count, None
            last = self.events[count - 1] if count else None
            if isinstance(last, Write):
                yield from ((count, size) for size in sorted(_cuts(last.content)))

    def bills(self, count: int) -> list[Any]:
        """What was billed by requests that went out in the first events, and in those before the next change."""
        while count < len(self.events) and isinstance(self.events[count], Sent):
            count += 1
        return [event.bill for event in self.events[:count] if isinstance(event, Sent)]


def _cuts(content: bytes) -> set[int]:
    """One place in each kind of bytes that a line of the results or a slot has."""
    size = len(content)
    marks = (b'"custom_id"', b'"response"', b'"error"', b',"piapi_async":', b'"key"', b'"unknown"', b',"crc"', b"\n")
    places = {1, size // 2, size - 15, size - 10, size - 9, size - 5, size - 2, size - 1}
    places |= {content.find(mark) + step for mark in marks for step in (0, 3)}
    return {place for place in places if 0 < place < size}


@contextmanager
def recorded(directory: Path) -> Iterator[Recording]:
    """Record what is done to the files of a directory meanwhile."""
    recording = Recording({path.name: path.read_bytes() for path in directory.iterdir()})
    inodes = {os.stat(path).st_ino: -number - 1 for number, path in enumerate(map(directory.joinpath, recording.start))}
    opened: dict[int, int] = {}  # by descriptor
    real = {name: getattr(os, name) for name in ("open", "write", "pwrite", "ftruncate", "unlink", "replace", "close")}
    numbers = iter(range(1, 1_000_000))
    note = recording.events.append

    def is_here(path: Any) -> bool:
        return isinstance(path, (str, Path)) and Path(path).parent == directory

    def open_(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        is_new = is_here(path) and not os.path.lexists(path)
        fd: int = real["open"](path, flags, *arguments, **options)
        if is_here(path):
            inode = os.fstat(fd).st_ino
            if is_new:
                inodes[inode] = next(numbers)
                note(Create(Path(path).name, inodes[inode]))
            opened[fd] = inodes[inode]
        return fd

    def write(fd: int, content: bytes) -> int:
        at = os.fstat(fd).st_size if fd in opened else 0
        written: int = real["write"](fd, content)
        if fd in opened:
            note(Write(opened[fd], at, bytes(content[:written])))
        return written

    def pwrite(fd: int, content: bytes, at: int) -> int:
        written: int = real["pwrite"](fd, content, at)
        note(Write(opened[fd], at, bytes(content[:written])))
        return written

    def ftruncate(fd: int, size: int) -> None:
        real["ftruncate"](fd, size)
        note(Truncate(opened[fd], size))

    def unlink(path: Any, **options: Any) -> None:
        real["unlink"](path, **options)
        if is_here(path):
            note(Unlink(Path(path).name))

    def replace(old: Any, new: Any) -> None:
        real["replace"](old, new)
        note(Rename(Path(old).name, Path(new).name))

    def close(fd: int) -> None:
        real["close"](fd)
        opened.pop(fd, None)

    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in (
            ("open", open_),
            ("write", write),
            ("pwrite", pwrite),
            ("ftruncate", ftruncate),
            ("unlink", unlink),
            ("replace", replace),
            ("close", close),
        ):
            patch.setattr(os, name, stand_in)
        yield recording
    assert recording.state(len(recording.events)) == {path.name: path.read_bytes() for path in directory.iterdir()}
