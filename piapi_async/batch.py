"""`run_batch`: a file of requests in, a file of results out, killed and resumed at will.

    lines → `_Reader` (rows) → `Checkpoint.admit` (yet to be done?) → `Results` → `Client` → `Checkpoint.save`

What is pulled, sent and written is `Results`'s, the client's and the checkpoint's business; here is decided what a row
is, what becomes of it, and when the run ends: at its end, or because it was told to, the deadline came, the budget is
used up, the disk is full, the key is bad, or nothing but failures come.

It needs POSIX: a lock that dies with its process.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Mapping
from contextlib import aclosing, closing, contextmanager, suppress
from decimal import Decimal
from functools import partial
from hashlib import blake2b
from typing import Any, BinaryIO, Literal, TypeAlias, TypeVar, Unpack, cast

import anyio
import anyio.lowlevel
import attrs
import msgspec

from piapi_async.checkpoint import NO_SLOT, PIECE, Checkpoint, Note, key_of, make_line
from piapi_async.client import Client
from piapi_async.errors import (
    AllProvidersFailedError,
    APIError,
    APIStatusError,
    AuthenticationError,
    BatchError,
    BudgetExceededError,
    InvalidRequestError,
    PiAPIError,
)
from piapi_async.fanout import Results
from piapi_async.ledger import carry_forward
from piapi_async.models import Attempt, ChatCompletion, ChatParams, ChatRequest, Result

__all__ = ["BatchQuote", "BatchStatus", "quote_batch", "run_batch"]

T = TypeVar("T")

MAX_LINE = 64 << 20
"""Longest line of the input, 64 MiB: twice the largest request, whose JSON may be written with escapes (ours)."""

FAILURES = 10
"""Failures of one kind in a row that end a run (ours): by then it is no single row's fault."""

GRACE = 3.5
"""Seconds that requests under way may take when a run is told to end; with the rest that makes less than 5 (ours)."""

Item: TypeAlias = "str | Mapping[str, object]"
"""A row of an input that is no file: a prompt, or what a line of a file would hold."""

Requests: TypeAlias = "str | os.PathLike[str] | Iterable[Item] | AsyncIterable[Item]"
"""An input: a file, `"-"` for standard input, or any iterable of rows."""

Stop = Literal["interrupted", "deadline", "budget", "failures", "key", "disk"]
"""Why a run ended before its input did."""

_PARAMETERS = frozenset(ChatParams.__annotations__)
_OWN = frozenset({"custom_id", "messages", "model", "prompt", "stream"})


@attrs.define(kw_only=True)
class BatchStatus:
    """Where a batch stands, while it runs and at its end.

    Attributes:
        total: Rows of the input and of earlier results; None while that is unknown, as of a stream.
        done: Rows that have an answer, those of earlier runs included.
        failed: Rows recorded as failed, those of earlier runs included.
        before: Rows that earlier runs had finished.
        under_way: Rows under way.
        tokens: Tokens of this run's answers.
        spent: US dollars for all answers, those of earlier runs included, as far as prices are known.
        unknown: US dollars that requests may have cost beside, whose bill is unknown.
        maybe_billed: Ids of the rows that were under way when an earlier run ended, and so may have been billed; they
            are asked again.
        cut: At the end, ids of the rows that were sent and have no result; the same goes for them.
        torn: Whether the last line of the results was cut short, and taken away.
        broken: Lines of the results that were broken, and taken away; their rows are asked again.
        stopped: Why the run ended before its input did, if it did.
        error: What made it end, if it was an error.
        seconds: How long the run has taken.
    """

    total: int | None = None
    done: int = 0
    failed: int = 0
    before: int = 0
    under_way: int = 0
    tokens: int = 0
    spent: Decimal = Decimal(0)
    unknown: Decimal = Decimal(0)
    maybe_billed: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    torn: bool = False
    broken: int = 0
    stopped: Stop | None = None
    error: PiAPIError | None = None
    seconds: float = 0.0

    @property
    def pending(self) -> int | None:
        """Rows without a result; None while their number is unknown."""
        return None if self.total is None else self.total - self.done - self.failed


@attrs.frozen
class BatchQuote:
    """What rows of one model would cost.

    Attributes:
        model: The caller's name of the model.
        rows: Rows that are yet to be done.
        tokens: Tokens of their prompts, estimated.
        least: US dollars for the prompts alone; None when the price is unknown.
        most: US dollars at worst; None when a price is unknown, or nothing bounds an answer.
        refused: Rows that the provider would refuse; they cost nothing.
    """

    model: str
    rows: int = 0
    tokens: int = 0
    least: Decimal | None = Decimal(0)
    most: Decimal | None = Decimal(0)
    refused: int = 0


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
    """Ask every row of an input and append each result to a file; run again, it goes on where it ended.

    A row is a line of OpenAI's batch format (`custom_id`, `body`), or `{"prompt": …}` or `{"messages": […]}` with
    parameters beside; in a text file, a prompt a line. A row without a `custom_id` has the id `row-N`, by its line.

    What earlier runs spent counts against the client's budget too; so give each run a client of its own.

    Args:
        requests: A file, `"-"` for standard input, or an iterable of prompts and mappings, async or not.
        output: The file of results, `"-"` for standard output. It is locked while the run lasts.
        client: Who asks; it must be open.
        model: The model of rows that name none; without it the client's.
        concurrency: Most rows under way at once; without it 256. At most twice as many are pulled ahead.
        deadline: Seconds for the run; what is not done by then stays to be done.
        stream: Whether to stream the answers, which tells how soon they begin.
        retry_failed: Whether to ask again what failed in earlier runs.
        stop_after: Failures of one kind in a row that end the run, and are not recorded; None to go on regardless.
        ending: Set it to end the run: nothing more is sent, and what is under way has `grace` seconds to come in.
        grace: See `ending`.
        progress: Called with the status, always the same object, at the start and whenever a row has ended.
        params: As in `ChatRequest`, for rows that don't say otherwise.

    Returns:
        How it ended; `stopped` and `error` say why, if before its time.

    Raises:
        BatchError: A file can't be used, a row is none, an id comes twice, or a result answers another request.
            Nothing was sent if the input is a file; else what came in before is saved. With a full disk, `unsaved` has
            the results that could not be written.
    """
    reader = _Reader(client.base_url, model or client.model, params)
    width = concurrency if concurrency is not None else client.limits.concurrency
    with _open_input(requests, reader, output) as source:
        run = _Run(
            source,
            Checkpoint(output, retry_failed=retry_failed, room=width),
            client,
            progress or _ignore,
            stream=stream,
            stop_after=stop_after,
        )
        with run.closing():
            await run.load()
            await run.send(width, deadline, ending or anyio.Event(), grace)
    return run.status


async def quote_batch(
    requests: Requests,
    output: str | os.PathLike[str] | None = None,
    *,
    client: Client,
    model: str | None = None,
    retry_failed: bool = False,
    **params: Unpack[ChatParams],
) -> list[BatchQuote]:
    """Tell what a batch would cost, by model, without sending or writing anything.

    Args:
        requests: As in `run_batch`.
        output: The file of results, if some rows may be done already.
        client: Who would ask; it need not be open.
        model: As in `run_batch`.
        retry_failed: As in `run_batch`.
        params: As in `run_batch`.

    Raises:
        BatchError: As `run_batch` would before it sends.
    """
    reader = _Reader(client.base_url, model or client.model, params)
    quotes: dict[str, BatchQuote] = {}
    with _open_input(requests, reader, output) as source:
        checkpoint = Checkpoint(os.devnull if output is None else output, retry_failed=retry_failed, read_only=True)
        with closing(checkpoint):
            for _ in checkpoint.load():
                await anyio.lowlevel.checkpoint()
            async for row in source.rows():
                if checkpoint.admit(row.custom_id, row.key, row.request, row.where):
                    name = str(row.fields.get("model"))
                    quotes[name] = _add(quotes.get(name, BatchQuote(name)), row, client)
    return list(quotes.values())


def _add(sum_: BatchQuote, row: _Row, client: Client) -> BatchQuote:
    try:
        quote = client.quote(_make_request(row.fields))
    except (InvalidRequestError, TypeError):
        return attrs.evolve(sum_, rows=sum_.rows + 1, refused=sum_.refused + 1)
    return BatchQuote(
        sum_.model,
        sum_.rows + 1,
        sum_.tokens + quote.tokens,
        None if sum_.least is None or quote.least is None else sum_.least + quote.least,
        None if sum_.most is None or quote.most is None else sum_.most + quote.most,
        sum_.refused,
    )


def _ignore(status: BatchStatus) -> None:
    pass


# -- the input -------------------------------------------------------------------------------------------------------


@attrs.frozen(repr=False)
class _Row:
    """One row of the input.

    Attributes:
        where: What to call it in an error.
        custom_id: Its id.
        key: Hash of the id.
        request: Hash of what is asked, and where.
        fields: What is asked.
    """

    where: str
    custom_id: str
    key: str
    request: str
    fields: Mapping[str, object]


class _Reader:
    """Makes rows of lines.

    Args:
        base_url: Where the rows go: results of another provider are not taken for its own.
        model: The model of rows that name none.
        params: The parameters of rows that don't say otherwise.
    """

    def __init__(self, base_url: str, model: str | None, params: Mapping[str, object]) -> None:
        self._salt = base_url.encode()
        self._defaults: dict[str, object] = {"model": model, **params}
        self._is_text: bool | None = None

    def read_line(self, number: int, line: bytes) -> _Row | None:
        """Make a row of a line; None if it is blank. The first line that is not says whether all are JSON."""
        if len(line) >= MAX_LINE:
            raise BatchError(f"line {number}: it is longer than {MAX_LINE:,} bytes; is it a file of requests?")
        content = line.removeprefix(b"\xef\xbb\xbf").strip()
        if not content:
            return None
        if self._is_text is None:
            self._is_text = not content.startswith(b"{")
        problem = "it is not UTF-8; convert it first"
        try:
            if self._is_text:
                return self._row(f"line {number}", number, {"prompt": content.decode()})
            fields: object = msgspec.json.decode(content)
        except UnicodeDecodeError:
            fields = None
        except (msgspec.DecodeError, RecursionError) as error:
            fields, problem = None, f"it is not JSON ({error}); correct it"
        else:
            problem = 'it is not a JSON object; a line looks like {"prompt": "…"}'
        if not isinstance(fields, dict):
            raise BatchError(f"line {number}: {problem}")
        return self._row(f"line {number}", number, cast("Mapping[str, object]", fields))

    def read_item(self, number: int, item: object) -> _Row:
        """Make a row of an item of an iterable."""
        if isinstance(item, str):
            item = {"prompt": item}
        if not isinstance(item, Mapping):
            raise BatchError(f"row {number}: a {type(item).__name__} is no row; pass a str or a mapping")
        return self._row(f"row {number}", number, cast("Mapping[str, object]", item))

    def _row(self, where: str, number: int, fields: Mapping[str, object]) -> _Row:
        custom_id = fields.get("custom_id", f"row-{number}")
        if not isinstance(custom_id, str) or not custom_id:
            raise BatchError(f"{where}: custom_id: it is not text; write a string of its own for each row")
        asked = self._defaults | {name: value for name, value in _body(where, fields).items() if value is not None}
        try:
            content, key = msgspec.json.encode(asked, order="sorted"), key_of(custom_id)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            problem = str(error)
        else:
            request = blake2b(self._salt + content, digest_size=8).hexdigest()
            return _Row(where, custom_id, key, request, asked)
        raise BatchError(f"{where}: it is not JSON ({problem}); correct it")


def _body(where: str, fields: Mapping[str, object]) -> Mapping[str, object]:
    """What a row asks: the body of OpenAI's format, or all but the id of a plain one."""
    if "body" not in fields:
        if "prompt" in fields or "messages" in fields:
            return {name: value for name, value in fields.items() if name != "custom_id"}
        raise BatchError(f'{where}: it has neither body, prompt nor messages; a line looks like {{"prompt": "…"}}')
    body = fields["body"]
    if not isinstance(body, Mapping):
        raise BatchError(f"{where}: body: it is not an object; write the request's JSON there")
    if fields.get("method", "POST") != "POST":
        raise BatchError(f"{where}: method: it is not POST, which a chat completion needs")
    if not str(fields.get("url", "/v1/chat/completions")).endswith("/chat/completions"):
        raise BatchError(f"{where}: url: it is not /v1/chat/completions; no other one is supported")
    return cast("Mapping[str, object]", body)


def _make_request(fields: Mapping[str, object]) -> ChatRequest:
    """Make a request of what a row asks.

    Raises:
        InvalidRequestError: The provider would refuse it.
    """
    known = {name: value for name, value in fields.items() if name in _PARAMETERS and value is not None}
    others = {name: value for name, value in fields.items() if name not in _PARAMETERS | _OWN}
    if others:
        known["extra_body"] = {**cast("Mapping[str, object]", known.get("extra_body", {})), **others}
    prompt = cast("Any", fields.get("messages", fields.get("prompt")))
    return ChatRequest(prompt, cast("str | None", fields.get("model")), **cast("Any", known))


class _File:
    """Rows of a file, which can be read again.

    Attributes:
        at: Number and offset of the line that was read last.
        start: The line to begin with, by its number and offset.
    """

    def __init__(self, file: BinaryIO, reader: _Reader) -> None:
        self._file = file
        self._reader = reader
        self.start: tuple[int, int] = (1, 0)
        self.at = self.start

    async def rows(self) -> AsyncGenerator[_Row, None]:
        number, offset = self.start
        self._file.seek(offset)
        for line in iter(partial(self._file.readline, MAX_LINE), b""):
            if not number % PIECE:
                await anyio.lowlevel.checkpoint()
            self.at = (number, offset)
            row = self._reader.read_line(number, line)
            if row is not None:
                yield row
            number, offset = number + 1, offset + len(line)
        self.at = (number, offset)


class _Pipe:
    """Rows of standard input, or of a named pipe: they are taken as they come."""

    def __init__(self, name: str, reader: _Reader) -> None:
        self._name = name
        self._reader = reader

    async def rows(self) -> AsyncGenerator[_Row, None]:
        number, rest = 0, b""
        name = self._name
        fd = 0 if name == "-" else await _in_thread(name, partial(os.open, name, os.O_RDONLY))
        try:
            ended = False
            while not ended:
                data = await _in_thread(name, partial(os.read, fd, 1 << 16))
                ended = not data
                *lines, rest = (rest + data).split(b"\n") if data else (rest, b"")
                for line in lines:
                    number += 1
                    row = self._reader.read_line(number, line)
                    if row is not None:
                        yield row
                if len(rest) >= MAX_LINE:
                    self._reader.read_line(number + 1, rest)
        finally:
            if fd:
                os.close(fd)


async def _in_thread(name: str, function: Callable[[], T]) -> T:
    """Wait for the other end of a pipe, in a thread that keeps neither the run nor the program from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: OSError | None) -> None:
        if not future.done():
            future.set_result(cast("T", result)) if error is None else future.set_exception(_unreadable(name, error))

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except OSError as failure:
            error = failure
        with suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=work, name=f"waiting for {name}", daemon=True).start()
    return await future


class _Items:
    """Rows of any iterable."""

    def __init__(self, items: Iterable[Item] | AsyncIterable[Item], reader: _Reader) -> None:
        self._items = items
        self._reader = reader

    async def rows(self) -> AsyncGenerator[_Row, None]:
        number = 0
        if isinstance(self._items, AsyncIterable):
            async for item in self._items:
                number += 1
                yield self._reader.read_item(number, item)
        else:
            for item in self._items:
                number += 1
                yield self._reader.read_item(number, item)


@contextmanager
def _open_input(
    requests: Requests, reader: _Reader, output: str | os.PathLike[str] | None
) -> Generator[_File | _Pipe | _Items]:
    if not isinstance(requests, (str, os.PathLike)):
        if not isinstance(cast("object", requests), (Iterable, AsyncIterable)):
            raise BatchError(f"requests: a {type(requests).__name__} is no input; pass a path or an iterable")
        yield _Items(requests, reader)
        return
    name = os.fspath(requests)
    file = _open_file(name)
    if file is None:
        yield _Pipe(name, reader)
        return
    with file:
        if output is not None and _is_same(file, output):
            raise BatchError(f"{name}: it is the file of results too; name another")
        yield _File(file, reader)


def _open_file(name: str) -> BinaryIO | None:
    """Open a file of requests; None for what is no file that could be read twice."""
    try:
        mode = os.stat(0 if name == "-" else name).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode):
            return None
        return open(0 if name == "-" else name, "rb", closefd=name != "-")
    except OSError as error:
        problem = _unreadable(name, error)
    raise problem


def _unreadable(name: str, error: OSError) -> BatchError:
    return BatchError(f"{name}: it can't be read: {error.strerror}; name a file of requests")


def _is_same(file: BinaryIO, output: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(output))
    except OSError:
        return False


# -- the run ---------------------------------------------------------------------------------------------------------


@attrs.define(eq=False, repr=False)
class _Flight:
    """A row under way.

    Attributes:
        row: The row.
        began: When, on the loop's clock.
        scope: What ends it, while nothing was sent.
        asking: Whether the client has it; False while it waits for a part of the budget.
        slot: Where the checkpoint notes that it was sent; None while it was not.
        at_most: US dollars that a request for it may cost, as far as that is known.
    """

    row: _Row
    began: float
    scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    asking: bool = False
    slot: int | None = None
    at_most: Decimal = Decimal(0)


class _Run:
    """One run of a batch."""

    def __init__(
        self,
        source: _File | _Pipe | _Items,
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
        self._stop_after = stop_after
        self._flights: set[_Flight] = set()
        self._held: list[tuple[_Flight, bytes, APIError]] = []
        self._held_kind = ""
        self._booked = Decimal(0), Decimal(0)
        self._began = time.monotonic()
        self._deadline = float("inf")
        self._news = anyio.Event()
        self._scope = anyio.CancelScope()

    @contextmanager
    def closing(self) -> Generator[None]:
        """Close the files at the end; a full disk is an error unless there is a worse one."""
        try:
            yield
        except BaseException:
            with suppress(BatchError):
                self._checkpoint.close()
            raise
        self._checkpoint.close()

    async def load(self) -> None:
        """Read what there is already, and, of an input that is a file, every row."""
        status, checkpoint = self.status, self._checkpoint
        for _ in checkpoint.load():
            await anyio.lowlevel.checkpoint()
        status.done, status.failed = checkpoint.done, checkpoint.failed
        status.before = status.done + status.failed
        status.torn, status.broken, status.maybe_billed = checkpoint.torn, checkpoint.broken, checkpoint.maybe_billed
        carry_forward(self._client.ledger, checkpoint.spent, checkpoint.unknown)
        self._booked = self._client.ledger.spent, self._client.ledger.unknown
        if isinstance(self._source, _File):
            status.total = status.before + await self._count_pending(self._source)

    async def _count_pending(self, source: _File) -> int:
        """Check every row, and let the sending begin with the first one that is yet to be done."""
        pending, first = 0, None
        async with aclosing(self._pending()) as rows:
            async for _ in rows:
                pending += 1
                first = first or source.at
        source.start = first or source.at
        self._checkpoint.forget_input()
        return pending

    async def send(self, width: int, deadline: float | None, ending: anyio.Event, grace: float) -> None:
        """Ask all rows that have no result, until there is none or the run is halted."""
        failure: Exception | None = None
        if ending.is_set():
            self._halt("interrupted")
        self._tell()
        async with anyio.create_task_group() as group:
            group.start_soon(self._halt_on, ending, grace)
            if deadline is not None:
                self._deadline = anyio.current_time() + deadline
                group.start_soon(self._halt_at_deadline, grace)
            with self._scope:
                try:
                    async with (
                        aclosing(self._pending()) as rows,
                        Results(rows, self._ask, concurrency=width, ordered=False) as results,
                    ):
                        async for _ in results:
                            self._tell()
                except Exception as error:  # not into an exception group: it is the caller's input that failed
                    failure = error
            group.cancel_scope.cancel()
        self._flush()
        self.status.cut = self._checkpoint.sent
        self._tell()
        if failure is not None:
            raise failure

    async def _pending(self) -> AsyncGenerator[_Row, None]:
        async with aclosing(self._source.rows()) as rows:
            async for row in rows:
                if self.status.stopped is not None:
                    return
                if self._checkpoint.admit(row.custom_id, row.key, row.request, row.where):
                    yield row

    async def _halt_on(self, ending: anyio.Event, grace: float) -> None:
        await ending.wait()
        self._halt("interrupted")
        self._scope.deadline = anyio.current_time() + grace
        self._end_if_idle()

    async def _halt_at_deadline(self, grace: float) -> None:
        await anyio.sleep_until(self._deadline)
        self._halt("deadline")
        self._scope.deadline = anyio.current_time() + grace  # requests end by themselves; an input may not
        self._end_if_idle()

    def _halt(self, why: Stop, error: PiAPIError | None = None) -> None:
        """Send nothing more. What was sent may come in; what only waits to be sent is let go."""
        if self.status.stopped is None:
            self.status.stopped = why
            self.status.error = None if error is None else error.with_traceback(None)
            for flight in self._flights:
                if flight.slot is None:
                    flight.scope.cancel()
            self._news.set()

    def _end_if_idle(self) -> None:
        if self.status.stopped is not None and not self._flights:
            self._scope.cancel()  # the input may have nothing to say for a long time

    def _tell(self) -> None:
        status, ledger = self.status, self._client.ledger
        status.spent = self._checkpoint.spent + ledger.spent - self._booked[0]
        status.unknown = self._checkpoint.unknown + ledger.unknown - self._booked[1]
        status.under_way = len(self._flights)
        status.seconds = time.monotonic() - self._began
        self._progress(status)

    # -- a row -------------------------------------------------------------------------------------------------------

    async def _ask(self, index: int, row: _Row) -> Result:
        flight = _Flight(row, anyio.current_time())
        self._flights.add(flight)
        try:
            with flight.scope:
                await self._answer(flight)
        finally:
            self._flights.discard(flight)
            self._news.set()
            self._end_if_idle()
        return Result(index, None)

    async def _answer(self, flight: _Flight) -> None:
        outcome: ChatCompletion | Exception | None
        try:
            request = _make_request(flight.row.fields)
            flight.at_most = self._client.quote(request).most or Decimal(0)
        except (InvalidRequestError, TypeError) as error:
            outcome = error
        else:
            outcome = await self._call(flight, request)
        if isinstance(outcome, ChatCompletion):
            self._succeeded(flight, outcome)
        elif outcome is not None:
            self._failed(flight, outcome)

    async def _call(self, flight: _Flight, request: ChatRequest) -> ChatCompletion | PiAPIError | TypeError | None:
        """Ask the client; None if the budget has no room for it."""
        while True:
            self._news = anyio.Event() if self._news.is_set() else self._news
            flight.asking = True
            try:
                return await self._send(flight, request)
            except BudgetExceededError as error:
                refusal = error
            except (PiAPIError, TypeError) as error:
                return error
            flight.asking = False
            # What is reserved for others may be more than they will cost: there may be room when they have ended.
            if not any(other.asking for other in self._flights):
                self._halt("budget", refusal)
            if self.status.stopped is not None:
                return None
            await self._news.wait()

    async def _send(self, flight: _Flight, request: ChatRequest) -> ChatCompletion:
        row = flight.row

        def on_send() -> None:
            if flight.slot is None:
                flight.slot = self._checkpoint.begin(row.key, row.custom_id, flight.at_most)
                if self._checkpoint.is_full:
                    self._halt("disk")

        left = self._deadline - anyio.current_time()
        deadline = max(left, 1e-3) if left < float("inf") else None
        if not self._stream and not row.fields.get("stream"):
            return await self._client.complete(request, deadline=deadline, on_send=on_send)
        async with self._client.stream(request, deadline=deadline, on_send=on_send) as stream:
            return await stream.completion()

    def _succeeded(self, flight: _Flight, completion: ChatCompletion) -> None:
        self._flush()
        last, usage = completion.attempts[-1], completion.usage
        self.status.tokens += usage.completion_tokens if usage is not None else 0
        self.status.done += 1
        body = msgspec.Raw(json.dumps(completion.raw, ensure_ascii=False).encode())
        note = attrs.evolve(
            self._note(flight),
            provider=completion.provider,
            cost=None if completion.cost is None else _digits(completion.cost),
            cost_estimated=completion.cost_estimated,
            tokens_in=None if usage is None else usage.prompt_tokens,
            tokens_out=None if usage is None else usage.completion_tokens,
            attempts=len(completion.attempts),
            latency=last.latency,
            first_token=last.time_to_first_token,
        )
        response = {"status_code": 200, "request_id": completion.request_id or "", "body": body}
        self._save(flight, make_line(flight.row.custom_id, response, None, note))

    def _failed(self, flight: _Flight, error: Exception) -> None:
        """Record a failure; unless it ends the run, or the run has ended: then the row stays to be done."""
        kind = _kind(error)
        if kind == "deadline":
            self._halt("deadline")
        elif _is_bad_key(error):
            self._halt("key", cast("PiAPIError", error))
        if self.status.stopped is not None:
            self._let_go(flight, error)
            return
        line = self._failure_line(flight, error, kind)
        if self._stop_after is None or not isinstance(error, APIError):  # what was refused here is the row's own fault
            self._record_failure(flight, line)
            return
        if kind != self._held_kind:
            self._flush()
        self._held_kind = kind
        self._held.append((flight, line, error))
        if len(self._held) >= self._stop_after:
            self._halt("failures", error)
            for held, _, failure in self._held:
                self._let_go(held, failure)
            self._held.clear()

    def _let_go(self, flight: _Flight, error: Exception) -> None:
        """Leave a row to be done; that it was sent stays on record if it was maybe billed."""
        if flight.slot is not None:
            if _is_maybe_billed(error):
                self._checkpoint.leave(flight.slot)
            else:
                self._checkpoint.take_back(flight.slot)
            flight.slot = None

    def _flush(self) -> None:
        """Record the failures that were held back: they are those of single rows."""
        held, self._held = self._held, []
        for flight, line, _ in held:
            self._record_failure(flight, line)

    def _record_failure(self, flight: _Flight, line: bytes) -> None:
        self.status.failed += 1
        self._save(flight, line)

    def _save(self, flight: _Flight, line: bytes) -> None:
        self._checkpoint.save(line, NO_SLOT if flight.slot is None else flight.slot)
        flight.slot = None
        if self._checkpoint.is_full:
            self._halt("disk")

    def _failure_line(self, flight: _Flight, error: Exception, kind: str) -> bytes:
        attempts: tuple[Attempt, ...] = getattr(error, "attempts", ())
        note = attrs.evolve(
            self._note(flight),
            failed=True,
            kind=kind,
            provider=getattr(error, "provider", ""),
            attempts=len(attempts),
            latency=attempts[-1].latency if attempts else 0.0,
        )
        response = None
        if isinstance(error, APIStatusError):
            details = {"message": str(error), "type": error.type, "param": error.param, "code": error.code}
            response = {
                "status_code": error.status_code,
                "request_id": error.request_id or "",
                "body": {"error": details},
            }
        return make_line(flight.row.custom_id, response, {"code": kind, "message": str(error)}, note)

    def _note(self, flight: _Flight) -> Note:
        unknown = self._checkpoint.unknown + self._client.ledger.unknown - self._booked[1]
        return Note(
            key=flight.row.key,
            request=flight.row.request,
            model=str(flight.row.fields.get("model")),
            unknown=_digits(unknown - self._checkpoint.unknown_left(flight.row.key)),
            elapsed=anyio.current_time() - flight.began,
            finished=time.time(),
        )


def _digits(amount: Decimal) -> str:
    return f"{amount.normalize():f}"


def _kind(error: Exception) -> str:
    """What failed, in a word: failures of equal kind are counted together."""
    if isinstance(error, APIStatusError):
        return error.code or f"status {error.status_code}"
    return error.kind if isinstance(error, APIError) else "invalid request"


def _is_bad_key(error: Exception) -> bool:
    errors = error.errors if isinstance(error, AllProvidersFailedError) else (error,)
    return all(isinstance(each, AuthenticationError) for each in errors)


def _is_maybe_billed(error: Exception) -> bool:
    errors = error.errors if isinstance(error, AllProvidersFailedError) else (error,)
    return any(isinstance(each, APIError) and each.maybe_billed for each in errors)
