"""A request in, an answer out, as bytes: whole completions and the events of a stream. No IO.

What is the same in all events of a stream is made once per stream, so one process can serve thousands of streams.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, Final, Literal

import msgspec
from attrs import field, frozen

from piapi_async.testing.answers import Schema, answer, example, mentions, report, tokenize
from piapi_async.testing.rules import ChatBody, FunctionSpec, Message, NamedFunction, NamedTool

__all__ = ["Answerer", "Reply", "make_reply"]

Answerer = Callable[[Sequence[Any]], str]
"""Takes the request's messages, as parsed JSON, and returns the answer's text."""

_encode: Final = msgspec.json.Encoder().encode


@frozen
class Call:
    """A call of a function."""

    function: FunctionSpec
    kind: Literal["function", "tool"]


@frozen
class Choice:
    """One answer, in tokens: text, or the arguments of a call."""

    index: int
    tokens: Sequence[str]
    finish_reason: str
    call: Call | None
    call_id: str

    def message(self) -> dict[str, object]:
        """Return the message of a whole completion."""
        text = "".join(self.tokens)
        if self.call is None:
            return {"role": "assistant", "content": text}
        function = {"name": self.call.function.name, "arguments": text}
        if self.call.kind == "function":
            return {"role": "assistant", "content": None, "function_call": function}
        tool_call = {"id": self.call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [tool_call]}

    def first_delta(self) -> dict[str, object]:
        """Return the delta that opens the choice in a stream."""
        if self.call is None:
            return {"role": "assistant", "content": ""}
        function = {"name": self.call.function.name, "arguments": ""}
        if self.call.kind == "function":
            return {"role": "assistant", "content": None, "function_call": function}
        tool_call = {"index": 0, "id": self.call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [tool_call]}

    def delta_frame(self) -> tuple[bytes, bytes]:
        """Return what comes before and after a token in its delta."""
        if self.call is None:
            return b'{"content":', b"}"
        if self.call.kind == "function":
            return b'{"function_call":{"arguments":', b"}}"
        return b'{"tool_calls":[{"index":0,"function":{"arguments":', b"}}]}"


@frozen
class Reply:
    """A whole answer, to be sent at once or as a stream.

    Attributes:
        model: The model's name, as in the request.
        choices: The answers.
        prompt_tokens: Tokens of the messages and functions.
        with_usage: Whether a stream ends with a usage chunk. If so, its other chunks say `"usage": null`.
        id: The completion's id.
        created: When it was made, in seconds since 1970.
    """

    model: str
    choices: Sequence[Choice]
    prompt_tokens: int
    with_usage: bool
    id: str = field(factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(factory=lambda: int(time.time()))

    def completion(self) -> bytes:
        """Return the JSON of a whole completion."""
        choices = [
            {
                "index": choice.index,
                "message": choice.message(),
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for choice in self.choices
        ]
        return _encode(self._object("chat.completion", choices) | {"usage": self._usage()})

    def opening(self) -> list[bytes]:
        """Return the events before the first token: the role of each choice."""
        return [self._event(choice, _encode(choice.first_delta()), b"null") for choice in self.choices]

    def pieces(self) -> Iterator[bytes]:
        """Iterate over the events of the tokens: one token each, and the choices take turns."""
        frames: list[list[bytes]] = []
        for choice in self.choices:
            before, after = choice.delta_frame()
            frames.append(self._event(choice, before + b"\0" + after, b"null").split(b"\0"))
        for row in zip_longest(*(choice.tokens for choice in self.choices)):
            for token, (head, tail) in zip(row, frames, strict=True):
                if token is not None:
                    yield head + _encode(token) + tail

    def closing(self, terminator: str | None) -> list[bytes]:
        """Return the events after the last token: finish reasons, usage if wanted, terminator."""
        events = [self._event(choice, b"{}", _encode(choice.finish_reason)) for choice in self.choices]
        if self.with_usage:
            chunk = self._object("chat.completion.chunk", []) | {"usage": self._usage()}
            events.append(b"data: %b\n\n" % _encode(chunk))
        if terminator is not None:
            events.append(b"data: %b\n\n" % terminator.encode())
        return events

    def _event(self, choice: Choice, delta: bytes, finish_reason: bytes) -> bytes:
        chunk = _encode(self._object("chat.completion.chunk", None))
        start = chunk.removesuffix(b"null}")  # "choices" is its last field
        usage = b',"usage":null' if self.with_usage else b""
        choices = b'[{"index":%d,"delta":%b,"logprobs":null,"finish_reason":%b}]' % (choice.index, delta, finish_reason)
        return b"data: %b%b%b}\n\n" % (start, choices, usage)

    def _object(self, kind: str, choices: object) -> dict[str, object]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _usage(self) -> dict[str, int]:
        completion_tokens = sum(len(choice.tokens) for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }


def make_reply(body: ChatBody, document: Any, answerer: Answerer | None = None) -> Reply:
    """Answer a request.

    Args:
        body: The checked request.
        document: The same request as parsed JSON.
        answerer: Makes the texts, in place of the built-in sentences.
    """
    call = _call(body)
    choices: list[Choice] = []
    for index in range(body.n or 1):
        text = _arguments(call) if call is not None else _text(body, document, index, answerer)
        tokens, finish_reason = _cut(text, body)
        if call is not None and finish_reason == "stop":
            finish_reason = "function_call" if call.kind == "function" else "tool_calls"
        choices.append(Choice(index, tokens, finish_reason, call, f"call_{secrets.token_hex(12)}"))
    return Reply(body.model, choices, _prompt_tokens(body, document), body.wants_usage)


def _cut(text: str, body: ChatBody) -> tuple[list[str], str]:
    """Cut an answer before its first stop sequence, then at the token limit."""
    ends = [text.find(stop) for stop in body.stops if stop]
    text = text[: min((end for end in ends if end >= 0), default=None)]
    tokens = tokenize(text)
    limit = body.token_limit
    return (tokens, "stop") if limit is None or len(tokens) <= limit else (tokens[:limit], "length")


def _prompt_tokens(body: ChatBody, document: Any) -> int:
    """Count as OpenAI does: three tokens around each message, one for its role, and three to begin the answer."""
    total = 3
    for message in body.messages:
        total += 4 + len(tokenize(message.text))
        total += len(tokenize(message.name)) + 1 if message.name else 0
    for key in ("functions", "tools"):
        if document.get(key):
            total += len(tokenize(_encode(document[key]).decode()))
    return total


# --- What to say ------------------------------------------------------------------------------------------------------


def _text(body: ChatBody, document: Any, index: int, answerer: Answerer | None) -> str:
    if answerer is not None:
        return answerer(document["messages"])
    last = body.messages[-1]
    if last.role in ("function", "tool"):
        return report(last.name or _called_by(body.messages, last.tool_call_id), last.text)
    prompt = next((message.text for message in reversed(body.messages) if message.role == "user"), "")
    if body.response_format is None or body.response_format.type == "text":
        return answer(prompt, _encode(document["messages"][:-1]), index)
    named = body.response_format.json_schema
    if named is None:
        return _encode({"answer": answer(prompt, b"", index)}).decode()
    return _encode(example(named.schema, root=named.schema)).decode()


def _called_by(messages: Sequence[Message], tool_call_id: str | None) -> str:
    """The name of the function whose result a tool's message brings."""
    calls = (call for message in messages for call in message.tool_calls or [])
    return next((call.function.name for call in calls if call.id == tool_call_id), "the tool")


def _arguments(call: Call) -> str:
    schema: Schema = call.function.parameters or {}
    value: object = example(schema, root=schema) if schema.get("properties") or schema.get("type") else {}
    return _encode(value).decode()


def _call(body: ChatBody) -> Call | None:
    """The function that this answer calls: the one that it must call, or one that the user mentions."""
    tools = [tool.function for tool in body.tools or []]
    functions = body.functions or []
    if isinstance(body.tool_choice, NamedTool):
        return Call(_named(tools, body.tool_choice.function.name), "tool")
    if isinstance(body.function_call, NamedFunction):
        return Call(_named(functions, body.function_call.name), "function")
    mentioned = _mentioned(tools, body)
    if body.tool_choice != "none" and (mentioned is not None or body.tool_choice == "required"):
        return Call(mentioned or tools[0], "tool")
    mentioned = _mentioned(functions, body)
    return Call(mentioned, "function") if body.function_call != "none" and mentioned is not None else None


def _named(functions: Sequence[FunctionSpec], name: str) -> FunctionSpec:
    return next(function for function in functions if function.name == name)


def _mentioned(functions: Sequence[FunctionSpec], body: ChatBody) -> FunctionSpec | None:
    last = body.messages[-1]
    if last.role != "user":  # a function has returned: now answer
        return None
    return next((function for function in functions if mentions(last.text, function.name)), None)
