"""Chunks → the whole answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeAlias, cast

import attrs

from piapi_async.errors import APIResponseError, StreamTruncatedError
from piapi_async.models import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Content,
    Delta,
    Message,
    Usage,
)
from piapi_async.models.messages import text_of
from piapi_async.wire.calls import CallParts, ToolCallParts, is_empty
from piapi_async.wire.convert import OWN_FIELDS

Part: TypeAlias = Mapping[str, object]


def _no_texts() -> list[str]:
    return []


def _no_objects() -> list[object]:
    return []


def _no_pieces() -> list[str | Part]:
    return []


@attrs.define(eq=False, repr=False, slots=False)
class _Gathered:
    """What chunks bring that has no field: strings are joined, lists extended, of anything else the last is kept."""

    values: dict[str, object] = attrs.field(factory=dict[str, object])
    texts: dict[str, list[str]] = attrs.field(factory=dict[str, list[str]])
    audio: dict[str, list[str]] = attrs.field(factory=dict[str, list[str]])

    def __bool__(self) -> bool:
        return any(self.values.values()) or any(self.texts.values()) or bool(self.audio)

    def add(self, extra: Mapping[str, object]) -> None:
        for name, value in extra.items():
            if isinstance(value, str) and name != "name":
                self.texts_of(name).extend([value] if value else [])
            elif name == "audio" and isinstance(value, dict):
                self._add_audio(cast("Mapping[str, object]", value))
            else:
                self.values[name] = _extended(self.values.get(name), value)

    def _add_audio(self, audio: Mapping[str, object]) -> None:
        """Gather the data and transcript of an audio apart: each chunk brings a piece of them."""
        rest = {name: value for name, value in audio.items() if name not in _GROWING or not isinstance(value, str)}
        self.values["audio"] = _extended(self.values.get("audio"), rest)
        for name in audio.keys() - rest.keys():
            self.audio.setdefault(name, []).append(cast("str", audio[name]))

    def texts_of(self, name: str) -> list[str]:
        return self.texts.setdefault(name, [])

    def joined(self) -> dict[str, object]:
        joined = self.values | {name: "".join(texts) for name, texts in self.texts.items()}
        if self.audio:
            pieces = {name: "".join(texts) for name, texts in self.audio.items()}
            rest = joined.get("audio")
            joined["audio"] = (cast("dict[str, object]", rest) if isinstance(rest, dict) else {}) | pieces
        return joined


def _extended(before: object, value: object) -> object:
    """Put a later value behind an earlier one of the same name; an object's fields are put together."""
    if isinstance(before, list) and isinstance(value, list):
        return [*cast("list[object]", before), *cast("list[object]", value)]
    if isinstance(before, dict) and isinstance(value, dict):
        joined = dict(cast("dict[str, object]", before))
        for name, field in cast("dict[str, object]", value).items():
            joined[name] = field
        return joined
    return value


_GROWING = ("data", "transcript")
"""Fields of an object `audio`, of which each chunk brings a piece."""


@attrs.define(eq=False, repr=False, slots=False)
class _ChoiceParts:
    """One choice's message in the making."""

    role: str = "assistant"
    content: list[str | Part] = attrs.field(factory=_no_pieces)
    refusal: list[str] = attrs.field(factory=_no_texts)
    finish_reason: str | None = None
    ended: bool = False  # by a finish_reason that no content has followed
    function_call: CallParts | None = None
    tools: ToolCallParts | None = None
    logprobs: list[object] = attrs.field(factory=_no_objects)
    gathered: _Gathered | None = None
    extra: dict[str, object] = attrs.field(factory=dict[str, object])

    @property
    def has_content(self) -> bool:
        return bool(
            self.content or self.refusal or self.function_call or self.gathered or (self.tools and self.tools.calls)
        )

    def extend(self, part: ChunkChoice) -> None:
        if part.finish_reason is not None:
            self.finish_reason = part.finish_reason
            self.ended = True
        elif _brings_content(part.delta):
            self.ended = False
        if part.logprobs is not None:
            self.logprobs.append(part.logprobs)
        if part.extra:
            keep_last(self.extra, part.extra)
        self._extend_message(part.delta)

    def _extend_message(self, delta: Delta) -> None:
        extra = delta.extra
        if "content_parts" in extra:
            self.content += cast("list[Part]", extra["content_parts"])
            extra = {name: value for name, value in extra.items() if name != "content_parts"}
        elif delta.content:
            self.content.append(delta.content)
        if delta.role:
            self.role = delta.role
        if delta.refusal:
            self.refusal.append(delta.refusal)
        call = delta.function_call
        if call is not None and (call.name or call.arguments or self.function_call is not None):
            self.function_call = self.function_call or CallParts()
            self.function_call.extend(call)
        if delta.tool_calls:
            self.tools = self.tools or ToolCallParts()
            self.tools.extend(delta.tool_calls)
        if extra:
            self.gather().add(extra)

    def gather(self) -> _Gathered:
        """Where that is gathered which has no field."""
        if self.gathered is None:
            self.gathered = _Gathered()
        return self.gathered

    def joined(self, index: int) -> Choice:
        tools = self.tools.joined() if self.tools else ()
        call = self.function_call.joined() if self.function_call else None
        content = _join_content(self.content)
        message = Message(
            self.role,
            content if content or not (tools or call) else None,
            function_call=call,
            tool_calls=tools or None,
            refusal="".join(self.refusal) or None,
            extra=self.gathered.joined() if self.gathered is not None else {},
        )
        reason = self.finish_reason if self.ended else None  # one that content has followed was none
        return Choice(index, message, reason, _join_logprobs(self.logprobs), extra=self.extra)


_HANDED_OUT = ("annotations", "audio", "citations", "images", "search_results")
"""Where servers put parts of an answer beside its choices."""

_PARTS_BESIDE = ("content_parts", "images", "audio")
"""Where servers put what is no text of an answer, but a part of it."""


def _brings_content(delta: Delta) -> bool:
    call = delta.function_call
    return bool(
        delta.content
        or delta.refusal
        or (call is not None and (call.name or call.arguments))
        or any(not is_empty(tool) for tool in delta.tool_calls or ())
        or delta.reasoning
        or any(delta.extra.get(name) for name in _PARTS_BESIDE)
    )


def keep_last(kept: dict[str, object], extra: Mapping[str, object]) -> None:
    """Keep the last of each field; of lists, which some servers repeat in every chunk, each item once."""
    for name, value in extra.items():
        before = kept.get(name)
        if isinstance(before, list) and isinstance(value, list):
            items = cast("list[object]", before)
            kept[name] = [*items, *(item for item in cast("list[object]", value) if item not in items)]
        else:
            kept[name] = value


def _join_content(pieces: list[str | Part]) -> Content:
    """Join texts; where there are parts too, everything becomes parts."""
    if all(isinstance(piece, str) for piece in pieces):
        return "".join(cast("list[str]", pieces))
    joined: list[dict[str, object]] = []
    for piece in pieces:
        part: dict[str, object] = {"type": "text", "text": piece} if isinstance(piece, str) else dict(piece)
        if joined and (grown := _grown(joined[-1], part)) is not None:
            joined[-1] = grown
        else:
            joined.append(part)
    if all(part.keys() == {"type", "text"} and part["type"] == "text" for part in joined):
        return "".join(str(part["text"]) for part in joined)
    return tuple(joined)


def _grown(before: dict[str, object], part: dict[str, object]) -> dict[str, object] | None:
    """A part with the next one of its kind behind it; None for kinds that don't grow, such as pictures."""
    kind = part.get("type")
    if before.get("type") != kind or kind not in ("text", "thinking", "reasoning"):
        return None
    grown = dict(before)
    for name, value in part.items():
        earlier = before.get(name)
        if name == "type" or earlier is None:
            grown[name] = value
        elif isinstance(earlier, str) and isinstance(value, str):
            grown[name] = earlier + value
        elif isinstance(earlier, list) and isinstance(value, list):
            grown[name] = [*cast("list[object]", earlier), *cast("list[object]", value)]
        elif earlier != value:
            return None
    return grown


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


# -- the whole answer --------------------------------------------------------------------------------------------------


def _no_choices() -> dict[int, _ChoiceParts]:
    return {}


@attrs.define(eq=False, repr=False, slots=False)
class AnswerBuilder:
    """Joins the chunks of a stream into its answer.

    Attributes:
        asked: How many choices were asked for.
        id: As the first chunk that has one.
        created: As `id`.
        model: As `id`.
        usage: Token counts, once a chunk brought them; a later null, or zeros, do not undo them.
        uncounted: Whether more of the answer came behind the last token counts.
        begun: Whether any chunk has come.
        chunks: How many have come, those of each choice apart: an answer has no fewer tokens.
        extra: What chunks bring beside their fields, the last of each.
    """

    asked: int = 1
    id: str = ""
    created: int = 0
    model: str = ""
    usage: Usage | None = None
    uncounted: bool = False
    begun: bool = False
    chunks: int = 0
    extra: dict[str, object] = attrs.field(factory=dict[str, object])
    _has_header: bool = attrs.field(default=False, init=False)  # id, created and model have come
    _choices: dict[int, _ChoiceParts] = attrs.field(factory=_no_choices, init=False)

    @property
    def text(self) -> str:
        """Content of choice 0 so far."""
        return self.text_of(0)

    def text_of(self, index: int) -> str:
        """Content of a choice so far."""
        choice = self._choices.get(index)
        pieces = choice.content if choice else []
        return "".join(piece if isinstance(piece, str) else text_of((piece,)) for piece in pieces)

    def has_ended(self, index: int) -> bool:
        """Whether a choice has its `finish_reason`, with no content behind it."""
        choice = self._choices.get(index)
        return choice is not None and choice.ended

    @property
    def has_content(self) -> bool:
        """Whether anything has come that a caller may have been handed: text, reasoning, a refusal, calls, parts."""
        if any(self.extra.get(name) for name in _HANDED_OUT):
            return True
        return any(choice.has_content for choice in self._choices.values())

    def texts_of(self, index: int, field: str) -> list[str]:
        """Where the texts of a choice are gathered, those of its content or of an unknown field."""
        choice = self._choice(index)
        return cast("list[str]", choice.content) if field == "content" else choice.gather().texts_of(field)

    def has_content_of(self, index: int) -> bool:
        """The same of one choice."""
        choice = self._choices.get(index)
        return choice is not None and choice.has_content

    def add(self, chunk: ChatCompletionChunk, *, reopens: bool = True) -> None:
        """Add a chunk; what it brings to a choice that has ended `reopens` that, or was sent before the end."""
        if not self._has_header:
            self._take_header(chunk)
        for part in chunk.choices:
            choice = self._choice(part.index)
            ended = choice.ended
            choice.extend(part)
            choice.ended = choice.ended or (ended and not reopens)
        if chunk.usage is not None and (chunk.usage.total_tokens or self.usage is None):
            self.usage = attrs.evolve(chunk.usage)  # a copy: what the caller does to the chunk must change no bill
        if chunk.extra:
            keep_last(self.extra, chunk.extra)

    def count(self, chunks: list[ChatCompletionChunk]) -> None:
        """Count the chunks of one read."""
        self.chunks += len(chunks) if self.asked == 1 else sum(len(chunk.choices) for chunk in chunks)
        if self.usage is not None:
            for chunk in chunks:
                if chunk.usage is not None:
                    self.uncounted = False
                elif any(_brings_content(choice.delta) for choice in chunk.choices):
                    self.uncounted = True

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
        finished = bool(self._choices) and all(choice.ended for choice in self._choices.values())
        # Some servers give one choice whatever was asked; where a terminator came, that is an answer.
        if finished and (terminated or len(self._choices) >= self.asked):
            return
        if terminated and not require_finish_reason:
            return
        lacks = "a finish_reason" if terminated else "its terminator and a finish_reason"
        raise StreamTruncatedError(
            f"the stream ended without {lacks}: the answer is cut off; ask again", maybe_billed=True
        )

    def build(self, asked: str) -> ChatCompletion:
        """Return the answer so far as a completion; `asked` is the model to name when the stream named none."""
        own = {name: value for name, value in self.extra.items() if name in OWN_FIELDS}
        completion = ChatCompletion(
            self.id,
            "chat.completion",
            self.created,
            self.model or asked,
            tuple(part.joined(index) for index, part in sorted(self._choices.items())),
            self.usage,
            extra={name: value for name, value in self.extra.items() if name not in own},
        )
        if own:  # what could be taken for the client's word stands in `raw` alone
            completion.body = json.dumps(completion.raw | own).encode()
        return completion
