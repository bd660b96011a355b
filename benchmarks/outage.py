"""``python -m benchmarks.outage``: what callers notice of an outage, with this client and with a loop of three tries.

The client is the real one, with its defaults but for one timer. Simulated are the time, which jumps from one event to
the next, and the providers behind the `Transport`: so an hour of calls takes seconds, and the same seed gives the same
figures every time.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import selectors
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self, TypeVar

import attrs

from piapi_async import APIConnectionError, APIError, APIStatusError, Client, Provider, Timeout
from piapi_async.errors import Secret
from piapi_async.policy import Deadline, timed_out
from piapi_async.provider import Endpoint
from piapi_async.wire import Body, Headers

T = TypeVar("T")

PRIMARY, BACKUP = "piapi", "backup"
MODEL = "gpt-4o-mini"
SEED = 1

RATE = 20.0
"""Calls a second, at random moments: thousands in the three minutes."""

BEFORE, TROUBLE, AFTER = 30.0, 180.0, 60.0
"""Seconds of calm, of trouble, and of calm again."""

PATIENCE = 20.0
"""Seconds that one try may take, for both clients: whoever knows that answers take one does not wait ten minutes."""

LATENCY, SPREAD = 0.8, 0.4
"""Median seconds of an answer where a scenario has no other, and the sigma of its log-normal distribution."""

ROUND_TRIP = 0.002
"""Seconds until a connection is refused, or an error status is there."""

WINDOW, BACK = 5.0, 0.8
"""The provider has its traffic back when it answers this share of the calls of the next so many seconds."""

SLOT = 0.1
"""Seconds of a slot in which the retries of many clients are counted."""

ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-4o-mini","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":8,"completion_tokens":2,"total_tokens":10}}'
)
ERROR = b'{"error":{"message":"The server had an error.","type":"server_error"}}'


# -- time --------------------------------------------------------------------------------------------------------------


class _Jump(selectors.DefaultSelector):
    """A selector that never waits: it moves the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("everybody waits, and nothing will ever happen")
            self.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer as soon as nothing is left to do."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        """Seconds of virtual time, from 0."""
        return self._jump.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


async def _sleep_until(moment: float) -> None:
    await asyncio.sleep(moment - asyncio.get_running_loop().time())


# -- providers ---------------------------------------------------------------------------------------------------------


@attrs.frozen
class Spell:
    """A stretch of time in which a provider is ill.

    Attributes:
        start: When it begins, in seconds.
        end: When it is over.
        refuses: Whether no connection is accepted.
        resets: Whether answers under way break off at the start of such a spell, instead of coming in the end.
        errors: Share of requests that get a 503.
        doubling: Seconds after which the latency has doubled, again and again. What is under way at the end of the
            spell is answered then.
    """

    start: float
    end: float
    refuses: bool = False
    resets: bool = True
    errors: float = 0.0
    doubling: float = math.inf


_WELL = Spell(0.0, 0.0)


@attrs.define
class FakeExchange:
    """An `Exchange` whose answer is there, whole, without a connection.

    Attributes:
        status: HTTP status.
        content: What of the body has not been read.
        headers: The answer's headers.
    """

    status: int
    content: bytes
    headers: Headers = attrs.field(factory=lambda: {"content-type": "application/json"})

    async def read(self, deadline: Deadline) -> bytes:
        """Return the content, then nothing."""
        content, self.content = self.content, b""
        return content

    async def read_all(self, deadline: Deadline, start: bytes = b"") -> bytes:
        """Return the content."""
        return start + await self.read(deadline)

    async def read_start(self, deadline: Deadline, limit: int = 1 << 16) -> bytes:
        """Return the content."""
        return await self.read(deadline)

    def finish(self) -> None:
        """There is nothing to give back."""

    def close(self) -> None:
        """There is nothing to close."""


class FakeProvider:
    """A provider that is well or ill, as the time has it.

    Attributes:
        requests: When each request came.
    """

    def __init__(self, name: str, spells: Sequence[Spell], seed: int, latency: float = LATENCY) -> None:
        self._name = name
        self._spells = spells
        self._latency = latency
        self._rng = random.Random(f"{seed}/{name}")
        self.requests: list[float] = []

    async def answer(self, deadline: Deadline, on_sent: Callable[[], None]) -> FakeExchange:
        """Answer a request, or raise what the pool raises."""
        now = asyncio.get_running_loop().time()
        self.requests.append(now)
        spell = next((spell for spell in self._spells if spell.start <= now < spell.end), _WELL)
        if spell.refuses:
            await asyncio.sleep(ROUND_TRIP)
            raise APIConnectionError(f"{self._name} refused the connection", kind="connect")
        on_sent()
        if self._rng.random() < spell.errors:
            await asyncio.sleep(ROUND_TRIP)
            return FakeExchange(503, ERROR)
        await self._think(now, spell, deadline)
        return FakeExchange(200, ANSWER)

    async def _think(self, now: float, spell: Spell, deadline: Deadline) -> None:
        seconds = self._rng.lognormvariate(math.log(self._latency), SPREAD)
        ready = now + seconds
        if spell.doubling < math.inf:
            ready = min(now + seconds * 2 ** ((now - spell.start) / spell.doubling), spell.end + seconds)
        ends = (spell.start for spell in self._spells if spell.refuses and spell.resets and spell.start > now)
        dies = min(ends, default=math.inf)
        await _sleep_until(min(ready, dies, deadline.at))
        if dies < min(ready, deadline.at):
            raise APIConnectionError(f"{self._name} broke the connection off", kind="reset", maybe_billed=True)
        if deadline.at < ready:
            raise timed_out(deadline, self._name)


class FakeTransport:
    """A `Transport` to fake providers, which notes what the client's breakers do meanwhile.

    Attributes:
        states: States that the primary's breaker was seen in.
        probes: Most requests in flight at once that began while a breaker was half-open.
    """

    def __init__(self, providers: Mapping[str, FakeProvider]) -> None:
        self._providers = providers
        self._breaker: Callable[[str], str] = lambda _name: "closed"
        self._probing = dict.fromkeys(providers, 0)
        self.states: set[str] = set()
        self.probes = 0

    def watch(self, client: Client) -> None:
        """Look at this client's breakers."""

        def breaker(name: str) -> str:
            keys = client.statistics().keys
            return next(key.breakers.get(MODEL, "closed") for key in keys if key.provider == name)

        self._breaker = breaker

    async def __aenter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        """There is nothing to close."""

    async def send(
        self,
        endpoint: Endpoint,
        body: Body,
        headers: Mapping[str, str],
        deadline: Deadline,
        *,
        on_sent: Callable[[], None],
        fresh: bool = False,
    ) -> FakeExchange:
        """Ask the endpoint's provider."""
        name = endpoint.provider
        self.states.add(self._breaker(PRIMARY))
        probe = self._breaker(name) == "half-open"
        self._probing[name] += probe
        self.probes = max(self.probes, self._probing[name])
        try:
            return await self._providers[name].answer(deadline, on_sent)
        finally:
            self._probing[name] -= probe


# -- clients -----------------------------------------------------------------------------------------------------------

Ask = Callable[[], Awaitable[str]]
"""Asks once; returns the name of the provider that answered, or raises `APIError`."""


def make_client(transport: FakeTransport, seed: int | None, *, backup: bool = True) -> Client:
    """Make our client, with its defaults but for `PATIENCE`."""
    client = Client(
        "sk-simulated",
        base_url="https://primary.invalid/v1",
        model=MODEL,
        backups=[Provider(BACKUP, "https://backup.invalid/v1", "sk-simulated")] if backup else (),
        timeout=Timeout(total=PATIENCE),
        transport=transport,
        seed=seed,
    )
    transport.watch(client)
    return client


def _ignore() -> None:
    """Do nothing about a request that begins to go out."""


async def three_tries(transport: FakeTransport) -> str:
    """Ask the primary as the usual loop does: three tries, exponential backoff."""
    loop = asyncio.get_running_loop()
    endpoint = Endpoint(PRIMARY, "https://primary.invalid/v1/chat/completions", Secret("sk-simulated"))
    failure: APIError = APIStatusError("no try yet")
    for attempt in range(3):
        if attempt:
            await asyncio.sleep(2 ** (attempt - 1))
        try:
            deadline = Deadline(loop.time() + PATIENCE, "total", PATIENCE)
            exchange = await transport.send(endpoint, Body(b"{}"), {}, deadline, on_sent=_ignore)
        except APIError as error:
            failure = error
            continue
        if exchange.status == 200:
            return PRIMARY
        failure = APIStatusError("an error status", status_code=exchange.status)
    raise failure


# -- scenarios ---------------------------------------------------------------------------------------------------------

HEALED = BEFORE + TROUBLE


@attrs.frozen
class Scenario:
    """What happens to the providers.

    Attributes:
        name: For the table.
        primary: Spells of the primary.
        backup: Spells of the backup.
        latency: Median seconds of an answer.
    """

    name: str
    primary: Sequence[Spell]
    backup: Sequence[Spell] = ()
    latency: float = LATENCY


_OFF = Spell(BEFORE, HEALED, refuses=True)
_DRAIN = Spell(BEFORE, HEALED, refuses=True, resets=False)
_FLAPS = tuple(Spell(BEFORE + at, BEFORE + at + 10, refuses=True) for at in range(0, int(TROUBLE), 20))

SCENARIOS = {
    "down": Scenario("is down", [_OFF]),
    "drain": Scenario("ends its answers, of 5 s each, and takes no more calls", [_DRAIN], latency=5.0),
    "errors-10": Scenario("fails 10 % of requests", [Spell(BEFORE, HEALED, errors=0.1)]),
    "errors-50": Scenario("fails 50 % of requests", [Spell(BEFORE, HEALED, errors=0.5)]),
    "flapping": Scenario("is off for 10 s, on for 10 s, …", _FLAPS),
    "slow": Scenario("dies slowly: latency doubles every 10 s", [Spell(BEFORE, HEALED, doubling=10.0)]),
    "both": Scenario("is down, and the backup too", [_OFF], [_OFF]),
}


@attrs.frozen
class Outcome:
    """How one call ended.

    Attributes:
        began: When it began, in seconds.
        latency: Seconds until its answer, or its error.
        provider: Who answered; None if it failed.
    """

    began: float
    latency: float
    provider: str | None


@attrs.frozen
class Report:
    """What one client made of one scenario.

    Attributes:
        healed: When the primary was well for good.
        outcomes: Of all calls, in the order in which they began.
        requests: When each provider got its requests.
        states: States that the primary's breaker was seen in.
        probes: Most probes of one provider in flight at once.
    """

    healed: float
    outcomes: Sequence[Outcome]
    requests: Mapping[str, Sequence[float]]
    states: frozenset[str] = frozenset()
    probes: int = 0

    @property
    def troubled(self) -> list[Outcome]:
        """The calls that began in the time of trouble."""
        return [outcome for outcome in self.outcomes if BEFORE <= outcome.began < HEALED]

    @property
    def success(self) -> float:
        """Share of the calls in the time of trouble that were answered."""
        calls = self.troubled
        return sum(call.provider is not None for call in calls) / len(calls)

    @property
    def failed(self) -> int:
        """Calls that failed, at any time."""
        return sum(call.provider is None for call in self.outcomes)

    def requests_per_call(self, provider: str) -> float:
        """Requests that a provider got in the time of trouble, for each call in it."""
        requests = self.requests.get(provider, ())
        return sum(BEFORE <= at < HEALED for at in requests) / len(self.troubled)

    @property
    def p99(self) -> float:
        """Seconds after which 99 of 100 calls in the time of trouble had an answer or an error."""
        latencies = sorted(call.latency for call in self.troubled)
        return latencies[len(latencies) * 99 // 100]

    @property
    def recovery(self) -> float:
        """Seconds from the primary's healing until it answers `BACK` of all calls again."""
        after = [call for call in self.outcomes if call.began >= self.healed]
        for call in after:
            window = [other for other in after if call.began <= other.began < call.began + WINDOW]
            if sum(other.provider == PRIMARY for other in window) >= BACK * len(window):
                return call.began - self.healed
        return math.inf


def simulate(scenario: Scenario, seed: int = SEED) -> Report:
    """Let our client go through a scenario."""
    return run(_ours(scenario, seed))


def simulate_three_tries(scenario: Scenario, seed: int = SEED) -> Report:
    """Let the usual loop go through a scenario, with the same calls at the same moments."""
    return run(_three_tries(scenario, seed))


async def _ours(scenario: Scenario, seed: int) -> Report:
    providers = _providers(scenario, seed)
    transport = FakeTransport(providers)
    async with make_client(transport, seed) as client:

        async def ask() -> str:
            return (await client.complete("Hello!")).provider

        outcomes = await _load(ask, seed)
    return Report(
        scenario.primary[-1].end, outcomes, _requests(providers), frozenset(transport.states), transport.probes
    )


async def _three_tries(scenario: Scenario, seed: int) -> Report:
    providers = _providers(scenario, seed)
    transport = FakeTransport(providers)
    outcomes = await _load(lambda: three_tries(transport), seed)
    return Report(scenario.primary[-1].end, outcomes, _requests(providers))


def _providers(scenario: Scenario, seed: int) -> dict[str, FakeProvider]:
    spells = {PRIMARY: scenario.primary, BACKUP: scenario.backup}
    return {name: FakeProvider(name, spells[name], seed, scenario.latency) for name in spells}


def _requests(providers: Mapping[str, FakeProvider]) -> dict[str, Sequence[float]]:
    return {name: provider.requests for name, provider in providers.items()}


async def _load(ask: Ask, seed: int) -> list[Outcome]:
    """Begin calls at random moments, whether or not earlier ones have ended."""
    clock = asyncio.get_running_loop().time
    rng = random.Random(f"{seed}/calls")

    async def call() -> Outcome:
        began = clock()
        provider = None
        with suppress(APIError):
            provider = await ask()
        return Outcome(began, clock() - began, provider)

    calls: list[asyncio.Task[Outcome]] = []
    async with asyncio.TaskGroup() as group:
        while clock() < BEFORE + TROUBLE + AFTER:
            calls.append(group.create_task(call()))
            await asyncio.sleep(rng.expovariate(RATE))
    return [call.result() for call in calls]


# -- many clients at once ----------------------------------------------------------------------------------------------


@attrs.frozen
class Herd:
    """When many clients that began at the same moment came back after their failure.

    Attributes:
        retries: Seconds from the start to each client's first retry.
    """

    retries: Sequence[float]

    @property
    def slots(self) -> list[int]:
        """How many came in each slot, from the start to the last of them."""
        slots = [0] * (int(max(self.retries) / SLOT) + 1)
        for retry in self.retries:
            slots[int(retry / SLOT)] += 1
        return slots

    @property
    def crowding(self) -> float:
        """The fullest slot, as a multiple of the mean."""
        return max(self.slots) * len(self.slots) / len(self.retries)


def restart(clients: int = 1000, seed: int | None = SEED, *, backup: bool = False) -> Herd:
    """Start clients at the same moment, each with one call, while every provider is down.

    Args:
        clients: How many.
        seed: Of their jitter; None for each client's own, as it is by default.
        backup: Whether they have one.
    """

    async def ask(index: int, transport: FakeTransport) -> None:
        own = None if seed is None else seed * clients + index
        async with make_client(transport, own, backup=backup) as client:
            await client.complete("Hello!")

    return run(_herd(clients, ask))


def restart_three_tries(clients: int = 1000) -> Herd:
    """Do the same with the usual loop."""
    return run(_herd(clients, lambda _index, transport: three_tries(transport)))


async def _herd(clients: int, ask: Callable[[int, FakeTransport], Awaitable[object]]) -> Herd:
    dead = [Spell(0.0, math.inf, refuses=True)]
    retries: list[float] = []

    async def one(index: int) -> None:
        providers = {name: FakeProvider(name, dead, index) for name in (PRIMARY, BACKUP)}
        with suppress(APIError):
            await ask(index, FakeTransport(providers))
        retries.append(min(at for provider in providers.values() for at in provider.requests[1:]))

    async with asyncio.TaskGroup() as group:
        for index in range(clients):
            group.create_task(one(index))
    return Herd(retries)


# -- the table ---------------------------------------------------------------------------------------------------------

LOOP = "three tries"


def table(names: Sequence[str], seed: int = SEED) -> str:
    """Return a Markdown table: a scenario a row, each figure of ours beside that of the usual loop."""
    figures = ("answered", "requests per call (PiAPI + backup)", "p99 of the wait", "traffic back after")
    lines = [["for 3 minutes, PiAPI …", *(cell for figure in figures for cell in (figure, LOOP))]]
    for name in names:
        ours, theirs = _figures(simulate(SCENARIOS[name], seed)), _figures(simulate_three_tries(SCENARIOS[name], seed))
        lines.append([SCENARIOS[name].name, *(cell for pair in zip(ours, theirs, strict=True) for cell in pair)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _figures(report: Report) -> list[str]:
    requests = [f"{report.requests_per_call(name):.3f}" for name in report.requests if report.requests[name]]
    return [f"{report.success:.2%}", " + ".join(requests), f"{report.p99:.1f} s", f"{report.recovery:.1f} s"]


def _crowd(herd: Herd) -> str:
    return f"{max(herd.slots):,} ({herd.crowding:.1f} × the mean)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outage", description=__doc__)
    known = ",".join(SCENARIOS)
    parser.add_argument("--scenarios", default=known, help="which, separated by commas (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of all that is random (default: %(default)s)")
    options = parser.parse_args(arguments)
    names = options.scenarios.split(",")
    unknown = set(names) - set(SCENARIOS)
    if unknown:
        parser.error(f"unknown scenarios: {', '.join(sorted(unknown))}; known: {known}")
    print(table(names, options.seed))
    print()
    print("1,000 clients start at once while PiAPI is down: most first retries in a tenth of a second:")
    print(f"{_crowd(restart(seed=options.seed))}; {LOOP}: {_crowd(restart_three_tries())}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
