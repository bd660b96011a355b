"""What can go wrong, as values: a script of them tells the local server how to fail.

A script is an iterable, of which each completion request takes the next item (`None`: answer well; used up: answer well
from then on), or a function of the request's number and body. `random_faults` makes such a function from a seed.
Faults below HTTP, byte by byte, are the work of `RawServer`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from attrs import field, frozen

__all__ = [
    "HTML_PAGE",
    "WRONG_JSON",
    "Cut",
    "Delay",
    "Drop",
    "Fault",
    "FaultRule",
    "Garbage",
    "Stall",
    "Status",
    "StreamError",
    "fault_rule",
    "random_faults",
]


@frozen
class Status:
    """An error status, in the error shape of the API unless a body is given.

    Attributes:
        code: The HTTP status.
        headers: Sent with it, such as `Retry-After`.
        body: Bytes or text as they are, or an object to send as JSON; `None`: `{"error": …}` with the next three.
        message: What the error says.
        type: The error's type; by default, whose fault the status says it is.
        error_code: The error's code, such as `insufficient_quota`.
    """

    code: int = 503
    headers: Mapping[str, str] = field(factory=dict[str, str], kw_only=True)
    body: bytes | str | Mapping[str, object] | None = field(default=None, kw_only=True)
    message: str = field(default="A scripted fault of the local server.", kw_only=True)
    type: str | None = field(default=None, kw_only=True)
    error_code: str | int | None = field(default=None, kw_only=True)

    def content(self) -> bytes:
        """Return the body's bytes."""
        if self.body is None:
            kind = self.type or ("invalid_request_error" if self.code < 500 else "server_error")
            return error_body(self.message, type=kind, code=self.error_code)
        if isinstance(self.body, str):
            return self.body.encode()
        return self.body if isinstance(self.body, bytes) else msgspec.json.encode(self.body)


@frozen
class Drop:
    """The connection ends before any header: with a reset, or with a FIN as on a clean close."""

    how: Literal["reset", "fin"] = "reset"


@frozen
class Cut:
    """The connection ends inside the body.

    A stream stops after some tokens (of all choices together); an answer that isn't streamed stops half-way.

    Attributes:
        after: Tokens that still arrive.
        how: `"reset"`; `"fin"`: the framing (chunks, Content-Length) tells that something is missing; `"close"`: the
            body has no framing but the end of the connection, so nothing tells.
    """

    after: int = 3
    how: Literal["reset", "fin", "close"] = "fin"


@frozen
class Stall:
    """Nothing more arrives, until the client or the server closes the connection.

    Attributes:
        after: Tokens that still arrive; `None`: not even headers. An answer that isn't streamed stops half-way.
    """

    after: int | None = None


@frozen
class Delay:
    """A good answer, its headers so many seconds late."""

    seconds: float


@frozen
class StreamError:
    """An error object inside a stream, which then ends without its terminator.

    An answer that isn't streamed is the error alone, with status 500.

    Attributes:
        after: Tokens that still arrive.
        message: What the error says.
        type: The error's type.
        code: The error's code.
    """

    after: int = 3
    message: str = "The model became overloaded."
    type: str = "server_error"
    code: str | int | None = None

    def content(self) -> bytes:
        """Return the error object's bytes."""
        return error_body(self.message, type=self.type, code=self.code)


@frozen
class Garbage:
    """A body that isn't an answer, under a status that may say it is one."""

    body: bytes
    content_type: str = "application/json"
    status: int = 200


HTML_PAGE: Final = Garbage(b"<!doctype html><title>Just a moment...</title><p>Checking your browser.</p>", "text/html")
"""What a web firewall puts in front of an API."""

WRONG_JSON: Final = Garbage(b'{"id": "chatcmpl-1", "choices": [{"index": 0, "mess')
"""JSON that ends too early."""

Fault = Status | Drop | Cut | Stall | Delay | StreamError | Garbage

FaultRule = Callable[[int, Any], Fault | None]
"""Takes the number of the completion request (from 0) and its parsed body (`None` if that isn't JSON)."""


def fault_rule(script: Iterable[Fault | None] | FaultRule) -> FaultRule:
    """Make a rule of a script; an iterable may be endless, and a list may still grow."""
    if callable(script):
        return script
    items = _growing(script) if isinstance(script, Sequence) else iter(script)
    return lambda _number, _body: next(items, None)


def _growing(script: Sequence[Fault | None]) -> Iterator[Fault | None]:
    """Iterate over a list that may grow after its end was reached, where its own iterator would have given up."""
    taken = 0
    while True:
        if taken < len(script):
            taken += 1
            yield script[taken - 1]
        else:
            yield None


def random_faults(
    rate: float,
    *,
    seed: int = 0,
    kinds: Sequence[Fault] = (Status(503), Status(429), Drop("reset"), Drop("fin"), Cut(3, "reset"), Cut(3, "fin")),
) -> FaultRule:
    """Make a rule that lets a part of the requests fail.

    The number of the request alone decides, so a run with the same seed has the same faults whatever its timing.

    Args:
        rate: Part of the requests that fail, 0 to 1.
        seed: Another one, other faults.
        kinds: The faults to choose from.
    """

    def rule(number: int, _body: object) -> Fault | None:
        dice = random.Random(f"{seed}/{number}")
        return dice.choice(kinds) if dice.random() < rate else None

    return rule


def error_body(message: str, *, type: str, param: str | None = None, code: str | int | None = None) -> bytes:
    """Return an error in the API's shape (OpenAI's), as JSON."""
    return msgspec.json.encode({"error": {"message": message, "type": type, "param": param, "code": code}})
