"""What became of one prompt of many."""

from __future__ import annotations

import attrs

from piapi_async.models.answers import Attempt, ChatCompletion
from piapi_async.models.requests import ChatRequest


@attrs.frozen(slots=False)
class Result:
    """What became of one prompt of a `map`.

    Attributes:
        index: Position of the prompt in the input, from 0.
        request: The request, or None if the prompt could not be made into one.
        completion: The answer, if there is one.
        error: Why there is none.
        latency: Seconds from the moment the prompt was taken up to its end.
    """

    index: int
    request: ChatRequest | None
    completion: ChatCompletion | None = None
    error: Exception | None = None
    latency: float = 0.0

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every request that was sent, or tried, for this prompt."""
        if self.completion is not None:
            return self.completion.attempts
        attempts: tuple[Attempt, ...] = getattr(self.error, "attempts", ())
        return attempts

    def unwrap(self) -> ChatCompletion:
        """Return the completion.

        Raises:
            Exception: `error`, if there is no completion.
        """
        if self.completion is not None:
            return self.completion
        raise self.error or RuntimeError("a result has a completion or an error; this one was made with neither")
