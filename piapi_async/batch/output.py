"""The file of results: locked while it is open, and appended to one whole line at a time."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from piapi_async.errors import BatchError

__all__ = ["Output", "explain", "open_private"]

_STANDARD_OUTPUT = Path("-")
_BUFFER = 1 << 20


def open_private(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a file, and follow no link to it. A new one can be read by its owner alone, unless `mode` says otherwise."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


class Output:
    """The file of results.

    Args:
        path: The file, or `"-"` for standard output.
        read_only: Whether the file must not be changed or locked; it need not exist then.

    Attributes:
        path: The file.
        read_only: See above.
        is_regular: Whether it is a regular file. Anything else is written to, and never read or locked.
        size: Bytes of the good lines.

    Raises:
        OSError: It can't be used; `BlockingIOError` if another run has locked it.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self.size = 0
        if read_only:
            self._fd = _look(path)
        else:
            self._fd = os.dup(1) if path == _STANDARD_OUTPUT else _lock(path)
        self.is_regular = path != _STANDARD_OUTPUT and stat.S_ISREG(os.fstat(self._fd).st_mode)

    def open_reader(self) -> BinaryIO:
        """Open the file for reading from its beginning."""
        return os.fdopen(os.dup(self._fd), "rb", buffering=_BUFFER)

    def append(self, line: bytes) -> None:
        """Append a line, or nothing of it.

        Raises:
            OSError: There is no room for it.
        """
        try:
            written = os.write(self._fd, line)
            while written < len(line):  # a pipe may take the rest; if the disk is full, this write says so
                written += os.write(self._fd, line[written:])
        except OSError:
            if self.is_regular:
                os.ftruncate(self._fd, self.size)
            raise
        self.size += len(line)

    def end_last_line(self) -> None:
        """Write the newline that the last line lacks."""
        if not self.read_only:
            os.write(self._fd, b"\n")

    def cut_last_line(self) -> None:
        """Take away what follows the good lines."""
        if not self.read_only:
            os.ftruncate(self._fd, self.size)

    def begin_repair(self) -> Repair:
        """Start a copy of the file that holds the good lines up to here."""
        return Repair(self.path, self._fd, self.size)

    def replace(self, repair: Repair) -> None:
        """Put a finished copy in the file's place."""
        old, self._fd = self._fd, repair.finish()
        os.close(old)

    def close(self) -> None:
        """Close the file, which gives the lock back."""
        os.close(self._fd)


def _look(path: Path) -> int:
    try:
        return open_private(path, os.O_RDONLY)
    except FileNotFoundError:
        return open_private(Path(os.devnull), os.O_RDONLY)


def _lock(path: Path) -> int:
    """Open a file and lock it."""
    while True:
        fd = open_private(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return fd
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, another run may have put a repaired file in its place.
            if os.path.samestat(os.stat(path), status):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


class Repair:
    """A copy of the results without the lines that must go. It takes the file's place when it is complete.

    Args:
        path: The file of results.
        fd: Its descriptor.
        good: Bytes at its beginning that are good.
    """

    def __init__(self, path: Path, fd: int, good: int) -> None:
        self._path = path
        self._new = path.with_name(f"{path.name}.repaired")
        self._new.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL
        self._fd = open_private(self._new, flags, stat.S_IMODE(os.fstat(fd).st_mode))
        self._file = os.fdopen(os.dup(self._fd), "wb", buffering=_BUFFER)
        at = 0
        while piece := os.pread(fd, min(good - at, _BUFFER), at):
            self._file.write(piece)
            at += len(piece)

    def add(self, line: bytes) -> None:
        """Add a good line."""
        self._file.write(line)

    def finish(self) -> int:
        """Put the copy in the file's place, and return its descriptor, which holds the lock."""
        self._file.close()
        os.fsync(self._fd)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._new.replace(self._path)
        return self._fd

    def drop(self) -> None:
        """Give up, and delete the copy."""
        self._new.unlink(missing_ok=True)
        os.close(self._fd)
        with suppress(OSError):  # what it still had to write finds no room, and nobody needs it
            self._file.close()


_ADVICE: Mapping[type[OSError], str] = {
    BlockingIOError: "another batch is writing it; wait for its end, or choose another file",
    FileNotFoundError: "its directory does not exist; make it first",
    IsADirectoryError: "it is a directory; name a file",
}


def explain(path: Path, error: OSError) -> BatchError:
    """Say why a file of results can't be used, and what to do."""
    advice = _ADVICE.get(type(error))
    if path.is_symlink():
        advice = "it is a symbolic link, and none is followed; name the file itself"
    return BatchError(f"{path}: {advice or f'it can not be written: {error.strerror}; choose another place'}")
