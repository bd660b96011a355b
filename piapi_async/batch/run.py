"""`run_batch`: one run of a batch, from its input to its end."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, contextmanager, suppress
from decimal import Decimal
from functools import partial
from typing import Unpack, cast

import anyio
import anyio.lowlevel

from piapi_async.batch.checkpoint import Checkpoint
from piapi_async.batch.failures import is_bad_key, kind_of
from piapi_async.batch.input import FileInput, Input, Requests, open_input
from piapi_async.batch.recorder import Flight, NotSentError, Recorder
from piapi_async.batch.rows import Row, RowReader, make_request
from piapi_async.batch.status import BatchStatus, Stop
from piapi_async.client import Client
from piapi_async.client.options import fit_open_files
from piapi_async.errors import BatchError, BudgetExceededError, InvalidRequestError, PiAPIError
from piapi_async.fanout import Result, Results
from piapi_async.models import ChatCompletion, ChatParams, ChatRequest

__all__ = ["FAILURES", "GRACE", "run_batch"]

FAILURES = 10
"""Failures of one kind in a row that stop a run (ours): by then it is not the fault of single rows."""

GRACE = 3.5
"""Seconds that requests in flight get when a run is told to end, which leaves time to end within 5 in all (ours)."""


async def run_batch(
    requests: Requests,
    output: str | os.PathLike[str],
    *,
    client: Client,
    model: str | None = None,
    concurrency: int | None = None,
    deadline: float | None = None,
    stream: bool = False,
    retry_failed: bool = False,
    stop_after: int | None = FAILURES,
    ending: anyio.Event | None = None,
    grace: float = GRACE,
    progress: Callable[[BatchStatus], object] | None = None,
    **params: Unpack[ChatParams],
) -> BatchStatus:
    """Ask every row of an input and append each result to a file. Run it again, and it goes on where it ended.

    A row is a line of OpenAI's batch format (`custom_id`, `body`), or `{"prompt": …}` or `{"messages": […]}` with
    parameters beside it; in a text file, each line is a prompt. A row without a `custom_id` gets the id `row-N`, N
    being its line.

    What earlier runs spent counts against the client's budget, so give each run a client of its own.

    Args:
        requests: A file, `"-"` for standard input, or an iterable of prompts and mappings, async or not.
        output: The file of results, `"-"` for standard output. It is locked during the run.
        client: The client that asks; it must be open.
        model: The model of rows that name none; by default the client's.
        concurrency: Most rows in flight at once; by default the client's limit. At most twice as many are read ahead.
        deadline: Seconds for the run. Rows that are not done by then stay pending.
        stream: Whether to ask for all answers by stream, which tells how soon they begin, as `via_stream=True` of
            `Client.complete` does; otherwise only rows that say `"stream": true`, and those that need it.
        retry_failed: Whether to ask again what failed in earlier runs.
        stop_after: Failures of one kind in a row that stop the run, and are not recorded; None to go on regardless.
        ending: Set it to end the run: nothing more is sent, and requests in flight get `grace` seconds to come in.
        grace: See `ending`.
        progress: Called with the status at the start and whenever a row has ended; it is always the same object.
        params: As in `ChatRequest`, for rows that don't set them.

    Returns:
        The final status. `stopped` and `error` say why, if the run ended early.

    Raises:
        BatchError: A file can't be used, a row is invalid, an id is repeated, or a result answers another request. If
            the input is a file, nothing was sent; otherwise the results so far are saved. If the disk is full,
            `unsaved` has the results that could not be written.
    """
    reader = RowReader(client.base_url, model or client.model, params)
    if concurrency is None:
        concurrency = client.limits.concurrency
    concurrency = fit_open_files(concurrency)
    source_of = open_input(requests, reader, output)
    del requests, params  # a traceback that shows locals must not show prompts
    with source_of as source:
        checkpoint = Checkpoint(output, retry_failed=retry_failed, room=concurrency)
        run = _Run(source, checkpoint, client, progress or _ignore, stream=stream, stop_after=stop_after)
        with _closing(checkpoint):
            await run.load()
            await run.send(concurrency, deadline, ending or anyio.Event(), grace)
    return run.status


def _ignore(status: BatchStatus) -> None:
    pass


@contextmanager
def _closing(checkpoint: Checkpoint) -> Generator[None]:
    """Close the files at the end. That the disk is full is an error, unless there is a worse one."""
    try:
        yield
    except BaseException:
        with suppress(BatchError):
            checkpoint.close()
        raise
    checkpoint.close()


class _Run:
    """One run of a batch.

    Args:
        source: Where the rows come from.
        checkpoint: The files.
        client: The client that asks.
        progress: Called with the status.
        stream: Whether to ask for all answers by stream.
        stop_after: Failures of one kind in a row that stop the run; None for no limit.

    Attributes:
        status: Where the batch stands.
    """

    def __init__(
        self,
        source: Input,
        checkpoint: Checkpoint,
        client: Client,
        progress: Callable[[BatchStatus], object],
        *,
        stream: bool,
        stop_after: int | None,
    ) -> None:
        self.status = BatchStatus()
        self._source = source
        self._checkpoint = checkpoint
        self._client = client
        self._progress = progress
        self._stream = stream
        self._recorder = Recorder(
            checkpoint,
            client.ledger,
            self.status,
            stop_after=stop_after,
            stop=self._stop,
        )
        self._flights: set[Flight] = set()
        self._began = time.monotonic()
        self._deadline = float("inf")
        self._scope = anyio.CancelScope()

    # -- from start to end -------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read what earlier runs left and, if the input is a file, check every row of it."""
        for _ in self._checkpoint.load():
            await anyio.lowlevel.checkpoint()
        self._recorder.carry_forward()
        if isinstance(self._source, FileInput):
            self.status.total = self.status.before + await self._count_pending(self._source)

    async def _count_pending(self, source: FileInput) -> int:
        """Count the rows that are yet to be done, and let the input begin with the first of them."""
        count, first = 0, None
        async with aclosing(self._pending()) as rows:
            async for _ in rows:
                count += 1
                first = first or source.position
        source.start = first or source.position
        self._checkpoint.forget_input()
        return count

    async def send(self, concurrency: int, deadline: float | None, ending: anyio.Event, grace: float) -> None:
        """Ask all rows that have no result, until there is none or the run is stopped."""
        failure: Exception | None = None
        if ending.is_set():
            self._stop("interrupted")
        self._report()
        async with anyio.create_task_group() as group:
            group.start_soon(self._stop_when_told, ending, grace)
            if deadline is not None:
                self._deadline = anyio.current_time() + deadline
                group.start_soon(self._stop_at_deadline, grace)
            failure = await self._ask_rows(concurrency)
            group.cancel_scope.cancel()
        self._recorder.record_held()
        self.status.cut = self._checkpoint.sent
        self._report()
        if failure is not None:
            raise failure

    async def _ask_rows(self, concurrency: int) -> Exception | None:
        """Ask the rows. Return what the input or `progress` raised: a task group would wrap it."""
        with self._scope:
            try:
                async with Results(self._pending(), self._ask, concurrency=concurrency, ordered=False) as results:
                    async for _ in results:
                        self._report()
                self._recorder.record_held()
                await self._written()
            except Exception as error:
                return error
        return None

    async def _pending(self) -> AsyncGenerator[Row, None]:
        """Read the rows that are yet to be done."""
        async with aclosing(self._source.rows()) as rows:
            async for row in rows:
                if self.status.stopped is not None:
                    return
                if self._checkpoint.admit(row):
                    yield row

    def _report(self) -> None:
        self._recorder.sum_up()
        self.status.seconds = time.monotonic() - self._began
        self._progress(self.status)

    # -- its end -----------------------------------------------------------------------------------------------------

    async def _stop_when_told(self, ending: anyio.Event, grace: float) -> None:
        await ending.wait()
        self._stop("interrupted")
        self._end_within(grace)

    async def _stop_at_deadline(self, grace: float) -> None:
        await anyio.sleep_until(self._deadline)
        self._stop("deadline")
        self._end_within(grace)  # requests keep the deadline themselves, but the input may not

    def _stop(self, why: Stop, error: PiAPIError | None = None) -> None:
        """Send nothing more. Requests in flight may come in; rows that wait to be sent are let go."""
        if self.status.stopped is None:
            self.status.stopped = why
            self.status.error = None if error is None else error.with_traceback(None)
            for flight in self._flights:
                if not flight.sent and not flight.recorded:
                    flight.scope.cancel()

    def _end_within(self, grace: float) -> None:
        self._scope.deadline = anyio.current_time() + grace
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self.status.stopped is not None and not self._flights:
            self._scope.cancel()  # not after the next row: the input may be silent for a long time

    # -- a row -------------------------------------------------------------------------------------------------------

    async def _ask(self, index: int, row: Row) -> Result:
        flight = Flight(row, anyio.current_time())
        self._flights.add(flight)
        self.status.under_way += 1
        try:
            with flight.scope:
                await self._fly(flight)
        except BaseException:
            self._recorder.cut_off(flight)
            raise
        finally:
            self._flights.discard(flight)
            self.status.under_way -= 1
            self._end_if_idle()
        return Result(index, None)

    async def _fly(self, flight: Flight) -> None:
        """Ask a row and record what comes of it."""
        outcome: ChatCompletion | Exception | None
        try:
            request = make_request(flight.row)
            flight.at_most = self._client.quote(request).most or Decimal(0)
        except (InvalidRequestError, TypeError) as error:
            outcome = error
        else:
            outcome = await self._send(flight, request)
        if outcome is None:
            self._recorder.cut_off(flight)
        elif isinstance(outcome, ChatCompletion):
            self._recorder.answered(flight, outcome)
        elif isinstance(outcome, BudgetExceededError):
            self._stop("budget", outcome)  # nothing under way can make room
            self._recorder.cut_off(flight)
        else:
            self._failed(flight, outcome)
        await self._written()

    async def _written(self) -> None:
        """Wait for the reader of a pipe, if that is where results go: its pace is the run's."""
        await self._checkpoint.written()
        self._recorder.stop_if_full()

    async def _send(self, flight: Flight, request: ChatRequest) -> ChatCompletion | PiAPIError | TypeError | None:
        """Ask. None if a request was kept from going out."""
        left = self._deadline - anyio.current_time()
        try:
            return await self._client.complete(
                request,
                deadline=max(left, 1e-3) if left < float("inf") else None,
                via_stream=True if self._stream or flight.row.fields.get("stream") else None,
                wait_for_room=True,
                on_send=partial(self._recorder.sent, flight),
                on_settled=partial(self._recorder.settled, flight),
            )
        except NotSentError:
            return None
        except (PiAPIError, TypeError) as error:
            return error

    def _failed(self, flight: Flight, error: Exception) -> None:
        """Record a failure. If the run ends here or has ended, the row stays pending instead."""
        if kind_of(error) == "deadline":
            self._stop("deadline")
        elif is_bad_key(error):
            self._stop("key", cast("PiAPIError", error))
        if self.status.stopped is None:
            self._recorder.failed(flight, error)
        else:
            self._recorder.leave_pending(flight, error)
