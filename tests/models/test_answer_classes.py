"""What answers say of themselves."""

from __future__ import annotations

from typing import Any

import pytest

from piapi_async import ChatCompletion, ChatCompletionChunk, Choice, ChunkChoice, Delta, Message, Usage


def answer(*choices: Choice, **fields: Any) -> ChatCompletion:
    return ChatCompletion("c-1", "chat.completion", 5, "gpt-4o", choices, **fields)


PARTS = ({"type": "text", "text": "a"}, {"type": "image"}, {"text": None}, {"type": "text", "text": "b"})


@pytest.mark.parametrize(
    ("content", "text"), [(None, ""), ("", ""), ("Hi", "Hi"), ((), ""), (PARTS, "ab"), (({"text": 5},), "")]
)
def test_text(content: Any, text: str) -> None:
    assert Message("assistant", content).text == text
    assert answer(Choice(0, Message("assistant", content))).text == text


def test_text_of_a_chunk() -> None:
    choices = [ChunkChoice(1, Delta(content="x")), ChunkChoice(0, Delta(content="a")), ChunkChoice(0), ChunkChoice(2)]
    assert ChatCompletionChunk((*choices, ChunkChoice(0, Delta(content="b")))).text == "ab"
    assert ChatCompletionChunk().text == ""


def test_the_first_choice_speaks_for_all() -> None:
    completion = answer(Choice(0, Message("assistant", "a"), "length"), Choice(1, Message("assistant", "b"), "stop"))
    assert (completion.text, completion.finish_reason) == ("a", "length")
    assert (answer().text, answer().finish_reason) == ("", None)


def test_raw_of_a_completion_that_was_joined() -> None:
    completion = answer(Choice(0, Message("assistant", "a"), "stop"), usage=Usage(1, 2, 3))
    message = {
        "role": "assistant",
        "content": "a",
        "name": None,
        "function_call": None,
        "tool_calls": None,
        "tool_call_id": None,
    }
    assert completion.raw == {
        "id": "c-1",
        "object": "chat.completion",
        "created": 5,
        "model": "gpt-4o",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    assert answer().raw["usage"] is None


def test_raw_is_the_callers_own() -> None:
    completion = answer(body=b'{"a": [1], "huge": 1e999, "long": ' + b"1" * 5000 + b"}")
    assert completion.raw == {"a": [1], "huge": "1e999", "long": "1" * 5000}
    completion.raw["a"] = 2
    assert completion.raw["a"] == [1]
    assert "body" not in repr(completion)
    assert ChatCompletionChunk().raw == {}
