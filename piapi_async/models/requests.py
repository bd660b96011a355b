"""What may be asked: `ChatRequest`, checked when it is made, so that a bad value is refused before a byte is sent."""

# Without `from __future__ import annotations`: a TypedDict would compile each annotation anew when this is loaded.

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias, TypedDict

import attrs

from piapi_async.models.checks import CHECKS, check_messages, show_fields
from piapi_async.models.messages import Message

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


def _show_messages(messages: tuple[Message, ...]) -> str:
    return f"<{len(messages)} message{'s' if len(messages) != 1 else ''}>"


@attrs.frozen(slots=False, repr=False)
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
        extra_body: Anything else, merged into the request's JSON as it is; what has a field here is refused there.
        stream: Whether the answer comes as events; `Client.stream` sets it.

    Raises:
        InvalidRequestError: A value of a wrong type or out of its range; the text names field, value and range.
    """

    messages: tuple[Message, ...] = attrs.field(converter=check_messages, repr=_show_messages)
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

    __repr__ = show_fields

    def __attrs_post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if value is not None and value is not False and name in CHECKS:
                checked = CHECKS[name](name, value)
                if checked is not value:
                    object.__setattr__(self, name, checked)


_PARAMETERS = frozenset(ChatParams.__annotations__)

_MEANT = {
    "timeout": "deadline",
    "max_retries": "Client(retry=Retry(attempts=…))",
    "extra_headers": "Client(headers=…)",
    "default_headers": "Client(headers=…)",
    "max_output_tokens": "max_tokens",
    "retries": "Client(retry=Retry(attempts=…))",
    "retry": "Client(retry=Retry(attempts=…))",
    "api_key": "Client(api_key=…)",
    "base_url": "Client(base_url=…)",
    "budget": "Client(budget=…)",
    "concurrency": "map(concurrency=…)",
    "ordered": "map(ordered=…)",
    "on_interrupt": "stream(on_interrupt=…)",
    "via_stream": "complete(via_stream=…)",
    "system": "messages",
}
"""What the OpenAI SDK and others call it, or what belongs to another call → what it is here."""


def check_names(params: Iterable[str]) -> None:
    """Check the names of a call's parameters.

    Raises:
        TypeError: There is no such parameter; the text names the one that was probably meant.
    """
    unknown = [name for name in params if name not in _PARAMETERS]
    if "stream" in unknown:
        raise TypeError("stream is no parameter; call client.stream() for a stream, client.complete() for none")
    if unknown:
        raise _unknown(unknown[0])


def _unknown(name: str) -> TypeError:
    import difflib  # deferred: few programs get a name wrong

    near = _MEANT.get(name)
    if near is None:
        near = difflib.get_close_matches(name, [*_PARAMETERS, "model", "messages", "deadline"], n=1, cutoff=0)[0]
    return TypeError(f"{name!r} is no parameter; the nearest one is {near!r} (anything else goes into extra_body)")
