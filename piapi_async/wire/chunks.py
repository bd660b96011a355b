"""The events of a stream → `ChatCompletionChunk`s."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Literal, TypeAlias, cast

import attrs
import msgspec

from piapi_async.errors import Secret
from piapi_async.models import (
    ChatCompletion,
    ChatCompletionChunk,
    ChunkChoice,
    Delta,
    FunctionCall,
    ToolCall,
)
from piapi_async.sse import ServerSentEvent
from piapi_async.wire.convert import ENGINE_ERRORS, converter, structure
from piapi_async.wire.failure import error_object, raise_error_object, status_error
from piapi_async.wire.join import AnswerBuilder
from piapi_async.wire.parse import BLANK, JSON, SHALLOW, as_unicode, may_be_deep, parse_object
from piapi_async.wire.repair import is_possible, repair

End: TypeAlias = Literal["end"]

TERMINATORS = ("[done]", "[none]")
"""What ends a stream, in lower case: OpenAI's word, and the one of PiAPI's page."""

_CONTENT = r'"content": ?"'
"""The key of a text, up to the text itself."""

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
    index: int
    header: tuple[str | None, str | None, int | None, str | None]  # id, object, created, model
    texts: list[str]  # where the builder gathers them

    @classmethod
    def around(cls, chunk: ChatCompletionChunk, builder: AnswerBuilder) -> _Frame | None:
        """Find the frame of a chunk; None if it brings more than a text."""
        found = re.search(_CONTENT, chunk.data)
        if found is None or len(chunk.choices) != 1 or chunk.usage is not None:
            return None
        choice = chunk.choices[0]
        before, (text, quote, tail) = chunk.data[: found.end()], chunk.data[found.end() :].partition('"')
        if re.search(_CONTENT, tail) or choice != ChunkChoice(choice.index, Delta(content=text)):
            return None
        behind = quote + tail
        header = chunk.id, chunk.object, chunk.created, chunk.model
        length = len(before) + len(behind)
        return cls(before, behind, length, choice.index, header, builder.texts_of(choice.index))

    def decode(self, data: str) -> ChatCompletionChunk | None:
        """Decode a chunk that has this frame, and add its text to the answer; None if it has another, or is wrong."""
        text = data.removeprefix(self.before).removesuffix(self.behind)
        if len(data) - len(text) != self.length:
            return None
        try:
            text = _decode_text(f'"{text}"')
        except ENGINE_ERRORS:
            return None
        self.texts.append(text)
        choice = ChunkChoice(self.index, Delta(None, text))
        return ChatCompletionChunk((choice,), *self.header, None, data)


class ChunkDecoder:
    """Turns the events of one stream into chunks, and adds them to the answer that is being built.

    It keeps two things between chunks: the first half of a surrogate pair, until its second half comes, so that every
    string it hands out encodes to UTF-8; and the frame of the last text.

    Args:
        builder: What the chunks are added to.
        secrets: Keys that must not appear in an error.
    """

    __slots__ = ("_builder", "_frame", "_halves", "_secrets", "_structure")

    def __init__(self, builder: AnswerBuilder, secrets: Iterable[Secret] = ()) -> None:
        self._builder = builder
        self._secrets = secrets
        self._frame: _Frame | None = None
        self._halves: dict[_Place, str] = {}
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
                other = self._decode_as_it_comes(event) or self._decode_tolerantly(event)
                if other is None:
                    continue
                if isinstance(other, str):  # "end"
                    return True
                chunk = other
                self._builder.add(chunk)
            chunks.append(chunk)
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
        if not chunk.choices and chunk.usage is None:
            return None
        if chunk.usage is not None and not is_possible(chunk.usage):
            chunk.usage = None
        self._frame = _Frame.around(chunk, self._builder)
        return chunk

    def flush(self) -> ChatCompletionChunk | None:
        """Return what was held back when the stream has ended, as a last chunk, if anything was; it is added too."""
        if not self._halves:
            return None
        choices = tuple(_replacement(*place) for place in self._halves)
        self._halves = {}
        chunk = ChatCompletionChunk(choices)
        self._builder.add(chunk)
        return chunk

    def _decode_tolerantly(self, event: ServerSentEvent) -> ChatCompletionChunk | End | None:
        self._frame = None
        data = event.data.strip(BLANK)
        if data.lower() in TERMINATORS:
            return "end"
        if event.event == "error" and not data.startswith("{"):
            raise status_error(500, {"message": data}, data, self._secrets)
        if not data or event.event == "ping":
            return None
        fields = self._join_halves(parse_object(data, self._secrets))
        if event.event == "error" and error_object(fields) is None:
            fields = cast("JSON", {"error": fields})
        raise_error_object(fields, self._secrets)
        chunk = structure(repair(fields), ChatCompletionChunk, data, self._secrets)
        chunk.data = json.dumps(fields)
        return chunk

    def _join_halves(self, fields: JSON) -> JSON:
        """Join the surrogate pairs that were cut between this chunk and those before it."""
        for position, choice in enumerate(_dicts(fields.get("choices"))):
            index = _index(choice, position)
            for delta in _dicts([choice.get("delta")]):
                self._join((index, "content", 0), delta, "content")
                for call in _dicts([delta.get("function_call")]):
                    self._join((index, "function_call", 0), call, "arguments")
                for i, tool in enumerate(_dicts(delta.get("tool_calls"))):
                    for call in _dicts([tool.get("function")]):
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
        return []
    return [cast("JSON", item) for item in cast("list[object]", value) if isinstance(item, dict)]


def _index(part: JSON, position: int) -> int:
    """The index of a choice or tool call; where it has none, or a wrong one, which is refused later, its position."""
    index = part.get("index")
    return index if isinstance(index, int) else position


def _replacement(index: int, field: str, tool: int) -> ChunkChoice:
    call = FunctionCall(arguments="\ufffd")
    delta = {
        "content": Delta(content="\ufffd"),
        "function_call": Delta(function_call=call),
        "tool_calls": Delta(tool_calls=(ToolCall(call, index=tool),)),
    }[field]
    return ChunkChoice(index, delta)


def as_chunk(completion: ChatCompletion) -> ChatCompletionChunk:
    """A whole completion, sent where a stream was asked for, as the only chunk of that stream."""
    choices = [
        ChunkChoice(
            choice.index,
            Delta(
                choice.message.role,
                choice.message.text or None,
                choice.message.function_call,
                choice.message.tool_calls,
            ),
            choice.finish_reason,
            choice.logprobs,
        )
        for choice in completion.choices
    ]
    return ChatCompletionChunk(
        tuple(choices),
        completion.id,
        "chat.completion.chunk",
        completion.created,
        completion.model,
        completion.usage,
        completion.body.decode("utf-8", "replace"),
    )
