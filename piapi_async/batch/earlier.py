"""Reading what earlier runs left in the file of results, and repairing it where it is damaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Context, Decimal, localcontext
from itertools import islice
from typing import BinaryIO

import attrs

from piapi_async.batch.ids import Ids
from piapi_async.batch.output import Output, Repair
from piapi_async.batch.records import (
    FORMAT,
    LINES_A_TURN,
    ShortNote,
    has_note,
    is_cut_short,
    read_short_note,
    version_of,
)
from piapi_async.errors import BatchError

__all__ = ["Earlier", "EarlierReader"]

_EXACT = Context(prec=60)  # enough digits that a sum of any number of costs is never rounded


@attrs.define(kw_only=True)
class Earlier:
    """What earlier runs left.

    Attributes:
        done: Rows that have an answer.
        failed: Rows that are recorded as failed.
        spent: US dollars that the answers cost.
        saved: US dollars that they cost less than at the vendors' own prices.
        unknown: US dollars that requests may have cost whose bill is unknown.
        torn: Whether the last line was cut short, and taken away.
        broken: Lines that were damaged, and taken away.
    """

    done: int = 0
    failed: int = 0
    spent: Decimal = Decimal(0)
    saved: Decimal = Decimal(0)
    unknown: Decimal = Decimal(0)
    torn: bool = False
    broken: int = 0


class EarlierReader:
    """Reads a file of results line by line. Good lines are counted; the others are taken out.

    Args:
        output: The file.
        ids: Where the ids of finished rows go.
        retry_failed: Whether lines of failed rows are taken out too.

    Attributes:
        found: What was found so far.
    """

    def __init__(self, output: Output, ids: Ids, *, retry_failed: bool) -> None:
        self.found = Earlier()
        self._output = output
        self._ids = ids
        self._retry_failed = retry_failed
        self._repair: Repair | None = None

    def read(self) -> Iterator[None]:
        """Read the file, and pause now and then, so that others get their turn.

        Raises:
            BatchError: The file holds something else than results, or a newer release wrote it.
            OSError: It can't be read or repaired.
            sqlite3.Error: There is no room for the ids.
        """
        try:
            with self._output.open_reader() as file:
                yield from self._read_lines(file)
            if self._repair is not None:
                self._output.replace(self._repair)
                self._repair = None
        finally:
            if self._repair is not None:
                self._repair.drop()
        self._ids.index_finished()

    def _read_lines(self, file: BinaryIO) -> Iterator[None]:
        is_ours = False
        while lines := list(islice(file, LINES_A_TURN)):
            kept = self._read_some(lines)
            is_ours = is_ours or kept > 0 or any(has_note(line) for line in lines)
            yield
        if self.found.broken and not is_ours:
            raise self._foreign()

    def _read_some(self, lines: Sequence[bytes]) -> int:
        """Read some lines, and return how many of them stay."""
        rows: list[tuple[str, str]] = []
        costs: list[str] = []
        saved: list[str] = []
        failed = 0
        for line in lines:
            note = self._check(line)
            if note is not None:
                rows.append((note.key, note.request))
                failed += note.failed
                if note.cost is not None:
                    costs.append(note.cost)
                    saved.append(note.saved)
        self._ids.add_finished(rows)
        self.found.failed += failed
        self.found.done += len(rows) - failed
        with localcontext(_EXACT):
            self.found.spent += sum(map(Decimal, costs))
            self.found.saved += sum(map(Decimal, saved))
        return len(rows)

    def _check(self, line: bytes) -> ShortNote | None:
        """Decide about a line: return its note if it stays, take it out if not."""
        if not line.endswith(b"\n"):
            return self._check_last(line)
        note = self._read_note(line)
        if note is not None and self._stays(note):
            self._keep(line)
            return note
        self.found.broken += note is None
        if self._repair is None and not self._output.read_only:
            self._repair = self._output.begin_repair()
        return None

    def _check_last(self, line: bytes) -> ShortNote | None:
        """Decide about a last line without its newline. Only the newline may be missing."""
        whole = line + b"\n"
        note = self._read_note(whole)
        if note is not None and self._stays(note):
            if self._repair is None:
                self._output.end_last_line()
            self._keep(whole)
            return note
        if not self._output.size and not is_cut_short(line):
            raise self._foreign()
        self.found.torn = True
        if self._repair is None:
            self._output.cut_last_line()
        return None

    def _read_note(self, line: bytes) -> ShortNote | None:
        note = read_short_note(line)
        version = version_of(line) if note is None else note.version
        if version > FORMAT:
            raise BatchError(
                f"{self._output.path}: a newer release wrote it (format {version}, and this one knows {FORMAT}); "
                "upgrade, or choose another file"
            )
        return note

    def _stays(self, note: ShortNote) -> bool:
        if note.unknown != "0":
            self.found.unknown = max(self.found.unknown, Decimal(note.unknown))
        return not (note.failed and self._retry_failed)

    def _keep(self, line: bytes) -> None:
        if self._repair is not None:
            self._repair.add(line)
        self._output.size += len(line)

    def _foreign(self) -> BatchError:
        return BatchError(
            f"{self._output.path}: it holds something else than results of a batch; choose another file for them"
        )
