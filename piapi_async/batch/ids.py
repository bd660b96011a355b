"""The ids of rows, in a temporary database on disk: those of millions of rows would fill the memory."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Sequence
from itertools import chain

__all__ = ["CACHE_KIB", "Ids"]

CACHE_KIB = 16 * 1024
"""Memory for the database; what does not fit goes to disk (ours: with 2 MiB, 10⁶ ids took twice the time)."""

INSERT = 499
"""Rows that one statement adds: one by one takes three times as long, and old SQLites have room for 999 values."""


class Ids:
    """Which rows are finished, with the hash of each one's request, and which rows the input has had so far.

    Every method may raise `sqlite3.Error`: the disk has no room for the temporary file.
    """

    def __init__(self) -> None:
        # An empty name makes SQLite use a temporary file of its own, which is gone when the connection is closed.
        self._database = sqlite3.connect("", isolation_level=None)
        for statement in (
            f"PRAGMA cache_size = -{CACHE_KIB}",
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE finished (id INTEGER, request INTEGER)",
            "CREATE TABLE seen (id INTEGER PRIMARY KEY)",
            "BEGIN",
        ):
            self._database.execute(statement)

    def add_finished(self, rows: Sequence[tuple[str, str]]) -> None:
        """Add rows that are finished, by key and hash of the request. Call `index_finished` after the last ones."""
        for at in range(0, len(rows), INSERT):
            part = rows[at : at + INSERT]
            places = ", ".join(["(?, ?)"] * len(part))
            statement = f"INSERT INTO finished VALUES {places}"  # noqa: S608  # question marks only
            self._database.execute(statement, _integers(list(chain.from_iterable(part))))

    def index_finished(self) -> None:
        """Index the finished rows: all at once takes half as long as keeping an index while they are added."""
        self._database.execute("CREATE INDEX finished_by_id ON finished (id)")

    def request_of(self, key: str) -> str | None:
        """Return the hash of a finished row's request; None if the row is not finished."""
        found = self._database.execute("SELECT request FROM finished WHERE id = ?", _integers([key])).fetchone()
        return None if found is None else struct.pack(">q", *found).hex()

    def add_seen(self, key: str) -> bool:
        """Add a row of the input; False if it was there before."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", _integers([key])).rowcount == 1

    def forget_seen(self) -> None:
        """Forget the rows of the input."""
        self._database.execute("DELETE FROM seen")

    def close(self) -> None:
        """Delete the database."""
        self._database.close()


def _integers(hashes: Sequence[str]) -> tuple[int, ...]:
    """Return hashes as SQLite's signed 64-bit integers."""
    return struct.unpack(f">{len(hashes)}q", bytes.fromhex("".join(hashes)))
