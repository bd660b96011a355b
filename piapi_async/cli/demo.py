"""``piapi-async demo``: await one answer, stream one, fan out many while the provider dies, and sum it up."""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from importlib.resources import files
from itertools import pairwise
from typing import Any, Literal

import anyio
import attrs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from piapi_async import Attempt, Client, Health, Limits, Provider, Result
from piapi_async.cli.terminal import make_table, visible, write_tokens
from piapi_async.errors import PiAPIError
from piapi_async.testing import Delay, LocalServer

QUESTIONS = 200
"""How many questions come with the package."""

MAX_TOKENS = 48
"""The longest answer in the fan-out, in tokens. A small model on a laptop takes a minute for 200 such answers."""

STREAM_TOKENS = 160
"""The longest answer that is printed, in tokens."""

CONCURRENCY = 24
"""How many questions are in flight at once by default: few enough that the fan-out lasts longer than the outage."""

LATENCY = 0.3
"""Seconds before a stream of the demo's own servers begins: about what a hosted model takes to its first token."""

LATENCIES = (0.2, 0.5)
"""The shortest and the longest time that the demo's own servers take for a whole answer, in seconds."""

OUTAGE = 0.7
"""How long the demo's first server is down, in seconds."""

OPEN = 0.3
"""Seconds before a server that failed is tried again. The library's own 5 seconds are longer than this fan-out."""

TOKENS_PER_SECOND = 50.0
"""The pace of a stream from the demo's own servers: that of a large hosted model, and slow enough to watch."""

SLOW_STEP = 10.0
"""Seconds that a step of the event loop may take before asyncio's debug mode complains; its default is 0.1."""

SAMPLES = 20
"""How many streams to time, from the request to the first token."""

SAMPLED_AT_ONCE = 5
"""How many of them run at once: few, so that we time the server and not its queue."""


@attrs.define
class Tally:
    """The figures of the demo.

    Attributes:
        served: Answers in the fan-out, by provider.
        results: Questions of the fan-out that got an answer or an error.
        failed: Requests that got no answer, by provider.
        failovers: Requests that were sent again to another provider.
        retries: Requests that were sent again to the same provider.
        tokens: Tokens of the answers.
        cost: Their cost in US dollars; None as soon as that of one answer is unknown.
        seconds: How long the fan-out took.
        waits: The times to the first token, in seconds.
        errors: The errors of the streams and the fan-out.
    """

    served: Counter[str]
    results: int = 0
    failed: Counter[str] = attrs.Factory(Counter[str])
    failovers: int = 0
    retries: int = 0
    tokens: int = 0
    cost: Decimal | None = Decimal()
    seconds: float = 0.0
    waits: list[float] = attrs.Factory(list[float])
    errors: list[Exception] = attrs.Factory(list[Exception])

    @property
    def answers(self) -> int:
        """Answers in the fan-out, from all providers."""
        return self.served.total()

    def add(self, result: Result) -> None:
        """Count a result of the fan-out."""
        self.results += 1
        self._add_attempts(result.attempts)
        if result.error is not None:
            self.errors.append(result.error)
            return
        completion = result.unwrap()
        self.served[completion.provider] += 1
        if completion.usage is not None:
            self.tokens += completion.usage.completion_tokens
        cost = completion.cost
        self.cost = None if cost is None or self.cost is None else self.cost + cost

    def _add_attempts(self, attempts: Sequence[Attempt]) -> None:
        self.failed.update(attempt.provider for attempt in attempts if attempt.kind != "ok")
        moved = [one.provider != other.provider for one, other in pairwise(attempts)]
        self.failovers += sum(moved)
        self.retries += len(moved) - sum(moved)


@attrs.define
class Outage:
    """An outage during the fan-out: the first provider dies under load, and comes back later.

    Attributes:
        name: The provider's name.
        server: The provider's server.
        client: The client that asks it.
        console: Where to print what happens.
        after: After how many answers it dies; 0: never.
        lasts: How many seconds it is down at least.
        began: When the fan-out began, as `time.perf_counter` tells it.
        stage: How far the outage has come.
        up_at: When the provider may come back, on the same clock.
    """

    name: str
    server: LocalServer
    client: Client
    console: Console
    after: int
    lasts: float = OUTAGE
    began: float = attrs.Factory(time.perf_counter)
    stage: Literal["up", "down", "replaced", "back", "over"] = "up"
    up_at: float = 0.0

    async def follow(self, provider: str, answers: int) -> None:
        """Take the next step, if it is time for it. Call this after each answer, with the provider that gave it."""
        now = time.perf_counter()
        if self.stage == "up" and answers == self.after:
            self.stage, self.up_at = "down", now + self.lasts
            self._say(f"{self.name} dies, with {self.client.statistics().in_flight} requests in flight", "red")
            await finish(self.server.close())
        elif self.stage == "down" and provider != self.name:
            self.stage = "replaced"
            self._say(f"{provider} answers in its place", "yellow")
        elif self.stage == "replaced" and now >= self.up_at:
            self.stage = "back" if await self._revive() else "over"
            self._say(f"{self.name} is up again" if self.stage == "back" else f"{self.name} can't come back", "yellow")
        elif self.stage == "back" and provider == self.name:
            self.stage = "over"
            self._say(f"{self.name} answers again", "green")

    async def _revive(self) -> bool:
        try:
            await finish(self.server.start())
        except OSError:  # another program has taken the port meanwhile
            return False
        return True

    def _say(self, news: str, style: str) -> None:
        self.console.print(Text(f"{time.perf_counter() - self.began:4.1f} s  {news}", style=style))


async def finish(step: Coroutine[None, None, None]) -> None:
    """Await a step to its end, even through a Ctrl-C: half a step would leave sockets open."""
    task = asyncio.create_task(step)
    try:
        await asyncio.shield(task)
    finally:
        await task


def load_questions(count: int = QUESTIONS) -> list[str]:
    """The first `count` questions of those that come with the package."""
    return (files("piapi_async") / "data" / "questions.txt").read_text("utf-8").splitlines()[:count]


async def run(
    console: Console,
    *,
    live: bool,
    base_url: str | None,
    model: str,
    concurrency: int,
    questions: int,
    backups: Sequence[Provider] = (),
) -> int:
    """Run the demo.

    Args:
        console: Where to print.
        live: Ask the service that the environment names, by default PiAPI, and not the demo's own servers.
        base_url: Ask this server, and not the demo's own.
        model: The model to ask.
        concurrency: How many questions may be in flight at once, 1 or more.
        questions: How many questions to fan out, 1 to `QUESTIONS`.
        backups: Backups of the service or server; the demo's own server has one already.

    Returns:
        The exit status: 0 if every question was answered, else 1.

    Raises:
        PiAPIError: One of the first two answers failed.
    """
    # asyncio's debug mode logs slow steps. This one loop serves, asks and draws, so on a busy machine some steps are.
    asyncio.get_running_loop().slow_callback_duration = SLOW_STEP
    asked = load_questions(questions)
    async with _connect(console, live, base_url, model, concurrency, backups) as (client, server):
        tally = Tally(Counter({key.provider: 0 for key in client.statistics().keys}))
        await _await_one(console, client, asked[0])
        await _stream_one(console, client, asked[-1])
        await _sample_streams(console, client, asked[:SAMPLES], tally)
        await fan_out(console, client, server, asked, concurrency, tally)
    _print_tally(console, tally, len(asked))
    return 1 if tally.errors else 0


@asynccontextmanager
async def _connect(
    console: Console,
    live: bool,
    base_url: str | None,
    model: str,
    concurrency: int,
    backups: Sequence[Provider],
) -> AsyncGenerator[tuple[Client, LocalServer | None], None]:
    """Open a client, and servers for it unless it has one. Yield the client, and the server that may be killed."""
    limits = Limits(concurrency=max(concurrency, SAMPLED_AT_ONCE))
    if live or base_url is not None:
        console.print(f"Asking {model} at {base_url or 'the live service'}.")
        async with Client(base_url=base_url, model=model, limits=limits, backups=backups) as client:
            yield client, None
        return
    async with _make_server("sk-local-key") as server, _make_server("sk-local-backup-key") as backup:
        console.print(f"Asking {model} at {server.base_url}, a server of the demo's own. Answers are made up.")
        console.print(f"Its backup is another one, at {backup.base_url}.")
        async with Client(
            server.api_key,
            base_url=server.base_url,
            model=model,
            limits=limits,
            backups=[Provider("backup", backup.base_url, backup.api_key)],
            health=Health(open=OPEN, open_cap=OPEN),
        ) as client:
            yield client, server


def _make_server(api_key: str) -> LocalServer:
    return LocalServer(api_key=api_key, tokens_per_second=TOKENS_PER_SECOND, faults=_delay)


def _delay(number: int, body: Any) -> Delay:
    """Take about as long as a hosted model. Whole answers vary, so that they don't all come at once."""
    return Delay(LATENCY if body.get("stream") else random.Random(number).uniform(*LATENCIES))


async def _await_one(console: Console, client: Client, question: str) -> None:
    _print_heading(console, "Await one answer", question)
    start = time.perf_counter()
    completion = await client.complete(question, max_tokens=STREAM_TOKENS)
    seconds = time.perf_counter() - start
    console.print(visible(completion.text.strip(), console))
    facts = [f"{seconds:.2f} s"]
    if completion.usage is not None:
        facts += [f"{completion.usage.prompt_tokens} + {completion.usage.completion_tokens} tokens"]
    if completion.cost is not None:
        facts += [_dollars(completion.cost)]
    console.print(Text(" · ".join(facts), style="dim"))


async def _stream_one(console: Console, client: Client, question: str) -> None:
    _print_heading(console, "Stream one answer, token by token", question)
    start = time.perf_counter()
    async with client.stream(question, max_tokens=STREAM_TOKENS) as stream:
        first = await write_tokens(stream, console, wrap=True)
        seconds = time.perf_counter() - start
    waited = "no token" if first is None else f"first token after {_milliseconds(first - start)}"
    console.print(Text(f"{waited} · all of it after {seconds:.2f} s", style="dim"))


async def _sample_streams(console: Console, client: Client, questions: Sequence[str], tally: Tally) -> None:
    """Time the first token of each answer. The rest is left unread, so the server never makes it."""
    limiter = anyio.CapacityLimiter(SAMPLED_AT_ONCE)

    async def sample(question: str) -> None:
        async with limiter:
            start = time.perf_counter()
            try:
                async with client.stream(question, max_tokens=MAX_TOKENS) as stream:
                    async for _ in stream:
                        tally.waits.append(time.perf_counter() - start)
                        break
            except PiAPIError as error:
                tally.errors.append(error)

    console.print()
    console.print(Text(f"Time {len(questions)} first tokens, {SAMPLED_AT_ONCE} streams at a time", style="bold"))
    async with anyio.create_task_group() as tasks:
        for question in questions:
            tasks.start_soon(sample, question)
    console.print(Text(f"{len(tally.waits)} of {len(questions)} came", style="dim"))


async def fan_out(
    console: Console,
    client: Client,
    server: LocalServer | None,
    questions: Sequence[str],
    concurrency: int,
    tally: Tally,
) -> None:
    """Ask all the questions at once and count what comes back. Kill `server` meanwhile, if there is one."""
    console.print()
    console.print(Text(f"Fan out {len(questions)} questions, {concurrency} at a time", style="bold"))
    name, *_ = tally.served
    outage = None if server is None else Outage(name, server, client, console, len(questions) // 3)
    start = time.perf_counter()
    with _make_bar(console) as bar:
        task = bar.add_task("", total=len(questions))
        async with client.map(questions, concurrency=concurrency, max_tokens=MAX_TOKENS) as results:
            async for result in results:
                tally.add(result)
                bar.update(task, advance=1, description=_shares(tally))
                if outage is not None and result.completion is not None:
                    await outage.follow(result.completion.provider, tally.answers)
    tally.seconds = time.perf_counter() - start


def _make_bar(console: Console) -> Progress:
    shares = TextColumn("{task.description}", style="dim", markup=False)
    columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(), shares)
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _shares(tally: Tally) -> str:
    """How many answers each provider gave, if there are several."""
    return " · ".join(f"{name} {answers}" for name, answers in tally.served.items()) if len(tally.served) > 1 else ""


def _print_heading(console: Console, title: str, question: str) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    console.print(Text(f"> {question}", style="cyan"))


def _print_tally(console: Console, tally: Tally, asked: int) -> None:
    table = make_table(console)
    table.add_column("result")
    table.add_column("", justify="right")
    table.add_column("note", style="dim")
    rate = f"{tally.tokens / tally.seconds:,.0f}" if tally.tokens else "not reported"
    streams = f"{len(tally.waits)} streams, {SAMPLED_AT_ONCE} at a time"
    table.add_row("answers", f"{tally.answers} of {asked}", f"the fan-out, {tally.seconds:.1f} s")
    if len(tally.served) > 1:
        for name, answers in tally.served.items():
            table.add_row(f"  by {name}", str(answers), f"{tally.failed[name] or 'none'} of its requests failed")
        table.add_row("failovers", str(tally.failovers), "sent again, to the other provider")
    table.add_row("retries", str(tally.retries), "sent again, to the same provider")
    table.add_row("lost", str(asked - tally.results), "neither answer nor error")
    table.add_row("tokens a second", rate, "all of the fan-out's answers")
    if tally.cost is not None and tally.answers:
        table.add_row("cost", _dollars(tally.cost), "the fan-out, at PiAPI's prices")
    if tally.waits:
        table.add_row("time to first token, median", _milliseconds(statistics.median(tally.waits)), streams)
        table.add_row("time to first token, p95", _milliseconds(_p95(tally.waits)), streams)
    table.add_row("errors", str(len(tally.errors)), "the streams and the fan-out")
    console.print()
    console.print(table)
    for message, times in Counter(map(str, tally.errors)).most_common(3):
        console.print(f"{times} × {visible(message, console)}")


def _p95(values: Sequence[float]) -> float:
    """The 95th percentile, by the nearest-rank method."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


def _dollars(amount: Decimal) -> str:
    return f"${amount.normalize():f}"
