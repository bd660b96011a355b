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


def _no_places() -> dict[int, CallParts]:
    return {}


def _no_ids() -> dict[str, CallParts]:
    return {}


@attrs.define(eq=False, repr=False, slots=False)
class ToolCallParts:
    """The tool calls of a choice in the making.

    Attributes:
        calls: The calls, in the order in which they began.
    """

    calls: list[CallParts] = attrs.field(factory=_no_calls)
    _by_index: dict[int, CallParts] = attrs.field(factory=_no_places, init=False)
    _by_sent_index: dict[int, CallParts] = attrs.field(factory=_no_places, init=False)  # the last with each
    _by_id: dict[str, CallParts] = attrs.field(factory=_no_ids, init=False)  # the last with each

    def extend(self, fragments: tuple[ToolCall, ...]) -> None:
        """Add what one chunk brings, and set the index of each fragment to the one of its call."""
        for position, fragment in enumerate(fragments):
            if fragment.index is None and not fragment.id and len(fragments) > 1:
                fragment.index = position  # several at once, with nothing that tells them apart but their order
            call = self._going_on(fragment)
            if call is None:
                if is_empty(fragment):
                    continue
                call = self._begin(fragment)
            call.extend_tool(fragment)
            if call.id is not None:
                self._by_id[call.id] = call
            fragment.index = call.index

    def _going_on(self, fragment: ToolCall) -> CallParts | None:
        """The call that a fragment belongs to; None if it begins another."""
        same_id = self._by_id.get(fragment.id) if fragment.id else None
        if same_id is not None and _goes_on(same_id, fragment):
            return same_id
        if fragment.index is None:
            latest = self.calls[-1] if self.calls and not (fragment.id and fragment.function.name) else None
        else:
            latest = self._by_sent_index.get(fragment.index) or self._without_index(fragment.index)
        return None if latest is None or _begins_another(latest, fragment) else latest

    def _without_index(self, index: int) -> CallParts | None:
        """The call at a place, if it began without an index: some servers send that later."""
        call = self._by_index.get(index)
        return call if call is not None and call.sent_index is None else None

    def _begin(self, fragment: ToolCall) -> CallParts:
        index = fragment.index
        if index is None or index in self._by_index:
            index = self._free_index()
        call = CallParts(index, fragment.index)
        self.calls.append(call)
        self._by_index[call.index] = call
        if fragment.index is not None:
            self._by_sent_index[fragment.index] = call
        return call

    def _free_index(self) -> int:
        count = len(self.calls)  # nearly always free, and found at once
        return count if count not in self._by_index else max(self._by_index) + 1

    def joined(self) -> tuple[ToolCall, ...]:
        """Return the whole calls, by their indexes."""
        return tuple(call.joined_tool() for call in sorted(self.calls, key=lambda call: call.index))


def is_empty(fragment: ToolCall) -> bool:
    """Whether a fragment brings nothing."""
    function = fragment.function
    return not (fragment.id or function.name or function.arguments or fragment.extra or function.extra)


def _goes_on(call: CallParts, fragment: ToolCall) -> bool:
    """Whether a fragment with the id of a call belongs to it; some servers give all calls the same id."""
    name = fragment.function.name
    if fragment.index is None or call.sent_index in (None, fragment.index):
        return not (name and name != call.name and call.is_whole())
    return not name or (name == call.name and not call.is_whole())  # the index counts fragments


def _begins_another(call: CallParts, fragment: ToolCall) -> bool:
    """Whether a fragment that comes where a call is open begins another one, by its id and name."""
    name = fragment.function.name
    if fragment.id and call.id and fragment.id != call.id:
        return bool(name)
    # Without ids: some servers send the name in pieces, or with every fragment, but never behind whole arguments.
    return bool(name and (name != call.name or fragment.function.arguments) and call.is_whole())
