"""Messages of a conversation, sent or received, as attrs classes in the API's own words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Never, Self, TypeAlias, cast

import attrs

Content: TypeAlias = str | tuple[Mapping[str, object], ...] | None
"""A message's content: text, a sequence of parts (`{"type": "text", …}`, `{"type": "image_url", …}`), or none."""

ContentInput: TypeAlias = str | Sequence[str | Mapping[str, object]] | None
"""What may be passed as a content: a str among the parts is a part of text."""

Extra: TypeAlias = Mapping[str, object]
"""What was sent beside the fields, by its own name."""

_THOUGHTS = ("thinking", "reasoning")
"""Types of parts that are no text of the answer."""

REASONING_KEYS = ("reasoning_content", "reasoning")
"""Where servers put the text of a model's reasoning: DeepSeek's word, and OpenRouter's."""


def to_content(value: ContentInput) -> Content:
    """Return a content as a message keeps it; what is none is left for the check of the request to name."""
    if value is None or isinstance(value, str):
        return value
    parts = cast("object", value)
    if not isinstance(parts, (list, tuple)):
        return cast("Content", parts)
    return tuple({"type": "text", "text": part} if isinstance(part, str) else part for part in value)


class _NoExtra(dict[str, object]):
    """A dict that stays empty: all objects without extra fields share one. It is a dict, so it is JSON and pickles."""

    def __hash__(self) -> int:  # type: ignore[override]  # a dict has none, but attrs hashes the default of a field
        return 0

    def __setitem__(self, *_: object) -> Never:
        raise _shared()

    def setdefault(self, *_: object) -> Never:
        raise _shared()

    def update(self, *_: object, **__: object) -> Never:
        raise _shared()

    def __ior__(self, *_: object) -> Self:  # type: ignore[override, misc]  # it takes less than `|`
        raise _shared()


def _shared() -> TypeError:
    return TypeError("this extra is empty and shared; to add a field, assign a dict of your own to .extra")


NO_EXTRA: Extra = _NoExtra()
"""The extra fields of what has none."""


@attrs.define(slots=False)
class FunctionCall:
    """A call of one of the caller's functions.

    Attributes:
        name: The function's name; `""` in the later fragments of a stream.
        arguments: Its arguments as JSON text, a fragment of it in a stream. The model may have made it invalid.
        extra: What was sent beside these, by its own name; nulls are left out.
    """

    name: str = ""
    arguments: str = ""
    extra: Extra = attrs.field(default=NO_EXTRA, kw_only=True)


@attrs.define(slots=False)
class ToolCall:
    """A call of one of the caller's tools.

    Attributes:
        function: The function called.
        id: What the tool's answer must name as its `tool_call_id`.
        type: `"function"`.
        index: In a stream, the call that a fragment belongs to.
        extra: What was sent beside these, such as `extra_content` with Gemini's signature of the thought behind it.
    """

    function: FunctionCall = attrs.field(factory=FunctionCall)
    id: str | None = None
    type: str | None = "function"
    index: int | None = None
    extra: Extra = attrs.field(default=NO_EXTRA, kw_only=True)


@attrs.define(slots=False, on_setattr=attrs.setters.NO_OP)  # a hook there would slow `__init__` down as well
class Message:
    """One message of a conversation, to or from the model. One of an answer can be sent back as it is.

    Attributes:
        role: `"system"`, `"user"`, `"assistant"`, `"function"`, `"tool"`, `"developer"`.
        content: Text, or None beside a function call, or parts: mappings, and strings for parts of text.
        name: Name of the author, or of the function whose result this is.
        function_call: The function that the model calls.
        tool_calls: The tools that the model calls.
        tool_call_id: The call that a `"tool"` message answers.
        refusal: Why the model does not answer, in its own words.
        extra: What has no field here, by its own name: `annotations`, `audio`, `images`, `reasoning_content` and the
            like. It is sent back with the message.
    """

    role: str
    content: Content = attrs.field(default=None, converter=to_content)
    name: str | None = None
    function_call: FunctionCall | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    extra: Extra = attrs.field(default=NO_EXTRA, kw_only=True)

    @property
    def text(self) -> str:
        """The content, `""` for none; the text parts joined where it is a list of parts."""
        return text_of(self.content)

    @property
    def reasoning(self) -> str | None:
        """What the model thought before it answered: of `reasoning_content`, `reasoning`, or thinking parts."""
        return reasoning_of(self.content, self.extra)


def text_of(content: Content) -> str:
    """Return the text of a content, without other parts."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = (part.get("text") for part in content if part.get("type") not in _THOUGHTS)
    return "".join(text for text in texts if isinstance(text, str))


def reasoning_of(content: object, extra: Extra) -> str | None:
    """Return the reasoning that stands beside a content or within its parts; None if there is none."""
    for key in REASONING_KEYS:
        text = extra.get(key)
        if isinstance(text, str) and text:
            return text
    if not isinstance(content, (list, tuple)):
        return None
    return "".join(_thoughts(cast("tuple[Mapping[str, object], ...]", content))) or None


def _thoughts(parts: tuple[Mapping[str, object], ...]) -> Iterator[str]:
    for part in parts:
        thinking = part.get("thinking", part.get("reasoning"))
        if thinking is None and part.get("type") in _THOUGHTS:
            thinking = part.get("text")
        if isinstance(thinking, str):
            yield thinking
        elif isinstance(thinking, (list, tuple)):
            for inner in cast("tuple[object, ...]", thinking):
                text = cast("Mapping[str, object]", inner).get("text") if isinstance(inner, dict) else inner
                if isinstance(text, str):
                    yield text


_NULL_IS_SAID = ("content", "finish_reason")
"""Fields of which a null is part of the format."""


def to_json(value: object) -> dict[str, object]:
    """Return a message, or a part of an answer, as it is on the wire; most nulls are left out."""
    fields: dict[str, object] = {}
    for name, field in value.__dict__.items():
        if name == "extra":
            fields |= field
        elif field is not None or name in _NULL_IS_SAID:
            fields[name] = _plain(field)
    return fields


def _plain(value: object) -> object:
    if isinstance(value, str):  # as nearly always
        return value
    if isinstance(value, tuple):
        return [_plain(item) for item in cast("tuple[object, ...]", value)]
    return to_json(value) if attrs.has(type(value)) else value
