"""Reading what earlier runs left in the file of results, and mending it where it is damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Context, Decimal, InvalidOperation, localcontext
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
    is_blank,
    is_cut_short,
    read_short_note,
    version_of,
)
from piapi_async.errors import BatchError

__all__ = ["Earlier", "EarlierReader"]

_DIGITS = 20  # no amount of dollars has more, before its point or behind it
_EXACT = Context(prec=60)  # enough digits that a sum of any number of costs is never rounded


@attrs.define(kw_only=True)
class Earlier:
    """What earlier runs left.

    Attributes:
        done: Rows that have an answer.
        failed: Rows that are recorded as failed.
        spent: US dollars that the answers cost.
        saved: US dollars that they cost less than at the vendors' own prices.
        told: US dollars that requests may have cost whose bill is unknown, as far as lines of the results tell of them.
        unknown: The same, told or not.
        torn: Whether the last line was cut short, and set aside.
        broken: Lines that were damaged, and set aside.
    """

    done: int = 0
    failed: int = 0
    spent: Decimal = Decimal(0)
    saved: Decimal = Decimal(0)
    told: Decimal = Decimal(0)
    unknown: Decimal = Decimal(0)
    torn: bool = False
    broken: int = 0


class EarlierReader:
    """Reads a file of results line by line. Good lines are counted; damaged ones are set aside.

    The file is changed only when all of it was read: first what is taken out is kept elsewhere, then it is taken out.

    Args:
        output: The file.
        ids: Where the ids of finished rows go.
        noted: Unknown bills by run that are on record elsewhere.
        note: Puts a run's unknown bills on record there.
        retry_failed: Whether lines of failed rows are taken out too.

    Attributes:
        found: What was found so far.
    """

    def __init__(
        self,
        output: Output,
        ids: Ids,
        noted: Mapping[str, Decimal],
        note: Callable[[str, Decimal], None],
        *,
        retry_failed: bool,
    ) -> None:
        self.found = Earlier()
        self._output = output
        self._ids = ids
        self._noted = noted
        self._note = note
        self._retry_failed = retry_failed
        self._repair: Repair | None = None
        self._number = 0  # of the line
        self._at = 0  # where it begins
        self._good = 0  # lines that can be read, kept or not
        self._is_ours = False
        self._strange = 0  # number of the first line that is damaged or blank
        self._aside: list[tuple[int, int]] = []  # where the damaged lines are, and how long
        self._told: dict[str, Decimal] = {}  # unknown bills by run, in lines that stay
        self._dropped: dict[str, Decimal] = {}  # and in lines that go
        self._last: Callable[[], None] | None = None  # what mends the last line, where no copy is made

    def read(self) -> Iterator[None]:
        """Read the file, and pause now and then, so that others get their turn.

        Raises:
            BatchError: The file holds something else than results, most of it is damaged, or a newer release wrote it.
            OSError: It can't be read or mended.
            sqlite3.Error: There is no room for the ids.
        """
        try:
            with self._output.open_reader() as file:
                yield from self._read_lines(file)
            self._check_all()
            self._sum_unknown()
            if not self._output.read_only:
                self._mend()
        finally:
            if self._repair is not None:
                self._repair.drop()
        self.found.done, self.found.failed = self._ids.count_finished()

    def _check_all(self) -> None:
        if self._strange and not self._is_ours:
            raise self._error("it holds something else than results of a batch; choose another file for them")
        if self.found.broken > self._good:
            total = self.found.broken + self._good
            raise self._error(
                f"{self.found.broken:,} of its {total:,} lines are damaged, the first is line {self._strange:,}; "
                "nothing was sent or changed. Put a whole copy in its place, or choose another file"
            )

    def _sum_unknown(self) -> None:
        """Each run's unknown bills grow from line to line, so the most counts; those of all runs are added up."""
        found, told, dropped, noted = self.found, self._told, self._dropped, self._noted
        nothing = Decimal(0)
        found.told = sum(told.values(), nothing)
        runs = {*told, *dropped, *noted}
        found.unknown = sum(
            (max(each.get(run, nothing) for each in (told, dropped, noted)) for run in runs),
            nothing,
        )

    def _mend(self) -> None:
        """Change the file. Whenever the process is killed meanwhile, no line and no bill is lost."""
        if self._repair is not None:
            self._repair.flush()  # first: if there is no room for it, nothing happens
        if self._aside:
            self._output.set_aside(self._output.read_at(at, size) for at, size in self._aside)
        for run, amount in self._dropped.items():
            if amount > max(self._told.get(run, Decimal(0)), self._noted.get(run, Decimal(0))):
                self._note(run, amount)
        if self._repair is not None:
            self._output.replace(self._repair)
            self._repair = None
        elif self._last is not None:
            self._last()

    # -- lines -------------------------------------------------------------------------------------------------------

    def _read_lines(self, file: BinaryIO) -> Iterator[None]:
        while lines := list(islice(file, LINES_A_TURN)):
            try:
                self._read_some(lines)
            except BatchError as error:
                problem = error.with_traceback(None)
                break
            yield
        else:
            return
        del lines  # a traceback that shows locals must not show answers
        raise problem

    def _read_some(self, lines: Sequence[bytes]) -> None:
        done: list[tuple[str, str]] = []
        failed: list[tuple[str, str]] = []
        costs: list[Decimal] = []
        saved: list[Decimal] = []
        for line in lines:
            self._number += 1
            note = self._check(line)
            if note is not None:
                (failed if note.failed else done).append((note.key, note.request))
                if note.cost is not None:
                    costs.append(self._amount(note.cost))
                    saved.append(self._amount(note.saved))
            self._at += len(line)
        self._ids.add_finished(done, failed)
        with localcontext(_EXACT):
            self.found.spent += sum(costs)
            self.found.saved += sum(saved)

    def _check(self, line: bytes) -> ShortNote | None:
        """Decide about a line: return its note if it stays, take it out if not."""
        if not line.endswith(b"\n"):
            return self._check_last(line)
        note = self._read_note(line)
        if note is None and is_blank(line):
            self._strange = self._strange or self._number
            if self._repair is None:
                self._keep(line)
            return None
        if note is not None and self._stays(note):
            self._keep(line)
            return note
        if note is None:
            self.found.broken += 1
            self._set_aside(line)
        if self._repair is None and not self._output.read_only:
            self._repair = self._output.begin_repair()
        return None

    def _check_last(self, line: bytes) -> ShortNote | None:
        """Decide about a last line without its newline. Only the newline may be missing."""
        whole = line + b"\n"
        note = self._read_note(whole)
        if note is not None and self._stays(note):
            self._last = self._output.end_last_line
            self._keep(whole)
            return note
        if note is None:
            self._is_ours = self._is_ours or is_cut_short(line)
            self.found.torn = True
            self._set_aside(line)
        self._last = self._output.cut_last_line
        return None

    def _set_aside(self, line: bytes) -> None:
        self._strange = self._strange or self._number
        self._is_ours = self._is_ours or has_note(line)
        self._aside.append((self._at, len(line)))

    def _read_note(self, line: bytes) -> ShortNote | None:
        note = read_short_note(line)
        version = version_of(line) if note is None else note.version
        if version > FORMAT:
            raise self._error(
                f"a newer release wrote line {self._number:,} (format {version}, and this one knows {FORMAT}); "
                "upgrade, or choose another file"
            )
        return note

    def _stays(self, note: ShortNote) -> bool:
        stays = not (note.failed and self._retry_failed)
        self._good += 1
        self._is_ours = True
        if note.unknown != "0":
            sums = self._told if stays else self._dropped
            sums[note.run] = max(sums.get(note.run, Decimal(0)), self._amount(note.unknown))
        return stays

    def _keep(self, line: bytes) -> None:
        if self._repair is not None:
            self._repair.add(line)
        self._output.size += len(line)

    def _amount(self, text: str) -> Decimal:
        """Read an amount of a line whose checksum is right."""
        try:
            amount = Decimal(text)
        except InvalidOperation:
            amount = Decimal("nan")
        if amount.is_finite() and -_DIGITS < amount.adjusted() < _DIGITS:
            return amount
        raise self._error(f"line {self._number:,} holds an amount that is no number; correct it, or take the line out")

    def _error(self, problem: str) -> BatchError:
        return BatchError(f"{self._output.path}: {problem}")
