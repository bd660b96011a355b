"""The body of an answer that was not streamed → `ChatCompletion`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import msgspec

from piapi_async.errors import APIError, Secret
from piapi_async.models import ChatCompletion, Choice
from piapi_async.sse import ServerSentEvent, SSEDecoder
from piapi_async.wire.chunks import ChunkDecoder
from piapi_async.wire.convert import converter, structure
from piapi_async.wire.failure import raise_error_object
from piapi_async.wire.join import AnswerBuilder
from piapi_async.wire.parse import BLANK, JSON, as_unicode, malformed, may_be_deep, one_object, parse_values
from piapi_async.wire.repair import MAY_HOLD_MORE, is_possible, repair_completion

_PLAIN_REASONS = frozenset({"stop", "length", "tool_calls", "function_call", "content_filter", None})
"""The ends that OpenAI's page names. An answer with another word is looked at closely, as it may be no end."""

_ODD = frozenset({"error", "usage", "delta"})
"""Keys of a choice that mean that something stands where it is not looked for."""

_START = 2000
"""Characters in which an answer says what it is (ours)."""

_COMMENTS = r"^[\s\ufeff]*(:[^\n]*\n\s*)+(?=[{\[])"
"""Comments of an event stream that stand before plain JSON, as some gateways send them while they wait."""

_EVENTS = r"(data|event|id|retry)?:"
"""How an event stream begins."""


def decode_completion(
    body: bytes, *, asked: str = "", choices: int = 1, secrets: Iterable[Secret] = ()
) -> ChatCompletion:
    """Decode the body of an answer that was not streamed.

    Nearly every answer is good as it comes. One that is not is read again, by an engine that takes more, and repaired.

    Args:
        body: The answer's bytes; its declared charset is ignored, as JSON is UTF-8. Some servers send the events of a
            stream, asked or not: they are joined.
        asked: The model that was asked, for an answer that names none.
        choices: How many were asked for.
        secrets: Keys that must not appear in an error.

    Raises:
        APIStatusError: The body is an error object; its child class is the one of the status that it stands for.
        APIResponseError: The body is no completion.
    """
    completion = _decode_as_it_comes(body)
    if completion is None:
        text = re.sub(_COMMENTS, "", body.decode("utf-8", "replace"))
        if re.match(_EVENTS, text.lstrip(BLANK)):
            decoder = SSEDecoder()
            completion = _join(decoder.feed(text.encode()), decoder.unended(), choices, asked, secrets)
        else:
            values = parse_values(text, secrets)
            if _are_events(values, text):
                completion = _join([ServerSentEvent(text)], None, choices, asked, secrets)
            else:
                completion = _decode_tolerantly(values, text, secrets)
    completion.object = completion.object or "chat.completion"
    completion.model = completion.model or asked
    return completion


def _are_events(values: list[object], text: str) -> bool:
    """Whether a text is the chunks of a stream without the names of their fields, one a line."""
    return isinstance(values[0], dict) and (len(values) > 1 or '"chat.completion.chunk"' in text[:_START])


def _decode_as_it_comes(body: bytes) -> ChatCompletion | None:
    if may_be_deep(body):
        return None
    try:
        fields = msgspec.json.decode(body)
        if fields.get("error") is not None or not fields["choices"]:
            return None
        completion = _structure()(fields, ChatCompletion)
    except Exception:  # the hooks raise whatever a wrong type leads to; the tolerant way says what is wrong
        return None
    if not MAY_HOLD_MORE.isdisjoint(completion.extra) or not (
        completion.usage is None or is_possible(completion.usage)
    ):
        return None
    if not _is_plain(completion.choices):
        return None
    completion.body = body
    return completion


def _is_plain(choices: Sequence[Choice]) -> bool:
    """Whether choices are as the format has them, so that nothing has to be mended."""
    for position, choice in enumerate(choices):
        if choice.index != position and len(choices) > 1:
            return False
        message = choice.message
        if choice.finish_reason not in _PLAIN_REASONS:
            return False
        if choice.extra and not (_ODD.isdisjoint(choice.extra) and (message.content or "text" not in choice.extra)):
            return False
        if message.tool_calls and not all(c.id and c.function.name for c in message.tool_calls):
            return False
        if message.function_call is not None and not message.function_call.name:
            return False
    return True


@cache
def _structure() -> Callable[[object, object], ChatCompletion]:
    """The converter's hook for completions; to look it up for each answer would cost more than a field."""
    return converter().get_structure_hook(ChatCompletion)


def _decode_tolerantly(values: list[object], body: str, secrets: Iterable[Secret]) -> ChatCompletion:
    fields = as_unicode(one_object(values, body, secrets))
    text = json.dumps(fields)
    raise_error_object(fields, secrets)
    repaired = repair_completion(fields)
    if not isinstance(fields.get("choices"), (list, dict)) or not fields["choices"] or not repaired["choices"]:
        raise malformed("it has no choices", text, secrets, "not a completion")
    defaults: JSON = {"id": "", "object": "", "created": 0, "model": ""}
    completion = structure(
        {**repaired, **{name: repaired.get(name) or default for name, default in defaults.items()}},
        ChatCompletion,
        text,
        secrets,
    )
    completion.choices = tuple(sorted(completion.choices, key=lambda choice: choice.index))
    completion.body = text.encode()
    return completion


def _join(
    events: list[ServerSentEvent], unended: ServerSentEvent | None, choices: int, asked: str, secrets: Iterable[Secret]
) -> ChatCompletion:
    """Join the events of a stream that nobody asked for."""
    builder = AnswerBuilder(choices)
    decoder = ChunkDecoder(builder, secrets)
    try:
        terminated = decoder.decode(events, []) or decoder.decode_unended(unended, [])
        decoder.flush()
        builder.check_end(terminated=terminated)
    except APIError as error:
        error.partial = builder.text
        raise
    return builder.build(asked)
