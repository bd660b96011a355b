"""Ids of tool calls in a conversation that is sent back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async import ChatRequest, Client, FunctionCall, Message, ToolCall
from piapi_async.testing import LocalServer
from piapi_async.wire import encode_request


def calls(*ids: str | None) -> Message:
    return Message("assistant", tool_calls=tuple(ToolCall(FunctionCall("f", "{}"), id) for id in ids))


def result(id: str | None = None) -> Message:
    return Message("tool", "1", tool_call_id=id)


ASIDE = Message("user", "And now?")


def ids_sent(*messages: Message) -> list[Any]:
    """Of each message, the ids of its calls, or that of the call it answers; None where there is none."""
    request = ChatRequest(messages)
    before = repr(request.messages), repr(messages)
    said = json.loads(encode_request(request, "m").content)["messages"]
    assert (repr(request.messages), repr(messages)) == before
    assert encode_request(ChatRequest(messages), "m").content == encode_request(request, "m").content
    return [[c["id"] for c in m["tool_calls"]] if "tool_calls" in m else m.get("tool_call_id") for m in said]


@pytest.mark.parametrize(
    ("messages", "ids"),
    [
        ([calls("a", "b"), result("b"), result("a")], [["a", "b"], "b", "a"]),
        ([calls(None), result()], [["call_1"], "call_1"]),
        ([calls(""), result(" ")], [["call_1"], "call_1"]),
        ([calls(None, None), result(), result()], [["call_1", "call_2"], "call_1", "call_2"]),
        ([calls(None, "a"), result("a"), result()], [["call_1", "a"], "a", "call_1"]),
        # one that was used before, in the same message or in another one
        ([calls("a", "a"), result("a"), result("a")], [["a", "call_1"], "a", "call_1"]),
        ([calls("a"), result("a"), calls("a"), result("a")], [["a"], "a", ["call_1"], "call_1"]),
        ([calls("a"), calls("a", "b"), result("b"), result("a")], [["a"], ["call_1", "b"], "b", "call_1"]),
        # no new id is one that is there, later ones too
        ([calls(None), result(), calls("call_1"), result("call_1")], [["call_2"], "call_2", ["call_1"], "call_1"]),
        ([calls(None, None), result("call_2"), result()], [["call_1", "call_3"], "call_1", "call_3"]),
        # one that nobody has is a caller's own word for the one that is missing
        ([calls("a", None), result("mine"), result("a")], [["a", "call_1"], "call_1", "a"]),
        # other messages may stand between
        ([ASIDE, calls(None), ASIDE, result(), ASIDE], [None, ["call_1"], None, "call_1", None]),
        # what no call is there for stays
        ([calls("a"), result("a"), result("a"), result("b"), result()], [["a"], "a", "a", "b", None]),
        ([result(), calls(None), result(), result("")], [None, ["call_1"], "call_1", None]),
        ([calls("a"), result(), calls(None), result("a")], [["a"], None, ["call_1"], "a"]),
        ([result("a"), result()], ["a", None]),
    ],
)
def test_ids(messages: list[Message], ids: list[Any]) -> None:
    assert ids_sent(*messages) == ids


IDS = st.sampled_from([None, "", "a", "b", "call_1", "call_2"])
ROUNDS = st.lists(st.lists(IDS, min_size=1, max_size=4), min_size=1, max_size=4)


@given(rounds=ROUNDS)
def test_property_each_call_and_its_result_have_an_id_of_their_own(rounds: list[list[str | None]]) -> None:
    """With results that are in the order of the calls, and name them as they were named."""
    messages = [m for ids in rounds for m in (calls(*ids), *map(result, ids))]
    sent = ids_sent(*messages)
    called = [id for each in sent if isinstance(each, list) for id in each]
    assert [each for each in sent if not isinstance(each, list)] == called
    assert len(set(called)) == len(called)
    assert all(called)
    given_ids = [id for ids in rounds for id in ids]
    for i, id in enumerate(given_ids):
        if id and id not in given_ids[:i]:
            assert called[i] == id


FUNCTION = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


@pytest.mark.anyio
@pytest.mark.parametrize("raw", [False, True], ids=["message", "raw"])
async def test_an_answer_without_ids_is_sent_back(raw: bool) -> None:
    """As it came, from a server that leaves them out, to one that wants them."""
    question = Message("user", "What is the weather in Paris?")
    async with LocalServer() as server:
        async with Client(server.api_key, base_url=server.base_url, model="gpt-4o-mini") as client:
            completion = await client.complete([question], tools=[{"type": "function", "function": FUNCTION}])
            answer: Any = completion.raw
            message: Any = answer["choices"][0]["message"] if raw else completion.choices[0].message
            call = message["tool_calls"][0] if raw else message.tool_calls[0]
            if raw:
                del call["id"]
            else:
                call.id = None
            told: Any = {"role": "tool", "content": '{"degrees": 21}'}
            after = await client.complete([question, message, told, ASIDE])
        body = server.requests[-1].body
    assert isinstance(body, dict)
    _, asked, answered, _ = body["messages"]
    assert asked["tool_calls"][0]["id"] == answered["tool_call_id"] == "call_1"
    assert after.text
