"""A request → the bytes and headers to send."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import msgspec

from piapi_async.errors import InvalidRequestError
from piapi_async.models import ChatRequest, Message
from piapi_async.models.messages import FunctionCall, ToolCall, to_json
from piapi_async.wire.call_ids import make_ids_good
from piapi_async.wire.parse import JSON

MAX_REQUEST_BYTES = 32 << 20
"""Largest request body, 32 MiB (ours: above every vendor's limit for a prompt with pictures)."""


@attrs.define(repr=False, eq=False, slots=False)
class Body:
    """The body of a request; no `repr`, log or traceback with locals shows it."""

    content: bytes


def encode_request(request: ChatRequest, model: str, *, include_usage: bool = False) -> Body:
    """Make the body of a request; equal arguments make equal bytes.

    Args:
        request: The request.
        model: The provider's name of the model.
        include_usage: Whether to ask for token counts in a stream, where the request says nothing of it.

    Raises:
        InvalidRequestError: The body is larger than `MAX_REQUEST_BYTES`.
    """
    fields = _given(request)
    fields["model"] = model
    fields["messages"] = _messages(request.messages)
    if not request.stream:
        del fields["stream"]
    elif include_usage:
        fields.setdefault("stream_options", {"include_usage": True})
    if request.extra_body is not None:
        del fields["extra_body"]
        fields.update(request.extra_body)
    body = Body(msgspec.json.encode(fields))
    size = len(body.content)
    if size <= MAX_REQUEST_BYTES:
        return body
    del request, fields, body  # else a traceback would keep the prompt alive
    raise InvalidRequestError(
        f"messages: the request has {size:,} bytes, more than {MAX_REQUEST_BYTES:,}; send a shorter prompt"
    )


def _messages(messages: tuple[Message, ...]) -> list[JSON]:
    sent: list[JSON] = []
    calls = False
    for message in messages:
        if (
            message.name is None
            and message.function_call is None
            and message.tool_calls is None
            and message.tool_call_id is None
            and message.refusal is None
            and not message.extra
        ):  # the straight way: `to_json` would say the same
            sent.append({"role": message.role, "content": message.content})
            continue
        fields = to_json(message)
        if message.tool_calls is not None:
            calls = True
            fields["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
        sent.append(fields)
    if calls:
        make_ids_good(sent)
    return sent


def _tool_call(call: ToolCall) -> JSON:
    """A call as it is sent; one of another type than `"function"` has no function."""
    fields = to_json(call)
    if call.type != "function" and call.function == FunctionCall():
        del fields["function"]
    return fields


def _given(value: ChatRequest) -> JSON:
    """The fields that are not None; all are JSON already, as they were checked and copied."""
    return {name: field for name, field in value.__dict__.items() if field is not None}


COMMON_HEADERS: Mapping[str, str] = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "X-Attempt": "1",
}
"""What nearly all requests have in common; those of a single request win over them. The key is not among them."""


def request_headers(idempotency_key: str, attempt: int, *, stream: bool) -> dict[str, str]:
    """Return the headers of one request, beside or instead of `COMMON_HEADERS`.

    Args:
        idempotency_key: The same for every attempt of a call.
        attempt: Counted from 1.
        stream: Whether the answer is to come as events.
    """
    headers = {"Idempotency-Key": idempotency_key}
    if stream:
        headers["Accept"] = "text/event-stream"
    if attempt > 1:
        headers["X-Attempt"] = str(attempt)
    return headers
