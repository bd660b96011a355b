"""Bodies of answers to completions, by both ways to read JSON."""

from __future__ import annotations

import json

import pytest

from piapi_async import APIResponseError, ChatCompletion, Choice, FunctionCall, Message, ToolCall, Usage
from piapi_async.wire import decode_completion
from piapi_async.wire.parse import SHALLOW
from tests.wire.samples import BOM, completion, decode, refused


def test_the_completion_of_the_providers_page() -> None:
    decoded = decode(completion())
    assert decoded == ChatCompletion(
        id="chatcmpl-83jZ61GDHtdlsFUzXDbpGeoU193Mj",
        object="chat.completion",
        created=1695900828,
        model="gpt-3.5-turbo",
        choices=(Choice(0, Message("assistant", "Hello!"), "stop"),),
        usage=Usage(19, 9, 28),
    )
    assert (decoded.text, decoded.finish_reason) == ("Hello!", "stop")
    assert decoded.raw == json.loads(completion())


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"id": ...}, {"id": ""}),
        ({"id": None}, {"id": ""}),
        ({"id": 5}, {"id": ""}),
        ({"object": None}, {"object": "chat.completion"}),
        ({"object": "text"}, {"object": "text"}),
        ({"created": ...}, {"created": 0}),
        ({"created": None}, {"created": 0}),
        ({"created": 1695900828.5}, {"created": 1695900828}),
        ({"created": "1695900828"}, {"created": 1695900828}),
        ({"created": "yesterday"}, {"created": 0}),
        ({"created": []}, {"created": 0}),
        ({"created": 10**40}, {"created": 10**40}),
        ({"model": ...}, {"model": ""}),
        ({"model": None}, {"model": ""}),
        ({"model": "another"}, {"model": "another"}),
        ({"usage": ...}, {"usage": None}),
        ({"usage": None}, {"usage": None}),
        ({"usage": []}, {"usage": None}),
        ({"usage": {}}, {"usage": None}),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 2}}, {"usage": Usage(1, 2, 3)}),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": None}}, {"usage": Usage(1, 2, 3)}),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 4}}, {"usage": Usage(1, 2, 4)}),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 0}}, {"usage": Usage(1, 2, 3)}),
        ({"usage": {"prompt_tokens": 9.0, "completion_tokens": "9", "total_tokens": 9.5}}, {"usage": Usage(9, 9, 18)}),
        ({"usage": {"prompt_tokens": 9.5, "completion_tokens": 2}}, {"usage": None}),
        ({"usage": {"prompt_tokens": [1], "completion_tokens": 2}}, {"usage": None}),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": "x"}}, {"usage": Usage(1, 2, 3)}),
        ({"usage": {"prompt_tokens": -1, "completion_tokens": 2, "total_tokens": 1}}, {"usage": None}),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": -1, "total_tokens": 0}}, {"usage": None}),
        ({"usage": {"prompt_tokens": "1", "completion_tokens": 2, "total_tokens": 3}}, {"usage": Usage(1, 2, 3)}),
        ({"usage": {"prompt_tokens": True, "completion_tokens": 2, "total_tokens": 3}}, {"usage": None}),
        ({"usage": {"prompt_tokens": 10**12, "completion_tokens": 0, "total_tokens": 10**12}}, {"usage": None}),
        (
            {"timings": {}, "system_fingerprint": None, "stop_reason": "x", "error": None},
            {"id": "chatcmpl-83jZ61GDHtdlsFUzXDbpGeoU193Mj"},
        ),
    ],
)
def test_liberties_with_fields_that_no_answer_depends_on(changes: dict[str, object], seen: dict[str, object]) -> None:
    decoded = decode(completion(**changes))
    assert {name: getattr(decoded, name) for name in seen} == seen
    assert decoded.text == "Hello!"
    assert decoded.raw.items() >= {name: value for name, value in changes.items() if value is not ...}.items()


def test_a_completion_that_names_no_model_has_the_one_asked() -> None:
    assert decode_completion(completion(model=None), asked="gpt-4o").model == "gpt-4o"
    assert decode_completion(completion(model=""), asked="gpt-4o").model == "gpt-4o"
    assert decode_completion(completion(object="")).object == "chat.completion"
    assert decode_completion(completion(), asked="gpt-4o").model == "gpt-3.5-turbo"


@pytest.mark.parametrize(
    ("message", "seen"),
    [
        ({"role": "assistant", "content": None}, Message("assistant")),
        ({"role": "assistant"}, Message("assistant")),
        ({"content": "Hi"}, Message("assistant", "Hi")),
        ({}, Message("assistant")),
        ({"role": "robot", "content": "", "refusal": None, "audio": {}}, Message("robot", "", extra={"audio": {}})),
        (
            {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "x", "y": [1]}]},
            Message("assistant", ({"type": "text", "text": "a"}, {"type": "x", "y": [1]})),
        ),
        ({"role": "assistant", "content": []}, Message("assistant", ())),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            Message("assistant", function_call=FunctionCall("f", "{}")),
        ),
        (
            {"role": "assistant", "function_call": {"name": "f", "arguments": None}},
            Message("assistant", function_call=FunctionCall("f")),
        ),
        ({"role": "assistant", "function_call": None, "tool_calls": None}, Message("assistant")),
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "type": None, "function": {"name": "f", "arguments": ""}}],
            },
            Message("assistant", tool_calls=(ToolCall(FunctionCall("f"), "1", None),)),
        ),
        (
            {"role": "assistant", "tool_calls": [{"index": 0, "function": None}, {"function": {"name": None}}]},
            Message("assistant", tool_calls=(ToolCall(index=0), ToolCall())),
        ),
        ({"role": "assistant", "tool_calls": []}, Message("assistant", tool_calls=())),
        ({"role": "tool", "name": "f", "tool_call_id": "1"}, Message("tool", name="f", tool_call_id="1")),
    ],
)
def test_messages(message: object, seen: Message) -> None:
    decoded = decode(completion(message))
    assert decoded.choices[0].message == seen


def test_the_text_of_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"text": "b"}, {"text": 5}]
    assert decode(completion({"role": "assistant", "content": parts})).text == "ab"


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "function_call", "a new one", None])
def test_a_finish_reason_is_kept(reason: str | None) -> None:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Hi"},
        "finish_reason": reason,
        "logprobs": {"a": [1]},
    }
    decoded = decode(completion(choices=[choice]))
    assert decoded.finish_reason == reason
    assert decoded.choices[0].logprobs == {"a": [1]}


def test_choices_without_index_have_their_position() -> None:
    choices = [{"message": {"content": "a"}}, {"message": {"content": "b"}}]
    assert [choice.index for choice in decode(completion(choices=choices)).choices] == [0, 1]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "it is empty"),
        (b" \r\n\t", "it is empty"),
        (b"nope", "it is not JSON (Expecting value)"),
        (b"{'a': 1}", "it is not JSON (Expecting property name"),
        (completion() + b"x", "it is not JSON (Extra data)"),
        (completion(created=...).replace(b"}", b', "x": NaN}', 1), "it is not JSON (NaN is not JSON)"),
        (completion(id=5).replace(b"5", b"-Infinity"), "it is not JSON (-Infinity is not JSON)"),
        (b"null", "it is JSON, but not an object: NoneType"),
        (b"[]", "it is JSON, but not an object: list"),
        (b'"text"', "it is JSON, but not an object: str"),
        (b"[" * 100_000, "its JSON nests too deep"),
        (b"[" * 990 + b"]" * 990, "its JSON nests too deep"),
        (completion(x="?").replace(b'"?"', b"[" * 101 + b"]" * 101) + b" " * SHALLOW, "its JSON nests too deep"),
        (completion(x="?").replace(b'"?"', b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "its JSON nests too deep"),
        (b"{}", "it has no choices"),
        (completion(choices=...), "it has no choices"),
        (completion(choices=None), "it has no choices"),
        (completion(choices=[]), "it has no choices"),
        (completion(choices={}), "it has no choices"),
        (completion(choices=[None]), "it has no choices"),
        (completion(choices="x"), "it has no choices"),
        (completion(choices=[5]), "@ $.choices[0]"),
        (completion(choices=[{"index": 0}]), "'message' is missing @ $.choices[0]"),
        (completion(None), "@ $.choices[0].message"),
        (completion([]), "@ $.choices[0].message"),
        (completion({"content": 5}), "expected str, not int @ $.choices[0].message.content"),
        (completion({"content": ["x"]}), "expected dict, not str @ $.choices[0].message.content"),
        (completion({"content": {"text": "x"}}), "expected str, not dict @ $.choices[0].message.content"),
        (completion({"tool_calls": [5]}), "@ $.choices[0].message.tool_calls[0]"),
        (completion({"tool_calls": [{"function": 5}]}), "@ $.choices[0].message.tool_calls[0].function"),
        (completion({"function_call": "f"}), "@ $.choices[0].message.function_call"),
        (completion({"function_call": {"name": 5}}), "@ $.choices[0].message.function_call.name"),
    ],
)
def test_what_is_no_completion(body: bytes, says: str) -> None:
    error = refused(body)
    assert says in str(error)
    assert len(str(error)) < 600
    other = ("not JSON (Exp", "not JSON (Extra", "not an object", "no choices", "@ $.choices")
    kind = "empty" if "empty" in says else "not a completion" if any(o in says for o in other) else "response"
    assert error.kind == kind
    assert error.maybe_billed


def test_a_completion_that_is_cut() -> None:
    body = completion()
    for cut in range(1, len(body)):
        assert refused(body[:cut]).kind in ("truncated", "not a completion")
    assert refused(body[:-1]).kind == refused(body[:100]).kind == "truncated"


@pytest.mark.parametrize("piece", ['\\"', '"', "\\", '"{', '[\\"'])
def test_quotes_without_end_are_read_once(piece: str) -> None:
    """Quadratic work would take minutes here."""
    for body in (f'{{"a": "{piece * 200_000}', piece * 200_000):
        refused(body.encode())


def test_a_web_page() -> None:
    error = refused(b" \n<!DOCTYPE html><html><title>Log in</title>")
    assert (type(error), error.kind) == (APIResponseError, "edge page")
    assert "it is a web page: <!DOCTYPE html>" in str(error)


def test_a_number_that_is_infinite_is_handed_out_as_text() -> None:
    for name in ("x", "created", "usage"):
        decoded = decode(completion(**{name: "?"}).replace(b'"?"', b"1e999"))
        assert decoded.raw[name] == "1e999"
        assert decoded.created in (0, 1695900828)
        assert decoded.usage in (None, Usage(19, 9, 28))


def test_a_long_number_in_a_field_that_is_not_ours() -> None:
    digits = b"7" * 5000
    assert decode(completion(x="?").replace(b'"?"', digits)).raw["x"] == digits.decode()
    assert decode(completion(x="?").replace(b'"?"', b"7" * 400)).raw["x"] == int("7" * 400)


def test_a_long_number_in_a_field_that_is_ours() -> None:
    assert decode(completion(created="?").replace(b'"?"', b"7" * 5000)).created == 0
    assert decode(completion(usage="?").replace(b'"?"', b"7" * 5000)).usage is None
    body = completion(choices=[{"index": "?", "message": {}}]).replace(b'"?"', b"7" * 5000)
    assert decode(body).choices[0].index == 0


def test_the_last_of_two_equal_keys_counts() -> None:
    body = b'{"choices": [], ' + completion()[1:]
    assert decode(body).text == "Hello!"
    assert refused(completion()[:-1] + b', "choices": []}')


def test_a_brace_in_the_text_is_not_depth() -> None:
    text = "[{" * 5000
    assert decode(completion({"content": text})).text == text


def test_a_bom_and_invalid_utf8() -> None:
    assert decode_completion(BOM + completion()).text == "Hello!"
    body = completion({"role": "assistant", "content": "a?b"}).replace(b"?", b"\xff\xf0\x9f\x98")
    assert decode(body).text == "a\ufffd\ufffdb"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\ud83d\ude00", "😀"),
        (r"\uD83D\uDE00", "😀"),
        (r"\ud83d", "\ufffd"),
        (r"\ude00", "\ufffd"),
        (r"\ude00\ud83d", "\ufffd\ufffd"),
        (r"\ud83da\ud83d\ude00", "\ufffda😀"),
    ],
)
def test_surrogates(written: str, read: str) -> None:
    decoded = decode(completion({"content": "?"}, x={"?": "?"}).replace(b"?", written.encode()))
    assert decoded.text == read
    assert decoded.raw["x"] == {read: read}


def test_calls_without_an_object_around_name_and_arguments() -> None:
    calls = [{"id": "a", "type": "function", "name": "f", "arguments": "{}"}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    assert decode(completion(message)).choices[0].message == Message(
        "assistant", tool_calls=(ToolCall(FunctionCall("f", "{}"), "a"),)
    )
