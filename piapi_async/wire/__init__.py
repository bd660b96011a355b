"""The wire format: a request to bytes; bytes to a completion, a chunk or an error. No IO, no clock.

    request   → request (bytes and headers to send; call_ids makes the ids of tool calls good)
    answer    → headers, completion (not streamed), chunks → indexes → join and calls (streamed),
                error_objects → failure (errors)

One `converter` (in `convert`) makes the classes of `models` of JSON. What it refuses as it comes is read again the
tolerant way: the standard library's JSON, which knows lone surrogates (`parse`); then `repair`, which undoes the
liberties that real servers take; then the same converter, which still coerces nothing.
"""

from __future__ import annotations

from piapi_async.wire.chunks import ChunkDecoder, as_chunk
from piapi_async.wire.completion import decode_completion
from piapi_async.wire.failure import error_from_response
from piapi_async.wire.headers import (
    ANSWER_HEADERS,
    PAUSE_CAP,
    Headers,
    read_pause,
    read_request_id,
    read_retry_after,
    read_should_retry,
)
from piapi_async.wire.join import AnswerBuilder
from piapi_async.wire.request import COMMON_HEADERS, MAX_REQUEST_BYTES, Body, encode_request, request_headers

__all__ = [
    "ANSWER_HEADERS",
    "COMMON_HEADERS",
    "MAX_REQUEST_BYTES",
    "PAUSE_CAP",
    "AnswerBuilder",
    "Body",
    "ChunkDecoder",
    "Headers",
    "as_chunk",
    "decode_completion",
    "encode_request",
    "error_from_response",
    "read_pause",
    "read_request_id",
    "read_retry_after",
    "read_should_retry",
    "request_headers",
]
