"""What an answer's headers say: how long to wait, whether to try again, the id of the request. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TypeAlias

from piapi_async.errors import Secret, excerpt

Headers: TypeAlias = Mapping[str, str]
"""Headers of an answer, those in `ANSWER_HEADERS`; values of one that came more than once are separated by `\\n`."""

PAUSE_CAP = 60.0
"""Longest pause, in seconds, that a count of what is left asks for: most such windows are a minute (ours)."""

_WINDOWS = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
)

ANSWER_HEADERS = (
    "content-encoding",
    "content-type",
    "date",
    "location",
    "ratelimit",
    "retry-after",
    "retry-after-ms",
    "x-request-id",
    "x-should-retry",
    *(name for window in _WINDOWS for name in window),
)
"""The headers that are ever read; a transport need not hand on others."""

_SECONDS = r"[0-9]{1,6}(\.[0-9]+)?"
_DURATION = r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m(?!s))?(?:([0-9]{1,6}(?:\.[0-9]+)?)s)?(?:([0-9]{1,9}(?:\.[0-9]+)?)ms)?"


def read_request_id(headers: Headers, secrets: Iterable[Secret]) -> str | None:
    """Return the provider's id of the request, made fit for an error message: at most 128 characters, no key."""
    id_ = headers.get("x-request-id")
    if id_ is None:
        return None
    # Nearly every id is fit as it is; what may be a key ("sk-…", "Bearer …") is not.
    plain = id_.isascii() and id_.isprintable() and len(id_) <= 128 and " " not in id_ and "k-" not in id_.lower()
    for secret in secrets:
        plain = plain and secret.reveal() not in id_
    return id_ if plain else excerpt(id_, secrets)[:128]


def read_retry_after(headers: Headers) -> float | None:
    """Return the seconds that an answer asks to wait; None if it asks for nothing that makes sense.

    `retry-after-ms` wins over `Retry-After`; of two copies the longer counts. A date counts from the answer's `Date`.
    """
    milliseconds = [float(v) / 1000 for v in _values(headers, "retry-after-ms") if re.fullmatch(_SECONDS, v)]
    if milliseconds:
        return max(milliseconds)
    waits = [wait for v in _values(headers, "retry-after") if (wait := _wait(v, headers)) is not None]
    return max(waits, default=None)


def read_should_retry(headers: Headers) -> bool | None:
    """Return what `x-should-retry` says; None if it says nothing."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", ""))


def read_pause(headers: Headers, *, refused: bool = False) -> float:
    """Return the seconds to send nothing to a provider that says how much is left: 0 unless nothing is.

    At most `PAUSE_CAP`. `Retry-After`, where it comes too, says how long instead.

    Args:
        headers: The answer's.
        refused: Whether the answer is a 429: then a reset counts too when it is not said how much is left.
    """
    waits = _draft_waits(headers["ratelimit"]) if "ratelimit" in headers else []
    for remaining, reset in _WINDOWS:
        left = headers.get(remaining)
        if (refused and not left) or (left and left.strip() == "0"):
            waits.append(_duration(headers.get(reset, "")))
    if not waits or not max(waits):
        return 0.0
    asked = read_retry_after(headers)
    return min(PAUSE_CAP, max(waits) if asked is None else asked)


def _draft_waits(value: str) -> list[float]:
    """The waits in a header of the IETF draft, a structured field: `"default";r=0;t=30`."""
    waits: list[float] = []
    for item in value.replace("\n", ",").split(","):
        fields = [part.strip() for part in item.split(";")]
        if "r=0" in fields:
            waits += [float(f[2:]) for f in fields if f.startswith("t=") and re.fullmatch(_SECONDS, f[2:])]
    return waits


def _values(headers: Headers, name: str) -> list[str]:
    return [value.strip(" \t") for value in headers.get(name, "").split("\n")]


def _wait(value: str, headers: Headers) -> float | None:
    if re.fullmatch(_SECONDS, value):
        return float(value)
    until, since = _date(value), _date(headers.get("date", ""))
    return None if until is None or since is None else max(0.0, until - since)


def _date(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    # Two of HTTP's three forms of a date may come without a zone, which is GMT then and not the local one.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _duration(text: str) -> float:
    """`6m0s`, `1s`, `250ms`, or plain seconds; 0 for anything else."""
    text = text.strip()
    if re.fullmatch(_SECONDS, text):
        return float(text)
    match = re.fullmatch(_DURATION, text)
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups()) if match else (0.0,) * 4
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
