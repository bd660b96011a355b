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
                    inodes[inode][at : at + len(content)] = content
                case Truncate(inode, size):
                    del inodes[inode][size:]
                case Rename(old, new):
                    names[new] = names.pop(old)
                case Unlink(name):
                    del names[name]
                case Sent():
                    pass
        return {name: bytes(inodes[inode]) for name, inode in names.items()}

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


class _Recorder:
    """Stands in for the functions of `os`."""

    def __init__(self, directory: Path) -> None:
        self.recording = Recording({path.name: path.read_bytes() for path in directory.iterdir()})
        self.real = {name: getattr(os, name) for name in CALLS}
        self._directory = directory
        names = enumerate(self.recording.start)
        self._inodes = {os.stat(directory / name).st_ino: -number - 1 for number, name in names}
        self._opened: dict[int, int] = {}  # by descriptor
        self._numbers = iter(range(1, 1_000_000))

    def _note(self, event: Event) -> None:
        self.recording.events.append(event)

    def _is_here(self, path: Any) -> bool:
        return isinstance(path, (str, Path)) and Path(path).parent == self._directory

    def open(self, path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        is_new = self._is_here(path) and not os.path.lexists(path)
        fd: int = self.real["open"](path, flags, *arguments, **options)
        if self._is_here(path):
            inode = os.fstat(fd).st_ino
            if is_new:
                self._inodes[inode] = next(self._numbers)
                self._note(Create(Path(path).name, self._inodes[inode]))
            self._opened[fd] = self._inodes[inode]
        return fd

    def write(self, fd: int, content: bytes) -> int:
        at = os.fstat(fd).st_size if fd in self._opened else 0
        written: int = self.real["write"](fd, content)
        if fd in self._opened:
            self._note(Write(self._opened[fd], at, bytes(content[:written])))
        return written

    def pwrite(self, fd: int, content: bytes, at: int) -> int:
        written: int = self.real["pwrite"](fd, content, at)
        self._note(Write(self._opened[fd], at, bytes(content[:written])))
        return written

    def ftruncate(self, fd: int, size: int) -> None:
        self.real["ftruncate"](fd, size)
        self._note(Truncate(self._opened[fd], size))

    def unlink(self, path: Any, **options: Any) -> None:
        self.real["unlink"](path, **options)
        if self._is_here(path):
            self._note(Unlink(Path(path).name))

    def replace(self, old: Any, new: Any) -> None:
        self.real["replace"](old, new)
        self._note(Rename(Path(old).name, Path(new).name))

    def close(self, fd: int) -> None:
        self.real["close"](fd)
        self._opened.pop(fd, None)


CALLS = ("open", "write", "pwrite", "ftruncate", "unlink", "replace", "close")


@contextmanager
def recorded(directory: Path) -> Iterator[Recording]:
    """Record what is done to the files of a directory meanwhile."""
    recorder = _Recorder(directory)
    recording = recorder.recording
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, getattr(recorder, name))
        yield recording
    assert recording.state(len(recording.events)) == {path.name: path.read_bytes() for path in directory.iterdir()}
