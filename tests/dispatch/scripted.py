"""What the tests of `dispatch` share: providers that answer by a script, in virtual time, and a dispatcher of them."""

from __future__ import annotations

import asyncio
import itertools
import random
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Self, TypeAlias, TypeVar

import attrs

from piapi_async import ChatCompletion, ChatRequest, Provider
from piapi_async.billing import Billing
from piapi_async.catalog import ModelInfo
from piapi_async.dispatch import Dispatcher
from piapi_async.errors import APIError
from piapi_async.ledger import Books
from piapi_async.policy import Deadline, Health, Limits, Retry, Timeout, timed_out
from piapi_async.pool import Transport
from piapi_async.provider import Endpoint
from piapi_async.route import Call, Router, Upstream, UpstreamKey
from piapi_async.wire import Body
from tests.leaks import PROMPT
from tests.wires import DONE, WHOLE, completion

T = TypeVar("T")

MODEL = "gpt-4o"
WORST = 10**9
"""What an attempt may cost at most, in picodollars, where a test has a budget."""


# -- answers -----------------------------------------------------------------------------------------------------------


Piece: TypeAlias = bytes | float | APIError
"""What a read gives, waits for, or raises."""


@attrs.frozen
class Answer:
    """How a provider answers one request.

    Attributes:
        pieces: What the reads of the body give, in turn: bytes, after so many seconds, or an error.
        status: The HTTP status.
        headers: Of the answer.
        connect: Seconds until the request goes out.
        think: Seconds from there to the headers.
        error: What is raised instead of an answer.
    """

    pieces: Sequence[Piece] = (completion(),)
    status: int = 200
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
    connect: float = 0.0
    think: float = 0.0
    error: APIError | None = None


OK = Answer()
STREAM = Answer([WHOLE + DONE])


def refused(status: int = 503, **headers: str) -> Answer:
    """An error status; `retry_after=1` is the header `retry-after: 1`."""
    return Answer([b"{}"], status, {name.replace("_", "-"): value for name, value in headers.items()})


def broken(error: APIError, think: float = 0.0) -> Answer:
    """No answer but an error, some time after the request went out."""
    return Answer(error=error, think=think)


# -- a transport -------------------------------------------------------------------------------------------------------


async def _until(moment: float, deadline: Deadline, provider: str) -> None:
    """Wait until a moment, or raise when the deadline comes first; a turn of the loop at least."""
    now = asyncio.get_running_loop().time()
    due = deadline.of_a_wait(now)
    await asyncio.sleep(max(0.0, min(moment, due) - now))
    if due < moment:
        raise timed_out(deadline.or_within(now, "progress", deadline.progress), provider)


class ScriptedExchange:
    """One answer. It is open until it is finished or closed."""

    def __init__(self, transport: ScriptedTransport, provider: str, answer: Answer) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.ended = ""
        self._transport = transport
        self._provider = provider
        self._pieces = list(answer.pieces)

    async def read(self, deadline: Deadline) -> bytes:
        while True:
            piece = self._pieces.pop(0) if self._pieces else b""
            if isinstance(piece, APIError):
                self.close()
                raise piece
            wait = 0.0 if isinstance(piece, bytes) else piece
            await _until(asyncio.get_running_loop().time() + wait, deadline, self._provider)
            if isinstance(piece, bytes):
                return piece

    async def read_all(self, deadline: Deadline, start: bytes = b"") -> bytes:
        while piece := await self.read(deadline):
            start += piece
        self.finish()
        return start

    async def read_start(self, deadline: Deadline, limit: int = 1 << 16) -> bytes:
        return await self.read_all(deadline)

    def finish(self) -> None:
        self._end("finished")

    def close(self) -> None:
        self._end("closed")

    def _end(self, how: str) -> None:
        self.ended = self.ended or how
        self._transport.open.discard(self)


@attrs.frozen
class Sent:
    """A request as it reached the transport."""

    provider: str
    key: str
    body: bytes
    headers: Mapping[str, str]
    fresh: bool
    at: float


class ScriptedTransport:
    """Answers by a script.

    Attributes:
        scripts: The answers of each provider, in turn; the last one again and again.
        sent: The requests so far.
        exchanges: The answers so far.
        open: Those that have not ended.
        asking: Requests that wait for an answer.
    """

    def __init__(self, scripts: Mapping[str, Iterable[Answer]]) -> None:
        self.scripts = {name: list(answers) for name, answers in scripts.items()}
        self.sent: list[Sent] = []
        self.exchanges: list[ScriptedExchange] = []
        self.open: set[ScriptedExchange] = set()
        self.asking = 0

    async def __aenter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        """There is nothing to close."""

    async def send(
        self,
        endpoint: Endpoint,
        body: Body,
        headers: Mapping[str, str],
        deadline: Deadline,
        *,
        on_sent: Callable[[], None],
        fresh: bool = False,
    ) -> ScriptedExchange:
        name, loop = endpoint.provider, asyncio.get_running_loop()
        script = self.scripts[name]
        answer = script.pop(0) if len(script) > 1 else script[0]
        self.sent.append(Sent(name, endpoint.secret.fingerprint, body.content, headers, fresh, loop.time()))
        self.asking += 1
        deadline = deadline.with_progress(None)  # which is for the pieces of the body
        try:
            await _until(loop.time() + answer.connect, deadline, name)
            on_sent()
            await _until(loop.time() + answer.think, deadline, name)
        finally:
            self.asking -= 1
        if answer.error is not None:
            raise answer.error
        exchange = ScriptedExchange(self, name, answer)
        self.exchanges.append(exchange)
        self.open.add(exchange)
        return exchange


# -- interruptions -----------------------------------------------------------------------------------------------------

HOW = ("cancelled", "cancelled as the wait ends", "timed out")
"""The ways in which a call is interrupted while it waits."""


_is_part_of_the_call: ContextVar[bool] = ContextVar("is_part_of_the_call", default=False)


class Interruption:
    """Interrupts a task at the nth wait, its own ones and those of all tasks that it begins counted together.

    Args:
        at: Which wait, from 1.
        how: One of `HOW`.
    """

    def __init__(self, at: int, how: str) -> None:
        self.waits = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self._at = at
        self._how = how
        self._strike: Callable[[], object] = lambda: None

    async def run(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do the work in a task of its own; None where it was interrupted. All tasks that it began have ended then."""
        loop = asyncio.get_running_loop()
        loop.set_task_factory(self._make_task)
        token = _is_part_of_the_call.set(True)
        try:
            task = asyncio.create_task(self._timed(work) if self._how == "timed out" else work)
            _is_part_of_the_call.reset(token)
            if self._how != "timed out":
                self._strike = task.cancel
            await asyncio.wait([task])
        finally:
            loop.set_task_factory(None)
        for _ in range(TURNS_TO_END):
            await asyncio.sleep(0)
        assert all(each.done() for each in self._tasks)
        if task.cancelled() or isinstance(task.exception(), TimeoutError):
            assert self.waits >= self._at
            return None
        return task.result()

    async def _timed(self, work: Coroutine[Any, Any, T]) -> T:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as timeout:
            self._strike = lambda: timeout.reschedule(loop.time())
            return await work

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        if not _is_part_of_the_call.get():  # but of a server's, on the same loop
            return asyncio.Task(work, loop=loop, **options)

        async def counted() -> Any:
            return await self._count(work)

        self._tasks.append(asyncio.Task(counted(), loop=loop, **options))
        return self._tasks[-1]

    @types.coroutine
    def _count(self, work: Coroutine[Any, Any, Any]) -> Generator[Any, None, Any]:
        """Pass on what a coroutine waits for, and what comes of it."""
        thrown: BaseException | None = None
        while True:
            try:
                waited = work.send(None) if thrown is None else work.throw(thrown)
            except StopIteration as done:
                return done.value
            self.waits += 1
            if self.waits == self._at:
                if waited is not None and self._how == "cancelled as the wait ends":
                    waited.add_done_callback(lambda _: self._strike())
                else:
                    asyncio.get_running_loop().call_soon(self._strike)
            thrown = None
            try:
                yield waited
            except BaseException as error:
                thrown = error


TURNS_TO_END = 5
"""Turns of the loop within which the tasks of a call that was left have ended."""


async def interrupt_at_every_wait(work: Callable[[], Coroutine[Any, Any, T]], how: str) -> AsyncIterator[T | None]:
    """Do the same work again and again, interrupted at its first wait, its second one, …; whole in the end.

    Yields:
        None after each that was interrupted, and last what the whole one gave.
    """
    for at in itertools.count(1):
        result = await Interruption(at, how).run(work())
        yield result
        if result is not None:
            return


# -- a dispatcher ------------------------------------------------------------------------------------------------------


@attrs.frozen
class World:
    """A dispatcher, with what it sends through and what it books into."""

    dispatcher: Dispatcher
    transport: ScriptedTransport
    books: Books

    def upstream(self, which: int = 0) -> Upstream:
        return self.dispatcher.upstreams[which]

    def key(self, which: int = 0, key: int = 0) -> UpstreamKey:
        return self.dispatcher.upstreams[which].keys[key]

    def call(self, *, stream: bool = False, deadline: float | None = None, **fields: Any) -> Call:
        """A call that begins now; under a budget it may cost `WORST`."""
        now = asyncio.get_running_loop().time()
        due = Deadline() if deadline is None else Deadline(now + deadline, "deadline", deadline)
        request = ChatRequest(PROMPT, MODEL, stream=stream, max_tokens=10)
        worst = None if self.books.budget is None else WORST
        return Call(request, MODEL, now, due, "key-1", self.dispatcher.upstreams, [], {}, worst, **fields)

    async def complete(self, **fields: Any) -> ChatCompletion:
        return await self.dispatcher.complete(self.call(**fields))

    async def read(self, **fields: Any) -> ChatCompletion:
        """Read a stream to its end."""
        async for item in self.dispatcher.stream(self.call(stream=True, **fields)):
            if isinstance(item, ChatCompletion):
                return item
        raise AssertionError("a stream ended without its answer")

    def sent_to(self) -> list[str]:
        """The providers that were asked, in turn."""
        return [sent.provider for sent in self.transport.sent]

    def assert_idle(self) -> None:
        """Nothing is under way: no place, no money, no probe, no answer, no task."""
        statistics = self.dispatcher.statistics()
        assert (statistics.in_flight, statistics.queued) == (0, 0)
        assert self.books.reserved == 0
        assert self.transport.open == set()
        assert self.transport.asking == 0
        for upstream in self.dispatcher.upstreams:
            for key in upstream.keys:
                for breaker in key.breakers.values():
                    now = self.dispatcher.clock()
                    assert breaker.admits(now) == (breaker.state(now) != "open")


def make(
    scripts: Mapping[str, Iterable[Answer]],
    *,
    retry: Retry = Retry(),
    limits: Limits = Limits(),
    health: Health = Health(),
    timeout: Timeout = Timeout(),
    keys: Iterable[str] = ("sk-first-key-0001",),
    prices: Mapping[str, ModelInfo] | None = None,
    budget: int | None = None,
    tokenizer: Callable[[str], int] | None = None,
    require_finish_reason: bool = False,
    stream_usage: bool = False,
) -> World:
    """A dispatcher of providers that answer by their scripts; its clock is the running loop's."""
    providers = [
        Provider(name, f"https://{name}.example", list(keys), prices=prices or {}, stream_usage=stream_usage)
        for name in scripts
    ]
    books = Books(budget)
    transport = ScriptedTransport(scripts)
    dispatcher = assemble(
        providers,
        lambda _: transport,
        books,
        retry=retry,
        limits=limits,
        health=health,
        timeout=timeout,
        tokenizer=tokenizer,
        require_finish_reason=require_finish_reason,
    )
    return World(dispatcher, transport, books)


def assemble(
    providers: Sequence[Provider],
    make_transport: Callable[[Sequence[Endpoint]], Transport],
    books: Books,
    *,
    retry: Retry = Retry(),
    limits: Limits = Limits(),
    health: Health = Health(),
    timeout: Timeout = Timeout(),
    tokenizer: Callable[[str], int] | None = None,
    require_finish_reason: bool = False,
) -> Dispatcher:
    """A dispatcher of any providers and transport; its clock is the running loop's."""
    rng = random.Random(1)
    upstreams = [Upstream.of(provider, limits, retry, health, rng) for provider in providers]
    return Dispatcher(
        upstreams=upstreams,
        router=Router(retry, rng),
        transport=make_transport([key.endpoint for upstream in upstreams for key in upstream.keys]),
        billing=Billing(providers[0], books, tokenizer=tokenizer),
        books=books,
        retry=retry,
        timeout=timeout,
        require_finish_reason=require_finish_reason,
        clock=asyncio.get_running_loop().time,
    )
