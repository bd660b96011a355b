"""Fragments of function and tool calls → whole calls."""

from __future__ import annotations

import json
from contextlib import suppress

import attrs

from piapi_async.models import FunctionCall, ToolCall


def _no_texts() -> list[str]:
    return []


@attrs.define(eq=False, repr=False, slots=False)
class CallParts:
    """A function or tool call in the making.

    Attributes:
        index: Which of its choice's calls it is, from 0.
        sent_index: What the server said for that; several calls may have the same.
        id: The tool call's id, once it has come.
        type: The tool call's type.
        name: The function's name so far.
        arguments: Pieces of the arguments so far.
        extra: What came beside the fields of the tool call.
        function_extra: What came beside those of the function.
    """

    index: int = 0
    sent_index: int | None = None
    id: str | None = None
    type: str | None = "function"
    name: str = ""
    arguments: list[str] = attrs.field(factory=_no_texts)
    extra: dict[str, object] = attrs.field(factory=dict[str, object])
    function_extra: dict[str, object] = attrs.field(factory=dict[str, object])

    def extend(self, fragment: FunctionCall) -> None:
        """Add a fragment of a function call."""
        if fragment.name != self.name:  # some servers repeat the name in every fragment
            self.name += fragment.name
        if fragment.arguments and self.arguments == ["{}"]:  # some begin with an empty object
            self.arguments.clear()
        if fragment.arguments:
            self.arguments.append(fragment.arguments)
        self.function_extra.update(fragment.extra)

    def extend_tool(self, fragment: ToolCall) -> None:
        """Add a fragment of a tool call."""
        self.id = self.id or fragment.id or None
        self.type = fragment.type or self.type
        self.extra.update(fragment.extra)
        self.extend(fragment.function)

    def is_whole(self) -> bool:
        """Whether the arguments so far are a whole JSON object."""
        last = next((piece for piece in reversed(self.arguments) if piece.strip()), "")
        if not last.rstrip().endswith("}"):  # nearly always: to parse them for each piece would take long
            return False
        with suppress(ValueError, RecursionError):
            return isinstance(json.loads("".join(self.arguments)), dict)
        return False

    def joined(self) -> FunctionCall:
        """Return the call as a function call."""
        return FunctionCall(self.name, "".join(self.arguments), extra=self.function_extra)

    def joined_tool(self) -> ToolCall:
        """Return it as a tool call."""
        return ToolCall(self.joined(), self.id, self.type, extra=self.extra)


def _no_calls() -> list[CallParts]:
    return []


@attrs.define(eq=False, repr=False, slots=False)
class ToolCallParts:
    """The tool calls of a choice in the making.

    Attributes:
        calls: The calls, in the order in which they began.
    """

    calls: list[CallParts] = attrs.field(factory=_no_calls)

    def extend(self, fragments: tuple[ToolCall, ...]) -> None:
        """Add what one chunk brings, and set the index of each fragment to the one of its call."""
        for position, fragment in enumerate(fragments):
            if fragment.index is None and not fragment.id and len(fragments) > 1:
                fragment.index = position  # several at once, with nothing that tells them apart but their order
            call = self._going_on(fragment) or self._begin(fragment)
            call.extend_tool(fragment)
            fragment.index = call.index

    def _going_on(self, fragment: ToolCall) -> CallParts | None:
        """The call that a fragment belongs to; None if it begins another."""
        same_id = next((call for call in self.calls if fragment.id and call.id == fragment.id), None)
        if fragment.index is None:
            if same_id is not None or (fragment.id and fragment.function.name):
                return same_id
            latest = self.calls[-1] if self.calls else None
        else:
            if same_id is not None and same_id.sent_index == fragment.index:
                return same_id
            latest = next((call for call in reversed(self.calls) if call.sent_index == fragment.index), None)
        return None if latest is None or _begins_another(latest, fragment) else latest

    def _begin(self, fragment: ToolCall) -> CallParts:
        taken = {call.index for call in self.calls}
        index = fragment.index
        if index is None or index in taken:
            index = max(taken, default=-1) + 1
        call = CallParts(index, fragment.index)
        self.calls.append(call)
        return call

    def joined(self) -> tuple[ToolCall, ...]:
        """Return the whole calls, by their indexes."""
        return tuple(call.joined_tool() for call in sorted(self.calls, key=lambda call: call.index))


def _begins_another(call: CallParts, fragment: ToolCall) -> bool:
    """Whether a fragment that comes where a call is open begins another one, by its id and name."""
    name = fragment.function.name
    if fragment.id and call.id:
        return bool(name) and fragment.id != call.id
    # Without ids: some servers send the name in pieces, or with every fragment, but never behind whole arguments.
    return bool(name and (name != call.name or fragment.function.arguments) and call.is_whole())
