"""The error tree; every error says what happened and knows what a caller may do next.

    PiAPIError
    ├── ConfigurationError            also ValueError: bad key, URL or option, at construction
    ├── InvalidRequestError           also ValueError: refused before a byte was sent
    ├── BudgetExceededError           nothing was sent
    ├── BatchError                    a batch's files can't be used; what was paid for is kept
    └── APIError                      an exchange failed
        ├── APIConnectionError        no whole answer: connect, TLS, reset, protocol
        │   └── APITimeoutError       a timer ran out; `kind` says which
        ├── APIResponseError          no completion came: HTML, bad JSON, wrong types, nothing
        │   ├── StreamTruncatedError
        │   └── StreamTooLargeError
        ├── APIStatusError            the provider said no: 400 … 599, or an error object in a 200
        └── AllProvidersFailedError   one line per attempt; `errors` holds each provider's own

An error never holds an API key, a prompt or an object of the HTTP library. `Secret` and `excerpt` live here for that
reason: every foreign text passes through `excerpt` before it enters a message. Errors pickle and copy whole.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NoReturn, TypeAlias, TypedDict, Unpack

if TYPE_CHECKING:
    from piapi_async.models.answers import Attempt  # which imports nothing from here

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIResponseError",
    "APIStatusError",
    "APITimeoutError",
    "AllProvidersFailedError",
    "AuthenticationError",
    "BadRequestError",
    "BatchError",
    "BudgetExceededError",
    "ConfigurationError",
    "ConflictError",
    "ErrorFields",
    "ErrorKind",
    "InsufficientQuotaError",
    "InternalServerError",
    "InvalidRequestError",
    "NotFoundError",
    "PermissionDeniedError",
    "PiAPIError",
    "RateLimitError",
    "RequestTooLargeError",
    "Secret",
    "StreamTooLargeError",
    "StreamTruncatedError",
    "UnprocessableEntityError",
]

EXCERPT_CHARACTERS = 2000
"""Most of a foreign text that an error keeps (2 kB: enough for a gateway's page title and message; ours)."""

SECRET_CHARACTERS = 8
"""A shorter key is not looked for in texts: it would be found in words (ours)."""

# What vendors' keys look like: a provider that echoes another account's key must not leak it through us.
# Patterns that are rarely used are plain strings: `re` compiles them at first use, so that the import stays fast.
_KEY_LIKE = r"(?i)\b(sk|pk|rk)-[A-Za-z0-9_-]{6,}|(?<=Bearer )[\x21-\x7e]{6,}"


class Secret:
    """An API key that never shows itself.

    It is masked by `repr`, `str`, `format`, `attrs.asdict` and `cattrs.unstructure`, in logs and in tracebacks that
    capture locals, and refuses to be pickled.

    Attributes:
        fingerprint: `"…"` and the last 4 characters of a key of 12 or more, `"…"` of a shorter one.
    """

    __slots__ = ("_value", "fingerprint")

    def __init__(self, value: str) -> None:
        self._value = value
        self.fingerprint = f"…{value[-4:]}" if len(value) >= 12 else "…"

    def reveal(self) -> str:
        """Return the key itself; call it only where the key goes on the wire."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({getattr(self, 'fingerprint', '…')})"  # a traceback out of __init__ may ask

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("an API key can't be pickled; read it from the environment where it is needed")


CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
"""For `str.translate`: no control character of a foreign text may reach a terminal or a page."""


def excerpt(text: str, secrets: Iterable[Secret] = ()) -> str:
    """Make a foreign text fit for an error message or a log.

    Args:
        text: What a server sent.
        secrets: Keys that must not appear in the result.

    Returns:
        At most `EXCERPT_CHARACTERS` characters on one line, control characters escaped, keys and what looks like one
        replaced by `[key]`.
    """
    # Keys first, the longest first, so that neither a cut nor a key that begins like another leaves half of one.
    for secret in sorted(secrets, key=lambda secret: len(secret.reveal()), reverse=True):
        if len(secret.reveal()) >= SECRET_CHARACTERS:
            text = re.sub(_forms_of(secret), "[key]", text)
    text = re.sub(_KEY_LIKE, "[key]", text[: EXCERPT_CHARACTERS + 1024])
    line = text.strip()
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= EXCERPT_CHARACTERS else line[: EXCERPT_CHARACTERS - 1] + "…"


@lru_cache(maxsize=64)
def _forms_of(secret: Secret) -> str:
    """Return the pattern of a key as it is, with characters escaped for JSON, a URL or HTML, and in base64."""
    plain = "".join(map(_forms_of_character, secret.reveal()))
    return "|".join((plain, *_forms_in_base64(secret.reveal().encode())))


def _forms_of_character(character: str) -> str:
    code = ord(character)
    number = f"{code:02x}"
    either_case = "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in number)
    return rf"(?:\\*{re.escape(character)}|%(?:25)*{either_case}|\\+u00{either_case}|\\+x{either_case}|&#{code};)"


def _forms_in_base64(key: bytes) -> Iterator[str]:
    """Yield the characters that a key alone decides, wherever it begins among the bytes that are encoded."""
    for before in range(3):
        encoded = b64encode(bytes(before) + key).decode().rstrip("=")
        whole = (before + len(key)) * 8 // 6  # characters without a bit of what follows
        core = encoded[-(-before * 8 // 6) : whole]
        yield re.escape(core).replace(r"\+", "[-+]").replace("/", "[/_]")


class PiAPIError(Exception):
    """The base of every error that this library raises on purpose."""


class ConfigurationError(PiAPIError, ValueError):
    """A key, URL or option that can't work; raised at construction."""


class InvalidRequestError(PiAPIError, ValueError):
    """A request that the provider would refuse; raised before a byte was sent."""


class BudgetExceededError(PiAPIError):
    """The call could have cost more than the budget has left; nothing was sent."""


class BatchError(PiAPIError):
    """A checkpoint is locked, broken or on a full disk; what was paid for is kept.

    Attributes:
        unsaved: Results that could not be written, each as the line that it would have been.
    """

    unsaved: tuple[bytes, ...] = ()


ErrorKind: TypeAlias = Literal[
    # APIConnectionError
    "certificate",
    "closed",
    "connect",
    "dns",
    "local",
    "protocol",
    "proxy",
    "reset",
    "stale",
    "tls",
    "truncated body",
    # APITimeoutError: the timer that ran out ("connect" too)
    "deadline",
    "first_event",
    "pool",
    "progress",
    "total",
    # APIResponseError
    "edge page",
    "empty",
    "encoding",
    "not a completion",
    "response",
    "too large",
    "truncated",
    # APIStatusError
    "edge",
    "redirect",
    "status",
    # the rest
    "all providers",
    "error",
]
"""What failed, in a word or two; each class says which of them it uses."""


class ErrorFields(TypedDict, total=False):
    """What every `APIError` can be told at construction; `APIError` says what each means."""

    kind: ErrorKind
    provider: str
    attempts: tuple[Attempt, ...]
    request_id: str | None
    committed: bool
    maybe_billed: bool
    retry_after: float | None
    partial: str


class APIError(PiAPIError):
    """An exchange with a provider failed.

    Attributes:
        kind: What failed, in a word or two: `"dns"`, `"tls"`, `"protocol"`, `"progress"`, `"empty"`, `"status"`, …
        provider: Name of the provider that failed; `""` when none was reached.
        attempts: Every request that this call sent or tried to send, in order.
        request_id: The provider's id of the request, for its support, if it gave one.
        committed: Whether text of the answer had reached the caller; then nothing was sent again.
        maybe_billed: Whether the provider may charge for the failed attempt.
        retry_after: Seconds the provider asked to wait, if it did.
        partial: Text of choice 0 that had arrived.
    """

    kind: ErrorKind = "error"
    provider: str
    attempts: tuple[Attempt, ...]
    request_id: str | None
    committed: bool
    maybe_billed: bool
    retry_after: float | None
    partial: str

    def __init__(self, message: str = "", **fields: Unpack[ErrorFields]) -> None:
        # Only the message is in `args`. The rest is in `__dict__`, which pickle and copy carry along.
        super().__init__(message)
        self.kind = fields.get("kind", self.kind)
        self.provider = fields.get("provider", "")
        self.attempts = fields.get("attempts", ())
        self.request_id = fields.get("request_id")
        self.committed = fields.get("committed", False)
        self.maybe_billed = fields.get("maybe_billed", False)
        self.retry_after = fields.get("retry_after")
        self.partial = fields.get("partial", "")


class APIConnectionError(APIError):
    """No whole answer came: name lookup, connect, TLS, reset, or not HTTP.

    `kind` is one of `"connect"`, `"dns"`, `"tls"`, `"certificate"`, `"reset"` (the connection broke before an answer),
    `"truncated body"`, `"protocol"`, `"proxy"`, `"local"` (this process ran out of sockets or files), `"closed"`.
    """

    kind: ErrorKind = "connect"


class APITimeoutError(APIConnectionError):
    """A timer ran out: `kind` is `"connect"`, `"first_event"`, `"progress"`, `"total"`, `"deadline"` or `"pool"`."""

    kind: ErrorKind = "total"

    @property
    def timer(self) -> ErrorKind:
        """The timer that ran out; the same as `kind`."""
        return self.kind


class APIResponseError(APIError):
    """What came is no completion: HTML, bad JSON, wrong types, or nothing."""

    kind: ErrorKind = "response"


class StreamTruncatedError(APIResponseError):
    """A stream was cut off; `partial` has the text so far."""

    kind: ErrorKind = "truncated"


class StreamTooLargeError(APIResponseError):
    """An event or an answer is larger than the client accepts."""

    kind: ErrorKind = "too large"


class APIStatusError(APIError):
    """The provider answered with an error status, or with an error object inside a 200.

    Attributes:
        status_code: HTTP status, or the status that the error object stands for.
        code: The provider's own code, such as `"model_not_found"`.
        type: The provider's error type, such as `"invalid_request_error"`.
        param: The request parameter that the provider blames.
        body: The answer: at most 2 kB, on one line, keys removed.
    """

    kind: ErrorKind = "status"
    status_code: int
    code: str | None
    type: str | None
    param: str | None
    body: str

    def __init__(
        self,
        message: str = "",
        *,
        status_code: int = 0,
        code: str | None = None,
        type: str | None = None,
        param: str | None = None,
        body: str = "",
        **fields: Unpack[ErrorFields],
    ) -> None:
        super().__init__(message, **fields)
        self.status_code = status_code
        self.code = code
        self.type = type
        self.param = param
        self.body = body


class BadRequestError(APIStatusError):
    """400: the provider refuses the request as it is."""


class AuthenticationError(APIStatusError):
    """401: the key is not accepted."""


class InsufficientQuotaError(APIStatusError):
    """402, or a code that says so: the account's credit is used up."""


class PermissionDeniedError(APIStatusError):
    """403: the account may not do this, such as use a model above its plan."""


class NotFoundError(APIStatusError):
    """404: no such model or path."""


class ConflictError(APIStatusError):
    """409: the request collides with another."""


class RequestTooLargeError(APIStatusError):
    """413, 414 or 431: the request is too large."""


class UnprocessableEntityError(APIStatusError):
    """422: the provider understood the request and refuses its values."""


class RateLimitError(APIStatusError):
    """429: too many requests; `retry_after` says how long to wait, if the provider did."""


class InternalServerError(APIStatusError):
    """500 and above: the provider failed."""


class AllProvidersFailedError(APIError):
    """Every provider failed; the message has one line an attempt.

    Attributes:
        errors: Each provider's own last error, in the order they were tried.
    """

    kind: ErrorKind = "all providers"
    errors: tuple[APIError, ...] = ()
