"""One client that does one job in a process of its own, measured round by round.

``python -m benchmarks.worker TASK`` takes a `Task` as JSON, opens the client, warms it up, and prints ``ready``. For
each line on its standard input it then does one round and prints its `Measurement` as JSON. It ends when the input
ends. So `rounds` can have several clients take turns in many short rounds: when the machine is slow for some seconds,
it is slow for all of them.

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

from benchmarks.clients import IMPORTS, PEERS, Peer, Sink, fan_out
from benchmarks.decoders import DECODERS
from benchmarks.server import TEXT, TOKEN_EVENTS, TOKENS, raise_file_limit, text_of

DEADLINE = 900
"""Seconds after which a worker is killed, whatever it does. The longest job takes about a minute at full scale."""

PATIENCE = 5.0
"""Seconds without a token on any stream, and with little CPU used, after which a stream without tokens has failed."""

FREED_BLOCK = 1 << 20
"""Bytes of the block that each worker frees before its rounds (see `free_a_block`)."""

PIECE = 4096
"""Bytes that a decoder gets at a time: about twenty events, the last of them cut."""

SIP, PAUSE = 20, 0.01
"""How many tokens a slow reader takes before it pauses, and for how many seconds it pauses."""

PROMPT = "What is a token?"


@attrs.frozen(kw_only=True)
class Task:
    """What to measure.

    Attributes:
        peer: Name in `clients.PEERS`, `clients.IMPORTS` or `decoders.DECODERS`.
        job: Name in `JOBS`.
        count: How many calls, streams, events or imports a round has.
        width: How many calls are in flight.
        depth: How many tokens each paced stream gets in a round.
        length: How many tokens an answer has that arrives fast.
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
        units: How many calls, tokens, events or imports were measured.
        failed: How many calls or streams failed, or gave a wrong answer.
        cpu: CPU time of the client for all units, in seconds.
        memory: Growth of the resident set, in bytes.
        live: How many streams or calls were open at the same time.
        first: Seconds from the call to the first token: the median, the 90th and the 99th percentile of the streams.
        error: The message of the first failure, empty if there was none.
    """

    units: int = 0
    failed: int = 0
    cpu: float = 0.0
    memory: int = 0
    live: int = 0
    first: tuple[float, float, float] | None = None
    error: str = ""

    def fail(self, error: object) -> None:
        """Counts a failure, and keeps the message of the first one."""
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


def reset_peak() -> None:
    """Makes `peak_resident` start again from what the resident set is now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """Returns the largest resident set since `reset_peak`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def make_peer(task: Task, port: int, path: str = "") -> Peer:
    """Returns the task's client for the server at a port, not yet opened."""
    return PEERS[task.peer](f"http://127.0.0.1:{port}{path}/v1", task.width)


async def call_all(call: Callable[[str], Awaitable[str]], task: Task, count: int, wanted: str = TEXT) -> Measurement:
    """Calls ``count`` times, ``width`` at a time, and checks that each call returns the text of the whole answer."""
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
    """Opens the connections, and runs a full garbage collection.

    Left alone, Python would run its first one after some thousand calls. It walks over all that was imported, which
    takes as long as 170 calls, so the round in which it fell would tell nothing about the others.
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
    """Completions, with all calls of a round in flight at once. The memory is the peak of the warm-up."""
    peer = make_peer(task, task.ports["fast"])
    async with peer.resource:
        few = attrs.evolve(task, width=1)
        await call_all(peer.complete, few, 2)  # so that modules loaded late don't count as memory of the calls
        gc.collect()
        reset_peak()
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
    """Streams whose tokens arrive all at once, read as tokens."""
    peer = make_peer(task, task.ports["fast"], f"/tokens/{task.length}")
    return _fast_streams(task, peer, peer.stream)


def chunks(task: Task) -> AbstractAsyncContextManager[Round]:
    """The same streams, read as chunks."""
    peer = make_peer(task, task.ports["fast"], f"/tokens/{task.length}")
    return _fast_streams(task, peer, peer.chunks)


class Paced:
    """Many open streams. The server sends one token to all of them, and then waits for the next command.

    Args:
        peer: Opens the streams.
        control: The connection that tells the server when to send the next token.
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
        """Seconds from the call to the first token, for each stream that has one."""

    async def open(self, count: int) -> None:
        """Opens the streams, and returns when each of them has its first token or has failed."""
        self._answers = [[] for _ in range(count)]
        self._expect(count)
        self._calls = [asyncio.create_task(self._stream(parts)) for parts in self._answers]
        await self._all_arrived()
        self._ticks = 1
        for call, parts in zip(self._calls, self._answers, strict=True):
            if not parts and call.cancel():
                self._error = self._error or f"no stream got a token for {PATIENCE:.0f} s, and this one got none at all"
        self._alive = sum(
            bool(parts) and not call.done() for call, parts in zip(self._calls, self._answers, strict=True)
        )

    async def tick(self, times: int) -> Measurement:
        """Has the server send each stream so many tokens, one at a time, then checks what every stream has got."""
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
        result.failed, self._failed = failed - self._failed, failed  # count a stream's failure once, not each round
        result.error = self._error
        return result

    async def end(self) -> None:
        """Has the server end all streams.

        Raises:
            RuntimeError: A stream did not end whole.
        """
        self._control.write(b"end\n")
        alive = self._alive
        late = set(self._calls)
        while late:
            cpu = cpu_time()
            ended, late = await asyncio.wait(late, timeout=PATIENCE)
            if not ended and cpu_time() - cpu < PATIENCE / 2:
                break
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
        """Counts a token, or a failure in its place."""
        self._missing -= 1
        if self._missing == 0:
            self._arrived.set()

    async def _all_arrived(self) -> None:
        """Waits for the last token, or until none came for `PATIENCE` seconds while the process was idle."""
        missing, cpu = -1, 0.0
        while not self._arrived.is_set() and (missing != self._missing or cpu_time() - cpu > PATIENCE / 2):
            missing, cpu = self._missing, cpu_time()
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._arrived.wait()
            except TimeoutError:
                continue


@asynccontextmanager
async def _paced_peer(task: Task) -> AsyncGenerator[tuple[Peer, asyncio.StreamWriter]]:
    """Yields the task's client, open, for a port of its own with paced streams, and the connection that controls it."""
    reader, control = await asyncio.open_connection("127.0.0.1", task.ports["control"])
    try:
        peer = make_peer(task, int(await reader.readline()))
        async with peer.resource:
            yield peer, control
    finally:
        control.close()
        await control.wait_closed()


@asynccontextmanager
async def streams(task: Task) -> AsyncGenerator[Round]:
    """Many streams, one token at a time. The first round shows how much memory they take."""
    async with _paced_peer(task) as (peer, control):
        first = Paced(peer, control)  # so that modules loaded late don't count as memory of the streams
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


@asynccontextmanager
async def first(task: Task) -> AsyncGenerator[Round]:
    """The first tokens of streams. They begin ``width`` at a time; the next ones begin when these have ended."""
    async with _paced_peer(task) as (peer, control):

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

        await one_round()  # not measured: opens the connections
        yield one_round


@asynccontextmanager
async def slow(task: Task) -> AsyncGenerator[Round]:
    """A long stream that arrives at once and is read slowly. The memory is the peak meanwhile."""

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
            reset_peak()
            memory = resident()
            await peer.read_slowly(PROMPT, sink)
            result.memory = peak_resident() - memory
        result.failed += abs(count - result.units)
        return result

    await read(2 * SIP)  # not measured: so that modules loaded late don't count as memory of the stream
    yield lambda: read(task.count)


@asynccontextmanager
async def fan_out_many(task: Task) -> AsyncGenerator[Round]:
    """One long `map`. The memory is the growth after the first twentieth of the prompts."""
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
    """A decoder alone, fed with pieces of a body as a socket would deliver them."""
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

    await one_round()  # not measured: loads the modules that the decoder loads late
    yield one_round


def import_time(statement: str) -> float:
    """Returns the CPU time of an import in a fresh interpreter, in seconds, without the interpreter's own start."""
    code = (
        "from resource import RUSAGE_SELF, getrusage\n"
        "before = getrusage(RUSAGE_SELF)\n"
        f"{statement}\n"
        "after = getrusage(RUSAGE_SELF)\n"
        "print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)"
    )
    # With cached bytecode, as users have it, even if this process was told not to write any.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return float(subprocess.check_output([sys.executable, "-c", code], env=environment, timeout=DEADLINE))


@asynccontextmanager
async def load(task: Task) -> AsyncGenerator[Round]:
    """An import."""

    async def one_round() -> Measurement:
        return Measurement(units=task.count, cpu=sum(import_time(IMPORTS[task.peer]) for _ in range(task.count)))

    await one_round()  # not measured: writes the bytecode
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
"""Name of a job → the function that does it."""


def free_a_block() -> None:
    """Frees a block of `FREED_BLOCK` bytes, so that every client starts like a process that has run for a while.

    asyncio asks for a buffer of 256 KiB before each read, however little arrives. In a fresh process glibc has the
    kernel map each such buffer and unmap it again, which costs several times as much as the read. That ends when the
    process frees a block larger than the buffer: from then on glibc keeps memory of that size for reuse (see
    ``M_MMAP_THRESHOLD`` in ``mallopt(3)``). The buffers themselves don't have this effect, as Python shrinks them
    before it frees them. Every long-running process frees such a block sooner or later. If the workers did not, the
    bare loop would look twice as dear for slow streams, and a client that happens to free a large block early would
    look good beside it. To other allocators than glibc's this does nothing.
    """
    bytes(FREED_BLOCK)


async def work(task: Task) -> None:
    """Does one round for each line of standard input. It blocks the loop to read: nothing else may run meanwhile."""
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
    free_a_block()
    task = msgspec.json.decode(sys.argv[1], type=Task)
    loop_factory = None
    if task.uvloop:
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(work(task))


if __name__ == "__main__":
    main()
