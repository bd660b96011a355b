"""One client doing one job in a process of its own, measured round by round.

``python -m benchmarks.worker TASK`` takes a `Task` as JSON, opens the client and warms it up, and says ``ready``. For
each line on its standard input it then does one round and prints its `Measurement` as JSON, until the input ends.
So `__main__` can let many short rounds of several clients take turns: a machine that is slow for some seconds is slow
for all of them.

CPU is user and system time of this process (`resource.getrusage`). Memory is the resident set of ``/proc/self/statm``,
so the rows about memory need Linux. To see where the time goes, start ``python -m benchmarks.server``, put its ports
into a task, and run ``yes | head -20 | python -m cProfile -s tottime -m benchmarks.worker TASK``.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from statistics import quantiles
from time import perf_counter

import attrs
import msgspec

from benchmarks.clients import DECODERS, IMPORTS, PEERS, Peer, Sink, fan_out
from benchmarks.server import TEXT, TOKEN_EVENTS, TOKENS, raise_file_limit, text_of

DEADLINE = 900
"""Seconds after which a worker is ended, whatever it does; the longest job at full scale takes about one minute."""

PATIENCE = 5.0
"""Seconds without a token on any stream, and without much work, after which the streams that have none have failed."""

PIECE = 4096
"""Bytes of a stream that a decoder gets at a time: some twenty events, the last one cut."""

SIP, PAUSE = 20, 0.01
"""A slow reader takes so many tokens, then none for so many seconds."""

PROMPT = "What is a token?"


@attrs.frozen(kw_only=True)
class Task:
    """What to measure.

    Attributes:
        peer: Name in `clients.PEERS`, `clients.DECODERS` or `clients.IMPORTS`.
        job: Name in `JOBS`.
        count: How many calls, streams, events or imports a round has.
        width: How many calls are in flight.
        depth: Tokens that each paced stream gets in a round.
        length: Tokens of an answer that arrives fast.
        uvloop: Whether the client runs on uvloop.
        collect: Whether Python's cyclic garbage collector runs during the rounds.
        ports: The server's ports by name.
    """

    peer: str
    job: str
    count: int
    width: int = 1
    depth: int = 1
    length: int = len(TOKENS)
    uvloop: bool = False
    collect: bool = True
    ports: dict[str, int] = attrs.field(factory=dict[str, int], eq=False)


@attrs.define(kw_only=True)
class Measurement:
    """What one round gave.

    Attributes:
        units: Calls, tokens, events or imports that were measured.
        failed: Calls or streams that failed or answered wrongly.
        cpu: CPU time of the client for all units, in seconds.
        memory: Growth of the resident set, in bytes.
        live: Streams or calls that were open at the same time.
        first: Seconds from call to first token that half, nine in ten and 99 in 100 of the streams took at most.
        error: The first failure, empty if there was none.
    """

    units: int = 0
    failed: int = 0
    cpu: float = 0.0
    memory: int = 0
    live: int = 0
    first: tuple[float, float, float] | None = None
    error: str = ""

    def fail(self, error: object) -> None:
        """Counts a failure and keeps the words of the first."""
        self.failed += 1
        self.error = self.error or str(error)[:300] or repr(error)


Round = Callable[[], Awaitable[Measurement]]
Job = Callable[[Task], AbstractAsyncContextManager[Round]]


def cpu_time() -> float:
    """Returns user and system time of this process so far, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident() -> int:
    """Returns the resident set of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def forget_peak() -> None:
    """Sets the peak of the resident set to what it is now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """Returns the most that the resident set was since `forget_peak`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def make_peer(task: Task, port: int, path: str = "") -> Peer:
    """Returns the task's client for the server at a port; its resource is still to be opened."""
    return PEERS[task.peer](f"http://127.0.0.1:{port}{path}/v1", task.width)


async def call_all(call: Callable[[str], Awaitable[str]], task: Task, count: int, wanted: str = TEXT) -> Measurement:
    """Calls ``count`` times, ``width`` at a time; each call must return the text of the whole answer."""
    result = Measurement()

    async def checked(prompt: str) -> None:
        try:
            text = await call(prompt)
        except Exception as error:
            result.fail(error)
        else:
            if text != wanted:
                result.fail(f"wrong text: {text!r}")

    cpu = cpu_time()
    await fan_out(checked, itertools.repeat(PROMPT, count), task.width)
    result.cpu = cpu_time() - cpu
    result.units = count - result.failed
    return result


async def _warm_up(call: Callable[[str], Awaitable[str]], task: Task) -> None:
    """Opens the connections, and has Python look once at all that was imported.

    A process does that by itself once, some thousand calls on, and it takes as long as 170 calls: a round with it says
    nothing of the others, nor of the calls of a longer life.
    """
    await call_all(call, task, 2 * task.width)
    gc.collect()


@asynccontextmanager
async def complete(task: Task) -> AsyncGenerator[Round]:
    """Completions."""
    peer = make_peer(task, task.ports["fast"])
    async with peer.resource:
        await _warm_up(peer.complete, task)
        yield lambda: call_all(peer.complete, task, task.count)


@asynccontextmanager
async def flight(task: Task) -> AsyncGenerator[Round]:
    """Completions, all calls of a round in flight at once; the memory is the most that it took to get there."""
    peer = make_peer(task, task.ports["fast"])
    async with peer.resource:
        few = attrs.evolve(task, width=1)
        await call_all(peer.complete, few, 2)  # so that what is loaded late is not booked on the calls
        gc.collect()
        forget_peak()
        memory = resident()
        await call_all(peer.complete, task, 2 * task.width)
        memory = peak_resident() - memory

        async def one_round() -> Measurement:
            result = await call_all(peer.complete, task, task.count)
            result.memory, result.live = memory, task.width
            return result

        yield one_round


@asynccontextmanager
async def _fast_streams(
    task: Task, peer: Peer, stream: Callable[[str, Sink], Awaitable[None]]
) -> AsyncGenerator[Round]:
    async def call(prompt: str) -> str:
        parts: list[str] = []
        await stream(prompt, parts.append)
        return "".join(parts)

    wanted = text_of(task.length)

    async def one_round() -> Measurement:
        result = await call_all(call, task, task.count, wanted)
        result.units *= task.length
        return result

    async with peer.resource:
        await _warm_up(call, task)
        yield one_round


def tokens(task: Task) -> AbstractAsyncContextManager[Round]:
    """Streams whose tokens arrive at once, taken as tokens."""
    peer = make_peer(task, task.ports["fast"], f"/tokens/{task.length}")
    return _fast_streams(task, peer, peer.stream)


def chunks(task: Task) -> AbstractAsyncContextManager[Round]:
    """The same streams, taken as chunks."""
    peer = make_peer(task, task.ports["fast"], f"/tokens/{task.length}")
    return _fast_streams(task, peer, peer.chunks)


class Paced:
    """Many open streams that get their tokens one at a time, all together.

    Args:
        peer: Who opens them.
        control: Tells the server when to send the next token.
    """

    def __init__(self, peer: Peer, control: asyncio.StreamWriter) -> None:
        self._peer = peer
        self._control = control
        self._missing = 0
        self._arrived = asyncio.Event()
        self._error = ""
        self._alive = 0
        self._failed = 0
        self._ticks = 0
        self._answers: list[list[str]] = []
        self._calls: list[asyncio.Task[None]] = []
        self.first: list[float] = []
        """Seconds from call to first token of each stream that has one."""

    async def open(self, count: int) -> None:
        """Opens the streams, and returns when each has its first token or has failed."""
        self._answers = [[] for _ in range(count)]
        self._expect(count)
        self._calls = [asyncio.create_task(self._stream(parts)) for parts in self._answers]
        await self._all_arrived()
        self._ticks = 1
        for call, parts in zip(self._calls, self._answers, strict=True):
            if not parts and call.cancel():
                self._error = self._error or f"no stream had a token for {PATIENCE:.0f} s, this one none at all"
        self._alive = sum(
            bool(parts) and not call.done() for call, parts in zip(self._calls, self._answers, strict=True)
        )

    async def tick(self, times: int) -> Measurement:
        """Has each stream get so many tokens, one after the other, and checks what all of them have by then."""
        result = Measurement(live=self._alive)
        cpu = cpu_time()
        for _ in range(times):
            self._expect(self._alive)
            self._control.write(b"tick\n")
            await self._all_arrived()
            result.units += self._alive
        result.cpu = cpu_time() - cpu
        self._ticks += times
        expected = list(itertools.islice(itertools.cycle(TOKENS), self._ticks))
        failed = sum(parts != expected for parts in self._answers)
        result.failed, self._failed = failed - self._failed, failed  # a stream fails once, not once a round
        result.error = self._error
        return result

    async def end(self) -> None:
        """Has the server end all streams; raises `RuntimeError` if one of them doesn't see it."""
        self._control.write(b"end\n")
        alive = self._alive
        _, late = await asyncio.wait(self._calls, timeout=PATIENCE)
        for call in late:
            call.cancel()
        if late or self._alive < alive:
            raise RuntimeError(f"{len(late) + alive - self._alive} streams did not end whole: {self._error}")

    async def _stream(self, parts: list[str]) -> None:
        def sink(token: str) -> None:
            if not parts:
                self.first.append(perf_counter() - begin)
            parts.append(token)
            self._one_arrived()

        begin = perf_counter()

        try:
            await self._peer.stream(PROMPT, sink)
        except Exception as error:
            self._error = self._error or str(error)[:300] or repr(error)
            self._alive -= 1
            self._one_arrived()

    def _expect(self, count: int) -> None:
        self._missing = count
        self._arrived.clear()
        if not count:
            self._arrived.set()

    def _one_arrived(self) -> None:
        """Books a token, or the failure that came in its stead."""
        self._missing -= 1
        if self._missing == 0:
            self._arrived.set()

    async def _all_arrived(self) -> None:
        """Waits for the last one, or until none came for `PATIENCE` seconds though the process was idle."""
        missing, cpu = -1, 0.0
        while not self._arrived.is_set() and (missing != self._missing or cpu_time() - cpu > PATIENCE / 2):
            missing, cpu = self._missing, cpu_time()
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._arrived.wait()
            except TimeoutError:
                continue


@asynccontextmanager
async def streams(task: Task) -> AsyncGenerator[Round]:
    """Many streams, one token a time; what each costs in memory is seen in the first round."""
    reader, control = await asyncio.open_connection("127.0.0.1", task.ports["control"])
    peer = make_peer(task, int(await reader.readline()))
    async with peer.resource:
        first = Paced(peer, control)  # a few streams first, so that what is loaded late is not booked on the others
        await first.open(min(8, task.count))
        await first.tick(1)
        await first.end()
        gc.collect()
        memory = resident()
        paced = Paced(peer, control)
        await paced.open(task.count)

        async def one_round() -> Measurement:
            result = await paced.tick(task.depth)
            result.memory = resident() - memory
            return result

        yield one_round
        await paced.end()
    control.close()


@asynccontextmanager
async def first(task: Task) -> AsyncGenerator[Round]:
    """The first tokens of streams, ``width`` of which begin together; the next begin when these have ended."""
    reader, control = await asyncio.open_connection("127.0.0.1", task.ports["control"])
    peer = make_peer(task, int(await reader.readline()))

    async def one_round() -> Measurement:
        result = Measurement()
        seconds: list[float] = []
        for _ in range(max(1, task.count // task.width)):
            paced = Paced(peer, control)
            cpu = cpu_time()
            await paced.open(task.width)
            result.cpu += cpu_time() - cpu
            opened = await paced.tick(0)
            result.failed += opened.failed
            result.error = result.error or opened.error
            seconds += paced.first
            await paced.end()
        result.units = len(seconds)
        if len(seconds) > 1:
            percentiles = quantiles(seconds, n=100, method="inclusive")
            result.first = percentiles[49], percentiles[89], percentiles[98]
        return result

    async with peer.resource:
        await one_round()  # unmeasured: opens the connections
        yield one_round
    control.close()


@asynccontextmanager
async def slow(task: Task) -> AsyncGenerator[Round]:
    """A long stream that arrives at once and is read slowly; the memory is the most that it grew meanwhile."""

    async def read(count: int) -> Measurement:
        peer = make_peer(task, task.ports["fast"], f"/padded/{count}")
        result = Measurement()

        async def sink(token: str) -> None:
            if token != TOKENS[result.units % len(TOKENS)]:
                result.fail(f"wrong token: {token!r}")
            result.units += 1
            if result.units % SIP == 0:
                await asyncio.sleep(PAUSE)

        async with peer.resource:
            gc.collect()
            forget_peak()
            memory = resident()
            await peer.read_slowly(PROMPT, sink)
            result.memory = peak_resident() - memory
        result.failed += abs(count - result.units)
        return result

    await read(2 * SIP)  # unmeasured: so that what is loaded late is not booked on the stream
    yield lambda: read(task.count)


@asynccontextmanager
async def fan_out_many(task: Task) -> AsyncGenerator[Round]:
    """One long `map`; the memory is what grows after the first twentieth of the prompts."""
    peer = make_peer(task, task.ports["fast"])

    async def one_round() -> Measurement:
        result = Measurement()

        def sink(text: str) -> None:
            result.units += 1
            if text != TEXT:
                result.fail(f"wrong text: {text!r}")
            if result.units == task.count // 20:
                result.memory = -resident()

        cpu = cpu_time()
        await peer.map((f"{PROMPT} ({number})" for number in range(task.count)), task.width, sink)
        result.cpu = cpu_time() - cpu
        result.memory += resident()
        result.failed += task.count - result.units
        return result

    async with peer.resource:
        await peer.map(itertools.repeat(PROMPT, 2 * task.width), task.width, lambda text: None)  # opens the connections
        yield one_round


@asynccontextmanager
async def decode(task: Task) -> AsyncGenerator[Round]:
    """A decoder alone, on events in pieces as a socket gives them."""
    wanted = list(itertools.islice(itertools.cycle(TOKEN_EVENTS), task.count))
    body = b"".join(wanted)
    pieces = [body[start : start + PIECE] for start in range(0, len(body), PIECE)]
    decoder = DECODERS[task.peer]

    async def one_round() -> Measurement:
        cpu = cpu_time()
        data = list(decoder(pieces))
        cpu = cpu_time() - cpu
        right = [f"data: {text}\n\n".encode() for text in data] == wanted
        return Measurement(units=task.count if right else 0, failed=0 if right else task.count, cpu=cpu)

    await one_round()  # unmeasured: loads what the decoder loads late
    yield one_round


def import_time(statement: str) -> float:
    """Returns the CPU time of an import in a fresh interpreter, in seconds; its start doesn't count."""
    code = (
        "from resource import RUSAGE_SELF, getrusage\n"
        "before = getrusage(RUSAGE_SELF)\n"
        f"{statement}\n"
        "after = getrusage(RUSAGE_SELF)\n"
        "print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)"
    )
    # As for everybody: with the bytecode cached, whatever the environment of these measurements says.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return float(subprocess.check_output([sys.executable, "-c", code], env=environment, timeout=DEADLINE))


@asynccontextmanager
async def load(task: Task) -> AsyncGenerator[Round]:
    """An import."""

    async def one_round() -> Measurement:
        return Measurement(units=task.count, cpu=sum(import_time(IMPORTS[task.peer]) for _ in range(task.count)))

    await one_round()  # unmeasured: fills the bytecode cache
    yield one_round


JOBS: dict[str, Job] = {
    "complete": complete,
    "tokens": tokens,
    "chunks": chunks,
    "flight": flight,
    "streams": streams,
    "first": first,
    "slow": slow,
    "map": fan_out_many,
    "decode": decode,
    "import": load,
}
"""Name of a job → what does it."""


async def work(task: Task) -> None:
    """Does a round for each line of standard input. Nothing else may run meanwhile, so reading may block the loop."""
    async with JOBS[task.job](task) as one_round:
        if not task.collect:
            gc.collect()
            gc.disable()
        print("ready", flush=True)
        while sys.stdin.readline():
            print(msgspec.json.encode(await one_round()).decode(), flush=True)


def main() -> None:
    """Does the task on the command line."""
    signal.alarm(DEADLINE)
    raise_file_limit()
    task = msgspec.json.decode(sys.argv[1], type=Task)
    loop_factory = None
    if task.uvloop:
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(work(task))


if __name__ == "__main__":
    main()
