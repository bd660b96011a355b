"""``piapi-async batch``: a file of requests in, a file of results out, and a progress line meanwhile.

The progress line goes to standard error, because the results may go to standard output. On a terminal it is redrawn in
place; elsewhere a new line is printed now and then.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from decimal import Decimal
from tempfile import NamedTemporaryFile

import anyio
import attrs
from rich.console import Console
from rich.live import Live
from rich.text import Text

from piapi_async import BatchError, BatchStatus, Client, KeyStatistics, run_batch
from piapi_async.batch import BatchQuote
from piapi_async.cli.terminal import clean, make_table
from piapi_async.client.options import FILES_LEFT
from piapi_async.errors import PiAPIError
from piapi_async.models import ChatParams

TICK = 0.25
"""Seconds between two updates of the progress line on a terminal."""

PLAIN_TICK = 10.0
"""Seconds between two lines where there is no terminal, so that a night's log stays readable."""

NAMED = 5
"""How many ids a message names; the rest are only counted."""

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it

STOPPED = {
    "interrupted": "it was interrupted",
    "deadline": "its time was over (--deadline)",
    "budget": "the budget is used up",
    "failures": "too many failures of one kind in a row (--stop-after sets how many)",
    "key": "the API key is not accepted",
    "disk": "the disk was full for a while; nothing is lost",
}


@attrs.define(kw_only=True)
class Job:
    """A batch, with the options of the command line. `run_batch` decides the rest.

    Attributes:
        requests: The file of requests.
        output: The file of results.
        deadline: Seconds that the run may take.
        stream: Whether to stream the answers.
        retry_failed: Whether to ask the rows again that failed in earlier runs.
        stop_after: How many failures in a row end the run; None: any number.
        params: Parameters for rows that don't set their own.
        tick: Seconds between two updates of the progress line; None: `TICK` or `PLAIN_TICK`.
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
    """Run a batch, show its progress, and print a summary at the end.

    Args:
        client: The client to ask with. It is opened and closed here.
        job: The batch.
        out: Where the summary goes, unless the results go there.
        err: Where everything else goes.

    Returns:
        The exit status: 0 if every row has its answer, 1 if not, 130 if it was interrupted.

    Raises:
        PiAPIError: The batch could not begin.
    """
    raise_open_files(client.limits.concurrency, err)
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
            except PiAPIError as error:  # caught here, before the task group wraps it in an exception group
                failure = error
        scope.cancel()
    if failure is not None:
        return rescue(failure, line, err, to_file=job.output == "-")
    if status is None:
        return INTERRUPTED  # Ctrl-C was pressed before anything was sent, or twice
    print_summary(status, client, err if job.output == "-" else out)
    if status.stopped == "interrupted":
        return INTERRUPTED
    return int(bool(status.stopped or status.failed or status.pending))


def raise_open_files(concurrency: int, err: Console) -> None:
    """Raise the limit on open files as far as is allowed, if so many requests at once come near it."""
    import resource  # deferred: Windows has none

    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if concurrency + FILES_LEFT <= limit or most == limit or limit == resource.RLIM_INFINITY:
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    to = "any number" if most == resource.RLIM_INFINITY else f"{most:,}"
    err.print(f"The limit on open files was {limit:,}, too few for {concurrency:,} requests at once; it is {to} now.")


@contextmanager
def _signals(act: Callable[[], None]) -> Generator[None]:
    """Act on Ctrl-C, on SIGTERM, which ends a service, and on SIGHUP, which a terminal sends as it closes.

    Only the main thread can. Where SIGHUP is ignored, as under `nohup`, it stays so.
    """
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    for number in numbers:
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def end(line: ProgressLine, ending: anyio.Event, scope: anyio.CancelScope, err: Console) -> None:
    """Take a Ctrl-C. The first lets the answers in flight come in; the second, or one before any was sent, ends it."""
    if line.status is None or ending.is_set():
        scope.cancel()
        return
    ending.set()
    count = line.status.under_way
    err.print(f"Ending: answers in flight ({count}) have a few seconds to come in. Ctrl-C again ends it at once.")


def rescue(error: PiAPIError, line: ProgressLine, err: Console, *, to_file: bool = False) -> int:
    """Hand out the results that were paid for but could not be written. Return the exit status."""
    if line.status is None:
        raise error
    unsaved = error.unsaved if isinstance(error, BatchError) else ()
    err.print(clean(f"piapi-async: {error}"))
    if unsaved:
        what = "1 result is" if len(unsaved) == 1 else f"{len(unsaved):,} results are"
        err.print(f"{what} {_put(unsaved, to_file=to_file)}.")
    return INTERRUPTED if line.status.stopped == "interrupted" else 1


def _put(unsaved: Sequence[bytes], *, to_file: bool) -> str:
    """Write results to standard output, or to a new file where that does not take them; say where they are."""
    if not to_file:
        sys.stdout.flush()
        sys.stdout.buffer.writelines(unsaved)
        sys.stdout.flush()
        return "on standard output instead: add them to the file"
    with NamedTemporaryFile(prefix="piapi-async-", suffix=".jsonl", delete=False) as file:
        file.writelines(unsaved)
    return f"in {file.name} instead; the last that was written may be there in part"


# -- while it runs ---------------------------------------------------------------------------------------------------


class ProgressLine:
    """Shows the progress of a batch."""

    def __init__(self, client: Client, console: Console) -> None:
        self._client = client
        self._console = console
        self.status: BatchStatus | None = None

    def note(self, status: BatchStatus) -> None:
        """Take the status, which is the same object each time. At the first, say what earlier runs left."""
        if self.status is None:
            self.status = status
            for remark in remarks(status):
                self._console.print(clean(remark))

    async def show(self, tick: float | None) -> None:
        """Show the line until cancelled."""
        if self._console.is_terminal:
            # This task redraws the line, as rich's own thread would outlive a loop that hangs.
            with Live(console=self._console, auto_refresh=False, transient=True) as live:
                while True:
                    live.update(Text(self.text(), no_wrap=True, overflow="ellipsis"), refresh=True)
                    await anyio.sleep(tick or TICK)
        while True:
            await anyio.sleep(tick or PLAIN_TICK)
            self._console.print(self.text())

    def text(self) -> str:
        """The line as of now."""
        if self.status is None:
            return "reading"
        return clean(" · ".join(_parts(self.status, self._client.statistics().keys)))


def remarks(status: BatchStatus) -> Iterable[str]:
    """Say what earlier runs left."""
    if status.before:
        yield f"{status.before:,} rows are done already."
    if status.torn or status.broken:
        count = status.torn + status.broken
        yield f"{_count(count, 'broken line')} set aside in {status.aside}; asking those rows again."
    elif status.aside is not None:
        yield f"Damaged notes of requests in flight were set aside in {status.aside}; they may have been billed."
    if status.maybe_billed:
        yield (
            f"{_count(len(status.maybe_billed), 'row')} in flight when an earlier run ended and may have been billed; "
            f"asking again: {_names(status.maybe_billed)}"
        )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun} was" if number == 1 else f"{number:,} {noun}s were"


def _names(ids: Sequence[str]) -> str:
    rest = f" and {len(ids) - NAMED:,} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + rest


def _parts(status: BatchStatus, keys: Iterable[KeyStatistics]) -> Iterable[str]:
    """The parts of the line; most batches fit into 80 columns."""
    finished = status.done + status.failed - status.before
    yield f"{status.done:,} done" if status.total is None else f"{status.done:,} of {status.total:,} done"
    yield f"{status.failed:,} failed"
    yield f"{_pace(status):,.0f} tokens/s"
    yield f"{dollars(status.spent)}{_projected(status, finished)}"
    if status.pending and finished:
        yield f"{duration(status.pending * status.seconds / finished)} left"
    yield ", ".join(f"{key.provider} {health(key)}" for key in keys)


def _pace(status: BatchStatus) -> float:
    """Tokens a second in this run."""
    return status.tokens / status.seconds if status.seconds else 0.0


def _projected(status: BatchStatus, finished: int) -> str:
    """What the batch will cost in all, if the rows to come cost as much as those before."""
    if not status.pending or not finished or not status.done:
        return ""
    return f" of ~{dollars(status.spent + status.spent / status.done * status.pending)}"


def health(key: KeyStatistics) -> str:
    """The health of a provider, in a word or two."""
    if "open" in key.breakers.values():
        return "down"
    if key.pause > 0:
        return f"pauses {duration(key.pause)}"
    return "on trial" if "half-open" in key.breakers.values() else "ok"


def dollars(amount: Decimal) -> str:
    """An amount in cents, and with more digits below ten cents; nothing is $0."""
    if not amount:
        return "$0"
    if amount >= Decimal("0.1"):
        return f"${amount:,.2f}"
    return f"${amount:.4f}" if amount >= Decimal("0.0001") else f"${Decimal(f'{amount:.1e}').normalize():f}"


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours, by its length."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60:,} min" if whole < 7200 else f"{whole / 3600:,.1f} h"


# -- at the end ------------------------------------------------------------------------------------------------------


def print_summary(status: BatchStatus, client: Client, console: Console) -> None:
    """Print what came of a batch."""
    table = make_table(console)
    table.show_header = False
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for row in summary(status, client):
        table.add_row(*map(clean, row))
    console.print(table)


def summary(status: BatchStatus, client: Client) -> Iterable[tuple[str, str, str]]:
    """The rows of the summary: a name, a figure and a remark each."""
    of = "" if status.total is None else f" of {status.total:,}"
    yield (
        "answered",
        f"{status.done:,}{of}",
        f"{status.before:,} rows were finished by earlier runs" if status.before else "",
    )
    yield "failed", f"{status.failed:,}", "--retry-failed asks them again" if status.failed else ""
    if status.stopped:
        pending = "some" if status.pending is None else f"{status.pending:,}"
        yield "to be done", pending, f"{STOPPED[status.stopped]}; run it again to go on"
    if status.error is not None:
        yield "last error", "", str(status.error)
    if status.cut:
        yield "maybe billed", f"{len(status.cut):,}", f"sent, but not answered: {_names(status.cut)}"
    saved = client.ledger.saved
    than = "less" if saved >= 0 else "more"  # as a minimum charge may be
    yield "cost", dollars(status.spent), f"{dollars(abs(saved))} {than} than at the vendors' own prices"
    if unpriced := sum(entry.unpriced for entry in client.ledger.entries):
        yield "no known price", f"{unpriced:,}", "answers, not part of the cost"
    if status.unknown:
        yield "unknown bills", dollars(status.unknown), "at most, for requests that failed"
    yield "tokens a second", f"{_pace(status):,.0f}", ""
    yield "time", duration(status.seconds), ""


def print_quotes(quotes: Sequence[BatchQuote], console: Console) -> None:
    """Print what a batch would cost, by model."""
    table = make_table(console)
    for heading in ("model", "rows", "tokens in", "at least $", "at most $", "refused"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    for quote in quotes:
        table.add_row(
            clean(quote.model),
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
            f"{rows:,} rows to be done. Nothing was sent. Tokens are estimates; at least: the prompts alone; at most: "
            "with the longest answers.",
            style="dim",
        )
    )
