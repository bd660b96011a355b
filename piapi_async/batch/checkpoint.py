"""What a batch has on disk: its results, and what is in flight. It knows neither the network nor the event loop.

A result is appended by one `os.write`, which a killed process has done or has not. What a full disk cuts short is taken
back. A request is noted beside the results before it is sent: if the process is killed, it may have been billed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path

from piapi_async.batch.earlier import Earlier, EarlierReader
from piapi_async.batch.ids import Ids
from piapi_async.batch.inflight import InflightFile
from piapi_async.batch.output import Output, explain
from piapi_async.batch.rows import Row
from piapi_async.errors import BatchError

__all__ = ["NO_SLOT", "Checkpoint"]

NO_SLOT = -1
"""Stands for a slot where nothing is noted."""


class Checkpoint:
    """The files of a batch.

    Results that can't be written, because the disk is full, are kept in `unsaved`.

    Args:
        output: The file of results, `"-"` for standard output. What is no regular file is written to, and never read.
        retry_failed: Whether rows that failed in earlier runs are asked again; their lines are taken out.
        room: Requests that will be in flight at once.
        read_only: Whether to look only: nothing is written, repaired or locked, and the file need not exist.

    Attributes:
        earlier: What earlier runs left; complete after `load`.

    Raises:
        BatchError: A file can't be used, or another run has locked it.
    """

    def __init__(
        self, output: str | os.PathLike[str], *, retry_failed: bool = False, room: int = 1, read_only: bool = False
    ) -> None:
        path = Path(output)
        try:
            with ExitStack() as files:
                self._ids = Ids()
                files.callback(self._ids.close)
                self._output = Output(path, read_only=read_only)
                files.callback(self._output.close)
                self._inflight: InflightFile | None = None
                if self._output.is_regular and not read_only:
                    self._inflight = InflightFile(path.with_name(f"{path.name}.inflight"), room)
                    files.callback(self._inflight.close)
                self._files = files.pop_all()
        except OSError as error:
            problem = explain(path, error)
        else:
            self._reader = EarlierReader(self._output, self._ids, retry_failed=retry_failed)
            self._unsaved: list[tuple[bytes, int]] = []
            self._problem: OSError | None = None
            return
        raise problem

    # -- what earlier runs left --------------------------------------------------------------------------------------

    @property
    def earlier(self) -> Earlier:
        """What earlier runs left."""
        return self._reader.found

    def load(self) -> Iterator[None]:
        """Read what earlier runs left, and repair it; a generator, so that others get their turn in between.

        Raises:
            BatchError: The file holds something else than results, a newer release wrote it, or it can't be repaired.
        """
        if not self._output.is_regular:
            return
        try:
            yield from self._reader.read()
            self._settle_kept()
        except OSError as error:
            problem = explain(self._output.path, error)
        except sqlite3.Error as error:
            problem = self._no_room_for_ids(error)
        else:
            return
        raise problem

    def _settle_kept(self) -> None:
        if self._inflight is not None:
            for key, (slot, _) in list(self._inflight.kept.items()):
                if self._ids.request_of(key) is not None:  # the process was killed between the two writes
                    self._inflight.remove(slot)
            self.earlier.unknown += sum((entry.at_most for _, entry in self._inflight.kept.values()), Decimal(0))

    @property
    def maybe_billed(self) -> tuple[str, ...]:
        """Ids of the rows that an earlier run had sent when it ended, and that have no result yet."""
        return () if self._inflight is None else tuple(entry.custom_id for _, entry in self._inflight.kept.values())

    def unknown_kept(self, key: str) -> Decimal:
        """US dollars that requests kept for other rows may have cost: no line tells of them, only their slots."""
        kept = {} if self._inflight is None else self._inflight.kept
        return sum((entry.at_most for other, (_, entry) in kept.items() if other != key), Decimal(0))

    # -- the input ---------------------------------------------------------------------------------------------------

    def admit(self, row: Row) -> bool:
        """Note a row of the input, and say whether it is yet to be done.

        Raises:
            BatchError: Its id was there before, or its result answers another request.
        """
        is_new, finished = self._look_up(row.key)
        if not is_new:
            raise BatchError(f"{row.where}: the custom_id {row.custom_id!r} was there before; give each row its own")
        if finished is not None and finished != row.request:
            raise BatchError(
                f"{row.where}: {self._output.path} has a result for {row.custom_id!r} that answers another request: "
                "its body, the model, a parameter or the base URL was different; put it back, or choose another file "
                "for the results"
            )
        return finished is None

    def _look_up(self, key: str) -> tuple[bool, str | None]:
        try:
            return self._ids.add_seen(key), self._ids.request_of(key)
        except sqlite3.Error as error:
            problem = self._no_room_for_ids(error)
        raise problem

    def forget_input(self) -> None:
        """Forget which rows were admitted: the input is read once more."""
        self._ids.forget_seen()

    def _no_room_for_ids(self, error: sqlite3.Error) -> BatchError:
        return BatchError(
            f"{self._output.path}: there is no room for its ids in a temporary file ({error}); set TMPDIR to another "
            "place"
        )

    # -- the run -----------------------------------------------------------------------------------------------------

    def mark_sent(self, row: Row, at_most: Decimal) -> int:
        """Note that a request is about to be sent, and return its slot.

        Args:
            row: What is sent.
            at_most: US dollars that the request may cost.
        """
        if self._inflight is not None:
            with self._catching_problems():
                return self._inflight.add(row.key, row.custom_id, at_most)
        return NO_SLOT

    def mark_unbilled(self, slot: int) -> None:
        """Note that what was sent was not billed, and that its row is yet to be done."""
        if self._inflight is not None and slot != NO_SLOT:
            with self._catching_problems():
                self._inflight.restore(slot)

    def keep_sent(self, slot: int) -> None:
        """Leave on record what was sent and may have been billed. Its row is yet to be done."""
        if self._inflight is not None and slot != NO_SLOT:
            self._inflight.keep(slot)

    @property
    def sent(self) -> tuple[str, ...]:
        """Ids of the rows that were sent, by this run or an earlier one, and that have no result."""
        if self._inflight is None:
            return ()
        unsaved = {slot for _, slot in self._unsaved}
        return tuple(entry.custom_id for slot, entry in self._inflight.entries.items() if slot not in unsaved)

    def save(self, line: bytes, slot: int = NO_SLOT) -> None:
        """Append a result, and free its slot. A result that can't be written is kept, and so are all that follow."""
        if self._problem is None:
            with self._catching_problems():
                self._output.append(line)
        if self._problem is not None:
            self._unsaved.append((line, slot))
        elif self._inflight is not None and slot != NO_SLOT:
            with self._catching_problems():
                self._inflight.remove(slot)

    @contextmanager
    def _catching_problems(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            self._problem = error.with_traceback(None)

    @property
    def is_full(self) -> bool:
        """Whether something could not be written."""
        return self._problem is not None

    @property
    def unsaved(self) -> tuple[bytes, ...]:
        """Lines that could not be written."""
        return tuple(line for line, _ in self._unsaved)

    def close(self) -> None:
        """Write what could not be written before, as there may be room by now, and close the files.

        Raises:
            BatchError: There is still no room. `unsaved` has the lines.
        """
        with self._files:
            if self._problem is not None and self._output.is_regular:
                unsaved, self._unsaved, self._problem = self._unsaved, [], None
                for line, slot in unsaved:
                    self.save(line, slot)
        if self._problem is not None:
            error = explain(self._output.path, self._problem)
            error.unsaved = self.unsaved
            raise error
