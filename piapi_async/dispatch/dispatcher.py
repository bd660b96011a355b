"""Carries calls out: one attempt after another, where the router says, until one answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from piapi_async.billing import Billing
from piapi_async.dispatch.attempt import AttemptInFlight
from piapi_async.dispatch.room import Room
from piapi_async.ledger import Books
from piapi_async.models import ChatCompletion
from piapi_async.policy import Retry, Timeout
from piapi_async.pool import Transport
from piapi_async.route import Call, Router, Upstream
from piapi_async.stream import StreamItem

if TYPE_CHECKING:
    from piapi_async.dispatch.hedge import HedgedAttempt
    from piapi_async.dispatch.statistics import Statistics


@attrs.define(eq=False, repr=False, slots=False)
class Dispatcher:
    """What all calls of a client share.

    Attributes:
        upstreams: Every provider, in order of preference.
        router: Who decides where attempts go.
        transport: What sends the bytes.
        billing: The price list applied to a call.
        books: Where money moves.
        retry: How often a failed request is sent again.
        timeout: The timers of one request.
        require_finish_reason: Whether a stream that ends without a `finish_reason` was cut off.
        clock: The time in seconds; the event loop's while the client is open.
        room: Where calls wait for room in the budget.
        outcomes: Attempts by how they ended.
        hedgeable: How many calls could have been hedged.
        hedges: How many were.
        closings: How often the client was closed.
    """

    upstreams: Sequence[Upstream]
    router: Router
    transport: Transport
    billing: Billing
    books: Books
    retry: Retry
    timeout: Timeout
    require_finish_reason: bool
    clock: Callable[[], float]
    room: Room = attrs.field(init=False)
    outcomes: Counter[str] = attrs.field(factory=Counter[str])
    hedgeable: int = 0
    hedges: int = 0
    closings: int = 0

    def __attrs_post_init__(self) -> None:
        self.room = Room(self.books)

    async def complete(self, call: Call) -> ChatCompletion:
        """Ask until there is a whole answer.

        Raises:
            APIError: There is none, and there is nowhere else to ask.
            BudgetExceededError: The budget has no room for an attempt.
        """
        call.closings = self.closings
        while True:
            async with self._attempt(call) as attempt:
                return await attempt.complete()

    async def stream(self, call: Call) -> AsyncGenerator[StreamItem, None]:
        """The same for a stream: another provider takes over silently until text has been handed out."""
        call.live, call.closings = True, self.closings
        while True:
            async with self._attempt(call) as attempt:
                first = await attempt.open_stream()
                if call.interrupted is not None:
                    from piapi_async.stream.events import Restarted  # deferred: few streams restart

                    yield Restarted(call.interrupted)
                    call.interrupted = None
                yield first
                leader = attempt.leader
                async for chunks in leader.batches:
                    if leader.first_event is None:
                        leader.note_first_event()
                    yield chunks
                    del chunks  # else they stay in memory while the next ones are waited for
                leader.finish_stream()
            if attempt.leader.completion is not None:
                yield attempt.leader.completion
                return

    def _attempt(self, call: Call) -> AttemptInFlight | HedgedAttempt:
        if not self.retry.hedge:
            return AttemptInFlight(self, call)
        from piapi_async.dispatch.hedge import HedgedAttempt  # deferred: few programs hedge

        return HedgedAttempt(self, call)

    def close_gates(self) -> None:
        """Send away the calls that wait for a place; those that wait for something else find out when they go on."""
        self.closings += 1
        for upstream in self.upstreams:
            for key in upstream.keys:
                key.gate.close()

    def statistics(self) -> Statistics:
        """The state of every key of every provider."""
        from piapi_async.dispatch.statistics import KeyStatistics, Statistics  # deferred: few programs ask for it

        now = self.clock()
        keys = tuple(
            KeyStatistics(
                provider=upstream.provider.name,
                key=key.endpoint.secret.fingerprint,
                in_flight=key.gate.in_flight,
                queued=key.gate.queued,
                bound=key.gate.bound,
                pause=key.gate.pause_left(now),
                breakers={model: breaker.state(now) for model, breaker in key.breakers.items()},
                retries=int(upstream.retry_budget),
            )
            for upstream in self.upstreams
            for key in upstream.keys
        )
        return Statistics(
            in_flight=sum(key.in_flight for key in keys),
            queued=sum(key.queued for key in keys),
            outcomes=dict(self.outcomes),
            keys=keys,
        )
