"""An index of a choice that counts chunks, told from one that counts choices."""

from __future__ import annotations

from piapi_async.models import ChatCompletionChunk


class ChoiceIndexes:
    """Sets the index of a stream's only choice to 0, whatever the server has there.

    Some count chunks, and some begin with another number. The first texts of such a stream may as well be those of two
    choices, so they wait until the next one tells. This is for streams of which one choice was asked for; should there
    be more all the same, they stay apart.

    Attributes:
        decided: Whether the indexes are known to count choices.
        renames: Whether the only choice has another index than 0 throughout.
    """

    def __init__(self) -> None:
        self.decided = False
        self.renames = False
        self._counts_chunks = False
        self._first: int | None = None  # the index of the first text
        self._held: list[ChatCompletionChunk] = []

    def place(self, chunk: ChatCompletionChunk) -> list[ChatCompletionChunk]:
        """Return the chunks whose indexes are settled: this one, none, or this one and those that waited."""
        if len(chunk.choices) == 1:
            return self._place(chunk, chunk.choices[0].index)
        if not chunk.choices and self._held:
            self._held.append(chunk)  # it keeps its place behind the one that waits
            return []
        self.decided = self.decided or bool(chunk.choices)
        return [*self._take_held(), chunk]

    def _place(self, chunk: ChatCompletionChunk, index: int) -> list[ChatCompletionChunk]:
        if self.decided or self._counts_chunks:
            return [self._settle(chunk)]
        first = self._first
        if first is None and _brings_something(chunk):
            self._first = index
        if self._must_wait(index, first):
            self._held.append(chunk)
            return []
        if first is not None:
            next_ = first + (2 if first == 0 else 1)
            self._counts_chunks = bool(self._held) and first >= 0 and index == next_
            self.renames = first != 0 and index == first
            self.decided = not self._counts_chunks
        return [*self._take_held(), self._settle(chunk)]

    def _must_wait(self, index: int, first: int | None) -> bool:
        if first is None:
            return index != 0
        return first == 0 and index == 1 and not self._held

    def release(self, *, ended: bool) -> list[ChatCompletionChunk]:
        """Return the chunks that wait when no other comes.

        Args:
            ended: Whether the first choice has ended: then they are of another one.
        """
        self._counts_chunks = self._counts_chunks or not ended
        return self._take_held()

    def _take_held(self) -> list[ChatCompletionChunk]:
        held, self._held = self._held, []
        return [self._settle(chunk) for chunk in held]

    def _settle(self, chunk: ChatCompletionChunk) -> ChatCompletionChunk:
        for choice in chunk.choices:
            if self._counts_chunks or (self.renames and choice.index == self._first):
                choice.index = 0
        return chunk


def _brings_something(chunk: ChatCompletionChunk) -> bool:
    delta = chunk.choices[0].delta
    return bool(delta.content or delta.reasoning or delta.tool_calls or delta.function_call)
