"""What the tests of `dispatch` share: providers that answer by a script, in virtual time, and a dispatcher of them."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import attrs

from piapi_async import ChatCompletion, ChatRequest, Health, Limits, Provider, Retry, Timeout
from piapi_async.billing import Billing
from piapi_async.catalog import ModelInfo
from piapi_async.dispatch import Dispatcher
from piapi_async.errors import APIError
from piapi_async.ledger import Books
from piapi_async.policy import Deadline, timed_out
from piapi_async.provider import Endpoint
from piapi_async.route import Call, Router, Upstream, UpstreamKey
from piapi_async.wire import Body
from tests.leaks import PROMPT
from tests.wires import DONE, WHOLE, completion

MODEL = "gpt-4o"
WORST = 10**9
"""What an attempt may cost at most, in picodollars, where a test has a budget."""


class _Jump(selectors.DefaultSelector):
    """Lets the time jump to the next timer instead of waiting for it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("nothing will ever happen")
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time: a test of minutes takes milliseconds, and its times are exact."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


# -- answers -----------------------------------------------------------------------------------------------------------


@attrs.frozen
class Answer:
    """How a provider answers one request.

    Attributes:
        pieces: What the reads of the body give, in turn: bytes, seconds to wait, or an error to raise.
        status: The HTTP status.
        headers: Of the answer.
        connect: Seconds until the request goes out.
        think: Seconds from there to the headers.
        error: What is raised instead of an answer.
    """

    pieces: Sequence[bytes | float | APIError] = (completion(),)
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
        return Call(request, MODEL, now, due, "key-1", self.dispatcher.upstreams, worst, **fields)

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
    rng = random.Random(1)
    providers = [
        Provider(name, f"https://{name}.example", list(keys), prices=prices or {}, stream_usage=stream_usage)
        for name in scripts
    ]
    books = Books(budget)
    transport = ScriptedTransport(scripts)
    dispatcher = Dispatcher(
        upstreams=[Upstream.of(provider, limits, retry, health, rng) for provider in providers],
        router=Router(retry, rng),
        transport=transport,
        billing=Billing(providers[0], books, tokenizer=tokenizer),
        books=books,
        retry=retry,
        timeout=timeout,
        require_finish_reason=require_finish_reason,
        clock=asyncio.get_running_loop().time,
    )
    return World(dispatcher, transport, books)
