"""One attempt of a call, as a context manager that owns all that belongs to it.

Entering waits where the router says, reserves the money, passes the gate and begins the breaker's count. Leaving, by
whatever way, gives all of it back, books what came, and puts the attempt on record. Leaving never waits, so nothing
stays behind wherever a caller is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

import attrs

from piapi_async.breaker import Breaker
from piapi_async.dispatch.reservation import Reservation
from piapi_async.errors import APIConnectionError, APIError, APIStatusError, InvalidRequestError, NotFoundError
from piapi_async.models import Attempt, ChatCompletion, ChatCompletionChunk, Usage
from piapi_async.policy import Deadline, retry_rule, wants_new_connection
from piapi_async.pool import Exchange
from piapi_async.route import Call, Failure, Route, Upstream, UpstreamKey
from piapi_async.stream import read_chunks
from piapi_async.wire import (
    PAUSE_CAP,
    AnswerBuilder,
    Headers,
    decode_completion,
    encode_request,
    error_from_response,
    read_pause,
    read_request_id,
    read_retry_after,
    read_should_retry,
    request_headers,
)

if TYPE_CHECKING:
    from piapi_async.dispatch.dispatcher import Dispatcher

ERROR_BODY_SECONDS = 5.0
"""How long the body of an error status may take; what has come by then must do (ours)."""


class AttemptInFlight:
    """One attempt of a call.

    Attributes:
        call: What it belongs to.
        upstream: The provider, once it is entered.
        key: Which of its keys.
        by_stream: Whether it asks by stream, once it is entered.
        first_event: Seconds from its begin to the first event of a stream, once that came.
        completion: The whole answer, once it is there; leaving fills in what it cost and how it was got.

    Args:
        dispatcher: Who carries it out.
        call: What it belongs to.
    """

    upstream: Upstream
    key: UpstreamKey
    _breaker: Breaker

    def __init__(self, dispatcher: Dispatcher, call: Call) -> None:
        self.call = call
        self.by_stream = False
        self.first_event: float | None = None
        self._dispatcher = dispatcher
        self._reservation = Reservation(dispatcher, call)
        self._began = 0.0
        self._probe = False  # whether the breaker waits to be told how it ended
        self._proved = False  # whether a probe's first event has told the breaker already
        self._sent = False
        self._told_of = False  # whether `on_send` was called for a request that is under way
        self._exchange: Exchange | None = None
        self._status: int | None = None
        self._request_id: str | None = None
        self._builder: AnswerBuilder | None = None
        self._batches: AsyncGenerator[list[ChatCompletionChunk], None] | None = None
        self.completion: ChatCompletion | None = None
        self._ended = False

    @property
    def leader(self) -> Self:
        """The attempt itself: it stands for no other, as a `HedgedAttempt` does."""
        return self

    # -- entering ------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        call, dispatcher = self.call, self._dispatcher
        now = dispatcher.clock()
        if call.failures:
            route = dispatcher.router.after_failure(call, now)
            route.upstream.retry_budget -= route.retry
            call.via_stream = route.by_stream or call.via_stream
            if route.wait:
                await asyncio.sleep(route.wait)
                now = dispatcher.clock()
                if not route.key.admits(call.model, now):  # it may have fallen sick meanwhile
                    route = dispatcher.router.choose(call, now)
        else:
            route = dispatcher.router.choose(call, now)
        if call.worst is not None:
            await self._reserve(route)
        try:
            if call.failures or call.waits_for_room:
                self._check_open(route, now)
            if call.worst is not None and call.waits_for_room:  # then it may have fallen sick meanwhile too
                now = dispatcher.clock()
                if not route.key.admits(call.model, now):
                    route = dispatcher.router.choose(call, now)
            call.panic = call.panic or route.panic
            if route.key.gate.try_enter(call.tokens, now):
                self._begin(route, now)
            else:
                await self._wait_at_gate(route, now)
        except BaseException:
            self._reservation.release()
            raise
        return self

    def _check_open(self, route: Route, began: float) -> None:
        """Check that the client was not closed since the call began, though it may be open again.

        Raises:
            APIConnectionError: It was.
        """
        call = self.call
        if call.closings != self._dispatcher.closings:
            error = APIConnectionError(
                "the client was closed while a call waited to be sent again; keep it open",
                kind="closed",
                maybe_billed=any(failure.error.maybe_billed for failure in call.failures.values()),
            )
            self._turn_away(route, began, error)
            raise error

    def try_enter(self, route: Route, now: float) -> bool:
        """Enter without any wait, at one provider and no other, and say whether that was possible.

        Raises:
            BudgetExceededError: The budget has no room for it.
        """
        self._reservation.take()
        if not route.key.gate.try_enter(self.call.tokens, now):
            self._reservation.release()
            return False
        self._begin(route, now)
        return True

    async def _reserve(self, route: Route) -> None:
        began = self._dispatcher.clock()
        try:
            await self._reservation.take_in_time()
        except APIError as error:
            failure = error.with_traceback(None)
        else:
            return
        self._turn_away(route, began, failure)
        raise failure

    async def _wait_at_gate(self, route: Route, began: float) -> None:
        """Wait for a place. What was healthy when the call began to wait may not be so when its turn comes."""
        call, dispatcher = self.call, self._dispatcher
        while True:
            deadline = call.deadline.or_within(began, "pool", dispatcher.timeout.pool)
            max_pause = dispatcher.router.max_pause(call, route.upstream, began)
            try:
                entered = await route.key.gate.enter(deadline, call.tokens, max_pause)
            except APIError as error:
                failure = error.with_traceback(None)
                break
            now = dispatcher.clock()
            if entered and (call.panic or route.key.admits(call.model, now)) and self._reservation.is_enough:
                self._begin(route, now)
                return
            if entered:
                route.key.gate.leave()
            if not self._reservation.is_enough:
                self._reservation.release()
                await self._reserve(route)
                now = dispatcher.clock()
            route, began = dispatcher.router.choose(call, now), now
            call.panic = call.panic or route.panic
        self._turn_away(route, began, failure)
        raise failure

    def _turn_away(self, route: Route, began: float, error: APIError) -> None:
        """Note that the call gave up at the gate; that says nothing about the provider."""
        self._began, self.upstream, self.key = began, route.upstream, route.key
        self._record(self._dispatcher.clock(), error.kind)
        error.provider = route.upstream.provider.name
        error.attempts = tuple(self.call.attempts)

    def _begin(self, route: Route, now: float) -> None:
        call, upstream = self.call, route.upstream
        self.upstream, self.key, self._began = upstream, route.key, now
        self._breaker = route.key.breaker(call.model)
        self._probe = not self._breaker.closed and self._breaker.start(now)
        self.by_stream = call.request.stream or call.via_stream is True
        if call.via_stream is None and upstream.has_stream_only and not self.by_stream:
            self.by_stream = self._dispatcher.billing.is_stream_only(upstream.provider, call.model)
        call.begun += 1
        retry = self._dispatcher.retry
        if upstream.retry_budget < retry.budget and upstream not in call.failures:
            upstream.retry_budget = min(retry.budget, upstream.retry_budget + retry.budget_ratio)

    # -- sending and reading -------------------------------------------------------------------------------------------

    async def complete(self) -> ChatCompletion:
        """Ask, and return the whole answer."""
        if self.by_stream:
            await self.open_stream()
            return await self.read_stream()
        timeout = self._dispatcher.timeout
        deadline = self.call.deadline.or_within(self._began, "total", timeout.total, timeout.progress)
        exchange = await self._send(deadline)
        body = await exchange.read_all(deadline)
        return self._accept(self._decode(body))

    def _decode(self, body: bytes) -> ChatCompletion:
        call = self.call
        return decode_completion(
            body, asked=call.model, choices=call.request.n or 1, secrets=self.upstream.provider.api_key
        )

    async def open_stream(self) -> list[ChatCompletionChunk]:
        """Ask for a stream, and return the chunks that have been read of it: none yet; `batches` has them all."""
        call, dispatcher = self.call, self._dispatcher
        self.by_stream = True
        deadline = call.deadline.or_within(self._began, "first_event", dispatcher.timeout.first_event_of(call.model))
        exchange = await self._send(deadline)
        self._builder = AnswerBuilder(call.request.n or 1)
        self._batches = read_chunks(
            exchange,
            self._builder,
            first_event=deadline,
            progress=dispatcher.timeout.progress,
            deadline=call.deadline,
            clock=dispatcher.clock,
            secrets=self.upstream.provider.api_key,
            require_finish_reason=dispatcher.require_finish_reason,
        )
        return []

    @property
    def batches(self) -> AsyncGenerator[list[ChatCompletionChunk], None]:
        """The chunks of an open stream, a list for each read."""
        assert self._batches is not None  # noqa: S101  # open_stream has set it
        return self._batches

    def note_first_event(self) -> None:
        """Note the first event of a stream: a provider on probation has then shown what it was asked to show."""
        now = self._dispatcher.clock()
        self.first_event = now - self._began
        if self._probe:
            self._probe = False
            self._proved = True
            self._breaker.record(now, True, True, self._began)

    async def read_stream(self) -> ChatCompletion:
        """Read an open stream to its end, and return the whole answer."""
        async for _ in self.batches:
            if self.first_event is None:
                self.note_first_event()
        return self.finish_stream()

    def finish_stream(self) -> ChatCompletion:
        """Make the whole answer of a stream that has ended well; leaving fills in the rest."""
        assert self._exchange is not None  # noqa: S101  # open_stream has set both
        assert self._builder is not None  # noqa: S101
        self._exchange.finish()
        return self._accept(self._builder.build(self.call.model))

    def _accept(self, completion: ChatCompletion) -> ChatCompletion:
        """Count the tokens of a good answer. The caller's tokenizer may raise, so this comes before leaving."""
        self._reservation.count(completion, self._builder, self.upstream)
        self.completion = completion
        return completion

    async def _send(self, deadline: Deadline) -> Exchange:
        """Send the request; once more, on a new connection, when a kept one turns out to be closed."""
        call, provider, request = self.call, self.upstream.provider, self.call.request
        if self.by_stream and not request.stream:
            request = attrs.evolve(request, stream=True)
        body = encode_request(request, provider.name_of(call.model), include_usage=provider.stream_usage)
        exchange = None
        while exchange is None:
            if call.on_send is not None:
                _tell(call.on_send)
                self._told_of = True
            call.sent += 1
            headers = request_headers(call.idempotency_key, call.sent, stream=self.by_stream)
            try:
                exchange = await self._dispatcher.transport.send(
                    self.key.endpoint, body, headers, deadline, on_sent=self._note_sent, fresh=call.fresh
                )
            except APIConnectionError as error:
                if error.kind != "stale" or call.resent:
                    raise
                now = self._dispatcher.clock()
                self._record(now, "stale")
                self._began = now
                self._sent = False  # nobody has read it
                call.resent = call.fresh = True
                self._tell_of_end()
        self._sent = True
        self._exchange = exchange
        self._status = exchange.status
        self._request_id = read_request_id(exchange.headers, provider.api_key)
        if exchange.status != 200:
            raise await self._read_error(exchange, deadline)
        pause = read_pause(exchange.headers)
        if pause:  # a good answer, and the last one for a while
            self.key.gate.pause(pause, PAUSE_CAP)
        return exchange

    def _note_sent(self) -> None:
        self._sent = True

    async def _read_error(self, exchange: Exchange, deadline: Deadline) -> APIError:
        call, provider = self.call, self.upstream.provider
        body = b""
        with suppress(APIError):  # a broken body takes nothing from the status
            now = self._dispatcher.clock()
            body = await exchange.read_start(deadline.or_within(now, "progress", ERROR_BODY_SECONDS))
        error = error_from_response(
            exchange.status,
            body,
            content_type=exchange.headers.get("content-type", ""),
            location=exchange.headers.get("location"),
            secrets=provider.api_key,
        )
        error.retry_after = read_retry_after(exchange.headers)
        near = self._dispatcher.billing.suggest(call.model, provider)
        if isinstance(error, NotFoundError) and near:
            error.args = (f"{error}; did you mean {near!r}?",)
        return error

    # -- leaving -------------------------------------------------------------------------------------------------------

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self.end(error)
        if self._batches is not None:
            await self._batches.aclose()
        return isinstance(error, APIError)  # what follows it, the next attempt asks the router

    def end(self, error: BaseException | None = None) -> None:
        """Give everything back, once.

        Args:
            error: What ended it: an `APIError` is the provider's failure; anything else, or None where there is no
                answer, says nothing about the provider.
        """
        if self._ended:
            return
        self._ended = True
        now = self._dispatcher.clock()
        if isinstance(error, APIError):
            self._fail(error, now)
        elif self.completion is not None and error is None:
            self._succeed(self.completion, now)
        else:
            self._abandon(now)
        self._dispatcher.room.changed()

    def _succeed(self, completion: ChatCompletion, now: float) -> None:
        usage, gate, dispatcher = completion.usage, self.key.gate, self._dispatcher
        self._leave(now, good=True)
        completion.cost = self._reservation.book(self.upstream)
        completion.cost_estimated = self._reservation.estimated
        self._record(now, "ok", usage)
        completion.provider = self.upstream.provider.name
        completion.attempts = tuple(self.call.attempts)
        completion.request_id = self._request_id
        gate.widen()
        if gate.counts_tokens and usage is not None:
            gate.correct_tokens(self.call.tokens, usage.total_tokens)
        if dispatcher.retry.hedge:
            took = now - self._began if self.first_event is None else self.first_event
            self.upstream.starts[self.first_event is not None].append(took)

    def _fail(self, error: APIError, now: float) -> None:
        """Note a failure, and tell the error what only the attempt knows."""
        call = self.call
        headers: Headers = {} if self._exchange is None else self._exchange.headers
        rule = retry_rule(
            error,
            failover_on_auth=self._dispatcher.retry.failover_on_auth,
            should_retry=read_should_retry(headers),
            may_switch=call.may_switch and not self.by_stream,
        )
        if self._builder is not None:
            error.partial = error.partial or self._builder.text
            error.committed = call.live and self._builder.has_content
            error.maybe_billed = error.maybe_billed or self._builder.begun
        error.maybe_billed = error.maybe_billed and self._sent
        self._settle(billed=error.maybe_billed)
        self._record(now, error.kind)
        error.provider, error.request_id = self.upstream.provider.name, self._request_id
        error.attempts = tuple(call.attempts)
        before = call.failures.pop(self.upstream, None)
        times = 1 if before is None else before.times + 1
        failure = Failure(error.with_traceback(None), rule, times, self.key, self._began)
        call.failures[self.upstream] = failure
        call.interrupted = error if error.committed else call.interrupted
        call.fresh = wants_new_connection(error)
        self._cool_down(failure, read_pause(headers, refused=self._status == 429))
        if rule.out_of_credit:
            self.upstream.off_until = now + self._dispatcher.retry.quota_cool_down
        # Last: the next in the queue, who gets the place, must meet the cool-down.
        self._leave(now, good=False if rule.unhealthy else None)

    def _abandon(self, now: float) -> None:
        """Note that the caller left, or its own code raised, or that the other of two hedged attempts won."""
        self._leave(now, good=None)
        self._settle(billed=self._sent)
        self._record(now, "cancelled")

    def _leave(self, now: float, *, good: bool | None) -> None:
        """Give the place back, end the breaker's count, and close what is not finished."""
        if self._exchange is not None and not good:
            self._exchange.close()
        self._breaker.record(now, None if self._proved and good else good, self._probe, self._began)
        self.key.gate.leave()

    def _settle(self, *, billed: bool) -> None:
        """Keep or release what was reserved, for an attempt without an answer."""
        if billed:
            self._reservation.keep(self.upstream, self._builder)
        else:
            self._reservation.release()
        self._tell_of_end()

    def _tell_of_end(self) -> None:
        """Tell who keeps a journal that a request has ended without an answer, and is on the books if need be."""
        if self._told_of and self.call.on_settled is not None:
            self.call.on_settled()
        self._told_of = False

    def _cool_down(self, failure: Failure, pause: float) -> None:
        """Make all callers of a key wait for as long as one of them was told to."""
        retry, gate, error = self._dispatcher.retry, self.key.gate, failure.error
        seconds = error.retry_after
        if seconds is None:
            seconds = pause
            if failure.rule.throttled and not seconds:
                seconds = retry.backoff(failure.times - 1, self.key.rng, throttled=True)
        if failure.rule.throttled and isinstance(error, APIStatusError) and error.status_code == 429:
            gate.throttle(seconds, retry.max_cool_down)
        elif seconds:
            gate.pause(seconds, retry.max_cool_down)

    def _record(self, now: float, kind: str, usage: Usage | None = None) -> None:
        self._dispatcher.outcomes[kind] += 1
        self.call.attempts.append(
            Attempt(
                self.upstream.provider.name,
                self.key.endpoint.secret.fingerprint,
                self._status,
                kind,
                self._began - self.call.began,
                now - self._began,
                self.first_event,
                self._request_id,
                usage,
            )
        )


def _tell(on_send: Callable[[], object]) -> None:
    """Call the caller's function before a request goes out.

    Raises:
        InvalidRequestError: It would have to be awaited, so what it does would be dropped.
    """
    coroutine = on_send()
    if isinstance(coroutine, Coroutine):
        coroutine.close()
        raise InvalidRequestError(
            "on_send: it returned a coroutine, which nobody awaits; pass a function that is not async"
        )
