"""What may be asked: each parameter's range and the words of its refusal; prompts; and a request as a value."""

from __future__ import annotations

import copy
import inspect
import math
import numbers
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import attrs
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async import (
    ChatRequest,
    FunctionCall,
    InvalidRequestError,
    Message,
    Result,
    ToolCall,
)
from piapi_async.models import ChatParams

# -- parameters --------------------------------------------------------------------------------------------------------

GOOD: list[tuple[str, list[Any]]] = [
    ("model", ["gpt-4o", "gpt-4-gizmo-g-gFt1ghYJl"]),
    ("functions", [[], [{"name": "f"}], ({"name": "f", "parameters": {"type": "object"}},)]),
    ("function_call", ["none", "auto", {"name": "f"}]),
    ("temperature", [0, 2, 0.0, 2.0, 1.5]),
    ("top_p", [0, 1, 0.1]),
    ("n", [1, 128, 10**6]),
    ("stop", ["", "x", [], ["a"], ("a", "b", "c", "d")]),
    ("max_tokens", [1, 10**9]),
    ("presence_penalty", [-2, 2, -0.5]),
    ("frequency_penalty", [-2.0, 2.0, 0]),
    ("logit_bias", [{}, {"50256": -100, "1": 100}]),
    ("tools", [[], [{"type": "function", "function": {"name": "f"}}]]),
    ("tool_choice", ["none", "auto", "required", {"type": "function", "function": {"name": "f"}}]),
    ("response_format", [{"type": "json_object"}, {}]),
    ("seed", [0, -(2**63), 2**63 - 1]),
    ("user", ["", "someone"]),
    ("max_completion_tokens", [1]),
    ("reasoning_effort", ["low", "a new one"]),
    ("stream_options", [{"include_usage": True}]),
    ("logprobs", [True, False]),
    ("top_logprobs", [0, 20]),
    ("extra_body", [{}, {"a": {"b": [1, 2.5, None, True, "x"]}}]),
    ("stream", [True, False]),
]

NUMBER = "{} is not a number in range; pass a number from {}"
WHOLE = "{} is not a whole number in range; pass a whole number, {}"

BAD: list[tuple[str, Any, str]] = [
    ("model", 5, "model: 5 is not text; pass a str"),
    ("model", b"gpt-4o", "model: a bytes is not text; pass a str"),
    ("model", "\ud800", "model: the text has a lone surrogate, which no UTF-8 can carry; remove or replace it"),
    ("functions", {"name": "f"}, "functions: a dict is not a list; pass a list of mappings"),
    ("functions", "f", "functions: a str is not a list; pass a list of mappings"),
    ("functions", [5], "functions[0]: 5 is not a mapping; pass a mapping with string keys"),
    ("functions", [{"name": "f"}, {}], "functions[1].name: it is missing; give each function a name"),
    ("functions", [{"name": ""}], "functions[0].name: it is missing; give each function a name"),
    ("functions", [{"name": 5}], "functions[0].name: it is missing; give each function a name"),
    (
        "functions",
        [{"name": "f", "x": {1}}],
        "functions[0].x: a set is not JSON; pass str, numbers, bool, None, mappings or",
    ),
    (
        "function_call",
        "required",
        "function_call: 'required' is not known; pass one of none, auto, or a mapping that names one",
    ),
    ("function_call", 5, "function_call: 5 is not known; pass one of none, auto, or a mapping that names one"),
    (
        "function_call",
        ["none"],
        "function_call: a list is not known; pass one of none, auto, or a mapping that names one",
    ),
    ("function_call", "x" * 40, "function_call: a str is not known; pass one of"),
    ("function_call", {"name": math.inf}, "function_call.name: inf is not JSON; pass a finite number"),
    ("temperature", 3, "temperature: " + NUMBER.format(3, "0 to 2")),
    ("temperature", -0.1, "temperature: " + NUMBER.format(-0.1, "0 to 2")),
    ("temperature", 2.0000001, "temperature: " + NUMBER.format(2.0000001, "0 to 2")),
    ("temperature", math.nan, "temperature: " + NUMBER.format("NaN", "0 to 2")),
    ("temperature", math.inf, "temperature: " + NUMBER.format("a float", "0 to 2")),
    ("temperature", "1", "temperature: " + NUMBER.format("a str", "0 to 2")),
    ("temperature", True, "temperature: " + NUMBER.format(True, "0 to 2")),
    ("temperature", Decimal(1), "temperature: " + NUMBER.format("a Decimal", "0 to 2")),
    ("temperature", 10**400, "temperature: " + NUMBER.format("a int", "0 to 2")),
    ("top_p", 1.1, "top_p: " + NUMBER.format(1.1, "0 to 1")),
    ("top_p", -1, "top_p: " + NUMBER.format(-1, "0 to 1")),
    ("n", 0, "n: " + WHOLE.format(0, "1 or more")),
    ("n", -1, "n: " + WHOLE.format(-1, "1 or more")),
    ("n", 1.0, "n: " + WHOLE.format(1.0, "1 or more")),
    ("n", True, "n: " + WHOLE.format(True, "1 or more")),
    ("n", "1", "n: " + WHOLE.format("a str", "1 or more")),
    ("stop", list("abcde"), "stop: 5 sequences are too many; pass up to 4 strings"),
    ("stop", ["a", 5], "stop[1]: 5 is not text; pass a str"),
    ("stop", ["a", "\udfff"], "stop[1]: the text has a lone surrogate"),
    ("stop", "\ud800", "stop: the text has a lone surrogate"),
    ("stop", b"x", "stop: a bytes is not text or a list of texts; pass up to 4 strings"),
    ("stop", {"a"}, "stop: a set is not text or a list of texts; pass up to 4 strings"),
    ("stop", 5, "stop: 5 is not text or a list of texts; pass up to 4 strings"),
    ("max_tokens", 0, "max_tokens: " + WHOLE.format(0, "1 or more")),
    ("max_tokens", 5.5, "max_tokens: " + WHOLE.format(5.5, "1 or more")),
    ("presence_penalty", 2.1, "presence_penalty: " + NUMBER.format(2.1, "-2 to 2")),
    ("frequency_penalty", -3, "frequency_penalty: " + NUMBER.format(-3, "-2 to 2")),
    ("logit_bias", {"5": 101}, "logit_bias[5]: " + NUMBER.format(101, "-100 to 100")),
    ("logit_bias", {"5": "x"}, "logit_bias[5]: " + NUMBER.format("a str", "-100 to 100")),
    ("logit_bias", [5], "logit_bias: a list is not a mapping; map token ids to numbers from -100 to 100"),
    ("logit_bias", {"\ud800": 1}, "logit_bias key: the text has a lone surrogate"),
    ("tools", [None], "tools[0]: a NoneType is not a mapping; pass a mapping with string keys"),
    ("tools", "x", "tools: a str is not a list; pass a list of mappings"),
    (
        "tool_choice",
        "any",
        "tool_choice: 'any' is not known; pass one of none, auto, required, or a mapping that names one",
    ),
    ("response_format", "json", "response_format: a str is not a mapping; pass a mapping with string keys"),
    ("seed", 2**63, "seed: " + WHOLE.format(2**63, f"from {-(2**63)} to {2**63 - 1}")),
    ("seed", 1.5, "seed: " + WHOLE.format(1.5, f"from {-(2**63)} to {2**63 - 1}")),
    ("user", 5, "user: 5 is not text; pass a str"),
    ("max_completion_tokens", 0, "max_completion_tokens: " + WHOLE.format(0, "1 or more")),
    ("reasoning_effort", 1, "reasoning_effort: 1 is not text; pass a str"),
    ("stream_options", [], "stream_options: a list is not a mapping; pass a mapping with string keys"),
    ("logprobs", 1, "logprobs: 1 is not a bool; pass True or False"),
    ("logprobs", "yes", "logprobs: a str is not a bool; pass True or False"),
    ("top_logprobs", 21, "top_logprobs: " + WHOLE.format(21, "from 0 to 20")),
    ("top_logprobs", -1, "top_logprobs: " + WHOLE.format(-1, "from 0 to 20")),
    ("extra_body", "x", "extra_body: a str is not a mapping; pass a mapping with string keys"),
    ("extra_body", {5: 1}, "extra_body key: 5 is not text; pass a str"),
    ("extra_body", {"\ud800": 1}, "extra_body key: the text has a lone surrogate"),
    (
        "extra_body",
        {"a": {"b": [0, b"x"]}},
        "extra_body.a.b[1]: a bytes is not JSON; pass str, numbers, bool, None, mapp",
    ),
    ("extra_body", {"a": "\ud83d"}, "extra_body.a: the text has a lone surrogate"),
    ("extra_body", {"a": math.nan}, "extra_body.a: nan is not JSON; pass a finite number"),
    ("extra_body", {"a": 2**64}, "extra_body.a: " + WHOLE.format(2**64, f"from {-(2**63)} to {2**64 - 1}")),
    (
        "extra_body",
        {"a": object()},
        "extra_body.a: a object is not JSON; pass str, numbers, bool, None, mappings or lists",
    ),
    ("stream", 1, "stream: 1 is not a bool; pass True or False"),
]


def frozen(value: Any) -> Any:
    """A value with its lists as tuples, as a request keeps it."""
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    return tuple(frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD for value in values])
def test_a_value_in_range(name: str, value: Any) -> None:
    kept = getattr(ChatRequest("Hi", **{name: value}), name)
    assert kept == frozen(value)
    assert type(kept) is type(frozen(value))


def test_every_parameter_is_tested() -> None:
    fields = {field.name for field in attrs.fields(ChatRequest)} - {"messages"}
    assert {name for name, _ in GOOD} == {name for name, _, _ in BAD} == fields


@pytest.mark.parametrize(("name", "value", "says"), BAD)
def test_a_value_out_of_range(name: str, value: Any, says: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        ChatRequest("Hi", **{name: value})
    assert str(raised.value).startswith(says)
    assert isinstance(raised.value, ValueError)
    assert raised.value.__context__ is None


@pytest.mark.parametrize("name", [name for name, _ in GOOD if name != "stream"])
def test_none_is_unset(name: str) -> None:
    unset: dict[str, Any] = {name: None}
    assert ChatRequest("Hi", **unset) == ChatRequest("Hi")


def test_a_list_that_contains_itself() -> None:
    circle: list[Any] = []
    circle.append(circle)
    ring: dict[str, Any] = {}
    ring["ring"] = ring
    for name, value in (
        ("extra_body", {"a": circle}),
        ("extra_body", ring),
        ("tools", [ring]),
        ("response_format", ring),
    ):
        with pytest.raises(
            InvalidRequestError, match="it nests deeper than 100, or contains itself; flatten it"
        ) as raised:
            ChatRequest("Hi", **{name: value})  # type: ignore[arg-type]  # one of many types
        assert len(str(raised.value)) < 200


def test_json_may_nest_a_hundred_deep() -> None:
    def nest(depth: int) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = [value]
        return value

    ChatRequest("Hi", extra_body={"a": nest(99)})
    with pytest.raises(InvalidRequestError, match="nests deeper"):
        ChatRequest("Hi", extra_body={"a": nest(100)})


def test_mappings_and_sequences_of_any_kind() -> None:
    request = ChatRequest(
        ({"role": "user", "content": ({"type": "text", "text": "Hi"},)},),
        extra_body=MappingProxyType({"a": OrderedDict(b=(1, 2))}),
        logit_bias={5: 1},  # type: ignore[dict-item]  # token ids are numbers to many
        stop=("a",),
    )
    assert request.extra_body == {"a": {"b": (1, 2)}}
    assert request.logit_bias == {"5": 1}


# -- numbers of other libraries ----------------------------------------------------------------------------------------


class Whole:
    """A whole number as a library may define it: no `int`, but registered as one."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __int__(self) -> int:
        return self.value

    def __str__(self) -> str:
        return str(self.value)


numbers.Integral.register(Whole)


class Real:
    """A number with decimals, likewise."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return self.value


numbers.Real.register(Real)


def assert_plain(value: object) -> None:
    """Assert that all numbers in a value are Python's own."""
    if isinstance(value, Mapping):
        for item in value.values():
            assert_plain(item)
    elif isinstance(value, tuple):
        for item in value:
            assert_plain(item)
    else:
        assert type(value) in (int, float, bool, str, type(None))


@pytest.mark.parametrize("whole", [Whole, numpy.int64, numpy.int8, numpy.uint16])
def test_whole_numbers_of_any_library(whole: Callable[[int], Any]) -> None:
    assert isinstance(whole(1), numbers.Integral)
    given_, plain = (
        {
            "temperature": make(1),
            "top_p": make(0),
            "n": make(2),
            "max_tokens": make(100),
            "presence_penalty": make(2),
            "frequency_penalty": make(0),
            "logit_bias": {make(50): make(100)},
            "seed": make(7),
            "max_completion_tokens": make(1),
            "top_logprobs": make(20),
            "functions": [{"name": "f", "parameters": {"maximum": make(5)}}],
            "tools": [{"type": "function", "limits": [make(5)]}],
            "function_call": {"name": "f", "x": make(5)},
            "tool_choice": {"name": "f", "x": make(5)},
            "response_format": {"type": "x", "x": make(5)},
            "stream_options": {"x": make(5)},
            "extra_body": {"a": [make(1), {"b": make(2)}]},
        }
        for make in (whole, int)
    )
    prompt, plain_prompt = (
        [{"role": "user", "content": [{"type": "image_url", "width": make(3)}]}] for make in (whole, int)
    )
    asked: Any = given_
    request = ChatRequest(prompt, **asked)
    expected: Any = plain
    assert request == ChatRequest(plain_prompt, **expected)
    for name in given_:
        assert_plain(getattr(request, name))
    assert_plain(request.messages[0].content)


@pytest.mark.parametrize("real", [Real, numpy.float64, numpy.float32])
def test_numbers_with_decimals_of_any_library(real: Callable[[float], Any]) -> None:
    request = ChatRequest("Hi", temperature=real(0.5), logit_bias={"1": real(-1.5)}, extra_body={"a": real(2.5)})
    assert request == ChatRequest("Hi", temperature=0.5, logit_bias={"1": -1.5}, extra_body={"a": 2.5})
    for value in (request.temperature, request.logit_bias, request.extra_body):
        assert_plain(value)
    for name, value in (("n", real(1.0)), ("temperature", real(2.5)), ("extra_body", {"a": real(math.inf)})):
        with pytest.raises(InvalidRequestError, match=f"^{name}"):
            ChatRequest("Hi", **{name: value})  # type: ignore[arg-type]  # one of many types


def test_a_number_out_of_range_of_any_library() -> None:
    for name, value in (
        ("n", Whole(0)),
        ("seed", Whole(2**63)),
        ("temperature", Whole(3)),
        ("top_logprobs", Whole(-1)),
    ):
        with pytest.raises(InvalidRequestError, match=f"^{name}: a Whole is not a (whole )?number in range"):
            ChatRequest("Hi", **{name: value})  # type: ignore[arg-type]  # one of many types


def test_a_fraction_that_no_float_can_hold() -> None:
    for name, value in (("temperature", Fraction(10**400)), ("extra_body", {"a": Fraction(10**400)})):
        with pytest.raises(InvalidRequestError, match=f"^{name}"):
            ChatRequest("Hi", **{name: value})  # type: ignore[arg-type]  # one of many types
    assert ChatRequest("Hi", temperature=Fraction(1, 2)).temperature == 0.5  # type: ignore[arg-type]


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_a_text_is_one_user_message() -> None:
    assert ChatRequest("Hi").messages == (Message("user", "Hi"),)
    assert ChatRequest("").messages == (Message("user", ""),)


def test_mappings_and_messages_are_the_same() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    mappings: list[dict[str, object]] = [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "bob"},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": "1"},
    ]
    messages = [
        Message("system", "Be kind"),
        Message("user", ({"type": "text", "text": "Hi"},), "bob"),
        Message("assistant", function_call=FunctionCall("f", "{}")),
        Message("assistant", tool_calls=(ToolCall(FunctionCall("f", "{}"), "1"),)),
        Message("tool", "1", tool_call_id="1"),
    ]
    assert ChatRequest(mappings).messages == ChatRequest(messages).messages == tuple(messages)
    assert ChatRequest([*mappings[:2], *messages[2:]]) == ChatRequest(messages)


ROLE = 'say who speaks: "system", "user", "assistant", …'
CONTENT = "is not a content; pass a str, or a list of str and parts as of image()"
MESSAGE = "is not a message; pass Message(...) or {'role': …, 'content': …}"


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (5, "prompt: 5 is not a prompt; pass a str, a list of messages or a ChatRequest"),
        (None, "prompt: a NoneType is not a prompt"),
        (b"Hi", "prompt: a bytes is not a prompt"),
        (bytearray(b"Hi"), "prompt: a bytearray is not a prompt"),
        ({"Hi"}, "prompt: a set is not a prompt"),
        ({"role": "user"}, "prompt: a dict is not a prompt"),
        (Message("user", "Hi"), "prompt: a Message is not a prompt"),
        (iter(["Hi"]), "prompt: a list_iterator is not a prompt"),
        (ChatRequest("Hi"), "prompt: a ChatRequest is not a prompt"),
        ("\ud83d", "prompt: the text has a lone surrogate"),
        ([], "messages: there is none; pass at least one message"),
        (["Hi"], f"messages[0]: a str {MESSAGE}"),
        ([Message("user", "Hi"), 5], f"messages[1]: 5 {MESSAGE}"),
        ([{}], f"messages[0].role: it is missing or empty; {ROLE}"),
        ([{"role": ""}], f"messages[0].role: it is missing or empty; {ROLE}"),
        ([{"role": None}], "messages[0].role: a NoneType is not text; pass a str"),
        (
            [{"role": "user", "text": "Hi"}],
            "messages[0]: unknown key 'text'; did you mean 'content'?",
        ),
        ([{"role": "user", 5: "Hi"}], "messages[0] key: 5 is not text; pass a str"),
        ([Message(5)], "messages[0].role: 5 is not text; pass a str"),  # type: ignore[arg-type]
        ([Message("user", "\udc00")], "messages[0].content: the text has a lone surrogate"),
        ([Message("user", 5)], f"messages[0].content: 5 {CONTENT}"),  # type: ignore[arg-type]
        ([{"role": "user", "content": {"a"}}], f"messages[0].content: a set {CONTENT}"),
        ([{"role": "user", "content": b"Hi"}], f"messages[0].content: a bytes {CONTENT}"),
        (
            [{"role": "user", "content": ["Hi", b"x"]}],
            "messages[0].content[1]: a bytes is not a part; pass a str, image(…), or another mapping",
        ),
        ([{"role": "user", "content": ["Hi\ud800"]}], "messages[0].content[0]: the text has a lone surrogate"),
        ([{"role": "user", "content": [{"text": b""}]}], "messages[0].content[0].text: a bytes is not JSON"),
        (
            [{"role": "user", "content": [{"text": "\ud800"}]}],
            "messages[0].content[0].text: the text has a lone surrogate",
        ),
        ([Message("user", name=5)], "messages[0].name: 5 is not text"),  # type: ignore[arg-type]
        ([Message("tool", tool_call_id=b"x")], "messages[0].tool_call_id: a bytes is not text"),  # type: ignore[arg-type]
        ([{"role": "a", "function_call": "f"}], "messages[0].function_call: a str is not a function call"),
        ([{"role": "a", "function_call": {}}], "messages[0].function_call.name: a NoneType is not text"),
        (
            [{"role": "a", "function_call": {"name": "f", "arguments": ["x"]}}],
            "messages[0].function_call.arguments: a list is not text; pass a str",
        ),
        ([{"role": "a", "tool_calls": {"a": 1}}], "messages[0].tool_calls: a dict is not a list; pass a list"),
        (
            [{"role": "a", "tool_calls": [5]}],
            "messages[0].tool_calls[0]: 5 is not a tool call; pass ToolCall(...) or a",
        ),
        ([{"role": "a", "tool_calls": [{}]}], "messages[0].tool_calls[0].function: a NoneType is not a fun"),
        ([Message("a", tool_calls=(ToolCall(id=5.5),))], "messages[0].tool_calls[0].id: 5.5 is not text"),  # type: ignore[arg-type]
        ([Message("a", refusal=5)], "messages[0].refusal: 5 is not text"),  # type: ignore[arg-type]
        ([Message("a", extra=5)], "messages[0].extra: 5 is not a mapping; pass a mapping with"),  # type: ignore[arg-type]
        ([Message("a", extra={"x": b""})], "messages[0].x: a bytes is not JSON"),
        ([Message("a", "", extra={"content": "x"})], "messages[0].extra: 'content' has a field of its own; pass it as"),
        ([{"role": "a", "x": {1}}], "messages[0].x: a set is not JSON"),
        (
            [{"role": "a", "tool_calls": [{"function": {"name": "f", "x": {1}}}]}],
            "messages[0].tool_calls[0].function.x",
        ),
        (
            [{"role": "a", "tool_calls": [{"id": "1", "type": 5, "function": {"name": "f", "arguments": ""}}]}],
            "messages[0].tool_calls[0].type: 5 is not text",
        ),
    ],
)
def test_what_is_no_prompt(prompt: Any, says: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        ChatRequest(prompt)
    assert str(raised.value).startswith(says)


KEYS = {
    "reasoning_content": "hm",
    "reasoning": "hm",
    "reasoning_details": [{"type": "reasoning.text", "text": None}],
    "annotations": [],
    "audio": {"id": "a", "expires_at": 5, "data": "", "transcript": "Hi"},
    "images": [{"type": "image_url", "image_url": {"url": "data:,"}}],
    "tool_plan": "first f",
    "citations": ["https://example.com"],
    "extra_content": {"google": {"thought_signature": "abc"}},
    "extra": {"a": 1},
    "prefix": True,
    "cache_control": {"type": "ephemeral"},
    "thinking_blocks": [],
    "provider_specific_fields": {"a": [None]},
}
"""What messages of real servers have beside what has a field."""


@pytest.mark.parametrize("role", [{"role": "assistant"}, {"role": "user", "content": "Hi"}], ids=["bare", "whole"])
@pytest.mark.parametrize("key", KEYS)
def test_an_unknown_key_goes_along(key: str, role: dict[str, object]) -> None:
    value = KEYS[key]
    (message,) = ChatRequest([role | {key: value}]).messages
    assert message.extra == {key: frozen(value)}
    assert ChatRequest([Message("assistant", extra={key: value})]).messages[0].extra == message.extra
    assert ChatRequest([role | {key: None}]).messages[0].extra == {}
    call: dict[str, Any] = {"name": "f", "arguments": "", key: value}
    request = ChatRequest([role | {"tool_calls": [{"id": "1", "function": call, key: value}], "function_call": call}])
    (message,) = request.messages
    assert message.tool_calls is not None
    assert message.function_call is not None
    calls: list[Any] = [message.tool_calls[0], message.tool_calls[0].function, message.function_call]
    assert [call.extra for call in calls] == [{key: frozen(value)}] * 3
    assert ChatRequest([message]).messages == request.messages


def test_extra_fields_are_copied() -> None:
    inner: dict[str, Any] = {"a": [1]}
    call = ToolCall(FunctionCall("f", "{}", extra={"x": inner}), "1", extra={"x": inner})
    request = ChatRequest([Message("assistant", tool_calls=(call,), extra={"x": inner}), {"role": "a", "x": inner}])
    kept = repr(request.messages)
    inner["a"].append(2)
    assert repr(request.messages) == kept


@pytest.mark.parametrize(
    ("keys", "wrong", "meant"),
    [
        ({"contents": "Hi"}, "contents", "content"),
        ({"contnet": "Hi"}, "contnet", "content"),
        ({"Content": "Hi"}, "Content", "content"),
        ({"text": "Hi"}, "text", "content"),
        ({"content": "Hi", "tool_call": []}, "tool_call", "tool_calls"),
        ({"content": "Hi", "toolCallId": "1"}, "toolCallId", "tool_call_id"),
        ({"content": "Hi", "functioncall": {}}, "functioncall", "function_call"),
        ({"content": "Hi", "audio": None, "refusals": "No"}, "refusals", "refusal"),
    ],
)
def test_a_misspelt_key(keys: dict[str, object], wrong: str, meant: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        ChatRequest([{"role": "user", **keys}])
    assert str(raised.value) == f"messages[0]: unknown key {wrong!r}; did you mean {meant!r}?"


def test_a_misspelt_key_of_a_call() -> None:
    for function, wrong, meant in (
        ({"name": "f", "args": "{}"}, "args", "arguments"),
        ({"name": "f", "argument": "{}"}, "argument", "arguments"),
    ):
        with pytest.raises(InvalidRequestError) as raised:
            ChatRequest([{"role": "assistant", "function_call": function}])
        assert str(raised.value) == f"messages[0].function_call: unknown key {wrong!r}; did you mean {meant!r}?"
    with pytest.raises(InvalidRequestError, match=r"tool_calls\[0\]: unknown key 'functions'; did you mean 'function'"):
        ChatRequest([{"role": "assistant", "tool_calls": [{"id": "1", "functions": {}}]}])


def test_a_key_like_one_that_is_there_goes_along() -> None:
    (message,) = ChatRequest([{"role": "user", "content": "Hi", "contents": "Ho", "text": "Hu"}]).messages
    assert message.extra == {"contents": "Ho", "text": "Hu"}


def test_what_is_extra_in_a_chunk_but_not_in_a_message() -> None:
    """As the name that some servers send with each chunk."""
    call = ToolCall(FunctionCall("f"), extra={"index": 0, "id": "1", "a": 1})
    message = Message("assistant", "Hi", tool_calls=(call,), extra={"name": "bob", "a": 1, "extra": 2, "refusal": None})
    made = ToolCall(FunctionCall("f"), "1", extra={"a": 1})
    assert ChatRequest([message]).messages == (
        Message("assistant", "Hi", "bob", tool_calls=(made,), extra={"a": 1, "extra": 2}),
    )
    assert message.extra == {"name": "bob", "a": 1, "extra": 2, "refusal": None}
    with pytest.raises(InvalidRequestError, match=r"messages\[0\].name: 5 is not text"):
        ChatRequest([Message("user", "Hi", extra={"name": 5})])


def test_an_extra_field_does_not_contradict_a_field() -> None:
    for message in (
        Message("user", "Hi", extra={"content": "Ho"}),
        Message("user", "Hi", "bob", extra={"name": "bill"}),
        Message("assistant", tool_calls=(ToolCall(FunctionCall("f"), "1", extra={"id": "2"}),)),
        Message("assistant", function_call=FunctionCall("f", extra={"arguments": "{}"})),
    ):
        with pytest.raises(InvalidRequestError, match=r"extra: '\w+' has a field of its own; pass it as \w+=…"):
            ChatRequest([message])


def test_strings_among_parts_are_text() -> None:
    picture: dict[str, object] = {"type": "image_url", "image_url": {"url": "data:,"}}
    expected = ({"type": "text", "text": "What is this?"}, picture)
    contents: list[Sequence[str | Mapping[str, object]]] = [["What is this?", picture], ("What is this?", picture)]
    for content in contents:
        message = Message("user", content)
        assert message.content == expected
        assert message.text == "What is this?"
        assert ChatRequest([message]).messages[0].content == expected
        assert ChatRequest([{"role": "user", "content": content}]).messages[0].content == expected
    changed = Message("user")
    changed.content = ["What is this?", picture]  # type: ignore[assignment]  # it is made parts when it is asked
    assert ChatRequest([changed]).messages[0].content == expected
    assert Message("user", []).content == ()


def test_calls_as_servers_send_them() -> None:
    (message,) = ChatRequest(
        [
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "f", "arguments": None},
                "tool_calls": [
                    {"index": 0, "id": None, "type": None, "function": {"name": "f", "arguments": {"é": [1, None]}}},
                    {"id": "", "function": {"name": "g"}},
                    {"id": "1", "type": "custom", "custom": {"name": "h", "input": "x"}},
                ],
            }
        ]
    ).messages
    assert message == Message(
        "assistant",
        function_call=FunctionCall("f"),
        tool_calls=(
            ToolCall(FunctionCall("f", '{"é":[1,null]}')),
            ToolCall(FunctionCall("g"), ""),
            ToolCall(FunctionCall(), "1", "custom", extra={"custom": {"name": "h", "input": "x"}}),
        ),
    )
    with pytest.raises(InvalidRequestError, match=r"arguments\.a: nan is not JSON"):
        ChatRequest([{"role": "a", "function_call": {"name": "f", "arguments": {"a": math.nan}}}])
    nones: list[object] = [[], (), None]
    for none in nones:
        prompt = [{"role": "assistant", "content": "Hi", "tool_calls": none, "function_call": None}]
        assert ChatRequest(prompt).messages == (Message("assistant", "Hi"),)
    assert ChatRequest([Message("assistant", "Hi", tool_calls=())]).messages == (Message("assistant", "Hi"),)


@pytest.mark.parametrize("where", ["prompt", "user", "stop", "function_call", "extra_body", "n", "temperature"])
def test_a_refusal_does_not_show_the_prompt(where: str) -> None:
    secret = "where the treasure lies"
    bad: dict[str, Any] = {
        "prompt": [{"role": "user", "content": secret + "\ud800"}],
        "user": [secret],
        "stop": [secret + "\ud800"],
        "function_call": [secret],
        "extra_body": {"a": {secret}},
        "n": secret,
        "temperature": [secret],
    }
    with pytest.raises(InvalidRequestError) as raised:
        ChatRequest(
            bad["prompt"] if where == "prompt" else secret, **({} if where == "prompt" else {where: bad[where]})
        )
    assert "treasure" not in str(raised.value)


# -- a request is a value ----------------------------------------------------------------------------------------------


def test_the_callers_objects_are_neither_changed_nor_kept() -> None:
    schema: dict[str, Any] = {"type": "object", "required": ["city"]}
    given: dict[str, Any] = {
        "functions": [{"name": "f", "parameters": schema}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
        "stop": ["a"],
        "logit_bias": {"1": 1},
        "response_format": {"type": "json_schema", "json_schema": schema},
        "stream_options": {"include_usage": True},
        "function_call": {"name": "f"},
        "tool_choice": {"name": "f"},
        "extra_body": {"a": [schema]},
    }
    prompt: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    before = copy.deepcopy((prompt, given))
    request = ChatRequest(prompt, **given)
    assert (prompt, given) == before
    kept = repr(attrs.asdict(request))
    schema["required"].append("country")
    given["stop"].append("b")
    given["logit_bias"]["2"] = 2
    given["functions"].append({})
    given["stream_options"]["x"] = given["function_call"]["x"] = given["tool_choice"]["x"] = 1
    prompt[0]["content"][0]["text"] = "changed"
    prompt.append({})
    assert repr(attrs.asdict(request)) == kept


def test_a_request_is_frozen() -> None:
    request = ChatRequest("Hi")
    for field in attrs.fields(ChatRequest):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(request, field.name, None)


def test_a_message_that_changes_later_does_not_change_the_request() -> None:
    message = Message("user", [{"type": "text", "text": "Hi"}])
    request = ChatRequest([message])
    message.role = "system"
    message.content[0]["text"] = "Ho"  # type: ignore[index]
    assert request.messages == (Message("user", ({"type": "text", "text": "Hi"},)),)


def test_a_request_can_be_evolved_and_is_checked_again() -> None:
    request = ChatRequest("Hi", "gpt-4o", temperature=1)
    assert attrs.evolve(request, n=2) == ChatRequest("Hi", "gpt-4o", temperature=1, n=2)
    with pytest.raises(InvalidRequestError, match="temperature: 3"):
        attrs.evolve(request, temperature=3)


def test_repr_hides_the_messages() -> None:
    request = ChatRequest(
        [{"role": "user", "content": "the treasure"}],
        "gpt-4o",
        temperature=1,
        functions=[{"name": "treasure"}],
        tools=[{"name": "treasure"}],
        response_format={"type": "treasure"},
        extra_body={"treasure": 1},
    )
    assert "treasure" not in repr(request)
    assert repr(request).startswith("ChatRequest(messages=<1 message>, model='gpt-4o'")
    assert "<2 messages>" in repr(ChatRequest([Message("system"), Message("user")]))
    assert "treasure" not in repr(Result(0, request))


def test_the_keywords_of_a_call_are_the_fields_of_a_request() -> None:
    fields = {field.name for field in attrs.fields(ChatRequest)}
    assert set(ChatParams.__annotations__) == fields - {"messages", "model", "stream"}
    kinds = {name: parameter.kind for name, parameter in inspect.signature(ChatRequest).parameters.items()}
    assert {name for name, kind in kinds.items() if kind is not inspect.Parameter.KEYWORD_ONLY} == {"messages", "model"}
    with pytest.raises(TypeError, match="'temprature'"):
        ChatRequest("Hi", temprature=1)  # type: ignore[call-arg]


def test_a_request_is_a_value() -> None:
    given: dict[str, Any] = {"stop": "a", "temperature": 0, "n": None}
    request = ChatRequest("Hi", **given)
    assert (request.model, request.n, request.stream) == (None, None, False)
    assert request == ChatRequest("Hi", **dict(reversed(given.items()))) != ChatRequest("Hi")
    for twin in (copy.copy(request), copy.deepcopy(request), pickle.loads(pickle.dumps(request))):
        assert (twin, attrs.asdict(twin)) == (request, attrs.asdict(request))


TEXT = st.text(st.characters(exclude_categories=()), max_size=3)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=3) | TEXT | st.builds(object),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            TEXT | st.integers() | st.sampled_from(["role", "content", "tool_calls", "name"]), inner, max_size=3
        )
        | st.tuples(inner)
        | st.sets(st.integers(), max_size=2)
    ),
    max_leaves=6,
)


@given(name=st.sampled_from([name for name, _ in GOOD]), value=ANYTHING, prompt=ANYTHING)
def test_property_nothing_but_our_error_escapes(name: str, value: Any, prompt: Any) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = [
        ("Hi", {name: value}),
        (prompt, {}),
        ([prompt], {}),
        ([{"role": "user", "content": prompt}], {}),
    ]
    for some_prompt, params in asked:
        try:
            ChatRequest(some_prompt, **params)
        except InvalidRequestError as error:
            str(error).encode()
