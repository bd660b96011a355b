"""The files of a batch: its results, one line each, and what is under way. No network, no event loop.

A result is appended by one `os.write`, which a killed process has done or has not; a line that a full disk cut short is
taken back. Each line ends with a checksum, so that a broken one is known from a good one without looking at the answer.
What is sent is noted in a second file, beside the first, of one small slot for each request: what a killed process
leaves there may have been billed.

The ids of a million rows would fill the memory; they are in a temporary database on disk instead.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from decimal import Context, Decimal
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import attrs
import msgspec

from piapi_async.errors import BatchError

__all__ = ["NO_SLOT", "Checkpoint", "Note", "key_of", "make_line", "read_notes"]

FORMAT = 1
"""Version of a line's note. A higher one is refused, as what it means is not known here."""

CACHE_KIB = 16 * 1024
"""Memory for the database of ids; more goes to disk (ours: with 2 MiB, 10⁶ ids took twice the time)."""

PIECE = 2000
"""Lines that are read before others get their turn: some 10 ms (ours)."""

SLOT = 256
"""Bytes of a slot: a key, an amount and the beginning of a long `custom_id` fit in, and a page holds whole slots."""

NO_SLOT = -1
"""Stands for a slot where nothing is noted."""

_START = b'{"id":"batch_req_'
_MARK = b',"piapi_async":'
_TAIL = len(',"crc":"00000000"}}\n')
_EXACT = Context(prec=60)


@attrs.frozen(slots=False, kw_only=True)
class Note:
    """What a line says beside the result itself, under `"piapi_async"`.

    Attributes:
        key: Hash of the row's id, 16 hexadecimal digits.
        request: Hash of what was asked and where, 16 hexadecimal digits.
        failed: Whether there is no answer.
        kind: `"ok"`, or what failed.
        provider: Name of the provider that answered, or failed last.
        model: The model, by the caller's name.
        cost: US dollars; None when it is unknown.
        cost_estimated: Whether the cost rests on an estimate of the tokens.
        unknown: US dollars that all attempts whose bill is unknown may have cost, in the whole batch so far.
        tokens_in: Tokens of the prompt, if they were counted.
        tokens_out: Tokens of the answer, if they were counted.
        attempts: Requests that were sent.
        latency: Seconds that the last of them took.
        first_token: Seconds to its first event, if it was streamed.
        elapsed: Seconds for all, waiting and retries included.
        finished: Seconds since 1970, UTC.
        version: `FORMAT`.
    """

    version: int = FORMAT
    key: str
    request: str
    failed: bool = False
    kind: str = "ok"
    provider: str = ""
    model: str = ""
    cost: str | None = None
    cost_estimated: bool = False
    unknown: str = "0"
    tokens_in: int | None = None
    tokens_out: int | None = None
    attempts: int = 0
    latency: float = 0.0
    first_token: float | None = None
    elapsed: float = 0.0
    finished: float = 0.0


@attrs.frozen(slots=False)
class _Brief:
    """What of a note is needed to go on; a class of few fields is read faster than a whole note."""

    version: int
    key: str
    request: str
    failed: bool = False
    cost: str | None = None
    unknown: str = "0"


_decode_brief = msgspec.json.Decoder(_Brief).decode
_decode_note = msgspec.json.Decoder(Note).decode


def key_of(custom_id: str) -> str:
    """Return the hash that stands for a row's id."""
    return blake2b(custom_id.encode(), digest_size=8).hexdigest()


def make_line(custom_id: str, response: object, error: object, note: Note) -> bytes:
    """Make the line of a result, in OpenAI's format, with a note and a checksum behind."""
    result = {"id": f"batch_req_{note.key}", "custom_id": custom_id, "response": response, "error": error}
    head = msgspec.json.encode(result)[:-1] + _MARK + msgspec.json.encode(note)[:-1]
    return b'%b,"crc":"%08x"}}\n' % (head, zlib.crc32(head))


def _note_in(line: bytes) -> bytes | None:
    """The JSON of a line's note; None if the line is not whole."""
    head = line[:-_TAIL]
    if line[-_TAIL:] != b',"crc":"%08x"}}\n' % zlib.crc32(head):
        return None
    return line[head.rfind(_MARK) + len(_MARK) : -2]


def read_notes(path: str | os.PathLike[str]) -> Iterator[Note]:
    """Read the notes of a file of results, for statistics; what is broken is left out.

    Raises:
        OSError: The file can't be read.
        msgspec.DecodeError: A newer release wrote it.
    """
    with open(path, "rb") as file:
        for line in file:
            note = _note_in(line)
            if note is not None:
                yield _decode_note(note)


def _is_cut(line: bytes) -> bool:
    """Tell whether a line may be the beginning of one of ours; whole JSON without a note is another's."""
    if not line.startswith(_START[: len(line)]):
        return False
    try:
        msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return True
    return _MARK in line


def _version(line: bytes) -> int:
    """The version of a line that is not one of ours as they are now; 0 if it says nothing of it."""
    try:
        record = msgspec.json.decode(line)
        return int(record["piapi_async"]["version"])
    except (ValueError, TypeError, LookupError):
        return 0


def _number(key: str) -> int:
    """A hash as SQLite's integer."""
    return int(key, 16) - (1 << 63)


class _Ids:
    """The ids of rows: those finished, with the hash of what was asked, and those seen in the input."""

    def __init__(self) -> None:
        # The empty name: a temporary file of SQLite's own, gone with the connection.
        self._database = sqlite3.connect("", isolation_level=None)
        for statement in (
            f"PRAGMA cache_size = -{CACHE_KIB}",
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE finished (id INTEGER PRIMARY KEY, request INTEGER)",
            "CREATE TABLE seen (id INTEGER PRIMARY KEY)",
            "BEGIN",
        ):
            self._database.execute(statement)

    def finish(self, notes: Iterable[_Brief]) -> None:
        pairs = [(_number(note.key), _number(note.request)) for note in notes]
        self._database.executemany("INSERT OR IGNORE INTO finished VALUES (?, ?)", pairs)

    def request_of(self, key: str) -> int | None:
        """What a finished row had asked."""
        found = self._database.execute("SELECT request FROM finished WHERE id = ?", (_number(key),)).fetchone()
        return None if found is None else int(found[0])

    def see(self, key: str) -> bool:
        """Note a row of the input; False if it was there before."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (_number(key),)).rowcount == 1

    def forget_seen(self) -> None:
        self._database.execute("DELETE FROM seen")

    def close(self) -> None:
        self._database.close()


@attrs.frozen(slots=False)
class _Entry:
    """What a slot holds.

    Attributes:
        key: Of the row.
        custom_id: Its id, cut if it is long.
        at_most: US dollars that the requests sent for it may have cost.
    """

    key: str
    custom_id: str
    at_most: Decimal


class _UnderWay:
    """What was sent and has no result yet, on disk."""

    def __init__(self, path: Path, room: int) -> None:
        self._path = path
        self._fd = _open(path, os.O_RDWR | os.O_CREAT)
        self._slots: dict[int, _Entry] = {}
        try:
            self._begin(room)
        except BaseException:
            os.close(self._fd)
            raise

    def _begin(self, room: int) -> None:
        content = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        for at in range(0, len(content), SLOT):
            try:
                self._slots[at // SLOT] = msgspec.json.decode(content[at : at + SLOT], type=_Entry)
            except msgspec.DecodeError:
                continue  # empty
        # Room is made now, so that a disk that fills up later does not fail the note of what is sent.
        self._count = max(room + len(self._slots), -(-len(content) // SLOT))
        self._free = [slot for slot in range(self._count) if slot not in self._slots]
        for slot in self._free:
            self._write(slot, b"")
        self.left = {entry.key: (slot, entry) for slot, entry in self._slots.items()}

    @property
    def sent(self) -> Mapping[int, _Entry]:
        return self._slots

    def begin(self, key: str, custom_id: str, at_most: Decimal) -> int:
        if key in self.left:
            slot, before = self.left[key]
            at_most += before.at_most
        elif self._free:
            slot = self._free.pop()
        else:
            slot = self._count
            self._count += 1
        self._note(slot, _Entry(key, custom_id, at_most))
        return slot

    def end(self, slot: int) -> None:
        self.left.pop(self._slots.pop(slot).key, None)
        self._free.append(slot)
        self._write(slot, b"")

    def take_back(self, slot: int) -> None:
        """Forget what this run sent; what earlier ones sent stays."""
        before = self.left.get(self._slots[slot].key)
        if before is None:
            self.end(slot)
        else:
            self._note(*before)

    def leave(self, slot: int) -> None:
        entry = self._slots[slot]
        self.left[entry.key] = slot, entry

    def _note(self, slot: int, entry: _Entry) -> None:
        if len(content := msgspec.json.encode(entry)) >= SLOT:
            content = msgspec.json.encode(attrs.evolve(entry, custom_id=f"{entry.custom_id[:24]}…"))
        self._write(slot, content)
        self._slots[slot] = entry

    def _write(self, slot: int, content: bytes) -> None:
        if os.pwrite(self._fd, content.ljust(SLOT - 1) + b"\n", slot * SLOT) < SLOT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        if not self._slots:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)


def _open(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a file that no other user reads, following no link."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


class Checkpoint:
    """The results of a batch, on disk, with what earlier runs left there.

    Results that can't be written, because the disk is full, are kept in `unsaved`.

    Args:
        output: The file of results, `"-"` for standard output. What is no regular file is written to, and never read.
        retry_failed: Whether rows that failed in earlier runs count as not finished; their lines are taken out.
        room: Requests that will be under way at once.
        read_only: Whether only to look: nothing is written, repaired or locked, and the file need not exist.

    Attributes:
        done: Rows that have an answer.
        failed: Rows that are recorded as failed.
        torn: Whether the last line was cut short, and taken away.
        broken: Lines that were broken, and taken away.
        spent: US dollars that the answers cost.
        unknown: US dollars that requests whose bill is unknown may have cost beside.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        *,
        retry_failed: bool = False,
        room: int = 1,
        read_only: bool = False,
    ) -> None:
        self._path = Path(output)
        self._read_only = read_only
        self._retry_failed = retry_failed
        self._ids = _Ids()
        self._under_way: _UnderWay | None = None
        self._size = 0
        self.unknown = Decimal(0)
        self.done = self.failed = self.broken = 0
        self.torn = False
        self.spent = Decimal(0)
        self._unsaved: list[tuple[bytes, int]] = []
        self._problem: OSError | None = None
        self._repair: _Repair | None = None
        self._fd = -1
        try:
            self._fd = self._look() if read_only else os.dup(1) if self._path == Path("-") else self._lock()
            self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode) and self._path != Path("-")
            if self._regular and not read_only:
                self._under_way = _UnderWay(self._path.with_name(f"{self._path.name}.inflight"), room)
        except OSError as error:
            problem = _explain(self._path, error)
        else:
            return
        self._let_files_go()
        raise problem

    def _look(self) -> int:
        try:
            return _open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return _open(Path(os.devnull), os.O_RDONLY)

    def _lock(self) -> int:
        while True:
            fd = _open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    return fd
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A repair by another run may have put a new file in its place since it was opened.
                if os.path.samestat(os.stat(self._path), status):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    # -- what is there already ---------------------------------------------------------------------------------------

    def load(self) -> Iterator[None]:
        """Read what earlier runs left, and repair it; a generator, so that others get their turn in between.

        Raises:
            BatchError: The file is no file of results, or one of a newer version, or can't be repaired.
        """
        if not self._regular:
            return
        try:
            with os.fdopen(os.dup(self._fd), "rb", buffering=1 << 20) as file:
                yield from self._load(file)
        except OSError as error:
            problem = _explain(self._path, error)
        except sqlite3.Error as error:
            problem = _no_room_for_ids(self._path, error)
        else:
            return
        raise problem

    def _load(self, file: BinaryIO) -> Iterator[None]:
        ours = False
        try:
            while lines := list(islice(file, PIECE)):
                notes = [note for line in lines if (note := self._take(line)) is not None]
                ours = ours or bool(notes) or any(_MARK in line for line in lines)
                self._count(notes)
                yield
            if self.broken and not ours:
                raise self._foreign()
            if self._repair is not None:
                self._fd, self._repair = self._repair.finish(self._fd), None
        finally:
            if self._repair is not None:
                self._repair.drop()
        if self._under_way is not None:
            self._settle_left(self._under_way)

    def _take(self, line: bytes) -> _Brief | None:
        """Decide what becomes of a line: its note if it stays, None if it goes."""
        whole = line if line.endswith(b"\n") else line + b"\n"  # of the last line all but its end may be there
        note = self._read(whole)
        if note is not None:
            if note.unknown != "0":
                self.unknown = max(self.unknown, Decimal(note.unknown))
            if not (note.failed and self._retry_failed):
                if self._repair is not None:
                    self._repair.keep(whole)
                elif whole is not line and not self._read_only:
                    os.write(self._fd, b"\n")
                self._size += len(whole)
                return note
        if whole is line:
            self.broken += note is None
            if self._repair is None and not self._read_only:
                self._repair = _Repair(self._path, self._fd, self._size)
        else:
            if not self._size and not _is_cut(line):
                raise self._foreign()
            self.torn = True
            if self._repair is None and not self._read_only:
                os.ftruncate(self._fd, self._size)
        return None

    def _read(self, line: bytes) -> _Brief | None:
        """The note of a line; None if the line is not whole."""
        note = None
        if (content := _note_in(line)) is not None:
            with suppress(msgspec.DecodeError):  # it is whole, so another release wrote it
                note = _decode_brief(content)
        version = note.version if note is not None else _version(line)
        if version > FORMAT:
            raise BatchError(
                f"{self._path}: a newer release wrote it (format {version}, and this one knows {FORMAT}); upgrade, or "
                "choose another file"
            )
        return note

    def _foreign(self) -> BatchError:
        return BatchError(
            f"{self._path}: it holds something else than results of a batch; choose another file for them"
        )

    def _count(self, notes: list[_Brief]) -> None:
        self._ids.finish(notes)
        failed = sum(note.failed for note in notes)
        self.failed += failed
        self.done += len(notes) - failed
        for note in notes:
            if note.cost is not None:
                self.spent = _EXACT.add(self.spent, Decimal(note.cost))

    def _settle_left(self, under_way: _UnderWay) -> None:
        """Forget of what was under way what has a result: the process died between the two writes."""
        for key, (slot, _) in list(under_way.left.items()):
            if self._ids.request_of(key) is not None:
                under_way.end(slot)
        self.unknown += sum((entry.at_most for _, entry in under_way.left.values()), Decimal(0))

    @property
    def maybe_billed(self) -> tuple[str, ...]:
        """Ids of the rows that an earlier run had sent when it ended, and that have no result yet."""
        return () if self._under_way is None else tuple(entry.custom_id for _, entry in self._under_way.left.values())

    @property
    def sent(self) -> tuple[str, ...]:
        """Ids of the rows that were sent, by this run or an earlier one, and that have no result."""
        if self._under_way is None:
            return ()
        unsaved = {slot for _, slot in self._unsaved}
        return tuple(entry.custom_id for slot, entry in self._under_way.sent.items() if slot not in unsaved)

    @property
    def unsaved(self) -> tuple[bytes, ...]:
        """Lines that could not be written."""
        return tuple(line for line, _ in self._unsaved)

    def unknown_left(self, key: str) -> Decimal:
        """US dollars that requests may have cost which were left for other rows: no line tells of them, but a slot."""
        if self._under_way is None:
            return Decimal(0)
        return sum((entry.at_most for other, (_, entry) in self._under_way.left.items() if other != key), Decimal(0))

    # -- the input ---------------------------------------------------------------------------------------------------

    def admit(self, custom_id: str, key: str, request: str, where: str) -> bool:
        """Note a row of the input, and say whether it is yet to be done.

        Args:
            custom_id: Its id.
            key: Hash of the id.
            request: Hash of what it asks.
            where: What to call it in an error.

        Raises:
            BatchError: Its id was there before, or its result answers another request.
        """
        problem: BatchError | None = None
        is_new, finished = True, None
        try:
            is_new, finished = self._ids.see(key), self._ids.request_of(key)
        except sqlite3.Error as error:
            problem = _no_room_for_ids(self._path, error)
        if problem is not None:
            raise problem
        if not is_new:
            raise BatchError(f"{where}: the custom_id {custom_id!r} was there before; give each row its own")
        if finished is not None and finished != _number(request):
            raise BatchError(
                f"{where}: {self._path} has a result for {custom_id!r} that answers another request: its body, the "
                "model, a parameter or the base URL was different; put it back, or choose another file for the results"
            )
        return finished is None

    def forget_input(self) -> None:
        """Forget which rows were seen: the input is read once more."""
        self._ids.forget_seen()

    # -- the run -----------------------------------------------------------------------------------------------------

    def begin(self, key: str, custom_id: str, at_most: Decimal) -> int:
        """Note that a request is about to be sent, and return its slot."""
        if self._under_way is not None:
            with self._noting_problems():
                return self._under_way.begin(key, custom_id, at_most)
        return NO_SLOT

    def take_back(self, slot: int) -> None:
        """Note that a request was not billed, and that its row is yet to be done."""
        if self._under_way is not None and slot != NO_SLOT:
            with self._noting_problems():
                self._under_way.take_back(slot)

    def leave(self, slot: int) -> None:
        """Leave a request on record that may have been billed, and whose row is yet to be done."""
        if self._under_way is not None and slot != NO_SLOT:
            self._under_way.leave(slot)

    @contextmanager
    def _noting_problems(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            self._problem = error.with_traceback(None)

    @property
    def is_full(self) -> bool:
        """Whether a result could not be written."""
        return self._problem is not None

    def save(self, line: bytes, slot: int = NO_SLOT) -> None:
        """Append a result, and give its slot back; what can't be written is kept, here and from then on."""
        if self._problem is None:
            with self._noting_problems():
                self._append(line)
        if self._problem is not None:
            self._unsaved.append((line, slot))
        elif self._under_way is not None and slot != NO_SLOT:
            with self._noting_problems():
                self._under_way.end(slot)

    def _append(self, line: bytes) -> None:
        try:
            written = os.write(self._fd, line)
            while written < len(line):  # the disk is full, which the next write says; a pipe may take more
                written += os.write(self._fd, line[written:])
        except OSError:
            if self._regular:
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(line)

    def close(self) -> None:
        """Write what could not be written before, as there may be room by now, and let the files go.

        Raises:
            BatchError: There is none; `unsaved` has the lines.
        """
        try:
            if self._problem is not None and self._regular:
                unsaved, self._unsaved, self._problem = self._unsaved, [], None
                for line, slot in unsaved:
                    self.save(line, slot)
        finally:
            self._let_files_go()
        if self._problem is not None:
            error = _explain(self._path, self._problem)
            error.unsaved = self.unsaved
            raise error

    def _let_files_go(self) -> None:
        if self._under_way is not None:
            self._under_way.close()
        self._ids.close()
        if self._fd >= 0:
            os.close(self._fd)


class _Repair:
    """A copy of the results without the lines that must go; it takes the old file's place when it is whole."""

    def __init__(self, path: Path, fd: int, good: int) -> None:
        self._path = path
        self._new = path.with_name(f"{path.name}.repaired")
        self._new.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL
        self._fd = _open(self._new, flags, stat.S_IMODE(os.fstat(fd).st_mode))
        self._file = os.fdopen(os.dup(self._fd), "wb", buffering=1 << 20)
        at = 0
        while piece := os.pread(fd, min(good - at, 1 << 20), at):
            self._file.write(piece)
            at += len(piece)

    def keep(self, line: bytes) -> None:
        self._file.write(line)

    def finish(self, old: int) -> int:
        """Put the copy in the old file's place, and return its descriptor, locked as the old one was."""
        self._file.close()
        os.fsync(self._fd)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._new.replace(self._path)
        os.close(old)
        return self._fd

    def drop(self) -> None:
        self._new.unlink(missing_ok=True)
        os.close(self._fd)
        with suppress(OSError):  # what is still to be written finds no room, and is of no use
            self._file.close()


_ADVICE: Mapping[type[OSError], str] = {
    BlockingIOError: "another batch is writing it; wait for its end, or choose another file",
    FileNotFoundError: "its directory does not exist; make it first",
    IsADirectoryError: "it is a directory; name a file",
}


def _no_room_for_ids(path: Path, error: sqlite3.Error) -> BatchError:
    return BatchError(
        f"{path}: there is no room for its ids in a temporary file ({error}); set TMPDIR to another place"
    )


def _explain(path: Path, error: OSError) -> BatchError:
    advice = _ADVICE.get(type(error))
    if path.is_symlink():
        advice = "it is a symbolic link, and none is followed; name the file itself"
    return BatchError(f"{path}: {advice or f'it can not be written: {error.strerror}; choose another place'}")
