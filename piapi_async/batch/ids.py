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
            "CREATE TABLE done (id INTEGER, request INTEGER)",
            "CREATE TABLE failed (id INTEGER, request INTEGER)",
            "CREATE TABLE seen (id INTEGER PRIMARY KEY)",
            "BEGIN",
        ):
            self._database.execute(statement)

    def add_finished(self, done: Sequence[tuple[str, str]], failed: Sequence[tuple[str, str]]) -> None:
        """Add rows that are finished, by key and hash of the request. Call `count_finished` after the last ones."""
        self._add("done", done)
        self._add("failed", failed)

    def _add(self, table: str, rows: Sequence[tuple[str, str]]) -> None:
        for at in range(0, len(rows), INSERT):
            part = rows[at : at + INSERT]
            places = ", ".join(["(?, ?)"] * len(part))
            statement = f"INSERT INTO {table} VALUES {places}"  # noqa: S608  # our own names, and question marks
            self._database.execute(statement, _integers(list(chain.from_iterable(part))))

    def count_finished(self) -> tuple[int, int]:
        """Count the rows that have an answer, and those that failed. One with both, or with two, counts once.

        They are indexed here: all at once takes half as long as keeping an index while they are added.
        """
        self._database.execute("CREATE INDEX done_by_id ON done (id)")
        self._database.execute("CREATE INDEX failed_by_id ON failed (id)")
        (done,) = self._database.execute("SELECT COUNT(DISTINCT id) FROM done").fetchone()
        (failed,) = self._database.execute(
            "SELECT COUNT(DISTINCT id) FROM failed WHERE id NOT IN (SELECT id FROM done)"
        ).fetchone()
        return done, failed

    def request_of(self, key: str) -> str | None:
        """Return the hash of a finished row's request; None if the row is not finished."""
        found = self._database.execute(
            "SELECT request FROM done WHERE id = ?1 UNION ALL SELECT request FROM failed WHERE id = ?1 LIMIT 1",
            _integers([key]),
        ).fetchone()
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
