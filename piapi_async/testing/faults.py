"""Faults as values: a script of them tells the local server how to fail.

A script is either an iterable or a function. From an iterable each completion request takes the next item; `None` means
a good answer, and so does the end of the iterable. A function gets the request's number and body and returns the fault.
`random_faults` makes such a function from a seed. For faults below HTTP, byte by byte, see `RawServer`.
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
    """Answer with an error status, and the API's error object unless there is a `body`.

    Attributes:
        code: The HTTP status.
        headers: Headers to send with it, such as `Retry-After`.
        body: Bytes or text to send as they are, or an object to send as JSON; `None`: `{"error": …}` with what follows.
        message: The error's message.
        type: The error's type; `None`: the one that fits the status.
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
    """End the connection before any header.

    Attributes:
        how: `"reset"`, or `"fin"` for an orderly close.
    """

    how: Literal["reset", "fin"] = "reset"


@frozen
class Cut:
    """End the connection within the body.

    A stream ends after some tokens, an answer that is not streamed half-way.

    Attributes:
        after: How many tokens still arrive, of all choices together.
        how: `"reset"`; `"fin"`: an orderly close, though the framing (chunks, Content-Length) shows that something is
            missing; `"close"`: an orderly close of a body without framing, so nothing shows it.
    """

    after: int = 3
    how: Literal["reset", "fin", "close"] = "fin"


@frozen
class Stall:
    """Send nothing more, and keep the connection open until the client or the server closes it.

    Attributes:
        after: How many tokens still arrive; `None`: not even headers. An answer that is not streamed stops half-way.
    """

    after: int | None = None


@frozen
class Delay:
    """Answer well, but late.

    Attributes:
        seconds: How late the headers come.
    """

    seconds: float


@frozen
class StreamError:
    """Send an error object within a stream, and end the stream without a terminator.

    A request without `stream` gets the error alone, with status 500.

    Attributes:
        after: How many tokens still arrive.
        message: The error's message.
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
    """Send a body that is no answer.

    Attributes:
        body: The body.
        content_type: Its `Content-Type`.
        status: The HTTP status.
    """

    body: bytes
    content_type: str = "application/json"
    status: int = 200


HTML_PAGE: Final = Garbage(b"<!doctype html><title>Just a moment...</title><p>Checking your browser.</p>", "text/html")
"""The page that a web firewall shows in place of an API."""

WRONG_JSON: Final = Garbage(b'{"id": "chatcmpl-1", "choices": [{"index": 0, "mess')
"""JSON that ends too early."""

Fault = Status | Drop | Cut | Stall | Delay | StreamError | Garbage

FaultRule = Callable[[int, Any], Fault | None]
"""Gets the number of the completion request (from 0) and its parsed body (`None` if it is not JSON)."""


def fault_rule(script: Iterable[Fault | None] | FaultRule) -> FaultRule:
    """Make a rule from a script. An iterable may be endless, and a list may still grow."""
    if callable(script):
        return script
    items = _growing(script) if isinstance(script, Sequence) else iter(script)
    return lambda _number, _body: next(items, None)


def _growing(script: Sequence[Fault | None]) -> Iterator[Fault | None]:
    """Iterate over a list that may still grow; its own iterator would stop for good at the end."""
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
    """Make a rule that lets a share of the requests fail.

    Only the request's number decides, so a run with the same seed has the same faults, whatever its timing.

    Args:
        rate: The share of requests that fail, 0 to 1.
        seed: Another seed gives other faults.
        kinds: The faults to choose from.
    """

    def rule(number: int, _body: object) -> Fault | None:
        dice = random.Random(f"{seed}/{number}")
        return dice.choice(kinds) if dice.random() < rate else None

    return rule


def error_body(message: str, *, type: str, param: str | None = None, code: str | int | None = None) -> bytes:
    """Return an error as the API words it, in OpenAI's shape, as JSON."""
    return msgspec.json.encode({"error": {"message": message, "type": type, "param": param, "code": code}})
