"""The events of a stream → `ChatCompletionChunk`s."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TypeAlias, cast

import attrs
import msgspec

from piapi_async.errors import APIResponseError, Secret, StreamTruncatedError
from piapi_async.models import (
    ChatCompletion,
    ChatCompletionChunk,
    ChunkChoice,
    Delta,
    FunctionCall,
    Message,
    ToolCall,
)
from piapi_async.models.messages import Extra
from piapi_async.sse import ServerSentEvent
from piapi_async.wire.convert import ENGINE_ERRORS, converter, structure
from piapi_async.wire.failure import error_object, raise_error_object, status_error
from piapi_async.wire.indexes import ChoiceIndexes
from piapi_async.wire.join import AnswerBuilder
from piapi_async.wire.parse import (
    BLANK,
    JSON,
    SHALLOW,
    TERMINATORS,
    as_unicode,
    malformed,
    may_be_deep,
    parse_values,
)
from piapi_async.wire.repair import MAY_HOLD_MORE, is_possible, is_word, repair_chunk, stands_instead

_TEXT = r'"(content|reasoning_content|reasoning)": ?"'
"""The key of a text that grows, up to the text itself."""

_PING = ("ping", "keepalive", "keep-alive", "heartbeat")
"""What servers send as the data of an event, in lower case, to say that they are still there."""

_NOT_AS_IT_IS = frozenset({"message", "text", "usage", "error"})
"""Keys of a choice that mean that something stands where it is not looked for."""

_OF_A_FUNCTION = frozenset({"name", "arguments"})
"""Keys of a tool call that mean that its function stands beside the object that should hold it."""

_decode_text = msgspec.json.Decoder(str).decode

_Place: TypeAlias = tuple[int, str, int]
"""Where a text of a stream grows: the choice's index, the field, the tool call's index."""


@attrs.define(eq=False, repr=False, slots=False)
class _Frame:
    """What stands around the text of a chunk, as JSON.

    Most chunks of a stream differ in their text alone. One with the same frame brings a text and nothing else.
    """

    before: str
    behind: str
    length: int  # of both together
    header: tuple[str | None, str | None, int | None, str | None]  # id, object, created, model
    index: int
    role: str | None
    field: str  # that the text is of
    content: str | None  # where it is of another one
    extra: Extra
    choice_extra: Extra
    texts: list[str]  # where the builder gathers them

    @classmethod
    def around(cls, chunk: ChatCompletionChunk, builder: AnswerBuilder) -> _Frame | None:
        """Find the frame of a chunk; None if it brings more than a text."""
        found = [match for match in re.finditer(_TEXT, chunk.data) if chunk.data[match.end() :][:1] != '"']
        if len(found) != 1 or len(chunk.choices) != 1 or chunk.usage is not None:
            return None
        choice, field = chunk.choices[0], found[0][1]
        before, (text, quote, tail) = chunk.data[: found[0].end()], chunk.data[found[0].end() :].partition('"')
        header = chunk.id, chunk.object, chunk.created, chunk.model
        expected = Delta(choice.delta.role, text)
        if field != "content":
            expected = Delta(choice.delta.role, choice.delta.content, extra={field: text})
        if choice != ChunkChoice(choice.index, expected, extra=choice.extra):
            return None
        behind = quote + tail
        return cls(
            before,
            behind,
            len(before) + len(behind),
            header,
            choice.index,
            expected.role,
            field,
            choice.delta.content if field != "content" else None,
            dict(chunk.extra),
            dict(choice.extra),
            builder.texts_of(choice.index, field),
        )

    def decode(self, data: str) -> ChatCompletionChunk | None:
        """Decode a chunk that has this frame, and add its text to the answer; None if it has another, or is wrong."""
        text = data.removeprefix(self.before).removesuffix(self.behind)
        if len(data) - len(text) != self.length:
            return None
        try:
            text = _decode_text(f'"{text}"')
        except ENGINE_ERRORS:
            return None
        if text:
            self.texts.append(text)
        if self.field == "content":
            delta = Delta(self.role, text)
        else:
            delta = Delta(self.role, self.content, extra={self.field: text})
        choice = ChunkChoice(self.index, delta)
        chunk = ChatCompletionChunk((choice,), *self.header, None, data)
        if self.choice_extra:
            choice.extra = dict(self.choice_extra)
        if self.extra:
            chunk.extra = dict(self.extra)
        return chunk


class ChunkDecoder:
    """Turns the events of one stream into chunks, and adds them to the answer that is being built.

    It keeps three things between chunks: the first half of a surrogate pair, until its second half comes, so that every
    string it hands out encodes to UTF-8; the frame of the last text; and the second chunk, where its index may count
    chunks.

    Args:
        builder: What the chunks are added to.
        secrets: Keys that must not appear in an error.
    """

    __slots__ = ("_builder", "_frame", "_halves", "_indexes", "_instead", "_secrets", "_structure")

    def __init__(self, builder: AnswerBuilder, secrets: Iterable[Secret] = ()) -> None:
        self._builder = builder
        self._secrets = secrets
        self._frame: _Frame | None = None
        self._indexes = ChoiceIndexes() if builder.asked == 1 else None
        self._halves: dict[_Place, str] = {}
        self._instead: list[int] = []  # choices of which messages came in place of deltas
        self._structure = converter().get_structure_hook(ChatCompletionChunk)

    def decode(self, events: Iterable[ServerSentEvent], chunks: list[ChatCompletionChunk]) -> bool:
        """Decode events, up to a terminator if there is one among them.

        Args:
            events: What one read brought.
            chunks: Where the chunks go, those before a wrong event too.

        Returns:
            Whether there was a terminator.

        Raises:
            APIStatusError: An event is an error object.
            APIResponseError: An event is neither a chunk nor an error.
        """
        for event in events:
            frame = self._frame
            chunk = frame.decode(event.data) if frame is not None and event.event == "message" else None
            if chunk is None:
                chunk = self._decode_as_it_comes(event)
                if chunk is None:
                    if self._decode_tolerantly(event, chunks):
                        return True
                    continue
                self._hand_out(chunk, chunks)
                if self._indexes is None or self._indexes.decided:
                    self._frame = _Frame.around(chunk, self._builder)
            else:
                chunks.append(chunk)
        return False

    def _hand_out(self, chunk: ChatCompletionChunk, chunks: list[ChatCompletionChunk]) -> None:
        indexes = self._indexes
        ready = [chunk] if indexes is None else indexes.place(chunk)
        if indexes is not None and indexes.decided and not indexes.renames:
            self._indexes = None
        for each in ready:
            self._builder.add(each)
        chunks += ready

    def decode_unended(self, event: ServerSentEvent | None, chunks: list[ChatCompletionChunk]) -> bool:
        """Decode the event that the end of the bytes left unended, if it is whole all the same.

        Args:
            event: The event, or None.
            chunks: As in `decode`.

        Returns:
            Whether it was a terminator.

        Raises:
            APIStatusError: It is an error object.
        """
        if event is None:
            return False
        try:
            return self.decode([event], chunks)
        except APIResponseError:  # it is cut off, or something else that the end of the stream tells more about
            return False

    def _decode_as_it_comes(self, event: ServerSentEvent) -> ChatCompletionChunk | None:
        data = event.data
        odd = event.event != "message" or self._halves or '"error"' in data
        if odd or (len(data) > SHALLOW and may_be_deep(data.encode())):
            return None
        try:
            chunk: ChatCompletionChunk = self._structure(data, ChatCompletionChunk)
        except ENGINE_ERRORS:
            return None
        # Every field of a chunk may be missing, so one without choices and usage may be something else.
        if not chunk.choices and (chunk.usage is None or chunk.extra):
            return None
        return chunk if self._is_plain(chunk) else None

    def _is_plain(self, chunk: ChatCompletionChunk) -> bool:
        """Whether a chunk is as the format has it, so that nothing has to be mended."""
        if not MAY_HOLD_MORE.isdisjoint(chunk.extra) or not (chunk.usage is None or is_possible(chunk.usage)):
            return False
        if len(chunk.choices) > 1 and len({choice.index for choice in chunk.choices}) < len(chunk.choices):
            return False
        for choice in chunk.choices:
            if choice.finish_reason is not None and not is_word(choice.finish_reason):
                return False
            if not _NOT_AS_IT_IS.isdisjoint(choice.extra):
                return False
            if any(not _OF_A_FUNCTION.isdisjoint(call.extra) for call in choice.delta.tool_calls or ()):
                return False
        return True

    def flush(self) -> list[ChatCompletionChunk]:
        """Return what was held back when no more events come; it is added too."""
        held = [] if self._indexes is None else self._indexes.release(ended=self._builder.has_ended(0))
        for chunk in held:
            self._builder.add(chunk)
        if self._halves:
            last = ChatCompletionChunk(tuple(_replacement(*place) for place in self._halves))
            self._halves = {}
            self._builder.add(last, reopens=False)  # it was sent before the end
            held.append(last)
        return held

    def _decode_tolerantly(self, event: ServerSentEvent, chunks: list[ChatCompletionChunk]) -> bool:
        """Decode an event that may hold anything; say whether it holds a terminator."""
        self._frame = None
        data = event.data.strip(BLANK)
        while data.startswith("data:"):  # a framework has put the field's name there a second time
            data = data[5:].lstrip(BLANK)
        if data.strip('"').lower() in TERMINATORS:
            return True
        if event.event == "error" and not data.startswith(("{", "[")):
            raise status_error(500, {"message": data}, data, self._secrets)
        if not data or event.event == "ping" or data.startswith(":") or data.lower() in _PING:
            return False
        for value in self._parse(data):
            for item in cast("list[object]", value) if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    self._take(cast("JSON", item), event, chunks)
                elif self._is_terminator(item, data):
                    return True
        return False

    def _parse(self, data: str) -> list[object]:
        try:
            return parse_values(data, self._secrets)
        except APIResponseError as error:
            if error.kind != "truncated":
                raise
            text = str(error)
        raise StreamTruncatedError(text, maybe_billed=True)

    def _is_terminator(self, value: object, data: str) -> bool:
        """Whether a value that is no object ends the stream; one that is neither nothing nor a number is refused."""
        if not isinstance(value, str) or not value.strip():
            return False
        word = value.strip().lower()
        if word not in TERMINATORS and word not in _PING:
            raise malformed("it is a text", data, self._secrets, "not a completion")
        return word in TERMINATORS

    def _take(self, fields: JSON, event: ServerSentEvent, chunks: list[ChatCompletionChunk]) -> None:
        """Decode an object of an event."""
        if event.event == "error" and error_object(fields) is None:
            fields = cast("JSON", {"error": fields})
        fields = self._join_halves(fields)
        raise_error_object(fields, self._secrets)
        repaired = repair_chunk(fields)
        if not repaired["choices"] and repaired["usage"] is None and "choices" not in fields:
            return  # it says nothing
        chunk = structure(repaired, ChatCompletionChunk, event.data, self._secrets)
        chunk.data = json.dumps(fields)
        self._drop_repeated(chunk, fields)
        self._hand_out(chunk, chunks)

    def _drop_repeated(self, chunk: ChatCompletionChunk, fields: JSON) -> None:
        """Drop a whole message that some servers send behind its own deltas."""
        for choice, each in zip(chunk.choices, _dicts(fields.get("choices")), strict=False):
            if not stands_instead(each, "delta", "message"):
                continue
            deltas_came = choice.index not in self._instead and self._builder.has_content_of(choice.index)
            if deltas_came and (choice.delta.content or "") == self._builder.text_of(choice.index):
                choice.delta = Delta(choice.delta.role)
            elif not deltas_came:
                self._instead.append(choice.index)

    def _join_halves(self, fields: JSON) -> JSON:
        """Join the surrogate pairs that were cut between this chunk and those before it."""
        for position, choice in enumerate(_dicts(fields.get("choices"))):
            index = _index(choice, position) if self._builder.asked > 1 else 0
            self._join((index, "content", 0), choice, "text")
            for delta in (part for name in ("delta", "message") for part in _dicts(choice.get(name))):
                for name in delta:
                    self._join((index, name, 0), delta, name)
                for part in _dicts(delta.get("content")):
                    self._join((index, "content", 0), part, "text")
                for call in _dicts(delta.get("function_call")):
                    self._join((index, "function_call", 0), call, "arguments")
                for i, tool in enumerate(_dicts(delta.get("tool_calls"))):
                    for call in _dicts(tool.get("function")):
                        self._join((index, "tool_calls", _index(tool, i)), call, "arguments")
        return as_unicode(fields)

    def _join(self, place: _Place, part: JSON, field: str) -> None:
        text = part.get(field)
        if isinstance(text, str) and text:
            text = self._halves.pop(place, "") + text
            if "\ud800" <= text[-1] <= "\udbff":
                self._halves[place] = text[-1]
                text = text[:-1]
            part[field] = text


def _dicts(value: object) -> list[JSON]:
    if not isinstance(value, list):
        return [cast("JSON", value)] if isinstance(value, dict) else []
    return [cast("JSON", item) for item in cast("list[object]", value) if isinstance(item, dict)]


def _index(part: JSON, position: int) -> int:
    """The index of a choice or tool call; where it has none, or one that is no number, its position."""
    index = part.get("index")
    if isinstance(index, str) and index.isdecimal() and len(index) < 10:
        return int(index)
    return index if isinstance(index, int) else position


def _replacement(index: int, field: str, tool: int) -> ChunkChoice:
    call = FunctionCall(arguments="\ufffd")
    if field == "function_call":
        return ChunkChoice(index, Delta(function_call=call))
    if field == "tool_calls":
        return ChunkChoice(index, Delta(tool_calls=(ToolCall(call, index=tool),)))
    if field == "content":
        return ChunkChoice(index, Delta(content="\ufffd"))
    if field == "refusal":
        return ChunkChoice(index, Delta(refusal="\ufffd"))
    return ChunkChoice(index, Delta(extra={field: "\ufffd"}))


def as_chunk(completion: ChatCompletion) -> ChatCompletionChunk:
    """A whole completion, sent where a stream was asked for, as the only chunk of that stream."""
    choices = [
        ChunkChoice(choice.index, _as_delta(choice.message), choice.finish_reason, choice.logprobs, extra=choice.extra)
        for choice in completion.choices
    ]
    return ChatCompletionChunk(
        tuple(choices),
        completion.id,
        "chat.completion.chunk",
        completion.created,
        completion.model,
        completion.usage,
        completion.body.decode("utf-8", "replace") or json.dumps(completion.raw),
        extra=completion.extra,
    )


def _as_delta(message: Message) -> Delta:
    parts = {} if message.content is None or isinstance(message.content, str) else {"content_parts": message.content}
    return Delta(
        message.role,
        message.text or None,
        message.function_call,
        message.tool_calls,
        message.refusal,
        extra={**message.extra, **parts},
    )
