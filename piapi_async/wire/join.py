"""Chunks → the whole answer."""

from __future__ import annotations

from typing import cast

import attrs

from piapi_async.errors import APIResponseError, StreamTruncatedError
from piapi_async.models import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    FunctionCall,
    Message,
    ToolCall,
    Usage,
)


def _no_texts() -> list[str]:
    return []


@attrs.define(eq=False, repr=False, slots=False)
class _CallParts:
    """A function call in the making."""

    name: str = ""
    arguments: list[str] = attrs.field(factory=_no_texts)
    id: str | None = None
    type: str | None = "function"

    def extend(self, fragment: FunctionCall) -> None:
        if fragment.name != self.name:  # some servers repeat the name in every fragment
            self.name += fragment.name
        self.arguments.append(fragment.arguments)

    def joined(self) -> FunctionCall:
        return FunctionCall(self.name, "".join(self.arguments))


def _no_calls() -> dict[int, _CallParts]:
    return {}


def _no_objects() -> list[object]:
    return []


@attrs.define(eq=False, repr=False, slots=False)
class _ChoiceParts:
    """One choice's message in the making."""

    role: str = "assistant"
    content: list[str] = attrs.field(factory=_no_texts)
    finish_reason: str | None = None
    function_call: _CallParts | None = None
    tools: dict[int, _CallParts] = attrs.field(factory=_no_calls)
    logprobs: list[object] = attrs.field(factory=_no_objects)

    def extend(self, part: ChunkChoice) -> None:
        delta = part.delta
        if part.finish_reason is not None:
            self.finish_reason = part.finish_reason
        if part.logprobs is not None:
            self.logprobs.append(part.logprobs)
        if delta.content:
            self.content.append(delta.content)
        if delta.role:
            self.role = delta.role
        if delta.function_call is not None:
            self.function_call = self.function_call or _CallParts()
            self.function_call.extend(delta.function_call)
        for fragment in delta.tool_calls or ():
            call = self.tools.setdefault(self._place(fragment), _CallParts())
            call.id = call.id or fragment.id
            call.type = fragment.type or call.type
            call.extend(fragment.function)

    def _place(self, fragment: ToolCall) -> int:
        """The call that a fragment belongs to; without an index, by its id, else the one begun last."""
        if fragment.index is not None:
            return fragment.index
        for index, call in self.tools.items():
            if fragment.id is not None and call.id == fragment.id:
                return index
        last = max(self.tools, default=-1)
        return last + 1 if fragment.id is not None or last < 0 else last

    def joined(self, index: int) -> Choice:
        tools = tuple(ToolCall(part.joined(), part.id, part.type) for _, part in sorted(self.tools.items()))
        call = self.function_call.joined() if self.function_call else None
        content = "".join(self.content)
        message = Message(
            self.role,
            content if content or not (tools or call) else None,
            function_call=call,
            tool_calls=tools or None,
        )
        return Choice(index, message, self.finish_reason, _join_logprobs(self.logprobs))


def _join_logprobs(parts: list[object]) -> object:
    """Join objects of lists, as OpenAI sends them: lists of the same name are joined. Anything else is handed on."""
    if len(parts) < 2:
        return parts[0] if parts else None
    joined: dict[str, list[object]] = {}
    for part in parts:
        if not isinstance(part, dict):
            return parts
        for name, value in cast("dict[str, object]", part).items():
            if isinstance(value, list):
                joined.setdefault(name, []).extend(cast("list[object]", value))
    return joined


def _no_choices() -> dict[int, _ChoiceParts]:
    return {}


@attrs.define(eq=False, repr=False, slots=False)
class AnswerBuilder:
    """Joins the chunks of a stream into its answer.

    Attributes:
        id: As the first chunk that has one.
        created: As `id`.
        model: As `id`.
        usage: Token counts, once a chunk brought them; a later null does not undo them.
        begun: Whether any chunk has come.
    """

    id: str = ""
    created: int = 0
    model: str = ""
    usage: Usage | None = None
    begun: bool = False
    _has_header: bool = attrs.field(default=False, init=False)  # id, created and model have come
    _choices: dict[int, _ChoiceParts] = attrs.field(factory=_no_choices, init=False)

    @property
    def text(self) -> str:
        """Content of choice 0 so far."""
        first = self._choices.get(0)
        return "".join(first.content) if first else ""

    @property
    def has_content(self) -> bool:
        """Whether any text, or fragment of a call, has come."""
        return any(choice.content or choice.function_call or choice.tools for choice in self._choices.values())

    def texts_of(self, index: int) -> list[str]:
        """Where the texts of a choice are gathered."""
        return self._choice(index).content

    def add(self, chunk: ChatCompletionChunk) -> None:
        """Add a chunk."""
        if not self._has_header:
            self._take_header(chunk)
        for part in chunk.choices:
            self._choice(part.index).extend(part)
        if chunk.usage is not None:
            self.usage = attrs.evolve(chunk.usage)  # a copy: what the caller does to the chunk must change no bill

    def _choice(self, index: int) -> _ChoiceParts:
        return self._choices.get(index) or self._choices.setdefault(index, _ChoiceParts())

    def _take_header(self, chunk: ChatCompletionChunk) -> None:
        self.begun = True
        self.id = self.id or chunk.id or ""
        self.created = self.created or chunk.created or 0
        self.model = self.model or chunk.model or ""
        self._has_header = bool(self.id and self.created and self.model)

    def check_end(self, *, terminated: bool, broken: bool = False, require_finish_reason: bool = False) -> None:
        """Say whether an ended stream is whole.

        Args:
            terminated: Whether a terminator came.
            broken: Whether the connection broke off.
            require_finish_reason: Whether a terminator alone is not enough.

        Raises:
            StreamTruncatedError: It was cut off.
            APIResponseError: Nothing came at all.
        """
        if not self.begun and not broken:
            raise APIResponseError("the stream ended without any event; try again", kind="empty", maybe_billed=True)
        finished = bool(self._choices) and all(c.finish_reason is not None for c in self._choices.values())
        if finished or (terminated and not require_finish_reason):
            return
        lacks = "a finish_reason" if terminated else "its terminator and a finish_reason"
        raise StreamTruncatedError(
            f"the stream ended without {lacks}: the answer is cut off; ask again", maybe_billed=True
        )

    def build(self, asked: str) -> ChatCompletion:
        """Return the answer so far as a completion; `asked` is the model to name when the stream named none."""
        return ChatCompletion(
            self.id,
            "chat.completion",
            self.created,
            self.model or asked,
            tuple(part.joined(index) for index, part in sorted(self._choices.items())),
            self.usage,
        )
