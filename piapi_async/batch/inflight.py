"""What was sent and has no result yet, in a file beside the results: `results.jsonl.inflight`.

Each request in flight has a small slot there, noted before it is sent. What a killed process leaves may have been
billed. A slot is written once, blanked once, and never written over: a write that is cut short costs no other bill.

A slot of a run holds its unknown bills as long as neither a line of the results nor a slot of a row tells of them.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path

import attrs
import msgspec

from piapi_async.batch.output import open_beside

__all__ = ["SLOT", "Entry", "InflightFile"]

SLOT = 256
"""Bytes of a slot: room for a key, an amount and the beginning of a long `custom_id`, and a page holds whole slots."""

_CHECKSUM = b"%08x\n"
_ROOM = SLOT - len(_CHECKSUM % 0)
_BLANKS = b" \0\r\n"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_SHOWN = 24
"""Characters that are kept of an id too long for a slot."""

_OF_A_RUN = ""
"""Stands for a key in the slot of a run."""


@attrs.frozen
class Entry:
    """What a slot holds.

    Attributes:
        key: Hash of the row's id; empty in the slot of a run.
        custom_id: The id, cut if it is long; the name of the run.
        at_most: US dollars that the request may have cost; the unknown bills of the run.
    """

    key: str
    custom_id: str
    at_most: Decimal


class InflightFile:
    """The file of slots. It goes away when it is closed with nothing in it.

    Args:
        path: The file; it may exist.
        room: Requests that will be in flight at once.

    Attributes:
        path: The file.
        damaged: Slots that can't be read, as they are. They stay until `clear_damaged`.

    Raises:
        OSError: The file can't be used, or the disk is full.
    """

    def __init__(self, path: Path, room: int) -> None:
        self.path = path
        self.damaged: list[bytes] = []
        self._entries: dict[int, Entry] = {}
        self._slots: dict[str, list[int]] = {}  # by key
        self._kept: set[int] = set()
        self._idle: dict[str, int] = {}  # slots of rows that nothing is under way for just now
        self._fd = open_beside(path, os.O_RDWR | os.O_CREAT)
        try:
            self._load(room)
        except BaseException:
            os.close(self._fd)
            raise

    # -- what earlier runs left --------------------------------------------------------------------------------------

    def _load(self, room: int) -> None:
        content = _read_all(self._fd)
        lines = content.split(b"\n")
        if any(len(line) != SLOT - 1 for line in lines[:-1]):  # an editor changed its line ends, or bytes were lost
            content = self._align(lines)
        bad: list[int] = []
        count = -(-len(content) // SLOT)
        for slot in range(count):
            line = content[slot * SLOT : (slot + 1) * SLOT]
            entry = _read_slot(line if line.endswith(b"\n") else line + b"\n")
            if entry is not None:
                self._hold(slot, entry)
            elif line.strip(_BLANKS):
                bad.append(slot)
                self.damaged.append(line)
        self._damaged_slots = bad
        self._count = max(room + len(self._entries) + len(bad), count)
        self._free = [slot for slot in range(self._count) if slot not in self._entries and slot not in bad]
        for slot in self._free:  # now, so that a disk that fills up later still has room to note what is sent
            self._write(slot, b"")
        self._kept = {slot for slot, entry in self._entries.items() if entry.key != _OF_A_RUN}

    def _align(self, lines: list[bytes]) -> bytes:
        """Write the file anew, each of its lines in a slot of its own, or in several if it is too long."""
        content = b""
        for line in lines:
            line = line.removeprefix(_BYTE_ORDER_MARK).rstrip(b"\r")
            entry = _read_slot(line + b"\n")
            if entry is not None:
                content += _slot_of(entry)
            elif line.strip(_BLANKS):
                content += b"".join(
                    line[at : at + SLOT - 1].ljust(SLOT - 1) + b"\n" for at in range(0, len(line), SLOT - 1)
                )
        new = self.path.with_name(f"{self.path.name}.new")
        new.unlink(missing_ok=True)
        fd = open_beside(new, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            _write_at(fd, content, 0)
            os.replace(new, self.path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd
        return content

    def clear_damaged(self) -> None:
        """Blank the slots that can't be read: they are kept elsewhere by now."""
        for slot in self._damaged_slots:
            self._write(slot, b"")
            self._free.append(slot)
        self._damaged_slots = []

    # -- what was sent -----------------------------------------------------------------------------------------------

    @property
    def sent(self) -> Iterator[Entry]:
        """What was sent and has no result."""
        return (entry for entry in self._entries.values() if entry.key != _OF_A_RUN)

    @property
    def kept(self) -> Iterator[Entry]:
        """What was sent, may have been billed, and is waited for by no run any more."""
        return (self._entries[slot] for slot in sorted(self._kept))

    @property
    def noted(self) -> Mapping[str, Decimal]:
        """US dollars of unknown bills by run, as far as they were noted by `note_run`."""
        noted: dict[str, Decimal] = {}
        for slot in self._slots.get(_OF_A_RUN, ()):
            entry = self._entries[slot]
            noted[entry.custom_id] = max(noted.get(entry.custom_id, entry.at_most), entry.at_most)
        return noted

    def add(self, key: str, custom_id: str, at_most: Decimal) -> None:
        """Note that a request is about to be sent."""
        entry = Entry(key, custom_id, at_most)
        idle = self._idle.pop(key, None)
        if idle is not None:
            self._rewrite(idle, entry)
            return
        slot = self._free[-1] if self._free else self._count
        self._write(slot, _slot_of(entry)[:-1])
        if self._free:
            self._free.pop()
        else:
            self._count += 1
        self._hold(slot, entry)

    def settle(self, key: str) -> None:
        """Note that a request of this run has ended; the last one's slot stays for the row's name."""
        slots = [slot for slot in self._slots.get(key, ()) if slot not in self._kept]
        if len(slots) > 1:
            self._clear(slots[-1])
        elif slots:
            self._rewrite(slots[0], attrs.evolve(self._entries[slots[0]], at_most=Decimal(0)))
            self._idle[key] = slots[0]

    def finish(self, key: str) -> None:
        """Free a row's slots: it has its result."""
        for slot in list(self._slots.get(key, ())):
            self._clear(slot)

    def forget(self, key: str) -> None:
        """Forget what this run sent for a row. What earlier runs sent stays."""
        for slot in [slot for slot in self._slots.get(key, ()) if slot not in self._kept]:
            self._clear(slot)

    def keep(self, key: str) -> None:
        """Leave a row on record for later runs: its requests may have been billed."""
        self._kept.update(self._slots.get(key, ()))

    def note_run(self, run: str, unknown: Decimal) -> None:
        """Note the unknown bills of a run that no line tells of, nor a slot of a row."""
        self.add(_OF_A_RUN, run, unknown)

    def forget_runs(self, besides: str | None = None) -> None:
        """Forget what was noted by `note_run`, but for the last note of one run, which tells of the others too."""
        slots = self._slots.get(_OF_A_RUN, [])
        last = max((slot for slot in slots if self._entries[slot].custom_id == besides), key=slots.index, default=None)
        for slot in list(slots):
            if slot != last:
                self._clear(slot)

    # -- slots -------------------------------------------------------------------------------------------------------

    def _hold(self, slot: int, entry: Entry) -> None:
        self._entries[slot] = entry
        self._slots.setdefault(entry.key, []).append(slot)

    def _rewrite(self, slot: int, entry: Entry) -> None:
        self._write(slot, _slot_of(entry)[:-1])
        self._entries[slot] = entry

    def _clear(self, slot: int) -> None:
        key = self._entries.pop(slot).key
        if self._idle.get(key) == slot:
            del self._idle[key]
        self._slots[key].remove(slot)
        if not self._slots[key]:
            del self._slots[key]
        self._kept.discard(slot)
        self._free.append(slot)
        self._write(slot, b"")

    def _write(self, slot: int, content: bytes) -> None:
        _write_at(self._fd, content.ljust(SLOT - 1) + b"\n", slot * SLOT)

    def close(self) -> None:
        """Close the file, and delete it if it is empty."""
        if not self._entries and not self._damaged_slots:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)


def _read_all(fd: int) -> bytes:
    content = b""
    while piece := os.pread(fd, 1 << 20, len(content)):
        content += piece
    return content


def _write_at(fd: int, content: bytes, at: int) -> None:
    if os.pwrite(fd, content, at) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _slot_of(entry: Entry) -> bytes:
    content = msgspec.json.encode(entry)
    if len(content) > _ROOM:
        content = msgspec.json.encode(attrs.evolve(entry, custom_id=f"{entry.custom_id[:_SHOWN]}…"))
    return content.ljust(_ROOM) + _CHECKSUM % zlib.crc32(content)


def _read_slot(line: bytes) -> Entry | None:
    """Read a slot; None if it is blank or damaged."""
    content = line[: -len(_CHECKSUM % 0)].rstrip(b" ")
    if line[-len(_CHECKSUM % 0) :] != _CHECKSUM % zlib.crc32(content):
        return None
    try:
        return msgspec.json.decode(content, type=Entry)
    except (ValueError, RecursionError):  # the checksum is right, so another release wrote it
        return None
