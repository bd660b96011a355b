"""An index of a choice that counts chunks, told from one that counts choices."""

from __future__ import annotations

from piapi_async.models import ChatCompletionChunk


class ChoiceIndexes:
    """Sets the index of a stream's only choice to 0 where a server counts its chunks there.

    The first two chunks of such a stream, 0 and 1, may as well be those of two choices, so the second one waits for the
    third. It is for streams of which one choice was asked for.

    Attributes:
        decided: Whether the indexes are known to count choices, so that nothing need be asked any more.
    """

    def __init__(self) -> None:
        self.decided = False
        self._counts_chunks = False
        self._seen = 0
        self._held: ChatCompletionChunk | None = None

    def place(self, chunk: ChatCompletionChunk) -> list[ChatCompletionChunk]:
        """Return the chunks whose indexes are settled: this one, none, or this one and the one that waited."""
        if not chunk.choices and self._held is None:
            return [chunk]  # it says nothing about indexes
        held, self._held = self._held, None
        index = chunk.choices[0].index if len(chunk.choices) == 1 else None
        if self._counts_chunks:
            return [_as_first(chunk)]
        if held is not None:
            self._counts_chunks = index == 2
            self.decided = not self._counts_chunks
            return [_as_first(held), _as_first(chunk)] if self._counts_chunks else [held, chunk]
        if self._seen == 1 and index == 1:
            self._held = chunk
            return []
        self.decided = self._seen > 0 or index != 0
        self._seen = 1
        return [chunk]

    def release(self, *, ended: bool) -> ChatCompletionChunk | None:
        """Return the chunk that waits when no other comes.

        Args:
            ended: Whether the first choice has ended: then this is another one.
        """
        held, self._held = self._held, None
        return held if held is None or ended else _as_first(held)


def _as_first(chunk: ChatCompletionChunk) -> ChatCompletionChunk:
    for choice in chunk.choices[:1]:
        choice.index = 0
    return chunk
