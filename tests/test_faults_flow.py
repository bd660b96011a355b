"""`faults.md`, sections I and J: what a client does over several attempts, and what it leaves behind.

The long outages of section I run on virtual time in test_outage; here each rule is seen on real sockets.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import re
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import pytest

from piapi_async import (
    AllProvidersFailedError,
    APIConnectionError,
    APIError,
    APITimeoutError,
    BudgetExceededError,
    ChatCompletion,
    Client,
    Health,
    Limits,
    Provider,
    RateLimitError,
    Restarted,
    Retry,
    StreamTruncatedError,
    Text,
    Timeout,
)
from piapi_async.catalog import ModelInfo
from piapi_async.errors import BadRequestError, InternalServerError
from piapi_async.testing import (
    Close,
    LocalServer,
    RawServer,
    ReadRequest,
    Repeat,
    Send,
    Stall,
    Status,
    Step,
    Wait,
)
from piapi_async.testing import http_response as response
from tests.leaks import KEY, PROMPT, assert_tight
from tests.wires import DONE, WHOLE, ask, chunk, jumping_clock, ok, read, server_in_a_thread, sse, sse_cut

pytestmark = pytest.mark.anyio

SOON = Retry(base=0.001, cap=0.001, throttle_base=0.001, throttle_cap=0.001)


@asynccontextmanager
async def pair(
    primary: LocalServer | RawServer, backup: LocalServer | RawServer | None = None, **options: Any
) -> AsyncIterator[Client]:
    """A client of two servers."""
    backups = [Provider("backup", backup.base_url, "sk-backup-key-0")] if backup else []
    options = {"retry": SOON, "model": "gpt-4o", "backups": backups, **options}
    async with Client(KEY, base_url=primary.base_url, **options) as client:
        yield client


def local(**options: Any) -> LocalServer:
    return LocalServer(api_key=KEY, more_keys=["sk-backup-key-0"], **options)


def raw(*steps: Step) -> RawServer:
    """A server that does the same for every request of every connection."""
    return RawServer([Repeat([ReadRequest(), *steps])])


def served(client: Client) -> Counter[str]:
    """Attempts by outcome."""
    return Counter(client.statistics().outcomes)


def assert_nothing_left(client: Client) -> None:
    statistics = client.statistics()
    assert (statistics.in_flight, statistics.queued) == (0, 0)
    assert "in_flight=0" in repr(client)


# -- I. Retry, failover, breaker, hedge --------------------------------------------------------------------------------


async def test_I1_primary_down() -> None:
    async with local() as primary, local() as backup, pair(primary, backup) as client:
        await primary.close()
        async with client.map([f"Question {i}?" for i in range(200)], concurrency=4) as results:
            answers = [result.unwrap() async for result in results]
        assert {answer.provider for answer in answers} == {"backup"}
        assert served(client)["connect"] <= 4 + 5  # five failures open the breaker; three more calls were on their way
        assert client.statistics().keys[0].breakers == {"gpt-4o": "open"}


async def test_I2_both_down() -> None:
    async with local() as primary, local() as backup, pair(primary, backup) as client:
        await primary.close()
        await backup.close()
        calls = 100
        for _ in range(calls):
            with pytest.raises(AllProvidersFailedError) as caught:
                await ask(client)
        error = caught.value
        assert_tight(error)
        assert [each.provider for each in error.errors] == ["piapi", "backup"]
        assert [attempt.provider for attempt in error.attempts] == ["piapi", "backup"]
        assert all(f"{name}: connect after" in str(error) for name in ("piapi", "backup"))
        assert served(client)["connect"] <= 2 * 1.1 * calls + 10  # ten retries may come in a burst


async def test_I3_a_tenth_fails() -> None:
    def every_tenth(number: int, _: object) -> Status | None:
        return Status(503) if number % 10 == 3 else None

    async with local(faults=every_tenth) as primary, pair(primary) as client:
        for _ in range(100):
            assert (await ask(client)).text
        assert client.statistics().keys[0].breakers == {"gpt-4o": "closed"}
        assert served(client)["status"] == 11


async def test_I4_one_probe_at_a_time() -> None:
    health = Health(failure_threshold=1, open=0.01)
    async with local(faults=[Status(503)], latency=0.02) as primary, local() as backup:
        async with pair(primary, backup, health=health) as client:
            assert (await ask(client)).provider == "backup"
            await asyncio.sleep(0.011)
            answers = await asyncio.gather(*(ask(client) for _ in range(20)))
            assert Counter(answer.provider for answer in answers) == {"piapi": 1, "backup": 19}
            assert len(primary.requests) == 2


async def test_I5_primary_heals() -> None:
    health = Health(failure_threshold=1, open=0.01, open_cap=0.02)
    async with local() as primary, local() as backup, pair(primary, backup, health=health) as client:
        await primary.close()
        assert (await ask(client)).provider == "backup"
        await primary.start()
        await asyncio.sleep(0.02)
        assert [(await ask(client)).provider for _ in range(10)] == ["piapi"] * 10
        assert client.statistics().keys[0].breakers == {"gpt-4o": "closed"}


async def test_I6_all_open() -> None:
    health = Health(failure_threshold=1)
    async with local() as primary, local() as backup, pair(primary, backup, health=health) as client:
        for server in (primary, backup):
            await server.close()
        with pytest.raises(AllProvidersFailedError):
            await ask(client)
        assert {key.breakers["gpt-4o"] for key in client.statistics().keys} == {"open"}
        before = served(client)["connect"]
        with pytest.raises(AllProvidersFailedError) as caught:
            await ask(client)
        assert [attempt.provider for attempt in caught.value.attempts] == ["piapi", "backup"]  # and no retry
        assert served(client)["connect"] == before + 2
        await backup.start()
        assert (await ask(client)).provider == "backup"  # so recovery is not delayed


async def test_I7_no_attempt_that_cannot_end_in_time() -> None:
    throttled = response(429, b"{}", {"retry-after-ms": "60"})
    async with raw(Wait(0.03), Send(throttled)) as server, pair(server) as client:
        start = time.monotonic()
        with pytest.raises(APITimeoutError) as caught:
            await ask(client, deadline=0.1)  # 30 ms gone, 60 ms to wait, 30 ms for another
        assert caught.value.kind == "deadline"
        assert caught.value.retry_after == 0.06
        assert time.monotonic() - start < 0.1 + 0.05
        assert [attempt.status for attempt in caught.value.attempts] == [429]
        assert_tight(caught.value)
    async with raw(Wait()) as server, pair(server) as client:
        start = time.monotonic()
        with pytest.raises(APITimeoutError):
            await ask(client, deadline=0.05)
        assert 0.05 <= time.monotonic() - start < 0.1


async def test_I8_a_retry_that_does_not_fit_the_budget() -> None:
    async with local(faults=[Status(504)] * 9) as primary, pair(primary, budget="0.00125") as client:
        with pytest.raises(BudgetExceededError):  # the 504 may be billed: its worst case stays taken
            await ask(client, max_tokens=100)
        assert len(primary.requests) == 1
        assert_nothing_left(client)


async def test_I9_the_same_request_again() -> None:
    async with local(faults=[Status(503)] * 2) as primary, pair(primary) as client:
        await ask(client, temperature=0.5)
        assert len(primary.requests) == 3
        assert len({request.raw for request in primary.requests}) == 1
        assert len({request.headers["Idempotency-Key"] for request in primary.requests}) == 1
        assert [request.headers["X-Attempt"] for request in primary.requests] == ["1", "2", "3"]
        await ask(client)
        assert len({request.headers["Idempotency-Key"] for request in primary.requests}) == 2


async def test_I10_failover_of_a_stream() -> None:
    good = raw(Send(sse(WHOLE, DONE)))
    cut_before = RawServer([ReadRequest(), Send(sse_cut(chunk("") + chunk())), Close()])  # nothing was handed out yet
    cut_after = RawServer([ReadRequest(), Send(sse_cut(chunk("Hel"))), Close()])
    async with cut_before as primary, good as backup, pair(primary, backup) as client:
        answer = await read(client)
        assert (answer.text, answer.provider) == ("Hello!", "backup")
        assert [attempt.kind for attempt in answer.attempts] == ["truncated", "ok"]
    async with cut_after as primary, good as backup, pair(primary, backup) as client:
        requests = len(backup.requests)
        with pytest.raises(StreamTruncatedError) as caught:
            await read(client)
        assert (caught.value.partial, caught.value.committed) == ("Hel", True)
        assert len(backup.requests) == requests


async def test_I10_restart_after_partial_text() -> None:
    cut = RawServer([ReadRequest(), Send(sse_cut(chunk("Hel"))), Close()])
    async with cut as primary, raw(Send(sse(WHOLE, DONE))) as backup, pair(primary, backup) as client:
        text = ""
        async with client.stream(PROMPT, on_interrupt="restart") as stream:
            for read_by in (stream.chunks, stream.__aiter__):
                with pytest.raises(RuntimeError, match="events"):
                    read_by()
            with pytest.raises(RuntimeError, match="events"):
                await anext(stream)
            async for event in stream.events():
                if isinstance(event, Restarted):
                    assert (event.error.partial, text) == ("Hel", "Hel")
                    text = ""
                else:
                    assert isinstance(event, Text)
                    text += event.text
            whole = await stream.completion()
        assert text == whole.text == "Hello!"
        assert whole.provider == "backup"
    async with cut as primary, raw(Send(sse(WHOLE, DONE))) as backup, pair(primary, backup) as client:
        async with client.stream(PROMPT, on_interrupt="restart") as stream:
            assert (await stream.completion()).text == "Hello!"


async def learned(client: Client, how: Callable[..., Any]) -> None:
    """Let the client see enough answers to know what is slow, and to be allowed a hedge."""
    for _ in range(21):
        await how(client)


@pytest.mark.parametrize("how", [ask, read])
async def test_I11_hedge(how: Callable[..., Any]) -> None:
    async with local() as primary, local() as backup:
        async with pair(primary, backup, retry=Retry(hedge=True)) as client:
            await learned(client, how)
            primary.latency = 30
            answer: ChatCompletion = await asyncio.wait_for(how(client), 5)
            assert answer.provider == "backup"
            assert {(a.provider, a.kind) for a in answer.attempts} == {("piapi", "cancelled"), ("backup", "ok")}
            await asyncio.sleep(0.02)
            assert primary.requests[-1].disconnected
            assert_nothing_left(client)
            assert served(client)["cancelled"] == 1
            with pytest.raises(TimeoutError):  # a twentieth of the calls, no more
                await asyncio.wait_for(how(client), 0.2)
            assert len(backup.requests) == 1
            assert_nothing_left(client)


async def test_I11_hedge_when_the_first_fails_or_wins() -> None:
    async with local(faults=[]) as primary, local(latency=0.02) as backup:
        async with pair(primary, backup, retry=Retry(hedge=True)) as client:
            await learned(client, ask)
            primary.latency = 0.01  # slow to begin, and yet first
            assert (await ask(client)).provider == "piapi"
            await learned(client, ask)
            primary.latency = 0.05
            cast("list[Any]", primary.faults).append(Status(503))
            backup.latency = 0.1
            assert (await ask(client)).provider == "backup"
            await asyncio.sleep(0.02)
            assert_nothing_left(client)


async def test_I11_hedge_of_a_stream_that_begins_without_an_event() -> None:
    good: list[Step] = [ReadRequest(), Send(sse(WHOLE, DONE))]
    silent: list[Step] = [ReadRequest(), Send(sse_cut(b": wait\n\n")), Wait(30)]
    async with RawServer([*good * 21, *silent]) as primary, local() as backup:
        async with pair(primary, backup, retry=Retry(hedge=True)) as client:
            await learned(client, read)
            assert (await asyncio.wait_for(read(client), 5)).provider == "backup"
            assert served(client) == {"ok": 22, "cancelled": 1}
            assert_nothing_left(client)


async def test_I11_a_stream_that_may_be_hedged_begins_with_an_error() -> None:
    async with raw(Send(sse(b'{"error": {"message": "no"}}'))) as primary, local() as backup:
        async with pair(primary, backup, retry=Retry(hedge=True)) as client:
            assert (await read(client)).provider == "backup"
            assert_nothing_left(client)


async def test_I11_no_hedge_without_a_healthy_backup() -> None:
    async with local() as primary, local() as backup:
        async with pair(primary, backup, retry=Retry(hedge=True), health=Health(failure_threshold=1)) as client:
            await learned(client, ask)
            await backup.close()
            primary.latency = 0.05
            answer = await ask(client)  # hedged in vain
            assert answer.provider == "piapi"
            await learned(client, ask)
            assert served(client)["connect"] == 1


async def test_I12_retries_of_many_clients_are_spread() -> None:
    waits = [Retry().backoff(0, random.Random(seed)) for seed in range(1000)]  # clients that start together
    slots = Counter(int(wait * 10) for wait in waits)
    assert max(slots.values()) <= 3 * 1000 / 5


async def test_I13_the_callers_mistakes_open_no_breaker() -> None:
    async with local(faults=[Status(400)] * 100) as primary, pair(primary) as client:
        for _ in range(100):
            with pytest.raises(BadRequestError):
                await ask(client)
        assert client.statistics().keys[0].breakers == {"gpt-4o": "closed"}


async def test_I14_a_cancelled_probe_gives_its_place_back() -> None:
    health = Health(failure_threshold=1, open=0.01)
    async with local(faults=[Status(503), Stall()]) as primary, local() as backup:
        async with pair(primary, backup, health=health) as client:
            await ask(client)
            await asyncio.sleep(0.011)
            probe = asyncio.create_task(ask(client))
            while len(primary.requests) < 2:
                await asyncio.sleep(0.001)
            probe.cancel()
            with pytest.raises(asyncio.CancelledError):
                await probe
            assert client.statistics().keys[0].breakers == {"gpt-4o": "half-open"}
            assert (await ask(client)).provider == "piapi"


# -- J. Cancellation, shutdown, resources ------------------------------------------------------------------------------


async def cancelled(call: Any, when: Callable[[], bool]) -> None:
    """Cancel a call once something is so."""
    task = asyncio.create_task(call)
    with anyio.fail_after(5):
        while not when():
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.002)
    task.cancel("mine")
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert caught.value.args == ("mine",)


async def gone(client: Client) -> None:
    """Nothing is left of a cancelled call, 100 ms later at most."""
    assert_nothing_left(client)
    with anyio.fail_after(0.1):
        while "open=0" not in repr(client):
            await asyncio.sleep(0.001)


async def test_J1_cancelled_in_the_middle_of_a_stream() -> None:
    async with RawServer([ReadRequest(), Send(sse_cut(chunk("Hel"))), Wait()]) as server, pair(server) as client:
        await cancelled(read(client), lambda: bool(server.requests))
        await gone(client)
        assert len(server.requests) == 1


async def test_J2_cancelled_while_connecting() -> None:
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        await asyncio.sleep(0.01)
        async with Client(KEY, base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", model="m") as client:
            await cancelled(ask(client), lambda: client.statistics().in_flight == 1)
            await gone(client)


async def test_J2_cancelled_while_writing() -> None:
    async with RawServer([Wait(0.2)]) as server, pair(server) as client:
        huge = client.complete("x" * (30 << 20))
        await cancelled(huge, lambda: server.connections == 1)
        await gone(client)


async def test_J2_cancelled_while_waiting_for_headers() -> None:
    async with raw(Wait()) as server, pair(server) as client:
        for how in (ask, read):
            seen = len(server.requests)
            await cancelled(how(client), lambda seen=seen: len(server.requests) > seen)  # type: ignore[misc]  # mypy can't infer it
            await gone(client)


async def test_J2_cancelled_in_the_queue() -> None:
    async with local(latency=0.05) as server, pair(server, limits=Limits(concurrency=1)) as client:
        first = asyncio.create_task(ask(client))
        third: list[asyncio.Task[ChatCompletion]] = []
        await cancelled(ask(client), lambda: client.statistics().queued == 1)
        third.append(asyncio.create_task(ask(client)))
        assert (await first).text
        assert (await third[0]).text
        assert_nothing_left(client)


async def test_J2_cancelled_in_back_off() -> None:
    async with raw(Send(response(503, b"{}"))) as server, pair(server, retry=Retry(base=60, cap=60)) as client:
        await cancelled(ask(client), lambda: served(client)["status"] == 1)
        assert_nothing_left(client)


async def test_J3_cancel_storm() -> None:
    rng = random.Random(7)  # a seed is the point
    faults = [None, Status(503), Stall(2), Stall(), Status(429, headers={"retry-after-ms": "2"})]

    def fault(number: int, _: object) -> Any:
        return faults[number % len(faults)]

    async with local(faults=fault, tokens_per_second=2000) as primary, local(faults=fault) as backup:
        prices = {"gpt-4o": ModelInfo("gpt-4o", "2.5", "10", max_output_tokens=1000)}
        backups = [Provider("backup", backup.base_url, "sk-backup-key-0", prices=prices)]
        async with pair(primary, limits=Limits(concurrency=32), backups=backups, budget="1000") as client:
            before = len(asyncio.all_tasks())
            tasks = [asyncio.create_task(rng.choice((ask, read))(client)) for _ in range(1000)]
            loop = asyncio.get_running_loop()
            while not served(client):  # on a busy machine, none may be under way yet
                await asyncio.sleep(0.001)
            for task in tasks:
                loop.call_later(rng.uniform(0, 1), task.cancel)
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(end) for end in ends if not isinstance(end, ChatCompletion)} <= {
                asyncio.CancelledError,
                AllProvidersFailedError,
                InternalServerError,
                RateLimitError,
            }
            assert_nothing_left(client)
            assert "half-open" not in {state for key in client.statistics().keys for state in key.breakers.values()}
            await asyncio.sleep(0.15)
            assert "in_flight=0" in repr(client)
            assert client.ledger.reserved == 0
            assert client.ledger.unknown > 0  # what was cancelled on its way may be billed
        with anyio.fail_after(2):
            while len(asyncio.all_tasks()) > before:
                await asyncio.sleep(0.001)


async def test_J4_break_out_of_a_stream() -> None:
    script = [ReadRequest(), Send(sse_cut(chunk("Hel"))), Wait()]
    async with RawServer(script) as server, pair(server, limits=Limits(concurrency=1)) as client:
        for _ in range(3):
            async with client.stream(PROMPT) as stream:
                iterator = aiter(stream)
                async for token in iterator:
                    assert token == "Hel"
                    break
            assert iterator
            await gone(client)


async def test_J5_dropped_without_leaving() -> None:
    script = [ReadRequest(), Send(sse_cut(chunk("Hel"))), Wait()]
    async with RawServer(script) as server, pair(server) as client:
        stream = client.stream(PROMPT)
        await stream.__aenter__()
        assert await anext(stream) == "Hel"
        del stream
        gc.collect()
        with anyio.fail_after(1):
            while client.statistics().in_flight:
                await asyncio.sleep(0.001)
        await gone(client)


async def test_J6_the_consumer_raises() -> None:
    script = [ReadRequest(), Send(sse_cut(chunk("Hel"))), Wait()]
    mine = ValueError("mine")
    async with RawServer(script) as server, pair(server) as client:
        with pytest.raises(ValueError, match="mine") as caught:
            async with client.stream(PROMPT) as stream:
                async for _ in stream:
                    raise mine
        assert caught.value is mine
        await gone(client)


SHUT_DOWN = """
import asyncio, sys
from piapi_async import Client

async def reader(client):
    async with client.stream("x") as stream:
        async for token in stream:
            print(token, flush=True)
            started.set()

async def service():
    async with Client("sk-x", base_url=sys.argv[1], model="m") as client:
        await asyncio.gather(reader(client), client.complete("x"))

async def main():
    global started
    started = asyncio.Event()
    task = asyncio.create_task(service())
    await started.wait()

asyncio.run(main())
"""


async def test_J7_the_loop_ends_with_streams_open() -> None:
    async with RawServer([ReadRequest(), Send(sse_cut(chunk("Hel"))), Wait()]) as server:
        command = [sys.executable, "-X", "dev", "-W", "error", "-c", SHUT_DOWN, server.base_url]
        done = await anyio.run_process(command, check=False)
    # asyncio also says when a step took over 100 ms: that is a busy machine.
    errors = re.sub(rb"^Executing <.*> took [\d.]+ seconds\n", b"", done.stderr, flags=re.MULTILINE)
    assert (done.stdout, errors, done.returncode) == (b"Hel\n", b"", 0)


async def test_J8_used_where_it_does_not_belong() -> None:
    async with local() as server:
        async with pair(server) as client:
            with pytest.raises(RuntimeError, match="another event loop"):
                await asyncio.to_thread(lambda: asyncio.run(ask(client)))
        for use in (ask, read):
            with pytest.raises(RuntimeError, match="closed"):
                await use(client)


async def test_J9_closed_during_requests() -> None:
    async with raw(Wait()) as server, pair(server, limits=Limits(concurrency=1)) as client:
        calls = [asyncio.create_task(how(client)) for how in (ask, read)]
        while not server.requests:
            await asyncio.sleep(0.001)
        await client.aclose()
        await client.aclose()
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, APIConnectionError)
            assert error.kind == "closed"
            assert_tight(error)
        assert len(server.requests) == 1


FORK = """
import asyncio, os, sys
from piapi_async import Client

async def main():
    async with Client("sk-x", base_url=sys.argv[1], model="m") as client:
        await client.complete("x")
        child = os.fork()
        try:
            print(f"{'parent' if child else 'child'}: {(await client.complete('x')).text}", flush=True)
        except RuntimeError as error:
            print(f"child: {error}", flush=True)
        if not child:
            os._exit(0)
        os.waitpid(child, 0)

asyncio.run(main())
"""


async def test_J10_fork() -> None:
    async with raw(Send(ok())) as server:
        done = await anyio.run_process([sys.executable, "-c", FORK, server.base_url], check=False)
    lines = sorted(done.stdout.decode().splitlines())
    assert lines[1:] == ["parent: Hello!"]
    assert "forked" in lines[0]


def memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("calls", [1_000, pytest.param(9_000, marks=pytest.mark.slow)])
async def test_J11_many_calls_leave_nothing(calls: int) -> None:
    async with raw(Send(ok())) as server, pair(server) as client:
        for _ in range(1000):
            await ask(client)
            server.requests.clear()
        gc.collect()
        size, files = memory(), len(os.listdir("/proc/self/fd"))
        for _ in range(calls):
            await ask(client)
            server.requests.clear()
        gc.collect()
        assert memory() - size < 5 << 20
        assert len(os.listdir("/proc/self/fd")) == files
        assert server.connections == 1


async def test_J12_no_file_left_is_nobodys_fault_but_ours() -> None:
    async with local() as primary, local() as backup, pair(primary, backup) as client:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, hard))
        taken: list[socket.socket] = []
        try:
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    taken.append(socket.socket())
            for _ in range(6):
                with pytest.raises(APIConnectionError) as caught:
                    await ask(client)
        finally:
            for each in taken:
                each.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert caught.value.kind == "local"
        assert len(caught.value.attempts) == 1
        assert client.statistics().keys[0].breakers == {"gpt-4o": "closed"}
        assert backup.requests == []
        assert (await ask(client)).provider == "piapi"


@pytest.mark.parametrize("jump", [86400, -86400])
async def test_J13_the_wall_clock_jumps(jump: int, monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health(failure_threshold=1, open=60)
    async with (
        local(faults=[Status(503)]) as primary,
        local() as backup,
        pair(primary, backup, health=health) as client,
    ):
        assert (await ask(client)).provider == "backup"
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + jump)
        assert (await ask(client, deadline=5)).provider == "backup"  # the breaker is as open as before
        assert (await read(client, deadline=5)).text


async def test_J14_the_loop_was_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    rest = sse(WHOLE, DONE).partition(b"\r\n\r\n")[2]
    with server_in_a_thread(sse_cut(chunk("Hel")), rest) as server:
        timeout, jump = Timeout(progress=5), jumping_clock(monkeypatch)
        async with (
            Client(KEY, base_url=server.base_url, model="m", timeout=timeout) as client,
            client.stream(PROMPT) as stream,
        ):
            assert await anext(stream) == "Hel"
            reading = asyncio.create_task(stream.completion())
            await asyncio.sleep(0)
            server.send_the_rest()
            jump(6)
            assert (await reading).text == "HelHello!"


async def test_a_retry_waits_for_the_cool_down_of_all() -> None:
    throttled = Status(429, headers={"retry-after-ms": "20"})
    async with local(faults=[throttled]) as primary, pair(primary) as client:
        start = time.monotonic()
        answers = await asyncio.gather(*(ask(client) for _ in range(4)))
        assert time.monotonic() - start >= 0.02
        assert sorted(len(answer.attempts) for answer in answers) == [1, 1, 1, 2]
        assert client.statistics().keys[0].bound == int(256 * 0.7)


async def test_several_keys_share_the_traffic() -> None:
    async with LocalServer(api_key=KEY, more_keys=["sk-second-key-0"], latency=0.02) as server:
        async with Client([KEY, "sk-second-key-0"], base_url=server.base_url, model="gpt-4o") as client:
            answers = await asyncio.gather(*(client.complete("x") for _ in range(10)))
            assert Counter(a.attempts[0].key for a in answers) == {"…yK3y": 5, "…ey-0": 5}


def test_errors_are_api_errors() -> None:
    assert issubclass(AllProvidersFailedError, APIError)
