"""What is asked and what is answered, as attrs classes in the API's own words.

Requests are checked here, when they are made, so a bad value is refused before a byte is sent. The ranges are those of
the provider's page (`temperature`, `top_p`, `n`, `stop`, the penalties); where it gives none they are OpenAI's, whose
API it mirrors. Answers are built by `wire`, which never coerces: what a server sent is kept, or it is an error.

The classes have no slots: msgspec fills a frozen class without them three times as fast, and attrs makes it faster too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, cast

import attrs
import msgspec

from piapi_async.errors import InvalidRequestError

__all__ = [
    "Attempt",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatParams",
    "ChatRequest",
    "Choice",
    "ChunkChoice",
    "Content",
    "Delta",
    "FunctionCall",
    "Message",
    "Prompt",
    "Result",
    "ToolCall",
    "Usage",
]

Content: TypeAlias = str | tuple[Mapping[str, object], ...] | None
"""A message's content: text, a sequence of parts (`{"type": "text", …}`, `{"type": "image_url", …}`), or none."""

Raw: TypeAlias = dict[str, object]
"""A provider's JSON object, as it was sent."""

MAX_DEPTH = 100
"""How deep JSON may nest, in a request's functions, tools and extra_body as in an answer (ours)."""


def _parse_int(digits: str) -> int | str:
    """Python refuses to convert more than 4,300 digits; they stay text."""
    return int(digits) if len(digits) < 4300 else digits


def _parse_float(digits: str) -> float | str:
    """Python makes 1e999 infinite, which JSON has no word for; it stays text."""
    value = float(digits)
    return digits if math.isinf(value) else value


def _parse_raw(text: str) -> Raw:
    return cast("Raw", json.loads(text, parse_int=_parse_int, parse_float=_parse_float, parse_constant=str))


# -- shared by requests and answers ----------------------------------------------------------------------------------


@attrs.frozen(slots=False)
class FunctionCall:
    """A call of one of the caller's functions.

    Attributes:
        name: The function's name; `""` in the later fragments of a stream.
        arguments: Its arguments as JSON text, a fragment of it in a stream. The model may have made it invalid.
    """

    name: str = ""
    arguments: str = ""


@attrs.frozen(slots=False)
class ToolCall:
    """A call of one of the caller's tools.

    Attributes:
        function: The function called.
        id: What the tool's answer must name as its `tool_call_id`.
        type: `"function"`.
        index: In a stream, the call that a fragment belongs to.
    """

    function: FunctionCall = FunctionCall()
    id: str | None = None
    type: str | None = "function"
    index: int | None = None

    if not TYPE_CHECKING:  # pragma: no branch  # as in `ChatRequest`

        def __init__(self, function=FunctionCall(), id=None, type="function", index=None):
            fields = vars(self)
            fields["function"], fields["type"] = function, type
            if id is not None:
                fields["id"] = id
            if index is not None:
                fields["index"] = index


@attrs.frozen(slots=False)
class Message:
    """One message of a conversation, to or from the model.

    Attributes:
        role: `"system"`, `"user"`, `"assistant"`, `"function"`, `"tool"`, `"developer"`.
        content: Text, parts, or None beside a function call.
        name: Name of the author, or of the function whose result this is.
        function_call: The function that the model calls.
        tool_calls: The tools that the model calls.
        tool_call_id: The call that a `"tool"` message answers.
    """

    role: str
    content: Content = None
    name: str | None = None
    function_call: FunctionCall | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: str | None = None

    if not TYPE_CHECKING:  # pragma: no branch  # as in `ChatRequest`

        def __init__(self, role, content=None, name=None, function_call=None, tool_calls=None, tool_call_id=None):
            fields = vars(self)
            fields["role"] = role
            if content is not None:
                fields["content"] = content
            if name is not None:
                fields["name"] = name
            if function_call is not None:
                fields["function_call"] = function_call
            if tool_calls is not None:
                fields["tool_calls"] = tool_calls
            if tool_call_id is not None:
                fields["tool_call_id"] = tool_call_id

    @property
    def text(self) -> str:
        """The content, `""` for none; the text parts joined where it is a list of parts."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(text for part in self.content if isinstance(text := part.get("text"), str))


# -- answers ---------------------------------------------------------------------------------------------------------


@attrs.frozen(slots=False)
class Usage:
    """Tokens counted by the provider: 0 or more of each kind, and their sum. `wire` drops a count that can't be one."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@attrs.frozen(slots=False)
class Choice:
    """One of the `n` answers.

    Attributes:
        index: 0 to n - 1.
        message: The answer.
        finish_reason: `"stop"`, `"length"`, `"content_filter"`, `"function_call"`, `"tool_calls"`, another word that
            the provider sent, or None when it sent none.
        logprobs: As sent.
    """

    index: int
    message: Message
    finish_reason: str | None = None
    logprobs: object = None


@attrs.frozen(slots=False)
class Delta:
    """What a chunk adds to a choice's message."""

    role: str | None = None
    content: str | None = None
    function_call: FunctionCall | None = None
    tool_calls: tuple[ToolCall, ...] | None = None


@attrs.frozen(slots=False)
class ChunkChoice:
    """What a chunk adds to one choice."""

    index: int
    delta: Delta = Delta()
    finish_reason: str | None = None
    logprobs: object = None


@attrs.frozen(slots=False)
class ChatCompletionChunk:
    """One event of a stream.

    Attributes:
        choices: What is added, for each choice that the chunk touches; empty in a chunk that has usage only.
        id: As sent; some servers change it from chunk to chunk.
        object: `"chat.completion.chunk"`.
        created: Seconds since 1970, UTC.
        model: The model that answers.
        usage: Token counts, in one chunk near the end, if asked for.
    """

    choices: tuple[ChunkChoice, ...] = ()
    id: str | None = None
    object: str | None = None
    created: int | None = None
    model: str | None = None
    usage: Usage | None = None
    _data: str = attrs.field(default="{}", init=False, repr=False, eq=False)

    @property
    def text(self) -> str:
        """What is added to the content of choice 0, `""` for nothing."""
        return "".join(choice.delta.content or "" for choice in self.choices if choice.index == 0)

    @property
    def raw(self) -> Raw:
        """The provider's JSON object, nothing dropped; parsed anew at each access."""
        return _parse_raw(self._data)


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One request that a call sent, or tried to send. No word of the API's, and made for each: so a struct.

    Attributes:
        provider: Name of the provider.
        key: Fingerprint of the API key, at most its last 4 characters.
        status: HTTP status, if an answer began.
        kind: `"ok"`, or what failed (`APIError.kind`).
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


@attrs.frozen(slots=False)
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
        raw: The provider's JSON object, nothing dropped. Of a stream: the answer joined from its chunks.
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
    _body: bytes = attrs.field(default=b"", alias="body", repr=False, eq=False)

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
        """The provider's JSON object, nothing dropped; parsed anew at each access."""
        if self._body:
            return _parse_raw(self._body.decode("utf-8", "replace"))
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "choices": [attrs.asdict(choice) for choice in self.choices],
            "usage": None if self.usage is None else attrs.asdict(self.usage),
        }


# -- requests --------------------------------------------------------------------------------------------------------

Prompt: TypeAlias = "str | Sequence[Message | Mapping[str, object]] | ChatRequest"
"""What may be asked: a text (one user message), messages, or a whole request."""


class ChatParams(TypedDict, total=False):
    """The parameters of a call, by keyword. `ChatRequest` says what each means."""

    functions: Sequence[Mapping[str, object]] | None
    function_call: str | Mapping[str, object] | None
    temperature: float | None
    top_p: float | None
    n: int | None
    stop: str | Sequence[str] | None
    max_tokens: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[str, float] | None
    tools: Sequence[Mapping[str, object]] | None
    tool_choice: str | Mapping[str, object] | None
    response_format: Mapping[str, object] | None
    seed: int | None
    user: str | None
    max_completion_tokens: int | None
    reasoning_effort: str | None
    stream_options: Mapping[str, object] | None
    logprobs: bool | None
    top_logprobs: int | None
    extra_body: Mapping[str, object] | None


def _refuse(field: str, problem: str, remedy: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {problem}; {remedy}")


def _shown(value: object) -> str:
    """A value for an error message: numbers as they are, of everything else the type, as it may hold the prompt."""
    return repr(value) if isinstance(value, (int, float)) and abs(value) < 1e300 else f"a {type(value).__name__}"


def _number(field: str, value: object, low: float, high: float) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        shown = "NaN" if isinstance(value, float) and math.isnan(value) else _shown(value)
        raise _refuse(field, f"{shown} is not a number in range", f"pass a number from {low:g} to {high:g}")
    return value


def _integer(field: str, value: object, low: int, high: int | None) -> object:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        span = f"{low} or more" if high is None else f"from {low} to {high}"
        raise _refuse(field, f"{_shown(value)} is not a whole number in range", f"pass a whole number, {span}")
    return value


def _flag(field: str, value: object) -> object:
    if not isinstance(value, bool):
        raise _refuse(field, f"{_shown(value)} is not a bool", "pass True or False")
    return value


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise _refuse(field, f"{_shown(value)} is not text", "pass a str")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            pass
        else:
            return value
        raise _refuse(field, "the text has a lone surrogate, which no UTF-8 can carry", "remove or replace it")
    return value


def _stop(field: str, value: object) -> object:
    if isinstance(value, str):
        return _text(field, value)
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)):
        raise _refuse(field, f"{_shown(value)} is not text or a list of texts", "pass up to 4 strings")
    items = cast("Sequence[object]", value)
    if len(items) > 4:
        raise _refuse(field, f"{len(items)} sequences are too many", "pass up to 4 strings")
    return tuple(_text(f"{field}[{i}]", item) for i, item in enumerate(items))


def _plain(field: str, value: object, depth: int = 0) -> object:
    """Check that a value is JSON, and copy it, so that what the caller changes later does not change the request."""
    if depth > MAX_DEPTH:
        raise _refuse(field[:80], f"it nests deeper than {MAX_DEPTH}, or contains itself", "flatten it")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(field, value)
    if isinstance(value, int):
        return _integer(field, value, -(2**63), 2**64 - 1)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _refuse(field, f"{value} is not JSON", "pass a finite number")
        return value
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value).items()
        return {_text(f"{field} key", k): _plain(f"{field}.{k}", v, depth + 1) for k, v in pairs}
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[object]", value)
        return tuple(_plain(f"{field}[{i}]", item, depth + 1) for i, item in enumerate(items))
    raise _refuse(field, f"a {type(value).__name__} is not JSON", "pass str, numbers, bool, None, mappings or lists")


def _mapping(field: str, value: object) -> object:
    if not isinstance(value, Mapping):
        raise _refuse(field, f"{_shown(value)} is not a mapping", "pass a mapping with string keys")
    return _plain(field, cast("object", value))


def _mappings(field: str, value: object) -> object:
    if not isinstance(value, (list, tuple)):
        raise _refuse(field, f"{_shown(value)} is not a list", "pass a list of mappings")
    return tuple(_mapping(f"{field}[{i}]", item) for i, item in enumerate(cast("Sequence[object]", value)))


def _functions(field: str, value: object) -> object:
    functions = cast("tuple[Mapping[str, object], ...]", _mappings(field, value))
    for i, function in enumerate(functions):
        if not function.get("name") or not isinstance(function["name"], str):
            raise _refuse(f"{field}[{i}].name", "it is missing", "give each function a name")
    return functions


def _choose(field: str, value: object, words: tuple[str, ...]) -> object:
    if isinstance(value, Mapping):
        return _plain(field, cast("object", value))
    if value not in words:
        shown = repr(value) if isinstance(value, str) and len(value) < 40 else _shown(value)
        raise _refuse(field, f"{shown} is not known", f"pass one of {', '.join(words)}, or a mapping that names one")
    return value


def _bias(field: str, value: object) -> object:
    if not isinstance(value, Mapping):
        raise _refuse(field, f"{_shown(value)} is not a mapping", "map token ids to numbers from -100 to 100")
    pairs = cast("Mapping[object, object]", value).items()
    return {_text(f"{field} key", str(token)): _number(f"{field}[{token}]", bias, -100, 100) for token, bias in pairs}


_RULES: Mapping[str, Callable[[str, object], object]] = {
    "functions": _functions,
    "function_call": partial(_choose, words=("none", "auto")),
    "temperature": partial(_number, low=0, high=2),
    "top_p": partial(_number, low=0, high=1),
    "n": partial(_integer, low=1, high=None),
    "stop": _stop,
    "max_tokens": partial(_integer, low=1, high=None),
    "presence_penalty": partial(_number, low=-2, high=2),
    "frequency_penalty": partial(_number, low=-2, high=2),
    "logit_bias": _bias,
    "tools": _mappings,
    "tool_choice": partial(_choose, words=("none", "auto", "required")),
    "response_format": _mapping,
    "seed": partial(_integer, low=-(2**63), high=2**63 - 1),
    "user": _text,
    "max_completion_tokens": partial(_integer, low=1, high=None),
    "reasoning_effort": _text,
    "stream_options": _mapping,
    "logprobs": _flag,
    "top_logprobs": partial(_integer, low=0, high=20),
    "extra_body": _mapping,
}


def _message(field: str, value: object) -> Message:
    if isinstance(value, Mapping):
        pairs = dict(cast("Mapping[object, object]", value))
        known = {a.name for a in attrs.fields(Message)}
        unknown = [str(key) for key in pairs if key not in known]
        if unknown:
            raise _refuse(field, f"unknown key {unknown[0]!r}", f"a message has {', '.join(sorted(known))}")
        if "role" not in pairs:
            raise _refuse(f"{field}.role", "it is missing", 'say who speaks: "system", "user", "assistant", …')
        value = Message(**cast("dict[str, Any]", pairs))
    return _check_message(field, value)


def _check_message(field: str, value: object) -> Message:
    if not isinstance(value, Message):
        raise _refuse(field, f"{_shown(value)} is not a message", "pass Message(...) or {'role': …, 'content': …}")
    if not _text(f"{field}.role", value.role):
        raise _refuse(f"{field}.role", "it is empty", 'say who speaks: "system", "user", "assistant", …')
    changes: dict[str, Any] = {}
    if not isinstance(value.content, (str, type(None))):
        changes["content"] = _mappings(f"{field}.content", cast("object", value.content))
    elif value.content is not None:
        _text(f"{field}.content", value.content)
    for name in ("name", "tool_call_id"):
        if getattr(value, name) is not None:
            _text(f"{field}.{name}", getattr(value, name))
    if value.function_call is not None:
        changes["function_call"] = _call(f"{field}.function_call", cast("object", value.function_call))
    if value.tool_calls is not None:
        if not isinstance(cast("object", value.tool_calls), (list, tuple)):
            raise _refuse(f"{field}.tool_calls", f"{_shown(value.tool_calls)} is not a list", "pass a list")
        calls = cast("Sequence[object]", value.tool_calls)
        changes["tool_calls"] = tuple(_tool(f"{field}.tool_calls[{i}]", call) for i, call in enumerate(calls))
    # A message of an answer may hold the nulls that were sent; made anew, it holds what it has, as requests need it.
    return attrs.evolve(value, **changes) if changes or None in vars(value).values() else value


def _call(field: str, value: object) -> FunctionCall:
    if isinstance(value, FunctionCall):
        value = {"name": value.name, "arguments": value.arguments}
    call = cast("Mapping[str, object]", _mapping(field, value))
    return FunctionCall(_text(f"{field}.name", call.get("name")), _text(f"{field}.arguments", call.get("arguments")))


def _tool(field: str, value: object) -> ToolCall:
    if isinstance(value, ToolCall):
        value = {"id": value.id, "type": value.type, "function": value.function}
    if not isinstance(value, Mapping):
        raise _refuse(field, f"{_shown(value)} is not a tool call", "pass ToolCall(...) or a mapping")
    call = cast("Mapping[str, object]", value)
    return ToolCall(
        function=_call(f"{field}.function", call.get("function")),
        id=_text(f"{field}.id", call.get("id")),
        type=_text(f"{field}.type", call.get("type") or "function"),
    )


def _messages(value: object) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", _text("prompt", value)),)
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)):
        raise _refuse("prompt", f"{_shown(value)} is not a prompt", "pass a str, a list of messages or a ChatRequest")
    items = cast("Sequence[object]", value)
    if not items:
        raise _refuse("messages", "there is none", "pass at least one message")
    return tuple(_message(f"messages[{i}]", item) for i, item in enumerate(items))


def _messages_shown(messages: tuple[Message, ...]) -> str:
    return f"<{len(messages)} message{'s' if len(messages) != 1 else ''}>"


@attrs.frozen(slots=False)
class ChatRequest:
    """A request, checked.

    Its `repr` does not show the messages, so that no prompt gets into a log or a traceback by accident.

    Attributes:
        messages: The conversation so far; a str becomes one user message.
        model: Name of the model; None for the client's default.
        functions: Descriptions of functions that the model may call.
        function_call: `"none"`, `"auto"`, or `{"name": …}` to force a function.
        temperature: 0 to 2; higher is more random. The provider's default is 1.
        top_p: 0 to 1: sample from the tokens that make up this share of the probability. Default 1.
        n: Number of answers, 1 or more. Default 1.
        stop: Up to 4 texts at which the answer ends.
        max_tokens: Most tokens to generate, 1 or more. Default: as many as the model can.
        presence_penalty: -2 to 2; positive favours new topics. Default 0.
        frequency_penalty: -2 to 2; positive disfavours repetition. Default 0.
        logit_bias: Token ids to numbers from -100 to 100.
        tools: Descriptions of tools that the model may call.
        tool_choice: `"none"`, `"auto"`, `"required"`, or a mapping that names a tool.
        response_format: Such as `{"type": "json_object"}`.
        seed: Whole number; the same seed favours the same answer.
        user: Your own id of the end user.
        max_completion_tokens: As `max_tokens`, reasoning included; 1 or more.
        reasoning_effort: Such as `"low"`.
        stream_options: Such as `{"include_usage": True}`.
        logprobs: Whether to return log probabilities.
        top_logprobs: 0 to 20 alternatives a token.
        extra_body: Anything else, merged into the request's JSON as it is.
        stream: Whether the answer comes as events; `Client.stream` sets it.

    Raises:
        InvalidRequestError: A value of a wrong type or out of its range; the text names field, value and range.
    """

    messages: tuple[Message, ...] = attrs.field(converter=_messages, repr=_messages_shown)
    model: str | None = None
    functions: Sequence[Mapping[str, object]] | None = attrs.field(default=None, kw_only=True, repr=False)
    function_call: str | Mapping[str, object] | None = attrs.field(default=None, kw_only=True)
    temperature: float | None = attrs.field(default=None, kw_only=True)
    top_p: float | None = attrs.field(default=None, kw_only=True)
    n: int | None = attrs.field(default=None, kw_only=True)
    stop: str | Sequence[str] | None = attrs.field(default=None, kw_only=True)
    max_tokens: int | None = attrs.field(default=None, kw_only=True)
    presence_penalty: float | None = attrs.field(default=None, kw_only=True)
    frequency_penalty: float | None = attrs.field(default=None, kw_only=True)
    logit_bias: Mapping[str, float] | None = attrs.field(default=None, kw_only=True)
    tools: Sequence[Mapping[str, object]] | None = attrs.field(default=None, kw_only=True, repr=False)
    tool_choice: str | Mapping[str, object] | None = attrs.field(default=None, kw_only=True)
    response_format: Mapping[str, object] | None = attrs.field(default=None, kw_only=True, repr=False)
    seed: int | None = attrs.field(default=None, kw_only=True)
    user: str | None = attrs.field(default=None, kw_only=True)
    max_completion_tokens: int | None = attrs.field(default=None, kw_only=True)
    reasoning_effort: str | None = attrs.field(default=None, kw_only=True)
    stream_options: Mapping[str, object] | None = attrs.field(default=None, kw_only=True)
    logprobs: bool | None = attrs.field(default=None, kw_only=True)
    top_logprobs: int | None = attrs.field(default=None, kw_only=True)
    extra_body: Mapping[str, object] | None = attrs.field(default=None, kw_only=True, repr=False)
    stream: bool = attrs.field(default=False, kw_only=True)

    # Type checkers know the one that attrs would make, which spells the parameters out.
    if not TYPE_CHECKING:  # pragma: no branch  # always true where it runs

        def __init__(self, messages, model=None, *, stream=False, **params):
            # Only what is given is checked and kept; the rest is read from the class, below. To set and look at two
            # dozen fields, nearly all of them None, took as long as all else here. And what is kept is what is sent:
            # a request is encoded as it is, in less than half of the time.
            fields = vars(self)
            fields["messages"] = _messages(messages)
            if model is not None:
                fields["model"] = _text("model", model)
            if stream is not False:
                fields["stream"] = _flag("stream", stream)
            if params:
                for name, check in _RULES.items():  # in one order, so that equal requests make equal bytes
                    value = params.pop(name, None)
                    if value is not None:
                        fields[name] = check(name, value)
                if params:
                    raise TypeError(f"{next(iter(params))!r} is no parameter of a ChatRequest")


@attrs.frozen(slots=False)
class Result:
    """What became of one prompt of a `map`.

    Attributes:
        index: Position of the prompt in the input, from 0.
        request: The request, or None if the prompt could not be made into one.
        completion: The answer, if there is one.
        error: Why there is none.
        latency: Seconds from the moment the prompt was taken up to its end.
    """

    index: int
    request: ChatRequest | None
    completion: ChatCompletion | None = None
    error: Exception | None = None
    latency: float = 0.0

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every request that was sent, or tried, for this prompt."""
        if self.completion is not None:
            return self.completion.attempts
        attempts: tuple[Attempt, ...] = getattr(self.error, "attempts", ())
        return attempts

    def unwrap(self) -> ChatCompletion:
        """Return the completion.

        Raises:
            Exception: `error`, if there is no completion.
        """
        if self.completion is not None:
            return self.completion
        raise self.error or RuntimeError("a result has a completion or an error; this one was made with neither")


# What was not given, or not sent, is read from the class: a request holds nothing of it, and msgspec, which looks at
# each field of an answer, finds it there and sets nothing. That spares 7 % of decoding an answer.
for _class in (FunctionCall, ToolCall, Message, Choice, ChatRequest):
    for _field in attrs.fields(_class):
        if _field.default is not attrs.NOTHING:
            setattr(_class, _field.name, _field.default)
