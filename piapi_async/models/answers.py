"""Answers, whole and in chunks, and the record of how they were got.

The classes have no slots and can be assigned to: msgspec fills instances without slots faster, attrs those that are not
frozen, and the client completes some after decoding.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import TypeAlias, cast

import attrs

from piapi_async.models.messages import (
    NO_EXTRA,
    Extra,
    FunctionCall,
    Message,
    ToolCall,
    reasoning_of,
    to_json,
)

Raw: TypeAlias = dict[str, object]
"""A provider's JSON object, as it was sent."""


LONGEST_NUMBER = 4300
"""Digits from which on Python refuses to convert a number (`sys.int_info`)."""


def parse_int(digits: str) -> int | str:
    """Read a whole number of JSON. Python refuses to convert more than 4,300 digits; they stay text."""
    return int(digits) if len(digits) < LONGEST_NUMBER else digits


def parse_float(digits: str) -> float | str:
    """Read a number of JSON. Python makes 1e999 infinite, which JSON has no word for; it stays text."""
    value = float(digits)
    return digits if math.isinf(value) else value


def _parse_raw(text: str) -> Raw:
    return cast("Raw", json.loads(text, parse_int=parse_int, parse_float=parse_float, parse_constant=str))


@attrs.define(slots=False)
class Usage:
    """Tokens counted by the provider, 0 or more of each kind. `wire` drops counts that can't be true.

    Attributes:
        prompt_tokens: Tokens of the request.
        completion_tokens: Tokens of the answer. Some servers leave the reasoning out.
        total_tokens: The sum, reasoning included: what is billed.
        cached_tokens: How many of the prompt's were read from a cache; None if that was not said.
        reasoning_tokens: How many the model thought with; None if that was not said.
        extra: What was sent beside these, such as `prompt_tokens_details`, or a `cost` that the provider reports.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    extra: Extra = attrs.field(default=NO_EXTRA, kw_only=True)

    @property
    def output_tokens(self) -> int:
        """What is billed as output: all that is not the prompt."""
        return self.total_tokens - self.prompt_tokens


@attrs.define(slots=False)
class Choice:
    """One of the `n` answers.

    Attributes:
        index: 0 to n - 1.
        message: The answer.
        finish_reason: `"stop"`, `"length"`, `"content_filter"`, `"function_call"`, `"tool_calls"`, another word that
            the provider sent, or None when it sent none.
        logprobs: As sent.
        extra: What was sent beside these.
    """

    index: int
    message: Message
    finish_reason: str | None = None
    logprobs: object = None
    extra: Extra = attrs.field(default=NO_EXTRA, kw_only=True)


@attrs.define(slots=False)
class Delta:
    """What a chunk adds to a choice's message; its attributes are those of `Message`.

    Where the content came as a list of parts, `content` is their text, and `extra["content_parts"]` has the parts.
    """

    role: str | None = None
    content: str | None = None
    function_call: FunctionCall | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    refusal: str | None = None
    extra: Extra = attrs.field(default=NO_EXTRA, kw_only=True)

    @property
    def reasoning(self) -> str | None:
        """What is added to the reasoning."""
        return reasoning_of(self.extra.get("content_parts"), self.extra)


@attrs.define(slots=False)
class ChunkChoice:
    """What a chunk adds to one choice; its attributes are those of `Choice`."""

    index: int
    delta: Delta = attrs.field(factory=Delta)
    finish_reason: str | None = None
    logprobs: object = None
    extra: Extra = attrs.field(default=NO_EXTRA, kw_only=True)


@attrs.define(slots=False)
class ChatCompletionChunk:
    """One event of a stream.

    Attributes:
        choices: What is added, for each choice that the chunk touches; empty in a chunk that has usage only.
        id: As sent; some servers change it from chunk to chunk.
        object: `"chat.completion.chunk"`.
        created: Seconds since 1970, UTC.
        model: The model that answers.
        usage: Token counts, in one chunk near the end, if asked for.
        data: The event's text, from which `raw` is read.
        extra: What was sent beside these, nulls left out.
    """

    choices: tuple[ChunkChoice, ...] = ()
    id: str | None = None
    object: str | None = None
    created: int | None = None
    model: str | None = None
    usage: Usage | None = None
    data: str = attrs.field(default="{}", repr=False, eq=False)
    extra: Extra = attrs.field(default=NO_EXTRA, kw_only=True)

    @property
    def text(self) -> str:
        """What is added to the content of choice 0, `""` for nothing."""
        return "".join(choice.delta.content or "" for choice in self.choices if choice.index == 0)

    @property
    def raw(self) -> Raw:
        """The provider's JSON object, nothing dropped; parsed anew at each access."""
        return _parse_raw(self.data)


@attrs.define(slots=False)
class Attempt:
    """One request that a call sent, or tried to send.

    Attributes:
        provider: Name of the provider.
        key: Fingerprint of the API key, at most its last 4 characters.
        status: HTTP status, if an answer began.
        kind: `"ok"`, `"cancelled"` when the caller left, its own code raised, or a hedge was quicker; or what failed
            (`APIError.kind`).
        started: Seconds after the call began.
        latency: Seconds from start to end of this attempt.
        time_to_first_token: Seconds from start to the first event of a stream, if one came.
        request_id: The provider's id of the request, if it gave one.
        usage: Tokens, if the provider counted them.
    """

    provider: str
    key: str
    status: int | None = None
    kind: str = "ok"
    started: float = 0.0
    latency: float = 0.0
    time_to_first_token: float | None = None
    request_id: str | None = None
    usage: Usage | None = None


def _as_json(_: object, __: object, value: object) -> object:
    if isinstance(value, Decimal):
        return f"{value:f}"
    return list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value


@attrs.define(slots=False)
class ChatCompletion:
    """A whole answer.

    Attributes:
        id: As sent, `""` if none was; not unique with every server.
        object: `"chat.completion"`.
        created: Seconds since 1970, UTC; 0 if none was sent.
        model: The model that answered, which may differ from the one asked.
        choices: At least one; none only of a stream that sent nothing but usage.
        usage: Token counts; None when none, or impossible ones, were sent.
        cost: US dollars; None when the price is unknown, never 0 for that.
        cost_estimated: Whether the cost rests on an estimate of the tokens.
        provider: Name of the provider that answered.
        attempts: Every request that the call sent or tried to send, in order.
        request_id: The provider's id of the request, for its support.
        body: The bytes of the answer, from which `raw` is read; empty for a stream's.
        extra: What was sent beside these, such as `system_fingerprint` and `service_tier`; nulls are left out.
    """

    id: str
    object: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage | None = None
    cost: Decimal | None = None
    cost_estimated: bool = False
    provider: str = ""
    attempts: tuple[Attempt, ...] = ()
    request_id: str | None = None
    body: bytes = attrs.field(default=b"", repr=False, eq=False)
    extra: Extra = attrs.field(default=NO_EXTRA, kw_only=True)

    @property
    def text(self) -> str:
        """Content of choice 0, `""` if it has none; the text parts joined where content is a list of parts."""
        return self.choices[0].message.text if self.choices else ""

    @property
    def finish_reason(self) -> str | None:
        """`finish_reason` of choice 0."""
        return self.choices[0].finish_reason if self.choices else None

    @property
    def raw(self) -> Raw:
        """The provider's JSON object, nothing dropped; parsed anew at each access. A stream's is joined from chunks."""
        if self.body:
            return _parse_raw(self.body.decode("utf-8", "replace"))
        fields = {name: getattr(self, name) for name in ("id", "object", "created", "model")}
        fields["choices"] = [to_json(choice) for choice in self.choices]
        fields["usage"] = None if self.usage is None else _usage_as_sent(self.usage)
        return fields | dict(self.extra)

    @property
    def image_urls(self) -> tuple[str, ...]:
        """URLs of the images in choice 0: in the Markdown of its text, in its parts, and in `images` beside them."""
        return _image_urls(self.choices[0].message) if self.choices else ()

    def to_dict(self) -> Raw:
        """Return all fields as plain JSON values, attempts included.

        The cost is text, such as `"0.000123"`, as JSON numbers can't hold it exactly. The body is left out: see `raw`.
        """
        keep = attrs.filters.exclude(attrs.fields(ChatCompletion).body)
        return attrs.asdict(self, filter=keep, value_serializer=_as_json)

    def _repr_markdown_(self) -> str:
        """Show the answer in a notebook, with what it cost below."""
        cost = "" if self.cost is None else f" · ${self.cost:f}"
        return f"{self.text}\n\n*{self.model} · {self.provider}{cost}*"


def _usage_as_sent(usage: Usage) -> Raw:
    counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    # Counts that came by themselves; those in the objects of others are in `extra`.
    own = {name: getattr(usage, name) for name in ("cached_tokens", "reasoning_tokens")} if not usage.extra else {}
    said = {name: count for name, count in own.items() if count is not None}
    return {**counts, "total_tokens": usage.total_tokens, **said, **usage.extra}


_MARKDOWN_IMAGE = r"!\[[^\]]*\]\(\s*<?([^\s)>]+)"


def _image_urls(message: Message) -> tuple[str, ...]:
    """Find images: `![alt](url)`, `{"type": "image_url", "image_url": {"url": …}}`, or the same with a plain URL."""
    found = re.findall(_MARKDOWN_IMAGE, message.text)
    for parts in (message.content, message.extra.get("images")):
        if isinstance(parts, (list, tuple)):
            found += _urls_of(cast("tuple[object, ...]", parts))
    return tuple(dict.fromkeys(found))


def _urls_of(parts: tuple[object, ...]) -> Iterator[str]:
    for part in parts:
        image = cast("Raw", part).get("image_url") if isinstance(part, dict) else None
        url = cast("Raw", image).get("url") if isinstance(image, dict) else image
        if isinstance(url, str):
            yield url
