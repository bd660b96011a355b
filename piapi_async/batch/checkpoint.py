"""What a batch has on disk: its results, and what is in flight. It knows neither the network nor the event loop.

A result is appended by one `os.write`, which a killed process has done or has not. What a full disk cuts short is taken
back. A request is noted beside the results before it is sent: if the process is killed, it may have been billed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path

from piapi_async.batch.earlier import Earlier, EarlierReader
from piapi_async.batch.ids import Ids
from piapi_async.batch.inflight import InflightFile
from piapi_async.batch.output import Output, explain
from piapi_async.batch.rows import Row
from piapi_async.errors import BatchError

__all__ = ["Checkpoint"]


def _note_nowhere(run: str, amount: Decimal) -> None:
    """Note nothing: there is no file for it."""


class Checkpoint:
    """The files of a batch.

    Results that can't be written, because the disk is full, are kept in `unsaved`.

    Args:
        output: The file of results, `"-"` for standard output. What is no regular file is written to, and never read.
        retry_failed: Whether rows that failed in earlier runs are asked again; their lines are taken out.
        room: Requests that will be in flight at once.
        read_only: Whether to look only: nothing is written, repaired or locked, and the file need not exist.

    Attributes:
        run: Names this run.
        earlier: What earlier runs left; complete after `load`.

    Raises:
        BatchError: A file can't be used, or another run has locked it.
    """

    def __init__(
        self, output: str | os.PathLike[str], *, retry_failed: bool = False, room: int = 1, read_only: bool = False
    ) -> None:
        path = Path(output)
        self._unsaved: list[tuple[bytes, str, Decimal]] = []
        self._problem: OSError | None = None
        try:
            with ExitStack() as files:
                self._ids = Ids()
                files.callback(self._ids.close)
                self._output = Output(path, read_only=read_only)
                files.callback(self._close_output)
                self._inflight: InflightFile | None = None
                if self._output.is_regular and not read_only:
                    self._inflight = InflightFile(path.absolute().with_name(f"{path.name}.inflight"), room)
                    files.callback(self._inflight.close)
                self._files = files.pop_all()
        except OSError as error:
            problem = explain(path, error)
        else:
            slots = self._inflight
            noted: Mapping[str, Decimal] = {} if slots is None else slots.noted
            note = _note_nowhere if slots is None else slots.note_run
            self._reader = EarlierReader(self._output, self._ids, noted, note, retry_failed=retry_failed)
            self.run = os.urandom(4).hex()
            # Unknown bills of this run, those of earlier ones included that no line tells of:
            self._told = Decimal(0)  # by its lines
            self._noted = Decimal(0)  # by its slot
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
            self._settle_inflight()
        except OSError as error:
            problem = explain(self._output.path, error)
        except sqlite3.Error as error:
            problem = self._no_room_for_ids(error)
        else:
            return
        raise problem

    def _settle_inflight(self) -> None:
        self._noted = self.earlier.unknown - self.earlier.told
        if self._inflight is None:
            return
        if self._inflight.damaged:
            self._output.set_aside(self._inflight.damaged)
            self._inflight.clear_damaged()
        if not self._noted:  # lines tell of it all
            self._inflight.forget_runs()
        for entry in list(self._inflight.kept):
            if self._ids.request_of(entry.key) is not None:  # the process was killed between the two writes
                self._inflight.finish(entry.key)
        self.earlier.unknown += self.unknown_kept()

    @property
    def aside(self) -> str | None:
        """The file where what could not be read was put; None if there was nothing of that kind."""
        damaged = self.earlier.torn or self.earlier.broken or (self._inflight is not None and self._inflight.damaged)
        return str(self._output.path_aside) if damaged else None

    @property
    def maybe_billed(self) -> tuple[str, ...]:
        """Ids of the rows that an earlier run had sent when it ended, and that have no result yet."""
        kept = () if self._inflight is None else self._inflight.kept
        return tuple({entry.key: entry.custom_id for entry in kept}.values())

    def unknown_kept(self, besides: str = "") -> Decimal:
        """US dollars that requests kept for rows, besides one, may have cost: no line tells of them, only slots."""
        kept = () if self._inflight is None else self._inflight.kept
        return sum((entry.at_most for entry in kept if entry.key != besides), Decimal(0))

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

    def mark_sent(self, row: Row, at_most: Decimal) -> None:
        """Note that a request is about to be sent.

        Args:
            row: What is sent.
            at_most: US dollars that the request may cost.
        """
        if self._inflight is not None:
            with self._catching_problems():
                self._inflight.add(row.key, row.custom_id, at_most)

    def note_unknown(self, amount: Decimal) -> None:
        """Note this run's unknown bills, if no line of it tells of them.

        Args:
            amount: US dollars, all in all, but for the requests that were kept.
        """
        if self._inflight is None:
            return
        if amount <= self._told:
            amount = Decimal(0)
        if amount != self._noted:
            with self._catching_problems():
                if amount:
                    self._inflight.note_run(self.run, amount)
                self._inflight.forget_runs(besides=self.run if amount else None)
                self._noted = amount

    def mark_settled(self, row: Row) -> None:
        """Note that one request of this run for a row has ended, and that `note_unknown` tells of it if need be."""
        if self._inflight is not None:
            with self._catching_problems():
                self._inflight.settle(row.key)

    def mark_unbilled(self, row: Row) -> None:
        """Note that what this run sent for a row was not billed, and that it is yet to be done."""
        if self._inflight is not None:
            with self._catching_problems():
                self._inflight.forget(row.key)

    def keep_sent(self, row: Row) -> None:
        """Leave on record that a row was sent and maybe billed, as `note_unknown` tells. It is yet to be done."""
        if self._inflight is not None:
            self._inflight.keep(row.key)

    @property
    def sent(self) -> tuple[str, ...]:
        """Ids of the rows that were sent, by this run or an earlier one, and that have no result."""
        if self._inflight is None:
            return ()
        unsaved = {key for _, key, _ in self._unsaved}
        return tuple({entry.key: entry.custom_id for entry in self._inflight.sent if entry.key not in unsaved}.values())

    def save(self, line: bytes, key: str, unknown: Decimal = Decimal(0)) -> None:
        """Append a result. One that can't be written is kept, and so are all that follow.

        Args:
            line: The result.
            key: Of its row, whose requests are no longer in flight.
            unknown: The unknown bills of this run that the line tells of, in US dollars.
        """
        if self._problem is None:
            with self._catching_problems():
                self._output.append(line)
        if self._problem is not None:
            self._unsaved.append((line, key, unknown))
        elif self._inflight is not None:
            with self._catching_problems():
                self._inflight.finish(key)
                self._told = max(self._told, unknown)
                if self._told >= self._noted > 0:
                    self._inflight.forget_runs()
                    self._noted = Decimal(0)

    async def written(self) -> None:
        """Wait until the reader of a pipe has taken what was saved."""
        with self._catching_problems():
            await self._output.written()

    def _close_output(self) -> None:
        lost = self._output.close()
        if lost:
            self._problem = self._problem or TimeoutError()
            self._unsaved = [*((line, "", Decimal(0)) for line in lost), *self._unsaved]

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
        return tuple(line for line, _, _ in self._unsaved)

    def close(self) -> None:
        """Write what could not be written before, as there may be room by now, and close the files.

        Raises:
            BatchError: There is still no room. `unsaved` has the lines.
        """
        with self._files:
            if self._problem is not None and self._output.is_regular:
                unsaved, self._unsaved, self._problem = self._unsaved, [], None
                for line, key, unknown in unsaved:
                    self.save(line, key, unknown)
        if self._problem is not None:
            error = explain(self._output.path, self._problem)
            error.unsaved = self.unsaved
            raise error
