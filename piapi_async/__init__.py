"""The asyncio-native client for PiAPI's LLM API: await one, async-for one, fan out many, and lose none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from piapi_async.catalog import ModelInfo, gizmo_model
from piapi_async.client import Client
from piapi_async.errors import (
    AllProvidersFailedError,
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    BatchError,
    BudgetExceededError,
    ConfigurationError,
    ConflictError,
    InsufficientQuotaError,
    InternalServerError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    PiAPIError,
    RateLimitError,
    RequestTooLargeError,
    StreamTooLargeError,
    StreamTruncatedError,
    UnprocessableEntityError,
)
from piapi_async.ledger import Ledger
from piapi_async.models import (
    Attempt,
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Choice,
    ChunkChoice,
    Delta,
    FunctionCall,
    Message,
    Result,
    ToolCall,
    Usage,
)
from piapi_async.policy import Health, Limits, Retry, Timeout
from piapi_async.provider import Provider
from piapi_async.route import LaneStatistics, Statistics
from piapi_async.sse import ServerSentEvent, SSEDecoder
from piapi_async.stream import ChatStream, Restarted

if TYPE_CHECKING:
    from piapi_async.batch import BatchQuote, BatchStatus, quote_batch, run_batch
    from piapi_async.fanout import FanOut
else:  # out of the sight of type checkers, for whom any name would be there

    def __getattr__(name: str) -> object:
        """Load what few programs need when it is asked for: `fanout` needs anyio; `batch` SQLite too, and POSIX."""
        if name == "FanOut":
            from piapi_async import fanout as module
        elif name in ("BatchQuote", "BatchStatus", "quote_batch", "run_batch"):
            from piapi_async import batch as module
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(module, name)


__all__ = [
    "APIConnectionError",
    "APIError",
    "APIResponseError",
    "APIStatusError",
    "APITimeoutError",
    "AllProvidersFailedError",
    "Attempt",
    "AuthenticationError",
    "BadRequestError",
    "BatchError",
    "BatchQuote",
    "BatchStatus",
    "BudgetExceededError",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatRequest",
    "ChatStream",
    "Choice",
    "ChunkChoice",
    "Client",
    "ConfigurationError",
    "ConflictError",
    "Delta",
    "FanOut",
    "FunctionCall",
    "Health",
    "InsufficientQuotaError",
    "InternalServerError",
    "InvalidRequestError",
    "LaneStatistics",
    "Ledger",
    "Limits",
    "Message",
    "ModelInfo",
    "NotFoundError",
    "PermissionDeniedError",
    "PiAPIError",
    "Provider",
    "RateLimitError",
    "RequestTooLargeError",
    "Restarted",
    "Result",
    "Retry",
    "SSEDecoder",
    "ServerSentEvent",
    "Statistics",
    "StreamTooLargeError",
    "StreamTruncatedError",
    "Timeout",
    "ToolCall",
    "UnprocessableEntityError",
    "Usage",
    "gizmo_model",
    "quote_batch",
    "run_batch",
]
