"""What was sent and has no result yet, in a file beside the results: `results.jsonl.inflight`.

Each request in flight has a small slot there, noted before it is sent. What a killed process leaves may have been
billed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import attrs
import msgspec

from piapi_async.batch.output import open_private

__all__ = ["SLOT", "Entry", "InflightFile"]

SLOT = 256
"""Bytes of a slot: room for a key, an amount and the beginning of a long `custom_id`, and a page holds whole slots."""

_SHOWN = 24
"""Characters that are kept of an id too long for a slot."""


@attrs.frozen
class Entry:
    """What a slot holds.

    Attributes:
        key: Hash of the row's id.
        custom_id: The id, cut if it is long.
        at_most: US dollars that the requests sent for the row may have cost.
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
        kept: Slots and entries by key, of requests that may have been billed and that no run waits for any more.

    Raises:
        OSError: The file can't be used, or the disk is full.
    """

    def __init__(self, path: Path, room: int) -> None:
        self._path = path
        self._fd = open_private(path, os.O_RDWR | os.O_CREAT)
        self._entries: dict[int, Entry] = {}
        try:
            self._load(room)
        except BaseException:
            os.close(self._fd)
            raise

    def _load(self, room: int) -> None:
        content = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        for at in range(0, len(content), SLOT):
            try:
                self._entries[at // SLOT] = msgspec.json.decode(content[at : at + SLOT], type=Entry)
            except msgspec.DecodeError:
                continue  # empty
        self._count = max(room + len(self._entries), -(-len(content) // SLOT))
        self._free = [slot for slot in range(self._count) if slot not in self._entries]
        for slot in self._free:  # now, so that a disk that fills up later still has room to note what is sent
            self._write(slot, b"")
        self.kept = {entry.key: (slot, entry) for slot, entry in self._entries.items()}

    @property
    def entries(self) -> Mapping[int, Entry]:
        """What was sent and has no result, by slot."""
        return self._entries

    def add(self, key: str, custom_id: str, at_most: Decimal) -> int:
        """Note that a request is about to be sent, and return its slot."""
        if key in self.kept:
            slot, before = self.kept[key]
            at_most += before.at_most
        elif self._free:
            slot = self._free.pop()
        else:
            slot = self._count
            self._count += 1
        self._set(slot, Entry(key, custom_id, at_most))
        return slot

    def remove(self, slot: int) -> None:
        """Free a slot: the row has its result."""
        self.kept.pop(self._entries.pop(slot).key, None)
        self._free.append(slot)
        self._write(slot, b"")

    def restore(self, slot: int) -> None:
        """Forget what this run sent for a row. What earlier runs sent stays."""
        before = self.kept.get(self._entries[slot].key)
        if before is None:
            self.remove(slot)
        else:
            self._set(*before)

    def keep(self, slot: int) -> None:
        """Leave a slot to later runs: its request may have been billed."""
        entry = self._entries[slot]
        self.kept[entry.key] = slot, entry

    def _set(self, slot: int, entry: Entry) -> None:
        content = msgspec.json.encode(entry)
        if len(content) >= SLOT:
            content = msgspec.json.encode(attrs.evolve(entry, custom_id=f"{entry.custom_id[:_SHOWN]}…"))
        self._write(slot, content)
        self._entries[slot] = entry

    def _write(self, slot: int, content: bytes) -> None:
        if os.pwrite(self._fd, content.ljust(SLOT - 1) + b"\n", slot * SLOT) < SLOT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file, and delete it if it is empty."""
        if not self._entries:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)
