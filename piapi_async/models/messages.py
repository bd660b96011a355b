"""Messages of a conversation, sent or received, as attrs classes in the API's own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import attrs

Content: TypeAlias = str | tuple[Mapping[str, object], ...] | None
"""A message's content: text, a sequence of parts (`{"type": "text", …}`, `{"type": "image_url", …}`), or none."""


@attrs.frozen(slots=False)
class FunctionCall:
    """A call of one of the caller's functions.

    Attributes:
        name: The function's name; `""` in the later fragments of a stream.
        arguments: Its arguments as JSON text, a fragment of it in a stream. The model may have made it invalid.
    """

    name: str = ""
    arguments: str = ""


@attrs.define(slots=False)
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


@attrs.define(slots=False)
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

    @property
    def text(self) -> str:
        """The content, `""` for none; the text parts joined where it is a list of parts."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(text for part in self.content if isinstance(text := part.get("text"), str))
