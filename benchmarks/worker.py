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
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import attrs
import msgspec

from benchmarks.clients import DECODERS, IMPORTS, PEERS, Peer, Sink, fan_out
from benchmarks.server import TEXT, TOKEN_EVENTS, TOKENS, raise_file_limit

DEADLINE = 900
"""Seconds after which a worker is ended, whatever it does; the longest job at full scale takes about one minute."""

PATIENCE = 10.0
"""Seconds without a token on any stream, and without much work, after which the streams that have none have failed."""

PIECE = 4096
"""Bytes of a stream that a decoder gets at a time: some twenty events, the last one cut."""

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
        uvloop: Whether the client runs on uvloop.
        ports: The server's ports by name.
    """

    peer: str
    job: str
    count: int
    width: int = 1
    depth: int = 1
    uvloop: bool = False
    ports: dict[str, int] = attrs.field(factory=dict[str, int], eq=False)


@attrs.define(kw_only=True)
class Measurement:
    """What one round gave.

    Attributes:
        units: Calls, tokens, events or imports that were measured.
        failed: Calls or streams that failed or answered wrongly.
        cpu: CPU time of the client for all units, in seconds.
        memory: Growth of the resident set, in bytes.
        live: Streams that were open at the same time.
        error: The first failure, empty if there was none.
    """

    units: int = 0
    failed: int = 0
    cpu: float = 0.0
    memory: int = 0
    live: int = 0
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


def make_peer(task: Task, port: int) -> Peer:
    """Returns the task's client for the server at a port; its resource is still to be opened."""
    return PEERS[task.peer](f"http://127.0.0.1:{port}/v1", task.width)


async def call_all(call: Callable[[str], Awaitable[str]], task: Task, count: int) -> Measurement:
    """Calls ``count`` times, ``width`` at a time; each call must return the text of the whole answer."""
    result = Measurement()

    async def checked(prompt: str) -> None:
        try:
            text = await call(prompt)
        except Exception as error:
            result.fail(error)
        else:
            if text != TEXT:
                result.fail(f"wrong text: {text!r}")

    cpu = cpu_time()
    await fan_out(checked, itertools.repeat(PROMPT, count), task.width)
    result.cpu = cpu_time() - cpu
    result.units = count - result.failed
    return result


@asynccontextmanager
async def complete(task: Task) -> AsyncGenerator[Round]:
    """Completions."""
    peer = make_peer(task, task.ports["fast"])
    async with peer.resource:
        await call_all(peer.complete, task, 2 * task.width)  # unmeasured: opens the connections
        yield lambda: call_all(peer.complete, task, task.count)


@asynccontextmanager
async def _fast_streams(
    task: Task, peer: Peer, stream: Callable[[str, Sink], Awaitable[None]]
) -> AsyncGenerator[Round]:
    async def call(prompt: str) -> str:
        parts: list[str] = []
        await stream(prompt, parts.append)
        return "".join(parts)

    async def one_round() -> Measurement:
        result = await call_all(call, task, task.count)
        result.units *= len(TOKENS)
        return result

    async with peer.resource:
        await call_all(call, task, 2 * task.width)
        yield one_round


def tokens(task: Task) -> AbstractAsyncContextManager[Round]:
    """Streams of 200 tokens that arrive at once, taken as tokens."""
    peer = make_peer(task, task.ports["fast"])
    return _fast_streams(task, peer, peer.stream)


def chunks(task: Task) -> AbstractAsyncContextManager[Round]:
    """The same streams, taken as chunks."""
    peer = make_peer(task, task.ports["fast"])
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
            parts.append(token)
            self._one_arrived()

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
    return float(subprocess.check_output([sys.executable, "-c", code], timeout=DEADLINE))


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
    "streams": streams,
    "map": fan_out_many,
    "decode": decode,
    "import": load,
}
"""Name of a job → what does it."""


async def work(task: Task) -> None:
    """Does a round for each line of standard input. Nothing else may run meanwhile, so reading may block the loop."""
    async with JOBS[task.job](task) as one_round:
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
