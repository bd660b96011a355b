from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async.testing.answers import Schema, answer, example, mentions, report, tokenize


def value(schema: Any, name: str = "") -> Any:
    root = msgspec.convert(schema, Schema)
    return example(root, name, root=root)


# --- tokens ---


@given(st.text())
def test_tokens_join_to_the_text(text: str) -> None:
    tokens = tokenize(text)
    assert "".join(tokens) == text
    assert all(1 <= len(token) <= 17 for token in tokens)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("Hello! How can I assist you today?", ["Hello", "!", " How", " can", " I", " assist", " you", " today", "?"]),
        ("You are a helpful assistant.", ["You", " are", " a", " helpful", " assistant", "."]),
        ("antidisestablishmentarianism", ["antidisestab", "lishmentaria", "nism"]),
        ("naïve café", ["naïve", " café"]),
        ("你好世界", ["你好", "世界"]),
        ("Привет", ["Пр", "ив", "ет"]),
        ("a  b\n\nc", ["a", " ", " b", "\n", "\n", "c"]),
        ("👍 ok…", ["👍", " ok", "…"]),
    ],
)
def test_tokenize(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


# --- sentences ---


def test_an_answer_is_the_same_every_time_and_other_for_another_choice() -> None:
    first = answer("Why is the sky blue?", b"")
    assert first == answer("Why is the sky blue?", b"")
    others = {answer("Why is the sky blue?", b"", index) for index in range(1, 8)}
    assert first not in others
    assert len(others) == 7
    assert answer("Why is the sky blue?", b"said before") != first


def test_answers_speak_of_the_question() -> None:
    for word in ("tides", "gravity", "Newton"):
        text = answer(f"How are {word} and moons related?", b"")
        assert word in text
        assert "moons" in text


@given(st.text())
def test_every_prompt_gets_one_to_four_whole_sentences(prompt: str) -> None:
    text = answer(prompt, b"")
    assert 1 <= len(re.findall(r"[.!?](?= |$)", text)) <= 8
    assert text[-1] in ".?"
    assert text.strip() == text


def test_answers_differ_in_length() -> None:
    lengths = {answer(f"What is number {number}?", b"").count(".") for number in range(50)}
    assert lengths == {1, 2, 3, 4}


def test_a_greeting_is_returned() -> None:
    assert answer("Hello!", b"") == answer("Good morning", b"") == "Hello! What can I do for you?"
    assert len(tokenize(answer("Hello!", b""))) == 9
    assert answer("Hello!", b"", 1) != answer("Hello!", b"", 2) != answer("Hello!", b"")


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        ('{"city": "Paris", "wind_speed": 3, "list": [], "none": null}', "city is Paris and wind speed is 3"),
        ('{"a":1,"b":2,"c":3,"d":4,"e":5}', "a is 1 and b is 2 and c is 3 and d is 4"),
        ("sunny ", "sunny"),
        ("[1, 2]", "[1, 2]"),
        ("{}", "{}"),
        ("", "nothing"),
    ],
)
def test_report(result: str, sentence: str) -> None:
    assert report("get_weather", result) == f"According to get_weather, {sentence}."


@pytest.mark.parametrize(
    ("prompt", "function", "mentioned"),
    [
        ("What is the weather in Paris?", "get_weather", True),
        ("WEATHER?", "getWeather", True),
        ("Weather forecast, please", "get_weather_forecast", True),
        ("Weather, please", "get_weather_forecast", False),
        ("whether or not", "get_weather", False),
        ("call get_it", "get_it", True),
        ("get the list", "get_list", True),
        ("list", "get_list", False),
        ("anything", "_", False),
        ("", "f", False),
    ],
)
def test_mentions(prompt: str, function: str, mentioned: bool) -> None:
    assert mentions(prompt, function) is mentioned


# --- values from a schema ---


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, "example"),
        ({}, "example"),
        ({"type": "string", "format": "date"}, "2024-05-17"),
        ({"type": "string", "minLength": 9}, "examplexx"),
        ({"type": "string", "maxLength": 3}, "exa"),
        ({"enum": ["b", "a"]}, "b"),
        ({"const": None}, None),
        ({"type": "integer", "default": 8}, 8),
        ({"type": "integer"}, 3),
        ({"type": "integer", "minimum": 10}, 10),
        ({"type": "integer", "exclusiveMinimum": 10}, 11),
        ({"type": "integer", "maximum": 2}, 2),
        ({"type": "integer", "exclusiveMaximum": 2}, 1),
        ({"type": "integer", "minimum": 10, "exclusiveMinimum": True}, 11),
        ({"type": "integer", "minimum": 10, "exclusiveMinimum": False}, 10),
        ({"type": "integer", "minimum": 10, "multipleOf": 7}, 14),
        ({"type": "number"}, 3.5),
        ({"type": "number", "minimum": 1}, 2),
        ({"type": "number", "maximum": 1}, 0),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
        ({"type": "number", "multipleOf": 0.5}, 3),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"type": ["null", "boolean"]}, True),
        ({"type": "array", "items": {"type": "integer"}}, [3]),
        ({"type": "array", "minItems": 2}, ["example", "example"]),
        ({"type": "array", "maxItems": 0}, []),
        ({"type": "array", "items": True}, ["example"]),
        ({"type": "object"}, {}),
        ({"properties": {"city": {}, "user_name": {"type": "string"}}}, {"city": "Paris", "user_name": "Ada"}),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, 3),
        ({"oneOf": [True]}, "example"),
        ({"anyOf": [{"type": "null"}], "type": "boolean"}, True),
        ({"allOf": [{"properties": {"a": {"const": 1}}}], "properties": {"b": {"const": 2}}}, {"a": 1, "b": 2}),
        ({"allOf": [{"type": "integer"}]}, 3),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}, 3),
        ({"$ref": "#/definitions/n", "definitions": {"n": {"type": "integer"}}}, 3),
        ({"$ref": "#/$defs/n", "$defs": {"n": True}}, "example"),
        ({"$ref": "#/nowhere"}, "example"),
    ],
)
def test_example(schema: Any, expected: object) -> None:
    assert value(schema) == expected


def test_a_schema_of_itself_ends() -> None:
    tree = {"type": "object", "properties": {"name": {}, "child": {"$ref": "#"}, "more": {"type": "array"}}}
    expected: dict[str, object] = {}
    for more in ([], ["example"], ["example"], ["example"]):
        expected = {"name": "Ada", "child": expected, "more": more}
    assert value(tree) == expected
    assert str(value({**tree, "required": ["child"]})).count("None") == 1  # it has no value that ends by itself


@given(st.integers(-1000, 1000), st.integers(0, 1000), st.integers(1, 50), st.booleans(), st.booleans())
def test_numbers_keep_their_bounds(low: int, span: int, step: int, open_low: bool, open_high: bool) -> None:
    high = low + span
    fitting = [
        n for n in range(low, high + 1) if n % step == 0 and (n > low or not open_low) and (n < high or not open_high)
    ]
    schema = {
        "type": "integer",
        "exclusiveMinimum" if open_low else "minimum": low,
        "exclusiveMaximum" if open_high else "maximum": high,
        "multipleOf": step,
    }
    if fitting:
        assert value(schema) in fitting
