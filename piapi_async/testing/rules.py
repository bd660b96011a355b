"""What the local server accepts: the request's types and documented ranges, and the provider's rules. No IO.

The types below are the check: a body that doesn't convert to `ChatBody` is refused with 400, in the API's error shape.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from attrs import frozen
from msgspec import Meta, Struct

from piapi_async import catalog
from piapi_async.testing.answers import Schema
from piapi_async.testing.faults import error_body

__all__ = ["ChatBody", "FunctionSpec", "Message", "Refusal", "check", "parse"]

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1)]


class Part(Struct):
    """A part of a message's content; only text is read."""

    type: str
    text: str = ""


class Called(Struct):
    """A function call that the assistant made before."""

    name: str
    arguments: str = ""


class ToolCalled(Struct):
    """A tool call that the assistant made before."""

    id: str
    function: Called


class Message(Struct):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "function", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    function_call: Called | None = None
    tool_calls: list[ToolCalled] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, list):
            return " ".join(part.text for part in self.content)
        return self.content or ""


class FunctionSpec(Struct):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: Schema | None = None


class Tool(Struct):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(Struct):
    """The choice of one function."""

    name: str


class NamedTool(Struct):
    """The choice of one tool."""

    type: Literal["function"]
    function: NamedFunction


class NamedSchema(Struct, rename={"schema_": "schema"}):
    """The schema of a structured answer."""

    name: Name
    schema_: Schema


class ResponseFormat(Struct):
    """What the answer's text must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StreamOptions(Struct):
    """Options of a stream."""

    include_usage: bool = False


class ChatBody(Struct):
    """The request's body: the parameters of the provider's page with their ranges, and newer ones of OpenAI's.

    `n` is bounded at 128 and a probability at 1, as OpenAI does; the page gives no such bounds. Unknown fields pass.
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
        """The most tokens that a choice may have."""
        return min(
            (limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None), default=None
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


@frozen
class Refusal:
    """Why a request isn't answered.

    Attributes:
        status: The HTTP status.
        message: For people.
        code: For programs; `None` where OpenAI has none.
        param: The request's field that is wrong.
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


# A path tells where; without one, the field that the body itself lacks is named.
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
        extra_models: Models that are served besides those of the catalogue, on every plan.

    Returns:
        What is wrong with it, `None` if nothing.
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
    """What types can't say: a choice needs something to choose from, and the options of a stream need a stream."""
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
