"""What is asked and what is answered, as attrs classes in the API's own words.

`messages` are shared by both; `requests` are checked (by `checks`) when they are made; `answers` are built by `wire`,
which never coerces: what a server sent is kept, or it is an error.
"""

from __future__ import annotations

from piapi_async.models.answers import (
    Attempt,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    Usage,
)
from piapi_async.models.checks import MAX_DEPTH
from piapi_async.models.messages import Content, FunctionCall, Message, ToolCall
from piapi_async.models.requests import ChatParams, ChatRequest, Prompt

__all__ = [
    "MAX_DEPTH",
    "Attempt",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatParams",
    "ChatRequest",
    "Choice",
    "ChunkChoice",
    "Content",
    "Delta",
    "FunctionCall",
    "Message",
    "Prompt",
    "ToolCall",
    "Usage",
]
