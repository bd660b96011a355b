"""``piapi-async batch``: runs a batch and shows how it goes.

Messages go to standard error, because the results may go to standard output. Progress is one line that is redrawn on a
terminal, and elsewhere a new line now and then.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from decimal import Decimal

import anyio
import attrs
from rich.console import Console
from rich.live import Live
from rich.text import Text

from piapi_async import BatchError, BatchQuote, BatchStatus, Client, LaneStatistics, run_batch
from piapi_async.cli.terminal import make_table
from piapi_async.errors import PiAPIError
from piapi_async.models import ChatParams

TICK = 0.25
"""Seconds until the progress line is redrawn on a terminal."""

PLAIN_TICK = 10.0
"""Seconds between two progress lines where there is no terminal: the log of a whole night stays readable."""

NAMED = 5
"""Most ids in a message; the others are counted."""

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it

STOPPED = {
    "interrupted": "it was told to end",
    "deadline": "the deadline came",
    "budget": "the budget is used up",
    "failures": "only failures of one kind came, one after the other; --stop-after sets how many end it",
    "key": "the API key is not accepted",
    "disk": "the results could not be written; there was room again at the end",
}


@attrs.define(kw_only=True)
class Job:
    """What the command line says about a batch. All else is as `run_batch` has it by default.

    Attributes:
        requests: The file of requests.
        output: The file of results.
        deadline: Seconds for the run.
        stream: Whether to stream the answers.
        retry_failed: Whether to ask again what failed in earlier runs.
        stop_after: Failures in a row that end the run; None for any number.
        params: The parameters of rows that don't set them.
        tick: Seconds until progress is shown again; None for what suits the console.
    """

    requests: str
    output: str
    deadline: float | None = None
    stream: bool = False
    retry_failed: bool = False
    stop_after: int | None = 10
    params: ChatParams = attrs.field(factory=lambda: ChatParams())
    tick: float | None = None


async def run(client: Client, job: Job, out: Console, err: Console) -> int:
    """Run a batch, show its progress, and print a summary.

    Args:
        client: The client that asks; it is opened and closed here.
        job: What to ask.
        out: Where the summary goes, unless the results go to standard output.
        err: Where everything else goes.

    Returns:
        The exit status: 0 if every row has an answer, 1 if not, 130 if it was interrupted.

    Raises:
        BatchError: The batch could not start.
    """
    line = ProgressLine(client, err)
    ending = anyio.Event()
    failure: PiAPIError | None = None
    status: BatchStatus | None = None
    async with client, anyio.create_task_group() as group:
        scope = group.cancel_scope
        with _signals(lambda: end(line, ending, scope, err)):
            group.start_soon(line.show, job.tick)
            try:
                status = await run_batch(
                    job.requests,
                    job.output,
                    client=client,
                    deadline=job.deadline,
                    stream=job.stream,
                    retry_failed=job.retry_failed,
                    stop_after=job.stop_after,
                    ending=ending,
                    progress=line.note,
                    **job.params,
                )
            except PiAPIError as error:  # the task group would wrap it
                failure = error
        scope.cancel()
    if failure is not None:
        return rescue(failure, line, err)
    if status is None:
        return INTERRUPTED  # by Ctrl-C before anything was sent, or by a second one
    _summarise(status, client, err if job.output == "-" else out)
    if status.stopped == "interrupted":
        return INTERRUPTED
    return int(bool(status.stopped or status.failed or status.pending))


@contextmanager
def _signals(act: Callable[[], None]) -> Generator[None]:
    """Act on Ctrl-C and on SIGTERM. Only the main thread can."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    for number in numbers:
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def end(line: ProgressLine, ending: anyio.Event, scope: anyio.CancelScope, err: Console) -> None:
    """End the run: after the first Ctrl-C requests in flight may come in, after the second it ends at once."""
    if line.status is None or ending.is_set():
        scope.cancel()
        return
    ending.set()
    err.print(f"Ending: what is under way has a few seconds to come in ({line.status.under_way}). Again ends at once.")


def rescue(error: PiAPIError, line: ProgressLine, err: Console) -> int:
    """Print the results that could not be written to their file: they are paid for."""
    if line.status is None:
        raise error
    unsaved = error.unsaved if isinstance(error, BatchError) else ()
    sys.stdout.flush()
    for result in unsaved:
        sys.stdout.buffer.write(result)
    sys.stdout.flush()
    err.print(f"piapi-async: {error}")
    if unsaved:
        err.print(
            f"What could not be written is on standard output: {len(unsaved):,} results, to be added to the file."
        )
    return 1


# -- while it runs ---------------------------------------------------------------------------------------------------


class ProgressLine:
    """Shows how a batch goes."""

    def __init__(self, client: Client, console: Console) -> None:
        self._client = client
        self._console = console
        self.status: BatchStatus | None = None

    def note(self, status: BatchStatus) -> None:
        """Keep the status, which is the same object each time. The first time, print what earlier runs left."""
        if self.status is None:
            self.status = status
            for remark in remarks(status):
                self._console.print(remark)

    async def show(self, tick: float | None) -> None:
        """Show the line until cancelled."""
        if self._console.is_terminal:
            # This task redraws it: a thread of rich's own would go on even when the event loop hangs.
            with Live(console=self._console, auto_refresh=False, transient=True) as live:
                while True:
                    live.update(Text(self.text(), no_wrap=True, overflow="ellipsis"), refresh=True)
                    await anyio.sleep(tick or TICK)
        while True:
            await anyio.sleep(tick or PLAIN_TICK)
            self._console.print(self.text())

    def text(self) -> str:
        """Return the line as it is now."""
        if self.status is None:
            return "reading"
        return " · ".join(_parts(self.status, self._client.statistics().lanes))


def remarks(status: BatchStatus) -> Iterable[str]:
    """Say what earlier runs left."""
    if status.before:
        yield f"{status.before:,} rows are done already."
    if status.torn or status.broken:
        count = status.torn + status.broken
        yield f"{count:,} broken {'line was' if count == 1 else 'lines were'} taken out of the results; asking again."
    if status.maybe_billed:
        yield (
            f"{_count(len(status.maybe_billed), 'row')} under way when an earlier run ended, and may have been billed; "
            f"asking again: {_names(status.maybe_billed)}"
        )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun} was" if number == 1 else f"{number:,} {noun}s were"


def _names(ids: Sequence[str]) -> str:
    rest = f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + rest


def _parts(status: BatchStatus, lanes: Iterable[LaneStatistics]) -> Iterable[str]:
    """Make the parts of the line. They fit in 80 columns for most batches."""
    finished = status.done + status.failed - status.before
    yield f"{status.done:,} done" if status.total is None else f"{status.done:,} of {status.total:,} done"
    yield f"{status.failed:,} failed"
    yield f"{_pace(status):,.0f} tokens/s"
    yield f"{dollars(status.spent)}{_projected(status, finished)}"
    if status.pending and finished:
        yield f"{duration(status.pending * status.seconds / finished)} left"
    yield ", ".join(f"{lane.provider} {health(lane)}" for lane in lanes)


def _pace(status: BatchStatus) -> float:
    """Return this run's tokens a second."""
    return status.tokens / status.seconds if status.seconds else 0.0


def _projected(status: BatchStatus, finished: int) -> str:
    """Return what the batch will cost if the remaining rows cost as much as those before."""
    if not status.pending or not finished or not status.done:
        return ""
    return f" of ~{dollars(status.spent + status.spent / status.done * status.pending)}"


def health(lane: LaneStatistics) -> str:
    """Say how a provider does, in a word."""
    if "open" in lane.breakers.values():
        return "down"
    if lane.pause > 0:
        return f"pauses {duration(lane.pause)}"
    return "on trial" if "half-open" in lane.breakers.values() else "ok"


def dollars(amount: Decimal) -> str:
    """Write an amount in dollars, with more digits if it is only a few cents."""
    return f"${amount:,.2f}" if amount >= Decimal("0.1") or not amount else f"${amount:.4f}"


def duration(seconds: float) -> str:
    """Write a duration in seconds, minutes or hours, whichever is precise enough."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60:,} min" if whole < 7200 else f"{whole / 3600:,.1f} h"


# -- at the end ------------------------------------------------------------------------------------------------------


def _summarise(status: BatchStatus, client: Client, console: Console) -> None:
    table = make_table(console)
    table.show_header = False
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for row in summary(status, client):
        table.add_row(*row)
    console.print(table)


def summary(status: BatchStatus, client: Client) -> Iterable[tuple[str, str, str]]:
    """Make the rows of the summary: a name, a figure and a remark each."""
    of = "" if status.total is None else f" of {status.total:,}"
    yield "answered", f"{status.done:,}{of}", f"{status.before:,} rows were finished before" if status.before else ""
    yield "failed", f"{status.failed:,}", "--retry-failed asks them again" if status.failed else ""
    if status.stopped:
        pending = "some" if status.pending is None else f"{status.pending:,}"
        yield "to be done", pending, f"{STOPPED[status.stopped]}; run it again to go on"
    if status.error is not None:
        yield "last error", "", str(status.error)
    if status.cut:
        yield "maybe billed", f"{len(status.cut):,}", f"sent, no answer: {_names(status.cut)}"
    yield "cost", dollars(status.spent), f"{dollars(client.ledger.saved)} less than at the vendors' own prices"
    if unpriced := sum(entry.unpriced for entry in client.ledger.entries):
        yield "no known price", f"{unpriced:,}", "answers, not in the cost"
    if status.unknown:
        yield "unknown bills", dollars(status.unknown), "at most, for requests that failed"
    yield "tokens a second", f"{_pace(status):,.0f}", ""
    yield "time", duration(status.seconds), ""


def print_quotes(quotes: Sequence[BatchQuote], console: Console) -> None:
    """Print what a batch would cost."""
    table = make_table(console)
    for heading in ("model", "rows", "tokens in", "at least $", "at most $", "refused"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    for quote in quotes:
        table.add_row(
            quote.model,
            f"{quote.rows:,}",
            f"{quote.tokens:,}",
            "unknown" if quote.least is None else f"{quote.least:,.4f}",
            "unknown" if quote.most is None else f"{quote.most:,.4f}",
            f"{quote.refused:,}",
        )
    console.print(table)
    rows = sum(quote.rows for quote in quotes)
    console.print(
        Text(
            f"{rows:,} rows to be done. Tokens are estimated; at least: the prompts alone; at most: with the longest "
            "answers. Nothing was sent.",
            style="dim",
        )
    )
