"""Host names are looked up in threads of our own, whatever the program's executor does."""

from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import anyio
import pytest

from piapi_async import APIConnectionError, APITimeoutError, Client, Timeout
from piapi_async.pool import SessionPool
from piapi_async.pool.resolver import LOOKUPS, ThreadResolver
from piapi_async.testing import LocalServer
from tests.pool.sending import endpoint, send

pytestmark = pytest.mark.anyio

look_up = socket.getaddrinfo


def by_name(server: LocalServer) -> str:
    return server.base_url.replace("127.0.0.1", "localhost")


class Hanging:
    """Look-ups of names that end in `.hangs` do so, until `go_on` is set; `threads` are in one."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.threads: list[threading.Thread] = []

    def __call__(self, host: str, *args: Any, **options: Any) -> Any:
        if not host.endswith(".hangs"):
            return look_up(host, *args, **options)
        self.threads.append(threading.current_thread())
        self.go_on.wait(30)
        self.threads.remove(threading.current_thread())
        raise socket.gaierror(socket.EAI_NONAME, "no such name")


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    hanging = Hanging()
    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    yield hanging
    hanging.go_on.set()


async def test_a_busy_executor_is_not_waited_for(piapi_server: LocalServer) -> None:
    done = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(executor)
        busy = loop.run_in_executor(None, done.wait, 5)
        try:
            for trust_env in (False, True):
                async with Client(
                    piapi_server.api_key,
                    base_url=by_name(piapi_server),
                    model="gpt-4o-mini",
                    timeout=Timeout(connect=2),
                    trust_env=trust_env,
                ) as client:
                    assert not busy.done()
                    assert (await client.complete("hi")).text
                    assert client.statistics().outcomes == {"ok": 1}
        finally:
            done.set()
            await busy


async def test_a_look_up_that_hangs_is_a_connect_timeout_and_keeps_nothing_open(
    hanging: Hanging, piapi_server: LocalServer
) -> None:
    stuck, good = endpoint("http://name.hangs/v1"), endpoint(by_name(piapi_server))
    with anyio.fail_after(5):
        async with SessionPool([stuck, good], connect_timeout=0.02) as pool:
            with pytest.raises(APITimeoutError) as caught:
                await send(pool, stuck)
            assert (caught.value.kind, caught.value.maybe_billed) == ("connect", False)
            exchange = await send(pool, good)  # another name is no worse off
            exchange.close()
        assert len(hanging.threads) == 1
        assert hanging.threads[0].daemon


async def test_so_many_threads_and_no_more(hanging: Hanging) -> None:
    resolver = ThreadResolver()
    waiting = [asyncio.create_task(resolver.resolve(f"{i}.hangs")) for i in range(LOOKUPS + 5)]
    async with asyncio.timeout(5):
        while len(hanging.threads) < LOOKUPS:
            await asyncio.sleep(0.001)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    with pytest.raises(TimeoutError):  # the threads are still there
        await asyncio.wait_for(resolver.resolve("localhost", 80), 0.02)
    assert len(hanging.threads) == LOOKUPS
    hanging.go_on.set()
    assert await asyncio.wait_for(resolver.resolve("localhost", 80), 5)  # until one of them has ended


async def test_a_thread_that_ends_makes_room() -> None:
    resolver = ThreadResolver()
    for _ in range(LOOKUPS + 5):
        with pytest.raises(OSError, match=r"\S"):
            await resolver.resolve("no.such.name.invalid")
    assert await resolver.resolve("localhost", 80)
    await resolver.close()


async def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    target = endpoint("http://localhost:1/v1")
    async with SessionPool([target]) as pool:
        with monkeypatch.context() as patch, pytest.raises(APIConnectionError) as caught:
            patch.setattr(threading.Thread, "start", fail)
            for _ in range(LOOKUPS + 5):
                with suppress(APIConnectionError):
                    await send(pool, target)
            await send(pool, target)
        assert caught.value.kind == "local"
        with pytest.raises(APIConnectionError) as later:
            await send(pool, target)
        assert later.value.kind == "connect"


async def test_the_numbers_of_a_resolvers_errors_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """`EAI_NONAME` of one system is `ENOMEM` of another."""

    def fail(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(errno.ENOMEM, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    target = endpoint("http://name.example:1/v1")
    async with SessionPool([target]) as pool:
        with pytest.raises(APIConnectionError) as caught:
            await send(pool, target)
    assert caught.value.kind == "dns"


async def test_localhost_on_a_machine_that_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, flags: int = 0, **options: Any) -> Any:
        if flags & socket.AI_ADDRCONFIG:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return look_up(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    resolver = ThreadResolver()
    found = await resolver.resolve("localhost", 80, socket.AF_INET)
    assert [(each["host"], each["port"], each["hostname"]) for each in found] == [("127.0.0.1", 80, "localhost")]
    with pytest.raises(socket.gaierror):
        await resolver.resolve("127.0.0.1", 80)


async def test_addresses_of_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    tcp = socket.SOCK_STREAM, socket.IPPROTO_TCP, ""

    def several(*args: Any, **options: Any) -> Any:
        return [
            (socket.AF_INET6, *tcp, ("fe80::1", 80, 0, 1)),
            (socket.AF_INET6, *tcp, ("::1", 80, 0, 0)),
            (socket.AF_INET, *tcp, ("127.0.0.1", 80)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", several)
    monkeypatch.setattr(socket, "getnameinfo", lambda address, flags: (f"{address[0]}%{address[3]}", "80"))
    found = await ThreadResolver().resolve("name", 80, socket.AF_UNSPEC)
    assert [each["host"] for each in found] == ["fe80::1%1", "::1", "127.0.0.1"]
    assert [each["family"] for each in found] == [socket.AF_INET6, socket.AF_INET6, socket.AF_INET]


PROGRAM = """
import asyncio, socket, threading
from piapi_async import Client, Retry, Timeout

socket.getaddrinfo = lambda *args, **options: threading.Event().wait()

async def main():
    options = {"retry": Retry(1), "timeout": Timeout(connect=0.01)}
    async with Client("sk-a", base_url="https://name.hangs", model="m", **options) as client:
        try:
            await client.complete("hi")
        except Exception as error:
            print(error.kind)

asyncio.run(main())
"""


def test_a_look_up_that_hangs_does_not_keep_the_interpreter() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], timeout=20, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"connect\n", b"")


async def test_a_loop_that_ends_before_the_look_up_does(hanging: Hanging) -> None:
    async def ask() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(ThreadResolver().resolve("name.hangs"), 0.01)

    await asyncio.to_thread(asyncio.run, ask())
    assert len(hanging.threads) == 1
