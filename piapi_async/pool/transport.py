"""What a client sends through: `SessionPool`, or a simulation's stand-in that has the same two shapes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, Self

from piapi_async.policy import Deadline
from piapi_async.provider import Endpoint
from piapi_async.wire import Body, Headers


class Exchange(Protocol):
    """One request that was answered: status and headers at once, the body as it is read.

    Attributes:
        status: HTTP status.
        headers: The answer's headers.
    """

    status: int
    headers: Headers

    def read(self, deadline: Deadline) -> Awaitable[bytes]:
        """Return the bytes that have arrived, at least one, or `b""` at the end of the body.

        Raises:
            APIError: The deadline came first, or the body broke off or can't be read.
        """
        ...

    async def read_all(self, deadline: Deadline, start: bytes = b"") -> bytes:
        """Return the whole body, with `start` (what has been read of it before) in front.

        Raises:
            APIError: As `read`, or the body is too large.
        """
        ...

    async def read_start(self, deadline: Deadline, limit: int = 1 << 16) -> bytes:
        """Return the body's first `limit` bytes, or a little more, and end the exchange."""
        ...

    def finish(self) -> None:
        """End a body that has been read as far as it matters; its connection may be kept."""
        ...

    def close(self) -> None:
        """Close the connection, now. Idempotent."""
        ...


class Transport(Protocol):
    """What sends the bytes. A client opens it, closes it, and may open it again."""

    async def __aenter__(self) -> Self:
        """Open."""
        ...

    async def aclose(self) -> None:
        """Close; what is in flight fails. Idempotent."""
        ...

    async def send(
        self,
        endpoint: Endpoint,
        body: Body,
        headers: Mapping[str, str],
        deadline: Deadline,
        *,
        on_sent: Callable[[], None],
        fresh: bool = False,
    ) -> Exchange:
        """Post a body and return the exchange once the answer's headers are there.

        Args:
            endpoint: Where to, and with which key.
            body: The request's JSON.
            headers: For this request only.
            deadline: When the headers must be there.
            on_sent: Called when the request begins to go out. Before that nothing can have been billed.
            fresh: Whether to use a new connection.

        Raises:
            APIConnectionError: No answer; `kind="stale"` when a kept connection turned out to be closed before anybody
                can have worked on the request, so that it is safe to send again at once.
        """
        ...
