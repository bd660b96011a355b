"""Providers by a script: what they answer is drawn, and what they billed is on their own log."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import attrs

from piapi_async import APIConnectionError
from piapi_async.catalog import ModelInfo, charge, estimate_tokens
from piapi_async.policy import Deadline, timed_out
from piapi_async.provider import Endpoint
from piapi_async.wire import Body, Headers

MODEL = "gpt-4o-mini"
PRICES: Mapping[str, ModelInfo] = {
    "piapi": ModelInfo(MODEL, "0.1125", "0.45", max_output_tokens=40),
    "second": ModelInfo("mini", "0.15", "0.6", minimum_charge="0.00001", max_output_tokens=40),
    "third": ModelInfo(MODEL, "0.3", "0.9", max_output_tokens=40),
}
"""What each provider charges, by its own name of the model."""

NEVER = float("inf")

# -- an answer, as it is drawn -----------------------------------------------------------------------------------------

STATUSES = (400, 401, 402, 404, 408, 429, 429, 429, 500, 502, 503, 503, 504, 504, 524, 529)
FAULTS = (
    *("connect", "reset", "reset", "stale", "stale", "silence", "silence", "stall"),
    *("cut", "cut", "cut cleanly", "cut cleanly", "error event", "page", "empty", "error object", "fewer"),
    *("status",) * 10,
)
FREE = ("connect", "stale", "status", "error object", "error event")
"""Faults for which nobody bills, but for a gateway's timeout, and where an error comes behind a part of an answer."""

CONTENTS = ("text", "text", "text", "call", "reasoning")
ENDS = (b"data: [DONE]\n\n", b"data: [DONE]\n\n", b"data: [none]\n\n", b"")
"""How a stream ends: by a word, or (b"") by its `finish_reason` alone."""


@attrs.frozen
class Answer:
    """How a provider answers a request, whatever the request is.

    Attributes:
        fault: One of `FAULTS`; "" for a good answer.
        status: HTTP status, where the fault is one.
        retry_after: The header of that name.
        connect: Seconds until the request goes out.
        think: Seconds from there to the headers.
        gap: Seconds between two pieces.
        length: Share of the tokens that it may have at most.
        part: Share of the answer that comes before it breaks off.
        billed: Share of the answer that is billed where it does not come whole.
        usage: Whether it tells its tokens.
        over: Whether it takes three times as many tokens as it may.
        content: One of `CONTENTS`.
        end: One of `ENDS`.
        cuts: Into how many pieces its bytes come.
    """

    fault: str = ""
    status: int = 200
    retry_after: str | None = None
    connect: float = 0.001
    think: float = 0.01
    gap: float = 0.0
    length: float = 0.5
    part: float = 0.5
    billed: float = 0.0
    usage: bool = True
    over: bool = False
    content: str = "text"
    end: bytes = ENDS[0]
    cuts: int = 1


def draw(rng: random.Random, faults: float) -> Answer:
    """Draw an answer; `faults` is the share of bad ones."""
    bad = rng.random() < faults
    fault = rng.choice(FAULTS) if bad else ""
    return Answer(
        fault=fault,
        status=rng.choice(STATUSES) if fault == "status" else 200,
        retry_after=rng.choice((None, None, "0", "1", "3", "200")),
        connect=rng.choice((0.0, 0.001, 0.2)),
        think=rng.choice((0.0, 0.01, 0.3, 0.3, 2.0, 30.0)),
        gap=rng.choice((0.0, 0.0, 0.02, 1.0)),
        length=rng.random(),
        part=rng.random(),
        billed=rng.choice((0.0, 0.5, 1.0)),
        usage=rng.random() < 0.5,
        over=rng.random() < 0.04,
        content=rng.choice(CONTENTS),
        end=rng.choice(ENDS),
        cuts=rng.randint(1, 5),
    )


# -- a request, as it came ---------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Request:
    """A request that reached a provider.

    Attributes:
        provider: Which.
        number: Of all that it got, from 0.
        key: Which of its keys was used.
        at: When it came.
        prompt: The first word of the last message: callers give each prompt its own.
        answer: How it is answered.
        phase: 0 connecting, 1 thinking, 2 answering, 3 over.
        prompt_tokens: As the provider counts them.
        most: The most tokens that its answer may have, all choices together.
        billed: Picodollars.
        over: What of `billed` is above the most that the caller could know.
        whole: Whether its answer came whole.
        text: What the first choice says, in words or in arguments.
        fresh: Whether it came on a new connection.
    """

    provider: str
    number: int
    key: str
    at: float
    prompt: str
    answer: Answer
    stream: bool
    choices: int
    most: int
    prompt_tokens: int
    fresh: bool
    rates: tuple[int, int, int]
    phase: int = 0
    billed: int = 0
    over: int = 0
    whole: bool = False
    text: str = ""

    def bill(self, tokens: int) -> None:
        """Bill so many tokens of an answer, if that is more than was billed before."""
        amount = charge(self.rates, self.prompt_tokens, tokens)
        if amount > self.billed:
            self.billed = amount
            self.over = max(0, amount - charge(self.rates, self.prompt_tokens, self.most))

    def bill_at_first(self) -> None:
        """Bill what is billed whatever the client reads."""
        answer = self.answer
        if answer.fault in ("", "fewer"):
            self.bill(0)
        elif answer.billed and (answer.fault not in FREE or answer.status in (504, 524)):
            self.bill(int(answer.billed * self.most))

    def __str__(self) -> str:
        answer = self.answer
        how = "stream" if self.stream else "plain"
        what = answer.fault if answer.fault != "status" else f"{answer.status} retry-after={answer.retry_after}"
        return f"{self.provider}#{self.number} {self.prompt} ({how}, n={self.choices}) → {what or 'good'}"


class ScriptedProvider:
    """A `Transport` that answers as it was drawn, and keeps its own log of what it billed.

    Attributes:
        requests: All that came, of every provider.
        under_way: Those that are not over.
        open: Exchanges that have not ended.
        asking: Requests that wait for their headers.
        sessions: How many are open, as of a pool.

    Args:
        seed: Of all that is drawn.
        providers: Their names.
        faults: Share of bad answers.
        words: Whether each chunk is a whole word, so that an estimate by words is no less than the chunks.
        tell: Called at every event, with what happened and the request.
        mended: Requests, by provider and number, that get a plain good answer whatever was drawn.
    """

    def __init__(
        self,
        seed: int,
        providers: Sequence[str],
        *,
        faults: float,
        words: bool,
        tell: Callable[[str, Request], None],
        mended: frozenset[tuple[str, int]] = frozenset(),
    ) -> None:
        self.requests: list[Request] = []
        self.open: set[ScriptedExchange] = set()
        self.under_way: dict[Request, None] = {}
        self.asking = 0
        self.sessions = 0
        self._billed_before = 0
        self._is_open = False
        self.healed = self.dead = False
        self._rngs = {name: random.Random(seed * 16 + i + 1) for i, name in enumerate(providers)}
        self._counts = dict.fromkeys(providers, 0)
        self._faults = faults
        self.words = words
        self.tell = tell
        self._mended = mended
        self._waits: dict[asyncio.Future[str], None] = {}

    def __repr__(self) -> str:
        return f"<ScriptedProvider in_flight={len(self.open) + self.asking}>"

    @property
    def billed(self) -> int:
        """Picodollars, all together."""
        return self._billed_before + sum(request.billed for request in self.under_way)

    @property
    def over(self) -> int:
        """What of it is above the most that those requests may cost."""
        return sum(request.over for request in self.requests)

    async def __aenter__(self) -> Self:
        await self.aclose()
        self.sessions, self._is_open = len(self._counts), True
        return self

    async def aclose(self) -> None:
        """Fail what is under way; closing takes a moment for each session."""
        self._is_open = False
        for future in self._waits:
            if not future.done():
                future.set_result("closed")
        while self.sessions:
            await asyncio.sleep(0.001)
            self.sessions -= 1

    async def wait(self, seconds: float, deadline: Deadline, provider: str) -> None:
        """Wait, or raise when the deadline comes first or the client is closed."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = deadline.of_a_wait(now)
        future: asyncio.Future[str] = loop.create_future()
        at, why = (due, "due") if due < now + seconds else (now + seconds, "done")

        def end() -> None:
            if not future.done():
                future.set_result(why)

        timer = loop.call_at(at, end) if at < NEVER else None
        self._waits[future] = None
        try:
            outcome = await future
        finally:
            del self._waits[future]
            if timer is not None:
                timer.cancel()
        if outcome == "closed":
            raise closed(provider)
        if outcome == "due":
            raise timed_out(deadline.or_within(now, "progress", deadline.progress), provider)

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
        """Take a request, and answer as was drawn."""
        name = endpoint.provider
        if not self._is_open or self.dead:
            raise closed(name, sent=False)
        request = self._take(name, endpoint.secret.fingerprint, json.loads(body.content), fresh=fresh)
        answer = request.answer
        self.requests.append(request)
        self.under_way[request] = None
        self.asking += 1
        deadline = deadline.with_progress(None)
        try:
            self.tell("is asked", request)
            if answer.fault == "connect":
                await self.wait(answer.connect, deadline.or_within(0, "total", None), name)
                raise APIConnectionError("refused", kind="connect")
            try:
                await self.wait(answer.connect, deadline, name)
            except APIConnectionError as error:
                error.maybe_billed = False
                raise
            on_sent()
            request.phase = 1
            request.bill_at_first()
            self.tell("got it", request)
            if answer.fault == "stale":
                await self.wait(0.0, deadline, name)
                raise APIConnectionError("stale", kind="stale", maybe_billed=True)
            await self.wait(NEVER if answer.fault == "silence" else answer.think, deadline, name)
            if answer.fault == "reset":
                raise APIConnectionError("reset", kind="reset", maybe_billed=True)
            request.phase = 2
            exchange = ScriptedExchange(self, request)
            self.open.add(exchange)
            self.tell("answers", request)
            return exchange
        except BaseException:
            self.end(request)
            raise
        finally:
            self.asking -= 1

    def die(self) -> None:
        """Note that the client's process is killed: what it does from here on does not happen."""
        for request in list(self.under_way):
            self.end(request)
        self.dead = True

    def end(self, request: Request) -> None:
        """Note that a request is over: nothing more is billed."""
        if request not in self.under_way:  # its client was killed before
            return
        request.phase = 3
        del self.under_way[request]
        self._billed_before += request.billed
        self.tell("is done with", request)

    def _take(self, name: str, key: str, asked: dict[str, Any], *, fresh: bool) -> Request:
        rng, number = self._rngs[name], self._counts[name]
        self._counts[name] += 1
        answer = draw(rng, self._faults)
        if self.healed or (name, number) in self._mended:
            answer = Answer()
        elif fresh and answer.fault == "stale":
            answer = attrs.evolve(answer, fault="reset")  # a new connection is never stale
        prompt = asked["messages"][-1]["content"]
        choices = asked.get("n") or 1
        most = (asked.get("max_tokens") or 40) * choices
        estimate = estimate_tokens(prompt)
        request = Request(
            name,
            number,
            key,
            asyncio.get_running_loop().time(),
            prompt.split()[0],
            answer,
            bool(asked.get("stream")),
            choices,
            most,
            estimate if not answer.usage else rng.randint(estimate, max(estimate, len(prompt))),
            fresh,
            PRICES[name].picodollars,
        )
        if PRICES[name].model != asked["model"]:
            raise AssertionError(f"{name} was asked for {asked['model']!r}")
        return request


def closed(provider: str, *, sent: bool = True) -> APIConnectionError:
    """Make the error of a request whose client was closed."""
    return APIConnectionError(f"closed while waiting for {provider}", kind="closed", maybe_billed=sent)


# -- the body of an answer ---------------------------------------------------------------------------------------------


class ScriptedExchange:
    """One answer. It is open until it is finished or closed."""

    def __init__(self, transport: ScriptedProvider, request: Request) -> None:
        answer = request.answer
        self.status = answer.status
        self.headers: Headers = {"content-type": "application/json"}
        if answer.status != 200 and answer.retry_after is not None:
            self.headers["retry-after"] = answer.retry_after
        self._transport = transport
        self._request = request
        self._body = _make_body(request, words=transport.words)

    async def read(self, deadline: Deadline) -> bytes:
        """Return the next piece; b"" at the end."""
        request, answer = self._request, self._request.answer
        piece = self._body.pop(0) if self._body else _Piece(b"", 0, whole=False)
        gap = NEVER if piece.data is None and answer.fault == "stall" else answer.gap
        try:
            await self._transport.wait(gap, deadline, request.provider)
        except BaseException:
            self.close()
            raise
        if piece.data is None:
            self.close()
            raise APIConnectionError("cut", kind="truncated body", maybe_billed=True)
        request.whole = request.whole or piece.whole
        if piece.tokens:
            request.bill(max(piece.tokens, int(answer.billed * request.most) if answer.fault == "error event" else 0))
        self._transport.tell(f"sends {len(piece.data)} bytes of", request)
        return piece.data

    async def read_all(self, deadline: Deadline, start: bytes = b"") -> bytes:
        """Return all of it."""
        while piece := await self.read(deadline):
            start += piece
        self.finish()
        return start

    async def read_start(self, deadline: Deadline, limit: int = 1 << 16) -> bytes:
        """Return all of it: it is short."""
        return await self.read_all(deadline)

    def finish(self) -> None:
        """End it well."""
        self._end()

    def close(self) -> None:
        """End it now."""
        self._end()

    def _end(self) -> None:
        if self in self._transport.open:
            self._transport.open.remove(self)
            self._transport.end(self._request)


@attrs.frozen
class _Piece:
    """What one read gives: bytes, or (None) that it breaks off.

    Attributes:
        tokens: Of the answer, that must be billed once it is read; 0 for no news.
        whole: Whether the answer is whole with it.
    """

    data: bytes | None
    tokens: int
    whole: bool


ERROR = b'{"error":{"message":"It did not work.","type":"server_error","code":"oops"}}'
PAGE = b"<html><head><title>Gateway</title></head><body>Nothing here.</body></html>"


def _make_body(request: Request, *, words: bool) -> list[_Piece]:
    answer = request.answer
    if answer.status != 200 or answer.fault == "error object":
        return [_Piece(ERROR, 0, whole=False)]
    if answer.fault in ("page", "empty"):
        return [_Piece(PAGE if answer.fault == "page" else b"", 0, whole=False)]
    return _stream_of(request, words=words) if request.stream else _plain_of(request)


def _tokens_of(request: Request) -> int:
    return max(1, int(request.answer.length * request.most / request.choices))


def _usage_of(request: Request, tokens: int) -> dict[str, int]:
    prompt = request.prompt_tokens
    return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def _plain_of(request: Request) -> list[_Piece]:
    answer, each = request.answer, _tokens_of(request)
    words = [f"{request.prompt}.{request.number}", *(f"w{i}" for i in range(each - 1))]
    request.text = " ".join(words)
    choices = request.choices - (answer.fault == "fewer" and request.choices > 1)
    whole: dict[str, Any] = {
        "id": "c-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [_choice(i, request.text) for i in range(choices)],
    }
    tokens = max(each * choices, 1)
    if answer.usage:
        tokens = tokens if not answer.over else request.most * 3
        whole["usage"] = _usage_of(request, tokens)
    data = json.dumps(whole).encode()
    pieces = _cut(request, data, [(len(data), min(tokens, request.most))], len(data))
    if pieces and pieces[-1].whole:  # and that it is, the client knows by its end
        pieces.append(_Piece(b"", tokens, whole=True))
    return pieces


def _choice(index: int, text: str) -> dict[str, Any]:
    return {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}


def _stream_of(request: Request, *, words: bool) -> list[_Piece]:
    """The chunks of a stream, a token each."""
    answer, each = request.answer, _tokens_of(request)
    data = b""
    marks: list[tuple[int, int]] = []  # offsets, and the tokens that have come by then
    texts: list[str] = []
    content = answer.content if answer.usage or not words else "text"  # no estimate counts reasoning
    choices = range(request.choices - (answer.fault == "fewer" and request.choices > 1))
    for i in range(each):
        word = (f"{request.prompt}.{request.number}" if not i else f"w{i}") + (" " if words else "")
        texts.append(word)
        for index in choices:
            data += _chunk(index, _delta(content, word, first=not i))
            marks.append((len(data), len(marks) + 1))
    request.text = "".join(texts) if content != "reasoning" else ""
    reason = "tool_calls" if content == "call" else "stop"
    for index in choices:
        data += _chunk(index, {}, reason)
    tokens = len(marks)
    last = len(data)
    if answer.usage:
        tokens = request.most * 3 if answer.over else tokens
        data += _event({"id": "c-1", "choices": [], "usage": _usage_of(request, tokens)})
    if answer.fault != "fewer":
        data += answer.end or (ENDS[0] if answer.over else b"")
    marks.append((len(data), tokens))
    return _cut(request, data, marks, last)


def _delta(content: str, word: str, *, first: bool) -> dict[str, Any]:
    if content == "text":
        return {"content": word}
    if content == "reasoning":
        return {"reasoning_content": word}
    call: dict[str, Any] = {"index": 0, "function": {"arguments": word}}
    if first:
        call |= {"id": "call-1", "type": "function"}
        call["function"]["name"] = "f"
    return {"tool_calls": [call]}


def _chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
    return _event({"id": "c-1", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]})


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _cut(request: Request, data: bytes, marks: Sequence[tuple[int, int]], last: int) -> list[_Piece]:
    """Cut an answer's bytes into pieces, and end it where its fault is.

    Args:
        request: What it answers.
        data: The answer.
        marks: Offsets, and the tokens that have come by then.
        last: Where the last cut may be: what tells of the usage comes in one piece with the end.
    """
    answer = request.answer
    breaks = answer.fault in ("cut", "cut cleanly", "stall", "error event")
    until = min(int(answer.part * last), last - 4) if breaks else len(data)  # not behind the last brace
    cuts = sorted({int(last * (i + answer.part) / (answer.cuts + 1)) for i in range(1, answer.cuts)} - {0})
    comes_whole = not breaks and (answer.fault == "" or not request.stream or request.choices == 1)
    ends = [cut for cut in cuts if cut < until] + [until]
    pieces: list[_Piece] = []
    begin = 0
    for end in ends:
        tokens = max((count for at, count in marks if at <= end), default=0)
        pieces.append(_Piece(data[begin:end], tokens, whole=comes_whole and end == len(data)))
        begin = end
    pieces = [piece for piece in pieces if piece.data]
    if answer.fault in ("cut", "stall"):
        pieces.append(_Piece(None, 0, whole=False))
    if answer.fault == "error event":
        pieces.append(_Piece(b"\n\ndata: " + ERROR + b"\n\n", 0, whole=False))
    return pieces
