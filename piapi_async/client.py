"""`Client`: one concern a step, from a prompt to an answer.

    complete, stream → _begin (a checked request)
      → _complete, _stream (failover and retry, as the router says) → _enter (the gate)
        → _complete_once, _stream_once (send once) → _open (status) → the answer

A prompt is bound to a name only in frames that have ended, or let go of it, before anything can fail: tracebacks that
capture locals must not show it. That is why `_begin` returns a refusal instead of raising it.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl as ssl_module
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack, cast

import attrs
import msgspec

from piapi_async.billing import Billing, Quote
from piapi_async.catalog import ModelInfo, allows, from_dollars
from piapi_async.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    BudgetExceededError,
    ConfigurationError,
    InvalidRequestError,
    NotFoundError,
    PiAPIError,
    Secret,
)
from piapi_async.ledger import Ledger
from piapi_async.models import ChatCompletion, ChatParams, ChatRequest, Prompt, Result
from piapi_async.policy import Due, Health, Limits, Retry, Timeout, pause, retry_after
from piapi_async.pool import Exchange, SessionPool, Transport
from piapi_async.provider import Provider, check_proxy, read_keys
from piapi_async.route import Call, Lane, Router, Sending, Site, Statistics
from piapi_async.stream import Answer, ChatStream, Restarted, Source, Timers, read_chunks
from piapi_async.wire import WireChunk, WireCompletion, decode_completion, encode_request, error_from_response, read_id

if TYPE_CHECKING:
    from piapi_async.fanout import FanOut

__all__ = ["Client"]

T = TypeVar("T")

BASE_URL = "https://api.piapi.ai/v1"
"""Where PiAPI answers, by its page."""

ERROR_BODY_SECONDS = 5.0
"""How long the body of an error status may take; what has come by then must do (ours)."""

NO_DEADLINE = Due()

_PARAMETERS = frozenset(ChatParams.__annotations__)


class Client:
    """The client of PiAPI's LLM API.

    It may be made anywhere; its connections open on `async with` and belong to that event loop.

    Args:
        api_key: PiAPI's key; without it the environment variable `PIAPI_API_KEY`.
        base_url: Without it `PIAPI_BASE_URL`, else `https://api.piapi.ai/v1`.
        model: The model of calls that name none.
        backups: Providers to fall back on, in order of preference.
        plan: The account's plan: `"free"`, `"creator"`, `"pro"`; None when unknown: then nothing is refused ahead.
        budget: US dollars that this client may spend at most, above 0. Each request's worst case is reserved before
            it is sent.
        prices: PiAPI's prices, where they differ from the built-in table, or for models that it lacks.
        tokenizer: Counts the tokens of a text, for estimates; without it a token is 0.75 word, as PiAPI's page says.
        system_role: What to do with system messages for a model that takes none: `"refuse"` them, or `"fold"` them
            into the first user message.
        limits: How much each key may be asked at once.
        retry: How often, and after what wait, a failed request is sent again.
        timeout: The timers of one request.
        health: When a provider counts as sick, and is left alone.
        stream_usage: Whether to ask PiAPI for token counts in streams (`stream_options` is not on its page).
        require_finish_reason: Whether a stream that ends by a terminator but without a `finish_reason` is an error.
        ssl: A context of your own for TLS.
        insecure: Whether to skip the verification of certificates.
        proxy: URL of an HTTP proxy.
        trust_env: Whether `HTTPS_PROXY` and `NO_PROXY` count, where no proxy is given. `~/.netrc` never does.
        headers: Sent with every request to PiAPI, never to a backup.
        allow_http: Whether the key may go unencrypted to a host that is not this machine.
        transport: What sends the bytes instead of a `SessionPool`: for simulations.
        seed: Of all jitter, for simulations; without it each client has its own.

    Raises:
        ConfigurationError: A key, URL or option that can't work.
    """

    def __init__(
        self,
        api_key: str | Sequence[str] | None = None,
        *,
        base_url: str | None = None,
        model: str | None = None,
        backups: Sequence[Provider] = (),
        plan: str | None = None,
        budget: Decimal | str | None = None,
        prices: Mapping[str, ModelInfo] | None = None,
        tokenizer: Callable[[str], int] | None = None,
        system_role: Literal["refuse", "fold"] = "refuse",
        limits: Limits = Limits(),
        retry: Retry = Retry(),
        timeout: Timeout = Timeout(),
        health: Health = Health(),
        stream_usage: bool = False,
        require_finish_reason: bool = False,
        ssl: ssl_module.SSLContext | None = None,
        insecure: bool = False,
        proxy: str | None = None,
        trust_env: bool = False,
        headers: Mapping[str, str] | None = None,
        allow_http: bool = False,
        transport: Transport | None = None,
        seed: int | None = None,
    ) -> None:
        keys = _read_keys(api_key)
        del api_key
        if isinstance(keys, ConfigurationError):
            raise keys
        if plan is not None:
            allows(plan, "free")
        if ssl is not None and ssl.verify_mode == ssl_module.CERT_NONE and not insecure:
            raise ConfigurationError("ssl: this context verifies no certificate; pass insecure=True if that is meant")
        if system_role not in ("refuse", "fold"):
            raise ConfigurationError("system_role: it is not known; pass 'refuse' or 'fold'")
        primary = Provider(
            "piapi",
            base_url or os.environ.get("PIAPI_BASE_URL") or BASE_URL,
            keys,
            prices=prices or {},
            stream_usage=stream_usage,
            headers=headers or {},
            allow_http=allow_http,
        )
        self.model = model
        self.base_url = primary.base_url
        self._providers = (primary, *backups)
        self.limits = limits
        self._retry = retry
        self._timeout = timeout
        self._require_finish_reason = require_finish_reason
        self._plan = plan
        self.ledger = Ledger(_read_budget(budget))
        self._billing = Billing(primary, self.ledger, plan=plan, tokenizer=tokenizer, fold=system_role == "fold")
        dice = random.Random(seed)  # jitter is no secret
        self._router = Router(self._providers, limits, retry, health, self._billing, dice)
        self._transport: Transport = transport or SessionPool(
            self._router.endpoints,
            connect_timeout=timeout.connect,
            ssl=ssl if ssl is not None else not insecure,
            proxy=None if proxy is None else check_proxy(proxy),
            trust_env=trust_env,
        )
        self._loop: asyncio.AbstractEventLoop | None = None  # while it is open
        self._clock: Callable[[], float] = time.monotonic
        self._pid = 0
        self._closed = False
        self._keys = ""
        self._calls = 0

    def __repr__(self) -> str:
        if not hasattr(self, "_transport"):  # a traceback out of __init__ may ask
            return "<Client unmade>"
        return f"<Client {self._router.sites[0].provider.base_url} model={self.model!r} {self._transport!r}>"

    def __reduce__(self) -> str:
        raise TypeError("a Client can't be pickled or copied; make one where it is needed")

    async def __aenter__(self) -> Self:
        if self._loop is not None or self._closed:
            raise RuntimeError("this client was opened before; make another")
        self._loop, self._pid = asyncio.get_running_loop(), os.getpid()
        self._clock = self._loop.time
        self._keys = f"piapi-{os.urandom(16).hex()}"
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection; calls under way fail with `APIConnectionError`. Idempotent."""
        self._closed, self._loop = True, None
        await self._transport.close()

    def statistics(self) -> Statistics:
        """Tell what operators ask for: in flight, queued, outcomes, the state of each provider's gate and breakers."""
        return self._router.statistics(self._clock())

    # -- what the caller calls ---------------------------------------------------------------------------------------

    async def complete(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        deadline: float | None = None,
        on_send: Callable[[], object] | None = None,
        **params: Unpack[ChatParams],
    ) -> ChatCompletion:
        """Ask, and wait for the whole answer.

        Args:
            prompt: A text (one user message), messages, or a whole request.
            model: Name of the model; without it the request's, else the client's.
            deadline: Seconds for everything: waiting at the gate, retries, the answer.
            on_send: Called right before each request goes out, for callers who keep a journal.
            params: As in `ChatRequest`.

        Raises:
            InvalidRequestError: A parameter that the provider would refuse; nothing was sent.
            APIError: No whole answer came.
        """
        call = self._begin(prompt, model, deadline, params)
        del prompt, params
        if isinstance(call, Exception):
            raise call
        call.on_send = on_send
        return await self._complete(call)

    def stream(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        deadline: float | None = None,
        on_interrupt: Literal["raise", "restart"] = "raise",
        on_send: Callable[[], object] | None = None,
        **params: Unpack[ChatParams],
    ) -> ChatStream:
        """Ask, and get the answer token by token: `async with client.stream(...) as stream: async for token in stream`.

        Args:
            prompt: A text (one user message), messages, or a whole request.
            model: Name of the model; without it the request's, else the client's.
            deadline: Seconds for everything, from this call to the last token.
            on_interrupt: What a failure after the first text does: `"raise"` the error, which has the text so far in
                `partial`; or `"restart"`: ask anew, and say so by a `Restarted` in `ChatStream.events`.
            on_send: As in `complete`.
            params: As in `ChatRequest`.

        Raises:
            InvalidRequestError: A parameter that the provider would refuse; nothing was sent.
        """
        call = self._begin(prompt, model, deadline, params, stream=True)
        del prompt, params
        if isinstance(call, Exception):
            raise call
        call.restart, call.on_send = on_interrupt == "restart", on_send
        return ChatStream(self._stream(call), restarts=call.restart)

    def map(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        *,
        model: str | None = None,
        concurrency: int | None = None,
        ordered: bool = False,
        deadline: float | None = None,
        **params: Unpack[ChatParams],
    ) -> FanOut[Prompt]:
        """Ask many: `async with client.map(prompts) as results: async for result in results`.

        Args:
            prompts: Any iterable or async iterable, endless too; at most twice the concurrency is pulled ahead.
            model: As in `complete`.
            concurrency: Most prompts under way at once; without it `Limits.concurrency`.
            ordered: Whether results come in the order of the prompts instead of as they finish.
            deadline: Seconds for each prompt.
            params: As in `ChatRequest`, for every prompt.

        Raises:
            ConfigurationError: `prompts` is no iterable, or `concurrency` no number of workers.
            TypeError: There is no such parameter.

        Returns:
            A context manager that gives an async iterator of `Result`. An error of one prompt is in its result and
            ends no other; leaving the block cancels what is left.
        """
        from piapi_async.fanout import FanOut  # deferred: `fanout` stands below this module

        self._check_usable()
        _check_names(params)

        async def ask(index: int, prompt: Prompt) -> Result:
            call = self._begin(prompt, model, deadline, params)
            del prompt
            return await self._result(index, call)

        width = concurrency if concurrency is not None else self.limits.concurrency
        return FanOut(prompts, ask, concurrency=width, ordered=ordered)

    def quote(self, prompt: Prompt, *, model: str | None = None, **params: Unpack[ChatParams]) -> Quote:
        """Tell what a call would cost, without sending it; the client need not be open.

        Args:
            prompt: As in `complete`.
            model: As in `complete`.
            params: As in `ChatRequest`.

        Raises:
            InvalidRequestError: A parameter that the provider would refuse.
        """
        request = self._checked(prompt, model, params)
        del prompt, params
        if isinstance(request, Exception):
            raise request
        return self._billing.quote(request, request.model or "", self._providers)

    # -- the steps ---------------------------------------------------------------------------------------------------

    def _begin(
        self,
        prompt: Prompt,
        model: str | None,
        deadline: float | None,
        params: ChatParams,
        *,
        stream: bool = False,
    ) -> Call | InvalidRequestError | TypeError:
        """Make a call of what the caller passed, or the refusal to be raised."""
        self._check_usable()
        now = self._clock()
        try:
            request = self._request(prompt, model, params, stream=stream)
            if deadline is not None and not (isinstance(cast("object", deadline), (int, float)) and deadline > 0):
                raise InvalidRequestError("deadline: it is not a number above 0; pass seconds, or None")
            name = request.model or ""
            sites = self._router.sites if self._plan is None else self._sites(name)
            worst = None
            if self.ledger.limited:
                worst = self._billing.worst(request, name, [site.provider for site in sites])
        except (InvalidRequestError, TypeError) as error:
            return error.with_traceback(None)
        due = NO_DEADLINE if deadline is None else Due(now + deadline, "deadline", deadline)
        self._calls += 1
        return Call(request, name, now, due, f"{self._keys}-{self._calls}", sites, worst, [], {})

    def _checked(
        self, prompt: Prompt, model: str | None, params: ChatParams
    ) -> ChatRequest | InvalidRequestError | TypeError:
        """A request, or the refusal to be raised where no prompt is bound."""
        try:
            return self._request(prompt, model, params, stream=isinstance(prompt, ChatRequest) and prompt.stream)
        except (InvalidRequestError, TypeError) as error:
            return error.with_traceback(None)

    def _check_usable(self) -> None:
        try:
            usable = asyncio.get_running_loop() is self._loop
        except RuntimeError:  # none is running, as in the child of a fork
            usable = False
        if usable:
            return
        if self._loop is None:
            state = "closed" if self._closed else "not open"
            raise RuntimeError(f"the client is {state}; use it inside `async with Client(...) as client:`")
        if os.getpid() != self._pid:
            raise RuntimeError("the client was opened before this process forked; make another in the child")
        raise RuntimeError("the client belongs to another event loop; make one for each loop")

    def _request(self, prompt: Prompt, model: str | None, params: ChatParams, *, stream: bool) -> ChatRequest:
        if params:
            _check_names(params)
        if isinstance(prompt, ChatRequest):
            request = self._changed(prompt, model, params, stream=stream)
        else:
            asked: Any = prompt  # the class takes what a prompt may be, though its field says what it becomes
            request = ChatRequest(asked, model or self.model, stream=stream, **params)
        if not request.model:
            raise InvalidRequestError("model: there is none; pass model=…, or set it with Client(model=…)")
        if isinstance(prompt, str):
            return request  # a text is a user's message: no model refuses its role
        return self._billing.check_roles(request, request.model)

    def _changed(self, request: ChatRequest, model: str | None, params: ChatParams, *, stream: bool) -> ChatRequest:
        """A request that the caller made, with what the call says beside it."""
        if request.stream and not stream:
            raise InvalidRequestError("stream: complete() does not stream; use client.stream()")
        changes: dict[str, Any] = {name: value for name, value in params.items() if value is not None}
        name = model or request.model or self.model
        if name != request.model:
            changes["model"] = name
        if request.stream != stream:
            changes["stream"] = stream
        return attrs.evolve(request, **changes) if changes else request

    def _sites(self, model: str) -> Sequence[Site]:
        """The providers that may serve a model."""
        sites = self._router.sites
        allowed = self._billing.allowed(self._providers, model)
        return sites if allowed is self._providers else [site for site in sites if site.provider in allowed]

    async def _result(self, index: int, call: Call | InvalidRequestError | TypeError) -> Result:
        if isinstance(call, Exception):
            return Result(index, None, error=call)
        try:
            completion, error = await self._complete(call), None
        except PiAPIError as failure:
            completion, error = None, failure
        return Result(index, call.request, completion, error, self._clock() - call.began)

    async def _complete(self, call: Call) -> ChatCompletion:
        """Ask one provider after another, as the router says, until one answers."""
        now = call.began
        site, lane = self._router.choose(call, now)
        while True:
            sending = self._enter_at_once(call, site, lane, now) or await self._enter(call, site, lane)
            try:
                if self._retry.hedge:
                    sending, found = await self._race(sending, self._complete_once)
                else:
                    found = await self._complete_once(sending)
            except APIError as error:
                failure = error.with_traceback(None)
            else:
                return self._finish(sending, found)
            site, lane, now = await self._follow(call, failure)

    async def _stream(self, call: Call) -> Source:
        """The same for a stream: another provider takes over silently until the first text has been handed out."""
        now = call.began
        site, lane = self._router.choose(call, now)
        while True:
            sending = self._enter_at_once(call, site, lane, now) or await self._enter(call, site, lane)
            begun = None
            try:
                if self._retry.hedge:
                    sending, begun = await self._race(sending, self._begin_stream)
                else:
                    begun = await self._begin_stream(sending)
                if call.interrupted is not None:
                    yield Restarted(call.interrupted)
                    call.interrupted = None
                yield begun.first
                answered = bool(begun.first)
                async for batch in begun.batches:
                    if not answered:
                        answered = True
                        self._router.answered(begun.sending, self._clock())
                    yield batch
                    del batch  # as in `read_chunks`
                whole = self._end_stream(begun)
            except APIError as error:
                failure = error.with_traceback(None)
                if begun is not None:
                    self._break_off(begun, failure)
            else:
                yield self._finish(begun.sending, whole)
                return
            finally:
                if begun is not None and not begun.sending.ended:
                    await self._leave(begun)
            site, lane, now = await self._follow(call, failure)

    async def _follow(self, call: Call, failure: APIError) -> tuple[Site, Lane, float]:
        """Wait as long as the router says, and return where to go, and the time; or raise what the caller gets."""
        now = self._clock()
        site, lane, wait = self._router.after(call, now, failure)
        if failure.committed:
            call.interrupted = failure
        if wait:
            await asyncio.sleep(wait)
            now = self._clock()
        return site, lane, now

    def _enter_at_once(self, call: Call, site: Site, lane: Lane, now: float) -> Sending | None:
        """Begin an attempt if there is a place for it now; one that has to wait for nothing needs no coroutine."""
        reserved = None if call.worst is None else self.ledger.reserve(call.worst)
        if lane.gate.take(self._tokens(call) if lane.gate.counts_tokens else 0, now):
            # A first attempt's lane was chosen just now, a later one's before a wait.
            if not call.sent or call.panic or lane.admits(call.model, now):
                return self._router.begin(call, site, lane, now, reserved)
            lane.gate.release()
        if reserved is not None:
            self.ledger.release(reserved)
        return None

    async def _enter(self, call: Call, site: Site, lane: Lane) -> Sending:
        """Reserve the worst case, where there is a budget, and pass the gate."""
        reserved = None if call.worst is None else self.ledger.reserve(call.worst)
        try:
            return await self._pass_gate(call, site, lane, reserved)
        except BaseException:
            if reserved is not None:
                self.ledger.release(reserved)
            raise

    async def _pass_gate(self, call: Call, site: Site, lane: Lane, reserved: int | None) -> Sending:
        """Wait for a place. What was healthy when the call began to wait may not be so when its turn comes."""
        while True:
            began = self._clock()
            tokens = self._tokens(call) if lane.gate.counts_tokens else 0
            due = call.deadline.after(began, "pool", self._timeout.pool)
            try:
                taken = await lane.gate.acquire(due, tokens, self._router.patience(call, site, began))
            except APITimeoutError as error:
                failure = error.with_traceback(None)
                break
            now = self._clock()
            if taken and (call.panic or lane.admits(call.model, now)):
                return self._router.begin(call, site, lane, now, reserved)
            if taken:
                lane.gate.release()
            site, lane = self._router.choose(call, now)
        self._router.turned_away(call, lane, began, self._clock(), failure)
        raise failure

    async def _race(self, sending: Sending, once: Callable[[Sending], Coroutine[None, None, T]]) -> tuple[Sending, T]:
        """Send once; or, with hedging on and an attempt slow to begin, once more elsewhere: the first one wins."""
        hedge = self._router.hedge(sending, self._clock())
        if hedge is None:
            return sending, await once(sending)
        site, lane, delay = hedge
        tasks = {asyncio.create_task(once(sending)): sending}
        winner = None
        try:
            done, _ = await asyncio.wait(tasks, timeout=delay)
            now = self._clock()
            if not done and lane.gate.opens(0, now) <= now:  # a hedge never queues
                with suppress(BudgetExceededError):
                    other = await self._enter(sending.call, site, lane)
                    self._router.hedged()
                    tasks[asyncio.create_task(once(other))] = other
            winner = await _first_good(tasks)
            return tasks[winner], winner.result()
        finally:
            losers = [task for task in tasks if task is not winner]
            await _end(losers, self._leave)
            for task in losers:
                # Never seen: asyncio ending a task before its first step. If it did, a place would be lost for good.
                if not tasks[task].ended:  # pragma: no cover  # as said above
                    self._router.abandoned(tasks[task], self._clock())

    # -- send once ---------------------------------------------------------------------------------------------------

    async def _complete_once(self, sending: Sending) -> WireCompletion:
        try:
            timeout = self._timeout
            due = sending.call.deadline.after(sending.began, "total", timeout.total, timeout.progress)
            exchange = await self._open(sending, due)
            found = decode_completion(
                await exchange.read_all(due),
                asked=sending.call.model,
                secrets=sending.lane.provider.api_key,
            )
        except APIError as error:
            failure = error.with_traceback(None)
        except BaseException:
            self._router.abandoned(sending, self._clock())
            raise
        else:
            self._router.succeeded(sending, self._clock(), found)
            return found
        self._router.failed(sending, self._clock(), failure)
        raise failure

    async def _begin_stream(self, sending: Sending) -> _Begun:
        """Open a stream; where hedging is on, up to its first event, which is what the race is about."""
        call, answer = sending.call, Answer()
        try:
            due = call.deadline.after(sending.began, "first_event", self._timeout.first_event_of(call.model))
            exchange = await self._open(sending, due)
        except APIError as error:
            failure = error.with_traceback(None)
        except BaseException:
            self._router.abandoned(sending, self._clock())
            raise
        else:
            batches = read_chunks(
                exchange,
                answer,
                Timers(due, self._timeout.progress, call.deadline),
                secrets=sending.lane.provider.api_key,
                require_finish_reason=self._require_finish_reason,
            )
            begun = _Begun(sending, exchange, answer, batches)
            return await self._read_first(begun) if self._retry.hedge else begun
        self._router.failed(sending, self._clock(), failure)
        raise failure

    async def _read_first(self, begun: _Begun) -> _Begun:
        try:
            begun.first = await anext(begun.batches)
        except APIError as error:
            failure = error.with_traceback(None)
        except BaseException:
            await self._leave(begun)
            raise
        else:
            self._router.answered(begun.sending, self._clock())
            return begun
        self._break_off(begun, failure)
        raise failure

    def _end_stream(self, begun: _Begun) -> WireCompletion:
        """Note that a stream ended well, and return the whole answer."""
        begun.exchange.finish()
        whole = begun.answer.whole(begun.sending.call.model)
        self._router.succeeded(begun.sending, self._clock(), whole)
        return whole

    def _break_off(self, begun: _Begun, failure: APIError) -> None:
        """Note that a stream failed, and tell the error what had come by then."""
        begun.exchange.close()
        failure.partial = begun.answer.text
        failure.committed = begun.answer.has_content
        failure.maybe_billed = failure.maybe_billed or begun.answer.begun
        self._router.failed(begun.sending, self._clock(), failure)

    async def _leave(self, begun: _Begun) -> None:
        """Close a stream before its end."""
        begun.exchange.close()
        await begun.batches.aclose()
        self._router.abandoned(begun.sending, self._clock())

    async def _open(self, sending: Sending, due: Due) -> Exchange:
        """Send the request; once more, on a new connection, when a kept one turns out to be closed."""
        call, lane = sending.call, sending.lane
        provider, request = lane.provider, call.request
        name = provider.models.get(call.model, call.model)
        exchange = None
        while exchange is None:
            if call.on_send is not None:
                call.on_send()
            headers = {"Idempotency-Key": call.idempotency_key}
            if call.attempts:
                headers["X-Attempt"] = str(len(call.attempts) + 1)
            if request.stream:
                headers["Accept"] = "text/event-stream"
            body = encode_request(request, name, include_usage=provider.stream_usage)
            try:
                exchange = await self._transport.send(lane.endpoint, body, headers, due, fresh=call.fresh)
            except APIConnectionError as error:
                if error.kind != "stale" or call.resent:
                    raise
                now = self._clock()
                sending.record(now, "stale")
                sending.began = now
                call.resent = call.fresh = True
        sending.headers = exchange.headers
        sending.status = exchange.status
        if id_ := exchange.headers.get("x-request-id"):
            sending.request_id = read_id(id_, provider.api_key)
        sending.pause = pause(exchange.headers, refused=exchange.status == 429)
        if exchange.status != 200:
            raise await self._read_error(sending, exchange, due)
        if sending.pause:
            self._router.opened(sending)
        return exchange

    async def _read_error(self, sending: Sending, exchange: Exchange, due: Due) -> APIError:
        body = b""
        with suppress(APIError):  # a broken body takes nothing from the status
            body = await exchange.read_start(due.after(self._clock(), "progress", ERROR_BODY_SECONDS))
        error = error_from_response(
            exchange.status,
            body,
            content_type=exchange.headers.get("Content-Type", ""),
            location=exchange.headers.get("Location"),
            secrets=sending.lane.provider.api_key,
        )
        error.retry_after = retry_after(exchange.headers)
        near = self._billing.suggest(sending.call.model, sending.lane.provider)
        if isinstance(error, NotFoundError) and near:
            error.args = (f"{error}; did you mean {near!r}?",)
        return error

    def _tokens(self, call: Call) -> int:
        """Estimate of the tokens that a call may use, for `Limits.tokens_per_minute`."""
        request = call.request
        asked = request.max_completion_tokens or request.max_tokens or 0
        return self._billing.estimate(request.messages) + asked * (request.n or 1)

    def _finish(self, sending: Sending, found: WireCompletion) -> ChatCompletion:
        call, lane = sending.call, sending.lane
        if lane.gate.counts_tokens and found.usage:
            lane.gate.settle(self._tokens(call), found.usage.total_tokens)
        return ChatCompletion(
            found.id,
            found.object,
            found.created,
            found.model,
            found.choices,
            found.usage,
            sending.cost,
            found.usage is None,
            lane.provider.name,
            tuple(call.attempts),
            sending.request_id,
            found.body,
        )


class _Begun(msgspec.Struct, eq=False):
    """A stream that is open."""

    sending: Sending
    exchange: Exchange
    answer: Answer
    batches: AsyncGenerator[list[WireChunk], None]
    first: list[WireChunk] = []


async def _first_good(tasks: Iterable[asyncio.Task[T]]) -> asyncio.Task[T]:
    """Wait for the first task that succeeds, or for the last one that fails."""
    pending = set(tasks)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.exception() is None or not pending:
                return task


async def _end(tasks: Sequence[asyncio.Task[T]], leave: Callable[[_Begun], Awaitable[None]]) -> None:
    """Cancel tasks, and leave the streams that those brought that were ready at the same moment."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, _Begun):
            await leave(result)


def _read_keys(api_key: object) -> tuple[Secret, ...] | ConfigurationError:
    if api_key is None:
        api_key = os.environ.get("PIAPI_API_KEY")
    if api_key is None:
        return ConfigurationError("api_key: there is none; pass it, or set the environment variable PIAPI_API_KEY")
    return read_keys(api_key)


def _read_budget(budget: object) -> int | None:
    """The budget in picodollars."""
    if budget is None:
        return None
    amount: Decimal | None = None
    if isinstance(budget, (str, int, Decimal)) and not isinstance(budget, bool):
        with suppress(InvalidOperation):
            amount = Decimal(budget)
    if amount is None or not amount.is_finite() or amount <= 0:
        raise ConfigurationError(
            "budget: it is not an amount above 0; pass US dollars as a Decimal or str, such as '5.00'"
        )
    return from_dollars(amount)


def _check_names(params: ChatParams) -> None:
    unknown = [name for name in params if name not in _PARAMETERS]
    if "stream" in unknown:
        raise TypeError("stream is no parameter; call client.stream() for a stream, client.complete() for none")
    if unknown:
        raise _unknown_parameter(unknown[0])


def _unknown_parameter(name: str) -> TypeError:
    import difflib  # deferred: few programs get a name wrong

    near = difflib.get_close_matches(name, [*_PARAMETERS, "model", "deadline"], n=1, cutoff=0)
    return TypeError(f"{name!r} is no parameter; the nearest one is {near[0]!r} (anything else goes into extra_body)")
