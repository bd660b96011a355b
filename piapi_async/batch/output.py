"""The file of results: locked while it is open, and appended to one whole line at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from piapi_async.batch.pipe import PipeWriter
from piapi_async.errors import BatchError

__all__ = ["FileChangedError", "Output", "explain", "open_beside", "open_private"]

_STANDARD_OUTPUT = Path("-")
_BUFFER = 1 << 20


def open_private(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a file, and follow no link to it. A new one can be read by its owner alone, unless `mode` says otherwise."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def open_beside(path: Path, flags: int) -> int:
    """Open a file that is kept beside the results. A pipe or a device in its place is not waited for, read or written.

    Raises:
        InTheWayError: It is no regular file.
    """
    fd = open_private(path, flags | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise InTheWayError(errno.EINVAL, os.strerror(errno.EINVAL), os.fspath(path))


class InTheWayError(OSError):
    """Something else than a regular file has the name of a file that is kept beside the results."""


class FileChangedError(OSError):
    """Another program replaced, cut or wrote the file of results during the run."""


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
        self._real = path.absolute()  # wherever the program goes meanwhile
        self.read_only = read_only
        self.size = 0
        if read_only:
            self._fd = _look(path)
        else:
            self._fd = os.dup(1) if path == _STANDARD_OUTPUT else _lock(path)
        self.is_regular = path != _STANDARD_OUTPUT and stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._pipe = None if self.is_regular or read_only or not _may_stall(self._fd) else PipeWriter(self._fd)
        if self.is_regular and not read_only:
            try:
                _path_repaired(path).unlink(missing_ok=True)  # of a repair that was killed
            except OSError:
                os.close(self._fd)
                raise
            _locked.add(self)

    def open_reader(self) -> BinaryIO:
        """Open the file for reading from its beginning. Only one reader at a time: it is the same descriptor."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        return open(self._fd, "rb", buffering=_BUFFER, closefd=False)

    def append(self, line: bytes) -> None:
        """Append a line, or nothing of it.

        Raises:
            FileChangedError: The file is not what this run left.
            OSError: There is no room for it.
        """
        if self._pipe is not None:
            self._pipe.put(line)
            return
        if self.is_regular:
            self._check_unchanged()
        try:
            written = os.write(self._fd, line)
            while written < len(line):  # a pipe may take the rest; if the disk is full, this write says so
                written += os.write(self._fd, line[written:])
        except OSError:
            if self.is_regular:
                os.ftruncate(self._fd, self.size)
            raise
        self.size += len(line)

    async def written(self) -> None:
        """Wait until a reader has taken what was appended; a file needs none.

        Raises:
            OSError: It could not be written.
        """
        if self._pipe is not None:
            await self._pipe.written()

    def _check_unchanged(self) -> None:
        """Look whether the path still leads to this file, and whether it is as long as this run left it."""
        status = os.fstat(self._fd)
        try:
            same = os.path.samestat(os.stat(self._real, follow_symlinks=False), status)
        except FileNotFoundError:
            same = False
        if not same or status.st_size != self.size:
            raise FileChangedError

    def end_last_line(self) -> None:
        """Write the newline that the last line lacks."""
        os.write(self._fd, b"\n")

    def cut_last_line(self) -> None:
        """Take away what follows the good lines."""
        os.ftruncate(self._fd, self.size)

    def begin_repair(self) -> Repair:
        """Start a copy of the file that holds the good lines up to here."""
        return Repair(self._real, self._fd, self.size)

    def replace(self, repair: Repair) -> None:
        """Put a finished copy in the file's place."""
        old, self._fd = self._fd, repair.finish()
        os.close(old)

    def read_at(self, at: int, size: int) -> bytes:
        """Read a part of the file."""
        return os.pread(self._fd, size, at)

    def set_aside(self, lines: Iterable[bytes]) -> None:
        """Keep what is taken out of the files in a file of its own, beside them.

        Raises:
            OSError: There is no room for it.
        """
        fd = open_beside(_path_aside(self._real), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        size = os.fstat(fd).st_size
        try:
            for line in lines:
                _write_all(fd, line if line.endswith(b"\n") else line + b"\n")
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, size)
            raise
        finally:
            os.close(fd)

    @property
    def path_aside(self) -> Path:
        """Where damaged lines are kept."""
        return _path_aside(self.path)

    def let_go(self) -> None:
        """Give the lock up in the child of a fork: it must end with the process that took it."""
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nowhere, self._fd, inheritable=False)
        os.close(nowhere)

    def close(self) -> list[bytes]:
        """Close the file, which gives the lock back, and return what a reader has not taken."""
        _locked.discard(self)
        if self._pipe is not None:
            return self._pipe.close()
        os.close(self._fd)
        return []


_locked: weakref.WeakSet[Output] = weakref.WeakSet()
"""The files that this process has locked."""


os.register_at_fork(after_in_child=lambda: list(map(Output.let_go, _locked)))


def _write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def _may_stall(fd: int) -> bool:
    """Whether a write waits for a reader."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)


def _look(path: Path) -> int:
    try:
        return open_private(path, os.O_RDONLY)
    except FileNotFoundError:
        return open_private(Path(os.devnull), os.O_RDONLY)


def _lock(path: Path) -> int:
    """Open a file and lock it."""
    if _is_fifo(path):
        return _open_fifo(path)
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


def _open_fifo(path: Path) -> int:
    """Open a named pipe for writing alone: a run that could read from it too would not notice that nobody does."""
    fd = open_private(path, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(fd, True)
    return fd


def _is_fifo(path: Path) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _path_aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.set-aside")


def _path_repaired(path: Path) -> Path:
    return path.with_name(f"{path.name}.repaired")


class Repair:
    """A copy of the results without the lines that must go. It takes the file's place when it is complete.

    Args:
        path: The file of results.
        fd: Its descriptor.
        good: Bytes at its beginning that are good.
    """

    def __init__(self, path: Path, fd: int, good: int) -> None:
        self._path = path
        self._new = _path_repaired(path)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL
        self._fd = open_private(self._new, flags, stat.S_IMODE(os.fstat(fd).st_mode))
        self._buffer = bytearray()
        at = 0
        while piece := os.pread(fd, min(good - at, _BUFFER), at):
            _write_all(self._fd, piece)
            at += len(piece)

    def add(self, line: bytes) -> None:
        """Add a good line."""
        self._buffer += line
        if len(self._buffer) >= _BUFFER:
            self._write()

    def flush(self) -> None:
        """Write what was added, to the disk itself."""
        self._write()
        os.fsync(self._fd)

    def _write(self) -> None:
        _write_all(self._fd, bytes(self._buffer))
        self._buffer.clear()

    def finish(self) -> int:
        """Put the copy, flushed by now, in the file's place, and return its descriptor, which holds the lock."""
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.replace(self._new, self._path)
        return self._fd

    def drop(self) -> None:
        """Give up, and delete the copy."""
        self._new.unlink(missing_ok=True)
        os.close(self._fd)


_ADVICE: Mapping[type[OSError], str] = {
    BlockingIOError: "another batch is writing it; wait for its end, or choose another file",
    FileChangedError: (
        "another program replaced, cut or wrote it during the run, so nothing more was sent; let no other program "
        "touch it, and run the batch again"
    ),
    BrokenPipeError: "its reader is gone; keep it running, or name a file",
    TimeoutError: "its reader does not read; keep it running, or name a file",
    FileNotFoundError: "its directory does not exist; make it first",
    IsADirectoryError: "it is a directory; name a file",
}


def explain(path: Path, error: OSError) -> BatchError:
    """Say why a file of results can't be used, and what to do."""
    advice = _ADVICE.get(type(error))
    if error.errno == errno.ENXIO:
        advice = "nobody reads from it; start its reader first, or name a file"
    name: str | Path = "standard output" if path == _STANDARD_OUTPUT else path
    if isinstance(error.filename, str) and (beside := Path(error.filename).name).startswith(f"{path.name}."):
        name = path.with_name(beside)
        if isinstance(error, (InTheWayError, IsADirectoryError)) or error.errno == errno.ENXIO or name.is_symlink():
            advice = "it is no regular file, and the batch keeps one of this name; move it away"
    elif path.is_symlink():
        advice = "it is a symbolic link, and none is followed; name the file itself"
    return BatchError(f"{name}: {advice or f'it can not be written: {error.strerror}; choose another place'}")
