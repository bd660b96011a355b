"""What answers say of themselves."""

from __future__ import annotations

import copy
import json
import pickle
from decimal import Decimal
from typing import Any, cast

import attrs
import pytest

from piapi_async import (
    Attempt,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    FunctionCall,
    Message,
    ToolCall,
    Usage,
)


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
    assert completion.raw == {
        "id": "c-1",
        "object": "chat.completion",
        "created": 5,
        "model": "gpt-4o",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}],
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


IMAGE = {"type": "image_url", "image_url": {"url": "https://e.com/1"}}


@pytest.mark.parametrize(
    ("message", "urls"),
    [
        (Message("assistant"), ()),
        (
            Message("assistant", "![sea](https://e.com/1) and ![](<https://e.com/2> 'x')"),
            ("https://e.com/1", "https://e.com/2"),
        ),
        (
            Message("assistant", (IMAGE, {"type": "image_url", "image_url": "https://e.com/2"})),
            ("https://e.com/1", "https://e.com/2"),
        ),
        (Message("assistant", "Here:", extra={"images": [IMAGE, IMAGE]}), ("https://e.com/1",)),
        (Message("assistant", "", extra={"images": ["x", None, {"image_url": 5}, {"image_url": {"url": 5}}]}), ()),
        (Message("assistant", "", extra={"images": "https://e.com/1"}), ()),
    ],
)
def test_image_urls(message: Message, urls: tuple[str, ...]) -> None:
    assert answer(Choice(0, message)).image_urls == urls
    assert answer().image_urls == ()


THOUGHTS = (
    {"type": "thinking", "thinking": "Hm. "},
    {"type": "reasoning", "reasoning": [{"type": "text", "text": "So"}, ".", 5, {"text": 5}]},
    {"type": "thinking", "thinking": {"text": "x"}},
    {"type": "text", "text": "Hi"},
)


@pytest.mark.parametrize(
    ("content", "extra", "reasoning"),
    [
        (None, {}, None),
        ("Hi", {"reasoning_content": "a", "reasoning": "b"}, "a"),
        ("Hi", {"reasoning_content": "", "reasoning": "b"}, "b"),
        ("Hi", {"reasoning": {"effort": "low"}}, None),
        (THOUGHTS, {}, "Hm. So."),
        (THOUGHTS, {"reasoning": "b"}, "b"),
        (THOUGHTS[3:], {}, None),
    ],
)
def test_reasoning(content: Any, extra: dict[str, Any], reasoning: str | None) -> None:
    assert Message("assistant", content, extra=extra).reasoning == reasoning
    parts = {} if content is None or isinstance(content, str) else {"content_parts": list(content)}
    assert Delta(extra={**extra, **parts}).reasoning == reasoning


# -- JSON and notebooks ------------------------------------------------------------------------------------------------


def test_a_completion_as_plain_json() -> None:
    call = ToolCall(FunctionCall("f", "{}"), "1")
    completion = answer(
        Choice(0, Message("assistant", PARTS, tool_calls=(call,)), "stop", {"content": [{"token": "a"}]}),
        usage=Usage(1, 2, 3),
        cost=Decimal("0.0000061875"),
        provider="piapi",
        attempts=(Attempt("piapi", "…1234", 500, "status"), Attempt("piapi", "…1234", 200, usage=Usage(1, 2, 3))),
        request_id="req-1",
        body=b"{}",
    )
    plain = completion.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert set(plain) == {field.name for field in attrs.fields(ChatCompletion)} - {"body"}
    assert (plain["id"], plain["created"], plain["provider"], plain["request_id"]) == ("c-1", 5, "piapi", "req-1")
    assert (plain["cost"], plain["cost_estimated"]) == ("0.0000061875", False)
    assert plain["usage"] == attrs.asdict(Usage(1, 2, 3))
    (choice,) = cast("list[Any]", plain["choices"])
    assert choice["message"]["content"] == list(PARTS)
    assert choice["message"]["tool_calls"][0]["function"] == attrs.asdict(FunctionCall("f", "{}"))
    first, second = cast("list[Any]", plain["attempts"])
    assert (first["status"], first["kind"], first["usage"]) == (500, "status", None)
    assert second["usage"] == plain["usage"]
    assert answer().to_dict()["cost"] is None


def test_a_completion_in_a_notebook() -> None:
    shown = answer(Choice(0, Message("assistant", "**Hi**")), cost=Decimal("0.00012"), provider="piapi")
    assert shown._repr_markdown_() == "**Hi**\n\n*gpt-4o · piapi · $0.00012*"
    assert answer(provider="piapi")._repr_markdown_() == "\n\n*gpt-4o · piapi*"


def test_no_default_that_can_be_changed_is_shared() -> None:
    assert ToolCall().function is not ToolCall().function
    assert ChunkChoice(0).delta is not ChunkChoice(0).delta


@pytest.mark.parametrize("made", [Delta(), Message("user"), FunctionCall(), ChunkChoice(0)], ids=repr)
def test_an_extra_that_is_shared_stays_empty(made: Delta | Message | FunctionCall | ChunkChoice) -> None:
    shared = cast("dict[str, object]", made.extra)
    with pytest.raises(TypeError, match=r"assign a dict of your own to \.extra"):
        shared["a"] = 1
    with pytest.raises(TypeError, match=r"assign a dict of your own to \.extra"):
        shared.update(a=1)
    with pytest.raises(TypeError, match=r"assign a dict of your own to \.extra"):
        shared.setdefault("a", 1)
    with pytest.raises(TypeError, match=r"assign a dict of your own to \.extra"):
        shared |= {"a": 1}
    assert made.extra == copy.deepcopy(made).extra == pickle.loads(pickle.dumps(made)).extra == {}
    assert json.dumps(made.extra) == "{}"
    made = copy.copy(made)
    made.extra = {"a": 1}
    assert attrs.asdict(made)["extra"] == {"a": 1}
    assert shared == {}
