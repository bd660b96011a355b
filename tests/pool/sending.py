"""What the tests of the pool share: an endpoint of a test's server, and a request to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from piapi_async.errors import Secret
from piapi_async.policy import Deadline
from piapi_async.pool import Exchange, SessionPool
from piapi_async.provider import Endpoint
from piapi_async.testing import LocalServer, RawServer
from piapi_async.wire import Body

BODY = Body(b"{}")


def endpoint(server: RawServer | LocalServer | str, key: str = "sk-secret-secret", **headers: str) -> Endpoint:
    base_url = server if isinstance(server, str) else server.base_url
    return Endpoint("piapi", f"{base_url}/chat/completions", Secret(key), headers)


def _ignore() -> None:
    pass


async def send(
    pool: SessionPool,
    target: Endpoint,
    body: Body = BODY,
    headers: Mapping[str, str] | None = None,
    *,
    deadline: Deadline = Deadline(),  # noqa: B008  # a value that does not change
    on_sent: Callable[[], Any] = _ignore,
    fresh: bool = False,
) -> Exchange:
    """Send, with a test's defaults for all that it does not look at."""
    return await pool.send(target, body, headers or {}, deadline, on_sent=on_sent, fresh=fresh)


async def ask(pool: SessionPool, target: Endpoint, body: Body = BODY, **options: Any) -> bytes:
    """Send, and return the whole body of the answer."""
    exchange = await send(pool, target, body, **options)
    return await exchange.read_all(Deadline())
