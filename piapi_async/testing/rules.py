"""What the local server accepts: the request's types, its documented ranges, and the provider's rules. No IO.

The types below do the checking: a body that does not convert to `ChatBody` is refused with 400, as the API does it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from attrs import frozen
from msgspec import Meta

from piapi_async import catalog
from piapi_async.testing.answers import Schema
from piapi_async.testing.faults import error_body

__all__ = ["ChatBody", "FunctionSpec", "Message", "Refusal", "check", "parse"]

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1)]


@frozen
class Part:
    """A part of a message's content. Only text is read."""

    type: str
    text: str = ""


@frozen
class Called:
    """A function call that the assistant has made."""

    name: str
    arguments: str = ""


@frozen
class ToolCalled:
    """A tool call that the assistant has made."""

    id: str
    function: Called


@frozen
class Message:
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "function", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    function_call: Called | None = None
    tool_calls: list[ToolCalled] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return " ".join(part.text for part in self.content)
        return self.content or ""


@frozen
class FunctionSpec:
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: Schema | None = None


@frozen
class Tool:
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionSpec


@frozen
class NamedFunction:
    """A function that the model must call."""

    name: str


@frozen
class NamedTool:
    """A tool that the model must call."""

    type: Literal["function"]
    function: NamedFunction


@frozen
class NamedSchema:
    """The schema of a structured answer."""

    name: Name
    schema: Schema


@frozen
class ResponseFormat:
    """The form that the answer's text must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


@frozen
class StreamOptions:
    """Options of a stream."""

    include_usage: bool = False


@frozen
class ChatBody:
    """The request's body: the parameters on the provider's page with their ranges, and OpenAI's newer ones.

    `n` may be 128 at most and a probability 1, as at OpenAI; the page gives no such bounds. Unknown fields pass.
    """

    model: str
    messages: Annotated[list[Message], Meta(min_length=1)]
    functions: list[FunctionSpec] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    response_format: ResponseFormat | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: int | None = None
    user: str | None = None

    @property
    def stops(self) -> Sequence[str]:
        """The stop sequences."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def token_limit(self) -> int | None:
        """How many tokens a choice may have at most."""
        return min(
            (limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None), default=None
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


@frozen
class Refusal:
    """Why a request is refused.

    Attributes:
        status: The HTTP status.
        message: The reason, for people.
        code: The reason, for programs; `None` where OpenAI has no code for it.
        param: The field of the request that is wrong.
        type: The error's type.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    type: str = "invalid_request_error"

    def content(self) -> bytes:
        """Return the error as JSON, in the API's shape."""
        return error_body(self.message, type=self.type, param=self.param, code=self.code)


# The message ends with a path, or names the field that the body itself lacks.
_PARAM: Final = re.compile(r".*`\$\.(\w+)|.*field `(\w+)`$")


def parse(document: Any) -> ChatBody | Refusal:
    """Check the types and ranges of a request's parsed body."""
    try:
        return msgspec.convert(document, ChatBody)
    except msgspec.ValidationError as error:
        problem = str(error)
    found = _PARAM.match(problem)
    param = None if found is None else found[1] or found[2]
    what = "request" if param is None else f"value for '{param}'"
    return Refusal(400, f"Invalid {what}: {problem}", param=param)


def check(body: ChatBody, plan: str, extra_models: Sequence[str]) -> Refusal | None:
    """Apply the provider's rules to a well-formed request.

    Args:
        body: The request.
        plan: The plan of the key.
        extra_models: Models that are served beside the catalogue's, on every plan.

    Returns:
        What is wrong with it; `None` if nothing is.
    """
    info = catalog.find(body.model)
    if info is None and body.model not in extra_models:
        message = f"The model '{body.model}' does not exist or you do not have access to it."
        return Refusal(404, message, code="model_not_found", param="model")
    if info is not None and not catalog.allows(plan, info.plan):
        message = (
            f"{body.model} needs the {info.plan.capitalize()} plan or one above it; this key is on the {plan} plan."
        )
        return Refusal(403, message, code="plan_required", param="model", type="permission_error")
    if info is not None and not info.system_role and any(message.role == "system" for message in body.messages):
        message = f"{body.model} doesn't support messages with the role 'system'."
        return Refusal(400, message, code="unsupported_value", param="messages")
    return _check_calls(body)


def _check_calls(body: ChatBody) -> Refusal | None:
    """Check what types can't: a choice needs something to choose from, and a stream's options need a stream."""
    functions = [function.name for function in body.functions or []]
    if body.function_call is not None and not functions:
        return Refusal(400, "'function_call' needs 'functions'.", param="function_call")
    if isinstance(body.function_call, NamedFunction) and body.function_call.name not in functions:
        return Refusal(
            400, f"'function_call' names '{body.function_call.name}', which 'functions' lacks.", param="function_call"
        )
    tools = [tool.function.name for tool in body.tools or []]
    if body.tool_choice is not None and not tools:
        return Refusal(400, "'tool_choice' needs 'tools'.", param="tool_choice")
    if isinstance(body.tool_choice, NamedTool) and body.tool_choice.function.name not in tools:
        return Refusal(
            400, f"'tool_choice' names '{body.tool_choice.function.name}', which 'tools' lacks.", param="tool_choice"
        )
    if body.stream_options is not None and not body.stream:
        return Refusal(400, "'stream_options' needs 'stream'.", param="stream_options")
    wants_schema = body.response_format is not None and body.response_format.type == "json_schema"
    if wants_schema and body.response_format is not None and body.response_format.json_schema is None:
        return Refusal(400, "'response_format' of the type 'json_schema' needs the schema.", param="response_format")
    return None
