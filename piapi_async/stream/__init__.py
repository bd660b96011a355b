"""Streamed answers: bytes → events → chunks → tokens → completion.

reading      one exchange → chunks, a list for each read
chat_stream  what the caller holds
events       what a stream is made of, told apart
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piapi_async.stream.chat_stream import ChatStream, StreamItem
from piapi_async.stream.reading import read_chunks

if TYPE_CHECKING:
    from piapi_async.stream.events import CallDelta, Reasoning, Restarted, Text
else:

    def __getattr__(name: str) -> object:
        """Load the classes of events when they are asked for, as few programs do."""
        if name not in ("CallDelta", "Reasoning", "Restarted", "Text"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from piapi_async.stream import events

        return getattr(events, name)


__all__ = ["CallDelta", "ChatStream", "Reasoning", "Restarted", "StreamItem", "Text", "read_chunks"]
