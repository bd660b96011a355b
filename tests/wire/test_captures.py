"""What real servers sent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from piapi_async import APIError, APIStatusError, AuthenticationError, ChatCompletionChunk, RateLimitError, SSEDecoder
from piapi_async.errors import BadRequestError, InternalServerError, NotFoundError
from piapi_async.wire import AnswerBuilder, ChunkDecoder, error_from_response
from tests.wire.samples import assert_utf8, decode

CAPTURES = Path(__file__).parents[1] / "data" / "captures"


@attrs.frozen
class Capture:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def read(cls, path: Path) -> Capture:
        head, _, body = path.read_bytes().partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join(_unchunked(body))
        return cls(int(lines[0].split()[1]), headers, body)

    @property
    def is_stream(self) -> bool:
        return self.status == 200 and "event-stream" in self.headers["content-type"]


def _unchunked(body: bytes) -> Iterator[bytes]:
    while body:
        size, _, body = body.partition(b"\r\n")
        yield body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]


NAMES = sorted(str(path.relative_to(CAPTURES)) for path in CAPTURES.rglob("*.raw"))
STREAMS = [name for name in NAMES if Capture.read(CAPTURES / name).is_stream]

ERRORS: dict[str, tuple[type[APIError], str | None]] = {
    "aimock/51-bad_tool": (InternalServerError, None),
    "aimock/52-bad_json": (BadRequestError, "invalid_json"),
    "aimock/55-no_auth": (AuthenticationError, "invalid_api_key"),
    "aimock/57-get": (NotFoundError, None),
    "faults/litellm-mock-429": (RateLimitError, "429"),
    "faults/litellm-mock-500": (InternalServerError, "500"),
    "faults/litellm-mock-ctx": (BadRequestError, "400"),
    "faults/litellm-mock-timeout": (APIStatusError, "408"),
    "faults/litellm-upstream-down": (InternalServerError, "500"),
    "litellm/36-n_str": (InternalServerError, "500"),
    "litellm/47-unknown_model": (BadRequestError, "400"),
    "litellm/52-bad_json": (BadRequestError, "400"),
    "litellm/55-no_auth": (InternalServerError, None),
    "litellm/56-wrong_auth": (BadRequestError, "400"),
    "litellm/57-get": (APIStatusError, None),
    "litellm/60-trailing_slash": (APIStatusError, None),
    "llama_cpp_python/49-ctx_overflow": (BadRequestError, "context_length_exceeded"),
    "llama_cpp_python/52-bad_json": (InternalServerError, None),
    "llama_cpp_python/55-no_auth": (AuthenticationError, None),
    "llama_cpp_python/57-get": (APIStatusError, None),
    "llama_cpp_python/60-trailing_slash": (APIStatusError, None),
    "llamacpp/36-n_str": (BadRequestError, "400"),
    "llamacpp/49-ctx_overflow": (BadRequestError, "400"),
    "llamacpp/51-bad_tool": (InternalServerError, "500"),
    "llamacpp/52-bad_json": (BadRequestError, "400"),
    "llamacpp/55-no_auth": (AuthenticationError, "401"),
    "llamacpp/57-get": (NotFoundError, "404"),
}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in STREAMS])
def test_captured_answer(name: str) -> None:
    capture = Capture.read(CAPTURES / name)
    if name.removesuffix(".raw") not in ERRORS:
        assert capture.status == 200
        decoded = decode(capture.body)
        assert decoded.finish_reason in ("stop", "length", "tool_calls", "function_call")
        assert decoded.usage is not None
        assert decoded.text or decoded.choices[0].message.tool_calls or decoded.choices[0].message.function_call
        assert decoded.raw == json.loads(capture.body)
        return
    error = error_from_response(
        capture.status,
        capture.body,
        content_type=capture.headers.get("content-type", ""),
        location=capture.headers.get("location"),
    )
    cls, code = ERRORS[name.removesuffix(".raw")]
    assert type(error) is cls
    assert isinstance(error, APIStatusError)
    assert (error.status_code, error.code) == (capture.status, code)


def read_stream(body: bytes, size: int) -> tuple[list[ChatCompletionChunk], bool, APIError | None]:
    """The chunks of a stream's body, whether its terminator came, and the error that ended it."""
    events, decoder = SSEDecoder(), ChunkDecoder(AnswerBuilder(asked=2))
    chunks: list[ChatCompletionChunk] = []
    for start in range(0, len(body), size):
        try:
            if decoder.decode(events.feed(body[start : start + size]), chunks):
                return chunks, True, None
        except APIError as error:
            return chunks, False, error
    return chunks, False, None


@pytest.mark.parametrize("name", STREAMS)
def test_captured_stream(name: str) -> None:
    body = Capture.read(CAPTURES / name).body
    chunks, ended, error = read_stream(body, len(body) + 1)
    for size in (1, 7, 64, 1000):
        again = read_stream(body, size)
        assert again[:2] == (chunks, ended)
        assert str(again[2]) == str(error)
    if name == "faults/litellm-upstream-dies.raw":
        assert (type(error), ended, bool(chunks)) == (InternalServerError, False, True)
    elif name == "llama_cpp_python/50-ctx_overflow_stream.raw":
        assert (error, ended, chunks) == (None, False, [])
    else:
        assert (error, ended, bool(chunks)) == (None, True, True)
    finished = {choice.index for part in chunks for choice in part.choices if choice.finish_reason}
    assert (0 in finished) == (name not in _UNFINISHED)
    assert_utf8(chunks, [part.raw for part in chunks])


_UNFINISHED = {
    "faults/lcpp-interrupt-A.raw",
    "faults/litellm-upstream-dies.raw",
    "llama_cpp_python/50-ctx_overflow_stream.raw",
}


def test_captured_streams_with_usage() -> None:
    for server, completion_tokens in (
        ("aimock", {9}),
        ("litellm", {9}),
        ("llamacpp", {3}),
        ("llama_cpp_python", set()),
    ):
        chunks, _, _ = read_stream(Capture.read(CAPTURES / server / "02-stream_usage.raw").body, 100)
        assert {part.usage.completion_tokens for part in chunks if part.usage is not None} == completion_tokens


def test_captured_choices_are_interleaved() -> None:
    chunks, _, _ = read_stream(Capture.read(CAPTURES / "llamacpp" / "04-n2_stream.raw").body, 100)
    assert {choice.index for part in chunks for choice in part.choices} == {0, 1}


def test_a_captured_name_comes_with_every_delta() -> None:
    chunks, _, _ = read_stream(Capture.read(CAPTURES / "llama_cpp_python" / "18-functions_forced_stream.raw").body, 100)
    deltas = [choice.delta for part in chunks for choice in part.choices]
    assert {d.function_call.name for d in deltas if d.function_call} == {"get_weather"}
    assert {call.function.name for d in deltas for call in d.tool_calls or ()} == {"get_weather"}
