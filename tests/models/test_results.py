"""What became of one prompt of many."""

from __future__ import annotations

import attrs
import pytest

from piapi_async import APIConnectionError, Attempt, ChatCompletion, ChatRequest, Result


def test_a_result_with_a_completion() -> None:
    attempts = (Attempt("piapi", "…1234"),)
    completion = ChatCompletion("c-1", "chat.completion", 5, "gpt-4o", (), attempts=attempts)
    result = Result(3, ChatRequest("Hi"), completion)
    assert result.unwrap() is result.completion
    assert result.attempts == attempts


def test_a_result_with_an_error() -> None:
    error = APIConnectionError("no", attempts=(Attempt("piapi", "…"),))
    result = Result(0, ChatRequest("Hi"), error=error)
    with pytest.raises(APIConnectionError) as raised:
        result.unwrap()
    assert raised.value is error
    assert result.attempts == error.attempts
    assert Result(0, None, error=TypeError()).attempts == ()


def test_a_result_with_neither() -> None:
    with pytest.raises(RuntimeError, match="made with neither"):
        Result(0, None).unwrap()
    assert Result(0, None).attempts == ()


def test_a_result_is_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Result(0, None).index = 1  # type: ignore[misc]
