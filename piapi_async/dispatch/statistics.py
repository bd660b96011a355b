"""The state of a client, for those who watch it."""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen(slots=False)
class KeyStatistics:
    """The state of one key of a provider.

    Attributes:
        provider: Its name.
        key: Fingerprint of the key.
        in_flight: Requests under way.
        queued: Callers waiting at the gate.
        bound: Most requests in flight now, as narrowed by 429s.
        pause: Seconds of cool-down left.
        breakers: The state of each model's breaker: `"closed"`, `"open"`, `"half-open"`.
        retries: Retries that the provider may get at once.
    """

    provider: str
    key: str
    in_flight: int
    queued: int
    bound: int
    pause: float
    breakers: Mapping[str, str]
    retries: int


@attrs.frozen(slots=False)
class Statistics:
    """The state of a client.

    Attributes:
        in_flight: Requests under way.
        queued: Callers waiting at a gate.
        outcomes: Attempts by how they ended: `"ok"`, `"cancelled"`, or an error's kind.
        keys: The keys of every provider.
    """

    in_flight: int
    queued: int
    outcomes: Mapping[str, int]
    keys: tuple[KeyStatistics, ...]
