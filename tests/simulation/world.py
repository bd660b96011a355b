"""A history happens: the real client, its callers, and what was seen of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from decimal import Decimal
from typing import Any

import attrs

from piapi_async import (
    APIConnectionError,
    BudgetExceededError,
    ChatCompletion,
    ChatCompletionChunk,
    ChatStream,
    Client,
    Health,
    Limits,
    PiAPIError,
    Provider,
    Restarted,
    Result,
    Retry,
    Timeout,
)
from piapi_async.catalog import from_dollars
from tests.simulation.history import Caller, Closing, History
from tests.simulation.loop import Strike, VirtualLoop
from tests.simulation.provider import MODEL, PRICES, Request, ScriptedProvider

MOST_WRONGS = 3
"""What is wrong with a history, that is told."""

TURNS = 5
"""Turns of the loop within which what a caller left has ended."""

HEALS = 3000.0
"""Seconds after which every provider is well again in the client's eyes: no pause and no breaker lasts longer."""

QUICK = Timeout(first_event=3, first_event_reasoning=3, progress=2, total=10)
PATIENT = Timeout(pool=20)


class OwnError(Exception):
    """What a caller's own code raises."""


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
    readers: list[asyncio.Task[None]] = attrs.field(factory=list)

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
        if self.states is not None:
            self.states.add(self.state())

    def check_money(self) -> None:
        """Spent, reserved and unknown are within the cap, and cover what was billed."""
        ledger = self.client.ledger
        left = ledger.left
        if left is None or self.budget is None:
            return
        taken = from_dollars(self.budget - left)
        if left < 0:
            over = sum(request.over for request in self.provider.requests)
            if from_dollars(-left) > over:
                self.wrong(f"{ledger!r} is above the cap, and bills above their reservations are {over} picodollars")
        if taken < self.provider.billed:
            self.wrong(f"{ledger!r} is below what was billed, {self.provider.billed} picodollars")

    def state(self) -> int:
        """What all that is under way is at, as one number, the same in every process.

        It is: of each key, what is in flight and in its queue, its bound, whether it is paused, and its breakers'
        states; of each request under way, its provider, how far it is, how it was asked and how it will be answered;
        and of the books, which amounts are above 0.
        """
        dispatcher = self.client._dispatcher  # what `statistics()` tells, in a tenth of the time
        now, books = self.loop.time(), dispatcher.books
        state = [books.spent > 0, books.reserved > 0, books.unknown > 0]
        for upstream in dispatcher.upstreams:
            for key in upstream.keys:
                gate = key.gate
                state += (gate.in_flight, gate.queued, gate.bound, gate.paused_until > now)  # type: ignore[arg-type]
                state += [STATES[breaker.state(now)] for breaker in key.breakers.values()]
        state += sorted(
            (NUMBERS[each.provider], each.phase, each.stream, each.choices, FAULT_NUMBERS[each.answer.fault])
            for each in self.provider.under_way
        )
        return hash(tuple(state))

    # -- the client ----------------------------------------------------------------------------------------------------

    def make_client(self, *, budget: bool = True) -> Client:
        """Make the client of the history."""
        history = self.history
        backups = [
            Provider(
                name, f"https://{name}.example", f"sk-{name}-1234567890", models=_names(name), prices=_prices(name)
            )
            for name in history.providers[1:]
        ]
        client = Client(
            [f"sk-first-{i}-1234567890" for i in range(history.keys)],
            base_url="https://first.example",
            model=MODEL,
            backups=backups,
            budget=self.budget if budget else None,
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

    # -- from begin to end ---------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Let it all happen."""
        self.budget = _budget(self.history)
        self.client = self.make_client()
        await self.client.open()
        jobs = [asyncio.create_task(self.call(i, caller)) for i, caller in enumerate(self.history.callers)]
        closings = [asyncio.create_task(self.close(closing)) for closing in self.history.closings]
        await asyncio.wait([*jobs, *closings])
        for job in (*jobs, *closings):
            if error := job.exception():
                raise error
        await self.check_idle()
        await self.check_healed()
        await self.client.aclose()
        await self.check_idle()
        if self.provider.sessions:
            self.wrong("sessions stay open")

    async def call(self, number: int, caller: Caller) -> None:
        """Let a caller do what it does, and judge how it ended."""
        await asyncio.sleep(caller.begins)
        name = f"c{number}"
        cancel = caller.cancel
        strike = Strike(cancel.at, cancel.how, lambda: self.note(f"{name} is cancelled")) if cancel else Strike(0)
        self.note(f"{name} begins: {caller.kind}")
        task = strike.start(self.do(name, caller))
        await asyncio.wait([task])
        if task.cancelled():
            self.note(f"{name} was cancelled")
            if not strike.struck:
                self.wrong(f"{name} raised CancelledError, and nobody cancelled it")
        elif error := task.exception():
            self.note(f"{name} raised {error!r}")
            self.judge(name, caller, error)
        else:
            self.note(f"{name} is done: {task.result()}")

    def judge(self, name: str, caller: Caller, error: BaseException) -> None:
        """Say whether a caller may see an error."""
        if isinstance(error, OwnError):
            if not caller.stumbles and caller.input != "raises":
                self.wrong(f"{name} got an error of another caller")
        elif isinstance(error, PiAPIError):
            self.judge_error(name, error)
        elif isinstance(error, TimeoutError):
            if caller.reading != "impatient":
                self.wrong(f"{name} raised {error!r}")
        elif not (isinstance(error, RuntimeError) and self.history.closings and "the client is closed" in str(error)):
            self.wrong(f"{name} raised {error!r}")

    def judge_error(self, name: str, error: PiAPIError) -> None:
        """Say whether an error of ours may be."""
        if isinstance(error, BudgetExceededError) and self.history.budget is None:
            self.wrong(f"{name} raised {error!r}, and there is no budget")
        if isinstance(error, APIConnectionError) and error.kind == "closed" and not self.history.closings:
            self.wrong(f"{name} raised {error!r}, and nobody closed anything")

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
        await asyncio.sleep(closing.reopens)
        await self.client.open()
        self.note("the client is opened again")

    # -- what a caller does --------------------------------------------------------------------------------------------

    async def do(self, name: str, caller: Caller) -> object:
        """Do what a caller does; return what came of it."""
        if caller.kind == "complete":
            return await self.complete(name, caller)
        if caller.kind == "stream":
            return await self.read(name, caller)
        return await self.map(name, caller)

    def on_send(self, caller: Caller) -> Any:
        """What the caller wants to be called before each request; it may raise."""
        if not caller.stumbles:
            return None
        left = [caller.stumbles]

        def stumble() -> None:
            left[0] -= 1
            if not left[0]:
                raise OwnError("on_send")

        return stumble

    async def complete(self, name: str, caller: Caller) -> object:
        completion = await self.client.complete(
            prompt_of(name),
            n=caller.choices,
            max_tokens=caller.most,
            deadline=caller.deadline,
            via_stream=caller.via_stream,
            on_send=self.on_send(caller),
        )
        self.check_whole(name, completion)
        return "ok"

    def check_whole(self, prompt: str, completion: ChatCompletion) -> None:
        """What a caller takes for an answer is one, to its own prompt."""
        message = completion.choices[0].message
        text = message.tool_calls[0].function.arguments if message.tool_calls else completion.text
        if text not in [each.text for each in self.provider.requests if each.prompt == prompt and each.whole]:
            self.wrong(f"{prompt} got {text!r}, and no whole answer says that")
        billed = [each for each in self.provider.requests if each.prompt == prompt and each.billed]
        sent = [each for each in completion.attempts if each.kind not in ("stale", "pool")]
        if len(billed) > len(sent):
            self.wrong(f"{prompt} was billed {len(billed)} times, and {len(sent)} attempts are on record")

    async def read(self, name: str, caller: Caller) -> object:
        restart = caller.reading == "restart"
        async with self.client.stream(
            prompt_of(name),
            n=caller.choices,
            max_tokens=caller.most,
            deadline=caller.deadline,
            on_interrupt="restart" if restart else "raise",
            on_send=self.on_send(caller),
        ) as stream:
            try:
                await self.read_to_its_end(name, caller, stream)
            except Exception as error:
                if not isinstance(error, _EnoughError):
                    await self.check_stays_failed(name, stream)
                    raise
                return "left early"
            self.check_whole(name, await stream.completion())
        return "ok"

    async def read_to_its_end(self, name: str, caller: Caller, stream: ChatStream) -> None:
        """Read as the caller reads, and return only if the iteration ended by itself."""
        way = caller.reading
        got: list[str] = []
        if way == "tokens":
            async for token in stream:
                got.append(token)
        elif way == "chunks":
            async for chunk in stream.chunks():
                got.append(_text_of(chunk))
        elif way == "anext":
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    got.append(await anext(stream))
        elif way == "impatient":
            tokens = aiter(stream)
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    got.append(await asyncio.wait_for(anext(tokens), caller.patience))
        elif way in ("events", "restart"):
            async for event in stream.events():
                if isinstance(event, Restarted):
                    got.clear()
                elif event.choice == 0 and type(event).__name__ == "Text":
                    got.append(getattr(event, "text", ""))
                await asyncio.sleep(caller.patience)
        elif way == "left early":
            async for _ in stream:
                raise _EnoughError
        elif way == "left by another":
            await self.leave_while_another_reads(caller, stream)
        else:
            await stream.completion()
            return
        completion = await stream.completion()
        if "".join(got) != completion.text:
            self.wrong(f"{name} read {''.join(got)!r} of {completion.text!r}")

    async def leave_while_another_reads(self, caller: Caller, stream: ChatStream) -> None:
        async def read() -> None:
            try:
                async for _ in stream:
                    pass
            except APIConnectionError as error:
                if error.kind != "closed":
                    raise
            else:
                self.check_complete = True

        reader = asyncio.create_task(read())
        self.readers.append(reader)
        await asyncio.sleep(caller.patience)
        raise _EnoughError

    async def check_stays_failed(self, name: str, stream: ChatStream) -> None:
        """After an error, every further read raises."""
        try:
            await stream.completion()
        except (PiAPIError, RuntimeError):
            return
        self.wrong(f"{name} read a whole answer behind an error")

    async def map(self, name: str, caller: Caller) -> object:
        seen: list[int] = []
        entered = self.client.map(
            _inputs(name, caller),
            n=caller.choices,
            max_tokens=caller.most,
            deadline=caller.deadline,
            concurrency=caller.width,
            ordered=caller.ordered,
        )
        try:
            async with entered as results:
                async for result in results:
                    seen.append(result.index)
                    self.check_result(name, caller, result)
                    if caller.leaves is not None and len(seen) >= caller.leaves:
                        break
        finally:
            if len(set(seen)) < len(seen) or (caller.ordered and seen != list(range(len(seen)))):
                self.wrong(f"{name} got the results {seen}")
        if caller.leaves is None and sorted(seen) != list(range(caller.items)):
            self.wrong(f"{name} got {seen}, and there are {caller.items} items")
        return "ok"

    def check_result(self, name: str, caller: Caller, result: Result) -> None:
        if result.completion is not None:
            self.check_whole(f"{name}-{result.index}", result.completion)
        elif isinstance(result.error, PiAPIError):
            self.judge_error(name, result.error)
        else:
            self.judge(name, caller, result.error or RuntimeError("a result has neither answer nor error"))

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
        """Each prompt was billed, and sent, as often as attempts say; all is on the books."""
        history = self.history
        counts: dict[str, list[int]] = {}
        for request in self.provider.requests:
            count = counts.setdefault(request.prompt, [0, 0])
            count[0] += bool(request.billed)
            count[1] += request.answer.fault != "stale"
        for prompt, (billed, sent) in counts.items():
            if max(billed, sent) > history.attempts + history.hedge:
                self.wrong(f"{prompt} was sent {sent} times and billed {billed} times; attempts={history.attempts}")
        ledger = self.client.ledger
        if from_dollars(ledger.spent + ledger.unknown) < self.provider.billed:
            self.wrong(f"{ledger!r} is below what was billed, {self.provider.billed} picodollars")


class _EnoughError(Exception):
    """A caller has read enough."""


STATES = {"closed": 0, "open": 1, "half-open": 2}
NUMBERS = {name: number for number, name in enumerate(PRICES)}
FAULT_NUMBERS: dict[str, int] = {}


def _number_faults() -> None:
    from tests.simulation.provider import FAULTS

    FAULT_NUMBERS.update({name: number for number, name in enumerate(("", *sorted(set(FAULTS))))})


_number_faults()


def _names(provider: str) -> dict[str, str]:
    return {} if PRICES[provider].model == MODEL else {MODEL: PRICES[provider].model}


def _prices(provider: str) -> dict[str, Any]:
    return {PRICES[provider].model: PRICES[provider]}


def _budget(history: History) -> Decimal | None:
    if history.budget is None:
        return None
    return Decimal(int(history.budget * WORST)).scaleb(-12)


WORST = 40_000_000
"""Picodollars: about what a call of a few words and 40 tokens may cost at the dearest provider."""


def prompt_of(name: str) -> str:
    """A prompt of a caller."""
    return f"{name} tell me more about it"


def _text_of(chunk: ChatCompletionChunk) -> str:
    return "".join(each.delta.content or "" for each in chunk.choices if each.index == 0)


def _inputs(name: str, caller: Caller) -> Iterable[str] | AsyncIterator[str]:
    prompts = [prompt_of(f"{name}-{i}") for i in range(caller.items)]
    if caller.input == "list":
        return prompts
    return _generate_slowly(prompts) if caller.input == "async generator" else _generate(prompts, caller)


def _generate(prompts: list[str], caller: Caller) -> Iterator[str]:
    yield from prompts
    if caller.input == "raises":
        raise OwnError("the input")


async def _generate_slowly(prompts: list[str]) -> AsyncIterator[str]:
    for prompt in prompts:
        await asyncio.sleep(0.01)
        yield prompt
