"""`Client`: the one door. It checks what the caller passes, makes a call of it, and hands that to `dispatch`.

Tracebacks that capture locals must not show a prompt or a key. So each method that takes a prompt lets go of it before
anything may raise, and `_prepare` returns a refusal instead of raising it.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl as ssl_module
import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias, Unpack, cast

from piapi_async.billing import Billing, Quote
from piapi_async.catalog import ModelInfo, allows
from piapi_async.client.options import (
    BASE_URL,
    Item,
    Items,
    check_types,
    fit_open_files,
    make_request,
    one_prompt,
    read_api_key,
    read_deadline,
    read_item,
    read_items,
    read_on_send,
    read_proxy,
    read_via_stream,
)
from piapi_async.dispatch import Dispatcher
from piapi_async.errors import ConfigurationError, InvalidRequestError, PiAPIError
from piapi_async.ledger import Books, Ledger, read_budget
from piapi_async.models import ChatCompletion, ChatParams, ChatRequest, Prompt
from piapi_async.models.requests import check_names
from piapi_async.policy import Deadline, Health, Limits, Retry, Timeout
from piapi_async.pool import SessionPool, Transport
from piapi_async.provider import Provider, read_base_url
from piapi_async.route import Call, Router, Upstream
from piapi_async.stream import ChatStream

if TYPE_CHECKING:
    from piapi_async.dispatch.statistics import Statistics
    from piapi_async.fanout import Results

__all__ = ["Client"]

NO_DEADLINE = Deadline()

_Refusal: TypeAlias = InvalidRequestError | TypeError | RuntimeError


class Client:
    """The client of PiAPI's LLM API.

    It may be made anywhere; its connections open on `async with` (or `open()`) and belong to that event loop. A client
    that was closed may be opened again, on another loop too, and keeps its ledger and breakers.

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

    Attributes:
        model: The model of calls that name none.
        base_url: Where PiAPI is asked.
        limits: As given.
        ledger: What was spent, reserved and saved.

    Raises:
        ConfigurationError: A key, URL or option that can't work, or one of a wrong type.
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
        keys, through = read_api_key(api_key), read_proxy(proxy)
        url = read_base_url(base_url or os.environ.get("PIAPI_BASE_URL") or BASE_URL, allow_http=allow_http)
        del api_key, base_url, proxy
        if isinstance(keys, ConfigurationError):
            raise keys
        if isinstance(url, ConfigurationError):
            raise url
        if isinstance(through, ConfigurationError):
            raise through
        check_types(limits=limits, retry=retry, timeout=timeout, health=health, model=model, backups=backups)
        check_types(
            tokenizer=tokenizer,
            stream_usage=stream_usage,
            require_finish_reason=require_finish_reason,
            ssl=ssl,
            insecure=insecure,
            trust_env=trust_env,
            allow_http=allow_http,
            seed=seed,
        )
        if plan is not None:
            allows(plan, "free")
        if ssl is not None and ssl.verify_mode == ssl_module.CERT_NONE and not insecure:
            raise ConfigurationError("ssl: this context verifies no certificate; pass insecure=True if that is meant")
        if system_role not in ("refuse", "fold"):
            raise ConfigurationError("system_role: it is not known; pass 'refuse' or 'fold'")
        primary = Provider(
            "piapi",
            url,
            keys,
            prices={} if prices is None else prices,
            stream_usage=stream_usage,
            headers={} if headers is None else headers,
            allow_http=allow_http,
        )
        self.model = model
        self.base_url = primary.base_url
        self.limits = limits
        self._plan = plan
        self._providers = (primary, *backups)
        books = Books(read_budget(budget))
        self.ledger = Ledger(books)
        rng = random.Random(None if seed is None else int(seed))  # jitter is no secret
        upstreams = [Upstream.of(provider, limits, retry, health, rng) for provider in self._providers]
        self._dispatcher = Dispatcher(
            upstreams=upstreams,
            router=Router(retry, rng),
            transport=transport
            or SessionPool(
                [key.endpoint for upstream in upstreams for key in upstream.keys],
                connect_timeout=timeout.connect,
                ssl=ssl if ssl is not None else not insecure,
                proxy=None if through is None else through.reveal(),
                trust_env=trust_env,
            ),
            billing=Billing(primary, books, plan=plan, tokenizer=tokenizer, fold=system_role == "fold"),
            books=books,
            retry=retry,
            timeout=timeout,
            require_finish_reason=require_finish_reason,
            clock=time.monotonic,
        )
        self._counts_tokens = any(key.gate.counts_tokens for upstream in upstreams for key in upstream.keys)
        self._loop: asyncio.AbstractEventLoop | None = None  # while it is open
        self._pid = 0
        self._opened = False  # ever
        self._id = ""
        self._calls = 0

    def __repr__(self) -> str:
        if not hasattr(self, "_dispatcher"):  # a traceback out of __init__ may ask
            return "<Client unmade>"
        return f"<Client {self.base_url} model={self.model!r} {self._dispatcher.transport!r}>"

    def __reduce__(self) -> str:
        raise TypeError("a Client can't be pickled or copied; make one where it is needed")

    # -- opened and closed ---------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Open the client on the running event loop, as `async with` does.

        Raises:
            RuntimeError: It is open already.
        """
        if self._loop is not None:
            raise RuntimeError("this client is open already; close it before you open it again")
        loop = self._loop = asyncio.get_running_loop()  # at once: a second `open` at the same time must see it
        try:
            await self._dispatcher.transport.__aenter__()
        except BaseException:
            self._loop = None
            raise
        self._pid, self._opened = os.getpid(), True
        self._dispatcher.clock = loop.time
        self._id = f"piapi-{os.urandom(16).hex()}"
        return self

    async def aclose(self) -> None:
        """Close every connection; calls under way fail with `APIConnectionError`. Idempotent."""
        self._loop = None
        self._dispatcher.close_gates()
        await self._dispatcher.transport.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def statistics(self) -> Statistics:
        """Tell what operators ask for: in flight, queued, outcomes, the state of each key's gate and breakers."""
        return self._dispatcher.statistics()

    # -- what the caller calls -----------------------------------------------------------------------------------------

    async def complete(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Prompt | None = None,
        model: str | None = None,
        deadline: float | None = None,
        via_stream: bool | None = None,
        wait_for_room: bool = False,
        on_send: Callable[[], object] | None = None,
        on_settled: Callable[[], object] | None = None,
        **params: Unpack[ChatParams],
    ) -> ChatCompletion:
        """Ask, and wait for the whole answer.

            completion = await client.complete("Why is the sky blue?", max_tokens=200)
            print(completion.text, completion.cost)

        Gateways cut off an answer that has not begun after about 100 seconds. One that may take longer is asked for by
        stream, which begins at once, and still comes whole:

            completion = await client.complete("Write a novella.", via_stream=True)

        Args:
            prompt: A text (one user message), messages, or a whole `ChatRequest`.
            messages: The same by another name.
            model: Name of the model; without it the request's, else the client's.
            deadline: Seconds for everything: waiting at the gate, retries, the answer.
            via_stream: Whether to ask by stream, for answers that take more than 100 seconds: `Timeout.first_event` and
                `Timeout.progress` bound the wait then, and `Timeout.total` does not. A stream that breaks off is a
                failed attempt like any other. Its cost is an estimate where the stream has no token counts (see
                `stream_usage`). False: never. None: for models that answer by stream only
                (`ModelInfo.stream_only`), and for one more try after a gateway's timeout (504 or 524) where there is
                no backup; the first try may have been billed, and counts in `ledger.unknown`.
            wait_for_room: Whether a call that does not fit into the budget waits while others under way may make room.
                They have reserved the most that they may cost, and mostly cost less. `map` waits so.
            on_send: Called right before each request goes out, for callers who keep a journal; not an async function.
                What it raises ends the call, and that request is not sent.
            on_settled: Called for each of them that brought no answer, as soon as `ledger` has what it may have cost.
            params: The parameters of the API, each None for not given:

                - `functions`: descriptions of functions that the model may call;
                - `function_call`: `"none"`, `"auto"`, or `{"name": …}` to force a function;
                - `temperature`: 0 to 2; higher is more random;
                - `top_p`: 0 to 1, sample from the tokens that make up this share of the probability;
                - `n`: number of answers, 1 or more;
                - `stop`: up to 4 texts at which the answer ends;
                - `max_tokens`: most tokens to generate, 1 or more;
                - `presence_penalty`: -2 to 2, positive favours new topics;
                - `frequency_penalty`: -2 to 2, positive disfavours repetition;
                - `logit_bias`: token ids to numbers from -100 to 100;
                - `tools`: descriptions of tools that the model may call;
                - `tool_choice`: `"none"`, `"auto"`, `"required"`, or a mapping that names a tool;
                - `response_format`: such as `{"type": "json_object"}`;
                - `seed`: a whole number, the same seed favours the same answer;
                - `user`: your own id of the end user;
                - `max_completion_tokens`: as `max_tokens`, reasoning included;
                - `reasoning_effort`: such as `"low"`;
                - `stream_options`: such as `{"include_usage": True}`;
                - `logprobs`: whether to return log probabilities;
                - `top_logprobs`: 0 to 20 alternatives a token;
                - `extra_body`: anything else, merged into the request's JSON as it is; what has a keyword of its own is
                  refused there.

        Raises:
            InvalidRequestError: A parameter that the provider would refuse; nothing was sent.
            TypeError: There is no such parameter; the text names the one that was probably meant.
            BudgetExceededError: The call may cost more than the budget has left; nothing was sent.
            APIError: No whole answer came.
        """
        call = self._prepare(prompt, messages, model, deadline, params, stream=via_stream is True)
        del prompt, messages, params
        if isinstance(call, Exception):
            raise call
        call.on_send, call.on_settled = read_on_send(on_send), on_settled
        call.waits_for_room = wait_for_room
        if via_stream is not None:
            call.via_stream = read_via_stream(via_stream)
        return await self._dispatcher.complete(call)

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Prompt | None = None,
        model: str | None = None,
        deadline: float | None = None,
        on_interrupt: Literal["raise", "restart"] = "raise",
        on_send: Callable[[], object] | None = None,
        **params: Unpack[ChatParams],
    ) -> ChatStream:
        """Ask, and get the answer token by token.

            async with client.stream("Tell me a story.") as stream:
                async for token in stream:
                    print(token, end="")

        Args:
            prompt: A text (one user message), messages, or a whole `ChatRequest`.
            messages: The same by another name.
            model: Name of the model; without it the request's, else the client's.
            deadline: Seconds for everything, from this call to the last token.
            on_interrupt: What a failure after the first text does: `"raise"` the error, which has the text so far in
                `partial`; or `"restart"`: ask anew, and say so by a `Restarted` in `ChatStream.events`.
            on_send: As in `complete`.
            params: As in `complete`.

        Raises:
            InvalidRequestError: A parameter that the provider would refuse; nothing was sent.
            TypeError: There is no such parameter; the text names the one that was probably meant.
        """
        call = self._prepare(prompt, messages, model, deadline, params, stream=True)
        del prompt, messages, params
        if isinstance(call, Exception):
            raise call
        if on_interrupt not in ("raise", "restart"):
            raise InvalidRequestError("on_interrupt: it is not known; pass 'raise' or 'restart'")
        call.restart, call.on_send = on_interrupt == "restart", read_on_send(on_send)
        return ChatStream(self._dispatcher.stream(call), restarts=call.restart)

    def map(
        self,
        prompts: Items,
        *,
        model: str | None = None,
        concurrency: int | None = None,
        ordered: bool = False,
        deadline: float | None = None,
        **params: Unpack[ChatParams],
    ) -> Results[Item]:
        """Ask many.

            async with client.map(prompts, concurrency=16) as results:
                async for result in results:
                    print(result.index, result.error or result.unwrap().text)

        Prompts that have names keep them, whatever order the answers come in:

            async with client.map({"T1": "Why is the sky blue?", "T2": "Why is the sea salt?"}) as results:
                answers = {result.key: result.unwrap().text async for result in results}

        Args:
            prompts: Any iterable or async iterable, endless too; at most twice the concurrency is pulled ahead. An item
                is a prompt, or a tuple of a key and a prompt; a mapping of keys to prompts is taken too. One task
                drives it from first to last, and a generator is closed when the block is left.
            model: As in `complete`.
            concurrency: Most prompts under way at once; without it `Limits.concurrency`.
            ordered: Whether results come in the order of the prompts instead of as they finish.
            deadline: Seconds for each prompt.
            params: As in `complete`, for every prompt.

        Returns:
            A context manager that gives an async iterator of `Result`. An error of one prompt is in its result and
            ends no other; leaving the block cancels what is left. Under a budget a prompt that does not fit waits while
            calls under way may make room; `BudgetExceededError` comes only when none can.

        Raises:
            ConfigurationError: `prompts` is no iterable, or `concurrency` no number of workers.
            TypeError: There is no such parameter.
        """
        from piapi_async.fanout import Result, Results  # deferred: it needs anyio, which few programs load otherwise

        unusable = self._why_unusable()
        if unusable is not None:
            del prompts, params
            raise unusable
        check_names(params)

        async def ask(index: int, item: Item) -> Result:
            key, prompt = read_item(index, item)
            del item
            call = self._prepare(prompt, None, model, deadline, params)
            del prompt
            if isinstance(call, Exception):
                return Result(index, None, error=call, key=key)
            call.waits_for_room = True
            try:
                completion, error = await self._dispatcher.complete(call), None
            except PiAPIError as failure:
                completion, error = None, failure
            return Result(index, call.request, completion, error, self._dispatcher.clock() - call.began, key=key)

        width = concurrency if concurrency is not None else self.limits.concurrency
        if isinstance(cast("object", width), int) and width > 0:  # `Results` refuses anything else
            width = fit_open_files(width)
        return Results(read_items(prompts), ask, concurrency=width, ordered=ordered)

    def quote(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Prompt | None = None,
        model: str | None = None,
        **params: Unpack[ChatParams],
    ) -> Quote:
        """Tell what a call would cost, without sending it; the client need not be open.

        Args:
            prompt: As in `complete`.
            messages: As in `complete`.
            model: As in `complete`.
            params: As in `complete`.

        Raises:
            InvalidRequestError: A parameter that the provider would refuse.
        """
        request = self._prepare_quote(prompt, messages, model, params)
        del prompt, messages, params
        if isinstance(request, Exception):
            raise request
        return self._dispatcher.billing.quote(request, request.model or "", self._providers)

    # -- the steps -----------------------------------------------------------------------------------------------------

    def _prepare(
        self,
        prompt: Prompt | None,
        messages: Prompt | None,
        model: str | None,
        deadline: float | None,
        params: ChatParams,
        *,
        stream: bool = False,
    ) -> Call | _Refusal:
        """Make a call of what the caller passed, or the refusal to be raised."""
        unusable = self._why_unusable()
        if unusable is not None:
            return unusable
        dispatcher = self._dispatcher
        now = dispatcher.clock()
        try:
            request = self._request(one_prompt(prompt, messages), model, params, stream=stream)
            due = NO_DEADLINE if deadline is None else read_deadline(now, deadline)
            name = request.model or ""
            upstreams = dispatcher.upstreams if self._plan is None else self._upstreams(name)
            worst = None
            if dispatcher.books.budget is not None:
                worst = dispatcher.billing.worst(request, name, [each.provider for each in upstreams])
        except (InvalidRequestError, TypeError) as error:
            return error.with_traceback(None)
        tokens = dispatcher.billing.tokens(request) if self._counts_tokens else 0
        self._calls += 1
        return Call(request, name, now, due, f"{self._id}-{self._calls}", upstreams, [], {}, worst, tokens)

    def _prepare_quote(
        self, prompt: Prompt | None, messages: Prompt | None, model: str | None, params: ChatParams
    ) -> ChatRequest | _Refusal:
        try:
            asked = one_prompt(prompt, messages)
            return self._request(asked, model, params, stream=isinstance(asked, ChatRequest) and asked.stream)
        except (InvalidRequestError, TypeError) as error:
            return error.with_traceback(None)

    def _why_unusable(self) -> RuntimeError | None:
        try:
            usable = asyncio.get_running_loop() is self._loop
        except RuntimeError:  # none is running, as in the child of a fork
            usable = False
        if usable:
            return None
        if self._loop is None:
            state = "closed" if self._opened else "not open"
            return RuntimeError(f"the client is {state}; use it inside `async with Client(...) as client:`")
        if os.getpid() != self._pid:
            return RuntimeError("the client was opened before this process forked; make another in the child")
        return RuntimeError("the client belongs to another event loop; make one for each loop")

    def _request(self, prompt: Prompt, model: str | None, params: ChatParams, *, stream: bool) -> ChatRequest:
        request = make_request(prompt, model, self.model, params, stream=stream)
        if isinstance(prompt, str):
            return request  # a text is a user's message: no model refuses its role
        return self._dispatcher.billing.check_roles(request, request.model or "")

    def _upstreams(self, model: str) -> Sequence[Upstream]:
        """The providers that may serve a model."""
        allowed = self._dispatcher.billing.allowed(self._providers, model)
        return [upstream for upstream in self._dispatcher.upstreams if upstream.provider in allowed]
