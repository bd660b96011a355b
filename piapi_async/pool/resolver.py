"""Host names → addresses, in threads of our own.

asyncio looks names up in its default executor, which belongs to the whole program: while that is busy no request could
connect, and the provider would look sick. So each look-up has a thread, at most `LOOKUPS` at once. A look-up
that hangs keeps neither the client from closing nor the interpreter from ending.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, cast

from aiohttp.abc import AbstractResolver, ResolveResult

T = TypeVar("T")

LOOKUPS = 8
"""Most threads of one client that look names up at the same time (ours: a client has few hosts, and aiohttp looks each
of them up once for all who wait)."""

_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class ThreadResolver(AbstractResolver):
    """Asks the operating system, as aiohttp does by default, but not in the loop's default executor."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a host.

        Raises:
            OSError: The name is not known, or can't be looked up.
        """
        await self._free.acquire()
        return await in_thread(lambda: _look_up(host, port, family), self._free.release)

    async def close(self) -> None:
        """There is nothing to close: each thread ends with its look-up."""


async def in_thread(work: Callable[[], T], ended: Callable[[], object] = lambda: None) -> T:
    """Do some work in a thread of its own, which is left alone if the caller is cancelled.

    Args:
        work: What to do; what it raises comes out.
        ended: Called on the loop when the thread ends, however late.

    Raises:
        OSError: The system has no room for another thread.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: Exception | None) -> None:
        ended()
        if future.done():  # the caller has left
            return
        if error is None:
            future.set_result(cast("T", result))
        else:
            future.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(finish, result, failure)

    try:
        threading.Thread(target=run, name="piapi-async look-up", daemon=True).start()
    except RuntimeError:
        ended()
        started = False
    else:
        started = True
    if not started:
        raise OSError(errno.ENOMEM, "no thread can be started")
    return await future


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except socket.gaierror:
        if host != "localhost":
            raise
        # A machine that is offline has no address but this one; Windows does not count it as one.
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    results: list[ResolveResult] = []
    for kind, _, protocol, _, address in found:
        if kind == socket.AF_INET6 and address[-1]:  # an address of one link, which its number goes with
            numeric = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
        else:
            numeric = str(address[0])
        results.append(
            ResolveResult(hostname=host, host=numeric, port=port, family=kind, proto=protocol, flags=_NUMERIC)
        )
    return results
