"""The asyncio-native client for PiAPI's LLM API: await one, async-for one, fan out many, and lose none."""

from __future__ import annotations

from typing import TYPE_CHECKING

# First, as it loads aiohttp. From deep within other imports that takes CPython 3.11 longer: its stack then ends close
# to the end of a block, and many calls allocate another one and free it again.
from piapi_async.pool import Exchange, Transport

# isort: split
from piapi_async.billing import Quote
from piapi_async.client import Client
from piapi_async.errors import (
    AllProvidersFailedError,
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BatchError,
    BudgetExceededError,
    ConfigurationError,
    InvalidRequestError,
    PiAPIError,
    RateLimitError,
    StreamTruncatedError,
)
from piapi_async.ledger import Ledger, LedgerEntry
from piapi_async.models import (
    Attempt,
    ChatCompletion,
    ChatCompletionChunk,
    ChatParams,
    ChatRequest,
    Choice,
    ChunkChoice,
    Delta,
    FunctionCall,
    Message,
    Prompt,
    ToolCall,
    Usage,
)
from piapi_async.policy import Health, Limits, Retry, Timeout
from piapi_async.provider import Provider
from piapi_async.sse import ServerSentEvent, SSEDecoder
from piapi_async.stream import ChatStream

if TYPE_CHECKING:
    from piapi_async.batch import BatchStatus, quote_batch, run_batch
    from piapi_async.client.image import image
    from piapi_async.dispatch.statistics import KeyStatistics, Statistics
    from piapi_async.fanout import Result, Results
    from piapi_async.stream import CallDelta, Reasoning, Restarted, Text

    __version__: str
else:  # out of the sight of type checkers, for whom any name would be there

    def __getattr__(name: str) -> object:
        """Load what few programs need when it is asked for; `fanout` needs anyio, `batch` SQLite too, and POSIX."""
        if name == "__version__":
            from importlib.metadata import version

            return version("piapi-async")
        if name in ("Result", "Results"):
            from piapi_async import fanout as module
        elif name in ("CallDelta", "Reasoning", "Restarted", "Text"):
            from piapi_async import stream as module
        elif name in ("KeyStatistics", "Statistics"):
            from piapi_async.dispatch import statistics as module
        elif name in ("BatchStatus", "quote_batch", "run_batch"):
            from piapi_async import batch as module
        elif name == "image":
            from piapi_async.client import image as module
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
    "BatchError",
    "BatchStatus",
    "BudgetExceededError",
    "CallDelta",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatParams",
    "ChatRequest",
    "ChatStream",
    "Choice",
    "ChunkChoice",
    "Client",
    "ConfigurationError",
    "Delta",
    "Exchange",
    "FunctionCall",
    "Health",
    "InvalidRequestError",
    "KeyStatistics",
    "Ledger",
    "LedgerEntry",
    "Limits",
    "Message",
    "PiAPIError",
    "Prompt",
    "Provider",
    "Quote",
    "RateLimitError",
    "Reasoning",
    "Restarted",
    "Result",
    "Results",
    "Retry",
    "SSEDecoder",
    "ServerSentEvent",
    "Statistics",
    "StreamTruncatedError",
    "Text",
    "Timeout",
    "ToolCall",
    "Transport",
    "Usage",
    "__version__",
    "image",
    "quote_batch",
    "run_batch",
]
