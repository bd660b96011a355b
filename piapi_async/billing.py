"""The price list applied to a call: what PiAPI would refuse, what a call may cost at most, and what it cost. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import cast

import attrs

from piapi_async.catalog import (
    CATALOG,
    ModelInfo,
    allows,
    at_vendor_price,
    charge,
    cost,
    estimate_tokens,
    find,
    suggest,
    to_dollars,
)
from piapi_async.errors import ConfigurationError, InvalidRequestError
from piapi_async.ledger import Books, Row
from piapi_async.models import ChatRequest, Message
from piapi_async.models.messages import to_json
from piapi_async.provider import Provider

__all__ = ["Account", "Billing", "Quote"]

MESSAGE_TOKENS = 16
"""Tokens that a message may cost beside its text: roles and separators (ours: twice what OpenAI's chat format adds)."""

PART_TOKENS = 50_000
"""Tokens that a picture or another part that is no text may cost, whatever its size, where the model's own figure is
unknown; only its address may be in the request (ours: above what the dearest model of the table counts, 48,169)."""

TOOLS_TOKENS = 530
"""Tokens that a provider may put into the prompt by itself where there are tools or functions (the most of Anthropic's
table of them)."""

_TEXTS = ("text", "refusal", "thinking", "reasoning")
"""Types of the parts of a message that are text."""

_NO_TABLE: Mapping[str, ModelInfo] = MappingProxyType({})


@attrs.define(eq=False, repr=False, slots=False)
class Account:
    """One provider's model in the books.

    Attributes:
        row: Where it is entered.
        rates: Its price there, as `ModelInfo.picodollars`; None when unknown.
        vendor: The vendor's own price, without a minimum; None when unknown.
    """

    row: Row
    rates: tuple[int, int, int] | None
    vendor: tuple[int, int] | None


@attrs.frozen(slots=False)
class Quote:
    """What a call would cost.

    Attributes:
        model: The caller's name of the model.
        tokens: Tokens of the prompt, estimated.
        least: US dollars for the prompt alone, at PiAPI or where its traffic goes; None when the price is unknown.
        most: US dollars for one attempt at worst, at the dearest provider that may serve it: what a budget reserves.
            None when a price is unknown, or nothing bounds the answer.
    """

    model: str
    tokens: int
    least: Decimal | None
    most: Decimal | None


class Billing:
    """The money side of a client.

    Args:
        primary: PiAPI, whose price list is known; a backup has the prices that it was given.
        books: Where money moves.
        plan: The account's plan at PiAPI; None when unknown.
        tokenizer: Counts the tokens of a text, where an estimate is needed; None for the page's rule of thumb.
        fold: Whether system messages go into the first user message where a model takes none.
    """

    def __init__(
        self,
        primary: Provider,
        books: Books,
        *,
        plan: str | None = None,
        tokenizer: Callable[[str], int] | None = None,
        fold: bool = False,
    ) -> None:
        self._primary = primary
        self._plan = plan
        self._count = tokenizer or estimate_tokens
        self._fold = fold
        self._books = books
        self._grown: dict[str, tuple[int, int]] = {}  # by the caller's name of the model: a bill, and its worst case

    def price(self, provider: Provider, model: str) -> ModelInfo | None:
        """The price of a model, by the caller's name, at a provider; None if it is unknown."""
        return self._find(provider, provider.name_of(model))

    def is_stream_only(self, provider: Provider, model: str) -> bool:
        """Whether a model, by the caller's name, answers by stream only at a provider, as far as its prices say."""
        info = self.price(provider, model)
        return info is not None and info.stream_only

    def _find(self, provider: Provider, name: str) -> ModelInfo | None:
        return find(name, provider.prices, CATALOG if provider is self._primary else _NO_TABLE)

    def suggest(self, model: str, provider: Provider) -> str | None:
        """The known name nearest to one that PiAPI does not know; None where nothing is near."""
        if provider is not self._primary or self.price(provider, model) is not None:
            return None
        return suggest(model, provider.prices)

    # -- before ------------------------------------------------------------------------------------------------------

    def check_roles(self, request: ChatRequest, model: str) -> ChatRequest:
        """Refuse, or fold, system messages for a model that takes none.

        Raises:
            InvalidRequestError: The provider would refuse the request.
        """
        for message in request.messages:
            if message.role == "system":
                break
        else:
            return request
        info = self.price(self._primary, model)
        if info is None or info.system_role:
            return request
        if not self._fold:
            raise InvalidRequestError(
                f"messages: {model} does not support the role 'system'; put the text into the first user message, or "
                "pass Client(system_role='fold')"
            )
        return attrs.evolve(request, messages=_folded(request.messages))

    def allowed(self, providers: tuple[Provider, ...], model: str) -> tuple[Provider, ...]:
        """The providers that may serve a model: where the plan does not allow it at PiAPI, the backups that map it.

        Raises:
            InvalidRequestError: None may.
        """
        info = None if self._plan is None else self.price(self._primary, model)
        if info is None or allows(self._plan, info.plan):
            return providers
        mapped = tuple(each for each in providers if each is not self._primary and model in each.models)
        if not mapped:
            raise InvalidRequestError(
                f"model: {model} needs the plan {info.plan!r} or above, and this account's is {self._plan!r}; use "
                "another model, or a backup that maps it"
            )
        return mapped

    def worst(self, request: ChatRequest, model: str, providers: Iterable[Provider]) -> int:
        """What one attempt may cost at most, at the dearest of the providers, in picodollars.

        A text has no more tokens than bytes, whatever the tokenizer.

        Raises:
            InvalidRequestError: A price is unknown, or nothing bounds the answer.
        """
        prompt = _most_text_tokens(request)
        return max(self._worst_at(request, model, provider, prompt) for provider in providers)

    def to_reserve(self, model: str, worst: int) -> int:
        """What to reserve for a worst case: more, where bills for the model came to more than theirs, by that share."""
        bill, its_worst = self._grown.get(model, (1, 1))
        return -(-worst * bill // its_worst)

    def grow(self, model: str, bill: int, worst: int) -> None:
        """Reserve more for a model from now on, of which a bill was above its worst case."""
        before, its_worst = self._grown.get(model, (1, 1))
        if bill * its_worst > before * worst:
            self._grown[model] = bill, worst

    def _worst_at(
        self, request: ChatRequest, model: str, provider: Provider, prompt: int, came: tuple[int, int] = (0, 0)
    ) -> int:
        info = self.price(provider, model)
        if info is None:
            near = self.suggest(model, provider)
            raise InvalidRequestError(
                f"model: a budget needs the price of {provider.name_of(model)!r} at {provider.name}, which is unknown; "
                + (f"did you mean {near!r}? Else " if near else "")
                + "pass it by prices=…"
            )
        answer = _asked_tokens(request) or info.max_output_tokens or came[1]
        if not answer:
            raise InvalidRequestError(
                f"max_tokens: a budget needs a bound on the answer, and none is known for {model}; pass max_tokens"
            )
        return cost(info, max(came[0], prompt + _part_tokens(request, info)), max(came[1], answer * (request.n or 1)))

    def quote(self, request: ChatRequest, model: str, providers: tuple[Provider, ...]) -> Quote:
        """Tell what a call would cost.

        Raises:
            InvalidRequestError: No provider may serve the model.
        """
        allowed = self.allowed(providers, model)
        info = self.price(allowed[0], model)
        tokens = self.estimate_prompt(request, model, allowed[0])
        try:
            most = to_dollars(self.to_reserve(model, self.worst(request, model, allowed)))
        except InvalidRequestError:
            most = None
        return Quote(model, tokens, None if info is None else to_dollars(cost(info, tokens, 0)), most)

    # -- after -------------------------------------------------------------------------------------------------------

    def account(self, provider: Provider, model: str) -> Account:
        """Open the account of a model, by the caller's name, at a provider."""
        name = provider.name_of(model)
        info = self._find(provider, name)
        vendor = None if info is None else at_vendor_price(info)
        return Account(
            self._books.row(provider.name, name),
            None if info is None else info.picodollars,
            None if vendor is None else vendor.picodollars[:2],
        )

    def book(
        self, account: Account, reserved: int | None, prompt_tokens: int, answer_tokens: int, *, estimated: bool
    ) -> int | None:
        """Enter an answer into the books.

        Args:
            account: The provider's model.
            reserved: What was reserved for it; None where nothing was.
            prompt_tokens: Of the prompt.
            answer_tokens: Of all choices together.
            estimated: Whether the tokens are an estimate.

        Returns:
            What it cost, in picodollars; None when the price is unknown.
        """
        if account.rates is None:
            self._books.settle(account.row, reserved or 0, None)
            return None
        amount = charge(account.rates, prompt_tokens, answer_tokens)
        saved = 0
        if account.vendor is not None:
            saved = account.vendor[0] * prompt_tokens + account.vendor[1] * answer_tokens - amount
        self._books.settle(account.row, reserved or 0, amount, saved=saved, estimated=estimated)
        return amount

    def keep(
        self,
        account: Account,
        reserved: int | None,
        request: ChatRequest,
        model: str,
        provider: Provider,
        came: tuple[int, int],
    ) -> int:
        """Enter a request whose bill is unknown: what was reserved for it, or the most that it may cost if it is more.

        Args:
            account: The provider's model.
            reserved: What was reserved; None where nothing was.
            request: What was asked.
            model: By the caller's name.
            provider: Who was asked.
            came: Tokens of the prompt and of the answer, as far as is known.

        Returns:
            What was entered, in picodollars.
        """
        amount = reserved or 0
        if reserved is None or any(came):
            amount = max(amount, self._at_most(request, model, provider, came))
        self._books.keep(account.row, reserved or 0, amount)
        return amount

    def _at_most(self, request: ChatRequest, model: str, provider: Provider, came: tuple[int, int]) -> int:
        """What an attempt may have cost, as far as that is known, in picodollars."""
        try:
            return self._worst_at(request, model, provider, _most_text_tokens(request), came)
        except InvalidRequestError:
            return 0

    def tokens(self, request: ChatRequest) -> int:
        """Tokens that a call may use, prompt and answer together, for `Limits.tokens_per_minute`."""
        prompt = self.estimate_prompt(request, request.model or "", self._primary)
        return prompt + _asked_tokens(request) * (request.n or 1)

    def estimate_prompt(self, request: ChatRequest, model: str, provider: Provider) -> int:
        """Tokens of all that a request puts before the model, estimated."""
        schemas = (request.functions, request.tools, request.response_format)
        tokens = self.estimate(request.messages) + sum(self._tokens_in_json(str(each)) for each in schemas if each)
        return tokens + _part_tokens(request, self.price(provider, model))

    def estimate(self, messages: Iterable[Message]) -> int:
        """Tokens of messages, estimated."""
        return sum(self._tokens_of(message) for message in messages)

    def estimate_answer(self, request: ChatRequest, answers: Iterable[Message], chunks: int) -> int:
        """Tokens of an answer, estimated; code and JSON have few blanks, so its texts count as JSON does.

        Args:
            request: What was asked. An answer that came whole has no more tokens than that allows.
            answers: The messages of all choices.
            chunks: Of a stream, which has a token a chunk at least; 0 where the answer came whole.
        """
        tokens = sum(self._tokens_of(message, self._tokens_in_json) for message in answers)
        asked = _asked_tokens(request) * (request.n or 1)
        return max(tokens, chunks) if chunks or not asked else min(tokens, asked)

    def _tokens_of(self, message: Message, count: Callable[[str], int] | None = None) -> int:
        count = count or self._tokens_in
        texts = sum(count(text) for text in (message.text, message.reasoning, message.refusal) if text)
        calls = (message.function_call, *(tool.function for tool in message.tool_calls or ()))
        return texts + sum(self._tokens_in_json(f"{call.name} {call.arguments}") for call in calls if call)

    def _tokens_in_json(self, text: str) -> int:
        """Tokens of JSON; where only words are counted, at least one in four characters, as JSON may have no blanks."""
        tokens = self._tokens_in(text)
        return max(tokens, -(-len(text) // 4)) if self._count is estimate_tokens else tokens

    def _tokens_in(self, text: str) -> int:
        tokens = cast("object", self._count(text))
        if isinstance(tokens, int) and tokens >= 0:
            return tokens
        raise ConfigurationError(f"tokenizer: it returned {tokens!r:.40}; it must return a whole number, 0 or more")


def _asked_tokens(request: ChatRequest) -> int:
    """The most tokens that one choice may have, as far as the request says: servers obey either of its two words."""
    return max(request.max_completion_tokens or 0, request.max_tokens or 0)


def _part_tokens(request: ChatRequest, info: ModelInfo | None) -> int:
    """Tokens of the parts of a prompt that are no text, at most."""
    kinds = [part.get("type") for m in request.messages if isinstance(m.content, tuple) for part in m.content]
    picture = PART_TOKENS if info is None or info.image_tokens is None else info.image_tokens
    others = sum(kind not in _TEXTS and kind != "image_url" for kind in kinds)
    return picture * kinds.count("image_url") + PART_TOKENS * others


def _most_text_tokens(request: ChatRequest) -> int:
    """Tokens of a prompt at most, without pictures and the like."""
    tools = TOOLS_TOKENS if request.tools or request.functions else 0
    return len(_prompt_text(request).encode()) + MESSAGE_TOKENS * len(request.messages) + tools


def _prompt_text(request: ChatRequest) -> str:
    """All that the provider may count as prompt, but the bytes of pictures."""
    beside = (request.functions, request.tools, request.response_format, request.extra_body)
    return "".join([*map(_message_text, request.messages), *(str(each) for each in beside if each)])


def _message_text(message: Message) -> str:
    content = message.content
    text = "".join(map(_part_text, content)) if isinstance(content, tuple) else content or ""
    others = {name: field for name, field in to_json(message).items() if name not in ("role", "content")}
    return f"{text}{others}" if others else text


def _part_text(part: Mapping[str, object]) -> str:
    """A part as text; the bytes of a picture, in a data URL, are none."""
    picture = part.get("image_url")
    url = cast("Mapping[str, object]", picture).get("url") if isinstance(picture, Mapping) else picture
    is_data = part.get("type") != "text" and isinstance(url, str) and url[:5].lower() == "data:"
    return "" if is_data else str(part)


def _folded(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Put the system messages' text in front of the first user message, or make one of it."""
    system = "\n\n".join(message.text for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    for i, message in enumerate(rest):
        if message.role == "user":
            content = message.content
            folded = (
                ({"type": "text", "text": f"{system}\n\n"}, *content)
                if isinstance(content, tuple)
                else f"{system}\n\n{content or ''}"
            )
            rest[i] = attrs.evolve(message, content=folded)
            return tuple(rest)
    return (Message("user", system), *rest)
