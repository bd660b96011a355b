"""A history happens: the real client, its callers, and what was seen of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from bisect import bisect_left
from decimal import Decimal
from functools import cache
from typing import Any

import attrs

from piapi_async import (
    BudgetExceededError,
    ChatCompletion,
    Client,
    Health,
    Limits,
    Provider,
    Retry,
    Timeout,
)
from piapi_async.catalog import from_dollars
from tests.simulation.history import Closing, History
from tests.simulation.loop import Strike, VirtualLoop
from tests.simulation.provider import FAULTS, MODEL, PRICES, Request, ScriptedProvider

GOT_IT = "got it"
"""What a provider tells of a request that went out: a turn of the loop after it was asked for, in which others end."""

EPSILON = 1e-6
"""Seconds by which sums of times may be off."""

MOST_WRONGS = 3
"""What is wrong with a history, that is told."""

TURNS = 5
"""Turns of the loop within which what a caller left has ended."""

HEALS = 3000.0
"""Seconds after which every provider is well again in the client's eyes: no pause and no breaker lasts longer."""

QUICK = Timeout(first_event=3, first_event_reasoning=3, progress=2, total=10)
PATIENT = Timeout(pool=20)


NOT_SENT = ("stale", "pool", "connect")
"""Kinds of attempts that nobody can have billed."""


@attrs.define(eq=False)
class World:
    """What happens in a history.

    Attributes:
        history: The history.
        loop: Its time.
        provider: Who answers.
        events: What happened, as text, if it is kept.
        keeps: Whether it is.
        states: Hashes of the states that were reached, if they are counted.
        wrongs: What must not be.
        runs: Of a batch, so far.
        told: How many bills above their reservations were told.
        overrun_before: What bills of earlier runs came to above their reservations, in US dollars.
        began: When each single call began, by its prompt.
        closed_at: When the client was closed last.
        client: The client; of a batch, the present run's.
        budget: Its budget, in US dollars.
    """

    history: History
    loop: VirtualLoop
    provider: ScriptedProvider
    keeps: bool
    states: set[int] | None
    client: Client = attrs.field(init=False)
    budget: Decimal | None = attrs.field(init=False)
    events: list[str] = attrs.field(factory=list)
    wrongs: list[str] = attrs.field(factory=list)
    runs: int = 1
    told: int = 0
    overrun_before: Decimal = Decimal(0)
    began: dict[str, float] = attrs.field(factory=dict)
    closed_at: float = 0.0

    # -- what is seen --------------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Note that something happened."""
        if self.keeps:
            self.events.append(f"{self.loop.time():9.3f}  {text}")

    def wrong(self, text: str) -> None:
        """Note what must not be; of what follows from it, such as each later look at the same books, one will do."""
        if len(self.wrongs) < MOST_WRONGS:
            self.note(f"WRONG: {text}")
            self.wrongs.append(text)

    def hear(self, what: str, request: Request) -> None:
        """Take an event of a provider: money is right at every moment, not only in the end."""
        if self.keeps:
            self.note(f"{what} {request}; billed {request.billed}")
        self.check_money()
        if what == GOT_IT:
            self.check_may_be_asked(request)
        if self.states is not None:
            self.states.add(self.state())

    def check_may_be_asked(self, request: Request) -> None:
        """No more is asked at once than may be, and nothing for a call that began before its client was closed."""
        key = request.provider, request.key
        at_once = sum((each.provider, each.key) == key for each in self.provider.under_way)
        if at_once > self.history.concurrency:
            self.wrong(f"{at_once} requests under way at one key, and the limit is {self.history.concurrency}")
        if self.began.get(request.prompt, self.loop.time()) < self.closed_at:
            self.wrong(f"{request.prompt} goes on after its client was closed")

    def hear_log(self, record: logging.LogRecord) -> None:
        """Take a line of the log."""
        self.note(f"logged: {record.getMessage()}")
        self.told += "was reserved for it" in record.msg

    def check_money(self) -> None:
        """Spent, reserved and unknown are within the cap, and cover what was billed.

        Above the cap is only what single bills came to above their reservations, estimated ones too: `overrun` tells.
        What a bill is above the most that its request may cost, nobody knows before the answer is read; it counts in
        the end, in `check_bills`.
        """
        left = self.client.ledger.left
        if left is None or self.budget is None or self.provider.dead:
            return
        taken = from_dollars(self.budget - left)
        over = self.provider.over
        if left < 0 and from_dollars(-left) > max(over, from_dollars(self.overrun_before + self.client.ledger.overrun)):
            self.wrong(f"{self.client.ledger!r} is {-left} above the cap, and all bills together {over} picodollars")
        if taken < self.provider.billed - over:
            self.wrong(f"{self.client.ledger!r} is below what was billed, {self.provider.billed} picodollars")

    def state(self) -> int:
        """What all that is under way is at, as one number, the same in every process.

        It is: of each key, what is in flight and in its queue, its bound, whether it is paused, and its breakers'
        states; of each request under way, its provider, how far it is, how it was asked and how it will be answered;
        and of the books, which amounts are above 0.
        """
        dispatcher = self.client._dispatcher  # what `statistics()` tells, in a tenth of the time
        now, books = self.loop.time(), dispatcher.books
        state: list[object] = [books.spent > 0, books.reserved > 0, books.unknown > 0]
        for upstream in dispatcher.upstreams:
            for key in upstream.keys:
                gate = key.gate
                state += (gate.in_flight, gate.queued, gate.bound, gate.paused_until > now)
                state += [STATES[breaker.state(now)] for breaker in key.breakers.values()]
        state += sorted(
            (NUMBERS[each.provider], each.phase, each.stream, each.choices, FAULT_NUMBERS[each.answer.fault])
            for each in self.provider.under_way
        )
        return hash(tuple(state))

    # -- the client ----------------------------------------------------------------------------------------------------

    def make_client(self) -> Client:
        """Make the client of the history."""
        history = self.history
        backups = [_backup(name) for name in history.providers[1:]]
        client = Client(
            [f"sk-1234567890-{i:04}" for i in range(history.keys)],
            base_url="https://first.example",
            model=MODEL,
            backups=backups,
            budget=self.budget,
            prices=_prices("piapi"),
            limits=Limits(history.concurrency, history.requests_per_minute, history.tokens_per_minute),
            retry=Retry(history.attempts, hedge=history.hedge),
            timeout=QUICK if history.quick else PATIENT,
            health=Health(failure_threshold=history.threshold),
            stream_usage=history.stream_usage,
            transport=self.provider,
            seed=history.seed,
        )
        if history.hedge:
            # It has seen many quick answers: else no history is long enough for a hedge.
            dispatcher = client._dispatcher
            dispatcher.hedgeable = 1000
            for upstream in dispatcher.upstreams:
                for starts in upstream.starts:
                    starts.extend([0.02] * 20)
        return client

    # -- its ends ------------------------------------------------------------------------------------------------------

    async def close(self, closing: Closing) -> None:
        """Close the client, maybe in two goes, and open it again."""
        await asyncio.sleep(closing.at)
        self.note("the client is closed")
        strike = Strike(closing.cancel)
        task = strike.start(self.client.aclose())
        await asyncio.wait([task])
        if task.cancelled():
            self.note("the closing was cancelled")
            await self.client.aclose()
        if self.provider.sessions:
            self.wrong("sessions stay open behind aclose()")
        if self.client.statistics().queued:
            self.wrong("callers wait for a place at a client that is closed")
        self.closed_at = self.loop.time()
        await asyncio.sleep(closing.reopens)
        await self.client.open()
        self.note("the client is opened again")

    def kill(self) -> None:
        """Note that this process ends here: what is under way is billed as far as it is now."""
        self.provider.die()

    def begin_again(self, *, healed: bool = False) -> None:
        """Take a new client, as another process would; its budget is gone when all providers are well."""
        self.provider.healed = healed
        self.runs += 1
        self.overrun_before += self.client.ledger.overrun
        self.provider.dead = False
        if healed:
            self.budget = None
        self.client = self.make_client()

    # -- what must hold of an answer -----------------------------------------------------------------------------------

    def check_whole(self, prompt: str, completion: ChatCompletion) -> None:
        """What a caller takes for an answer is one, to its own prompt; it was billed no more often than it was sent."""
        if not completion.choices:
            self.wrong(f"{prompt} got an answer without a choice")
            return
        message = completion.choices[0].message
        self.check_text(prompt, message.tool_calls[0].function.arguments if message.tool_calls else completion.text)
        billed = sum(each.prompt == prompt and each.billed > 0 for each in self.provider.requests)
        sent = sum(each.kind not in NOT_SENT for each in completion.attempts)
        if billed > sent:
            self.wrong(f"{prompt} was billed {billed} times, and {sent} attempts are on record")

    def check_text(self, prompt: str, text: str) -> None:
        """There is a whole answer to a prompt, whose first choice says so."""
        if text not in [each.text for each in self.provider.requests if each.prompt == prompt and each.whole]:
            self.wrong(f"{prompt} got {text!r}, and no whole answer says that")

    # -- what must hold when all is over -------------------------------------------------------------------------------

    async def check_idle(self) -> None:
        """Nothing is under way: no place, no money, no probe, no answer, no task, no timer."""
        for _ in range(TURNS):
            await asyncio.sleep(0)
        statistics, provider = self.client.statistics(), self.provider
        left = {
            "places": statistics.in_flight,
            "in queues": statistics.queued,
            "picodollars reserved": from_dollars(self.client.ledger.reserved),
            "exchanges": len(provider.open),
            "requests": provider.asking,
            "tasks": len(self.loop.tasks()) - 1,
            "timers": len(self.loop.timers()),
            "probes": self.probes(),
        }
        if any(left.values()):
            self.wrong("left behind: " + ", ".join(f"{count} {what}" for what, count in left.items() if count))
        if self.loop.problems:
            self.wrong(f"nobody took {self.loop.problems}")
        self.check_money()

    def probes(self) -> int:
        """Breakers that wait for a probe that is over: they admit nobody though their time has come."""
        dispatcher = self.client._dispatcher
        now = dispatcher.clock()
        breakers = [each for up in dispatcher.upstreams for key in up.keys for each in key.breakers.values()]
        return sum(not each.admits(now) and each.state(now) != "open" for each in breakers)

    async def check_healed(self) -> None:
        """Much later, with all providers well, the first one answers."""
        await asyncio.sleep(HEALS)
        self.provider.healed = True
        with contextlib.suppress(BudgetExceededError):
            completion = await self.client.complete(prompt_of("last"), max_tokens=1)
            self.check_whole("last", completion)
            if completion.provider != "piapi":
                self.wrong(f"{completion.provider} answered, though the first provider is well again")
        self.check_bills()

    def check_bills(self) -> None:
        """Each prompt was billed, and sent, as often as attempts say in each run; all is on the books."""
        history = self.history
        counts: dict[str, list[int]] = {}
        for request in self.provider.requests:
            count = counts.setdefault(request.prompt, [0, 0])
            count[0] += bool(request.billed)
            count[1] += request.answer.fault != "stale"
        for prompt, (billed, sent) in counts.items():
            if max(billed, sent) > (history.attempts + history.hedge) * self.runs:
                self.wrong(f"{prompt} was sent {sent} times and billed {billed} times; attempts={history.attempts}")
        if history.requests_per_minute is not None and self.runs == 1:  # another process has a minute of its own
            self._check_rate(history.requests_per_minute)
        ledger = self.client.ledger
        if ledger.overrun and not self.told:
            self.wrong(f"bills came to {ledger.overrun} above their reservations, and nobody was told")
        if from_dollars(ledger.spent + ledger.unknown) < self.provider.billed:
            self.wrong(f"{ledger!r} is below what was billed, {self.provider.billed} picodollars")

    def _check_rate(self, per_minute: float) -> None:
        """In no minute was a key asked more than it may be; what is sent again after a dead connection counts once."""
        times: dict[tuple[str, str], list[float]] = {}
        for request in self.provider.requests:
            if not request.fresh:
                times.setdefault((request.provider, request.key), []).append(request.at)
        for each in times.values():
            most = max(bisect_left(each, at + 60 - EPSILON) - i for i, at in enumerate(each))
            if most > per_minute:
                self.wrong(f"a key was asked {most} times in a minute")


STATES = {"closed": 0, "open": 1, "half-open": 2}
NUMBERS = {name: number for number, name in enumerate(PRICES)}
FAULT_NUMBERS = {name: number for number, name in enumerate(("", *sorted(set(FAULTS))))}


def _names(provider: str) -> dict[str, str]:
    return {} if PRICES[provider].model == MODEL else {MODEL: PRICES[provider].model}


def _prices(provider: str) -> dict[str, Any]:
    return {PRICES[provider].model: PRICES[provider]}


@cache
def _backup(name: str) -> Provider:
    return Provider(name, f"https://{name}.example", f"sk-{name}-1234567890", models=_names(name), prices=_prices(name))


def budget_of(history: History) -> Decimal | None:
    """The budget of a history, in US dollars; None for none."""
    if history.budget is None:
        return None
    return Decimal(int(history.budget * WORST)).scaleb(-12)


WORST = 40_000_000
"""Picodollars: about what a call of a few words and 40 tokens may cost at the dearest provider."""


def prompt_of(name: str) -> str:
    """A prompt of a caller."""
    return f"{name} tell me more about it"
