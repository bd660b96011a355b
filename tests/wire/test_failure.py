"""Errors that providers send, in any shape and with any status."""

from __future__ import annotations

import json
from typing import Any

import pytest

from piapi_async import (
    APIResponseError,
    APIStatusError,
    AuthenticationError,
    FunctionCall,
    PiAPIError,
    RateLimitError,
    ServerSentEvent,
)
from piapi_async.errors import (
    BadRequestError,
    ConflictError,
    InsufficientQuotaError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RequestTooLargeError,
    UnprocessableEntityError,
)
from piapi_async.wire import AnswerBuilder, ChunkDecoder, decode_completion, error_from_response
from tests.wire.samples import BOM, KEY, completion, decode, decode_event, refused

# -- error objects in a 200 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "cls", "status"),
    [
        ({"error": {"message": "x", "type": "invalid_request_error", "code": None}}, BadRequestError, 400),
        ({"error": {"message": "x", "code": "context_length_exceeded"}}, BadRequestError, 400),
        ({"error": {"message": "x", "code": 401}}, AuthenticationError, 401),
        ({"error": {"message": "x", "code": "401"}}, AuthenticationError, 401),
        ({"error": {"message": "x", "code": "invalid_api_key", "type": "server_error"}}, AuthenticationError, 401),
        ({"error": {"message": "x", "code": "INSUFFICIENT_QUOTA"}}, InsufficientQuotaError, 402),
        ({"error": {"message": "x", "type": "insufficient_quota", "code": 429}}, InsufficientQuotaError, 429),
        ({"error": {"message": "x", "code": "model_not_found"}}, NotFoundError, 404),
        ({"error": {"message": "x", "status": 403}}, PermissionDeniedError, 403),
        ({"error": {"message": "x", "status_code": 409}}, ConflictError, 409),
        ({"error": {"message": "x", "code": 413}}, RequestTooLargeError, 413),
        ({"error": {"message": "x", "code": 422}}, UnprocessableEntityError, 422),
        ({"error": {"message": "x", "type": "throttling_error"}}, RateLimitError, 429),
        ({"error": {"message": "x", "type": "overloaded_error"}}, InternalServerError, 529),
        ({"error": {"message": "x", "code": 418}}, APIStatusError, 418),
        ({"error": {"message": "x", "code": 200}}, InternalServerError, 500),
        ({"error": {"message": "x", "code": "9" * 20}}, InternalServerError, 500),
        ({"error": {"message": "x", "code": True}}, InternalServerError, 500),
        ({"error": {"message": "x", "code": "٤٠٠"}}, InternalServerError, 500),
        ({"error": {"message": ["x"], "code": {}, "type": [], "param": 5}}, InternalServerError, 500),
        ({"error": {}}, InternalServerError, 500),
        ({"error": "x"}, InternalServerError, 500),
        ({"error": "x", "code": 429}, RateLimitError, 429),
        ({"error": "x", "type": "rate_limit_error"}, RateLimitError, 429),
        ({"error": True}, InternalServerError, 500),
        ({"error": ["x"]}, InternalServerError, 500),
        ({"object": "error", "message": "x", "code": 404}, NotFoundError, 404),
        ({"object": "error", "message": "x", "type": "BadRequestError", "code": 40303}, InternalServerError, 500),
        ({"code": 401, "message": "x", "data": None}, AuthenticationError, 401),
        ({"code": 10_000, "message": "x", "data": None}, InternalServerError, 500),
        ({"code": "quota_exceeded", "detail": "x"}, InsufficientQuotaError, 402),
    ],
)
def test_error_objects(fields: dict[str, object], cls: type[APIStatusError], status: int) -> None:
    for prefix in (b"", BOM):
        with pytest.raises(APIStatusError) as raised:
            decode_completion(prefix + json.dumps(fields).encode())
        assert type(raised.value) is cls
        assert raised.value.status_code == status
        assert raised.value.__context__ is None
        with pytest.raises(cls):
            decode_event(ServerSentEvent(json.dumps(fields)))


def test_an_error_that_comes_along_with_choices() -> None:
    for fields in ({"error": {"message": "x", "code": 429}}, {"error": "x", "code": 429}):
        with pytest.raises(RateLimitError):
            decode_completion(completion(**fields))
        with pytest.raises(RateLimitError):
            decode_event(ServerSentEvent(completion(**fields).decode()))


@pytest.mark.parametrize(
    "fields",
    [
        {"error": None},
        {"error": ""},
        {"error": False},
        {"code": 0, "message": "ok"},
        {"code": 200, "message": "success"},
        {"code": 500, "message": "x"},  # beside choices
        {"x": "error"},
        {"model": "error"},
    ],
)
def test_what_is_no_error(fields: dict[str, object]) -> None:
    assert decode(completion(**fields)).text == "Hello!"


def test_a_wrapper_without_error_is_no_completion() -> None:
    for fields in ({"code": 0, "message": "ok"}, {"code": None, "message": "x"}, {"code": 400}):
        assert "no choices" in str(refused(json.dumps(fields).encode()))


def test_the_word_error_as_a_name() -> None:
    call: dict[str, Any] = {"name": "error", "arguments": '{"error": 1}'}
    assert decode(completion({"function_call": call})).choices[0].message.function_call == FunctionCall(**call)


# -- error statuses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (402, InsufficientQuotaError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (405, APIStatusError),
        (408, APIStatusError),
        (409, ConflictError),
        (413, RequestTooLargeError),
        (414, RequestTooLargeError),
        (422, UnprocessableEntityError),
        (429, RateLimitError),
        (431, RequestTooLargeError),
        (500, InternalServerError),
        (503, InternalServerError),
        (529, InternalServerError),
        (599, InternalServerError),
        (999, InternalServerError),
        (206, APIStatusError),
        (299, APIStatusError),
    ],
)
def test_statuses(status: int, cls: type[APIStatusError]) -> None:
    body = {"error": {"message": "It\nfailed", "type": "some_error", "code": "some_code", "param": "model"}}
    error = error_from_response(status, json.dumps(body).encode())
    assert type(error) is cls
    assert isinstance(error, APIStatusError)
    assert error.status_code == status
    assert (error.type, error.code, error.param) == ("some_error", "some_code", "model")
    assert str(error).startswith(f"the provider answered {status} (some_code): It\\nfailed; ")
    assert error.body == json.dumps(body)
    assert error.kind == "status"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"detail": "Invalid API key"}', "Invalid API key"),
        (b'{"message": "no"}', "no"),
        (b'{"error": "no"}', "no"),
        (b'{"code": 500, "message": "no"}', "no"),
        (b'{"detail": [{"loc": ["n"]}]}', '[{"loc": ["n"]}]'),
        (b'{"error": {"message": null, "code": "500"}}', ""),
        (b'{"error": {}}', '{"error": {}}'),
        (b"Internal Server Error", "Internal Server Error"),
        (b"[1]", "[1]"),
        (b'{"cut": ', '{"cut":'),
        (b"\xff\x00\x1b[31m", "\ufffd\\x00\\x1b[31m"),
        (b"", ""),
    ],
)
def test_shapes_of_error_bodies(body: bytes, said: str) -> None:
    error = error_from_response(500, body)
    assert str(error) == f"the provider answered 500{f': {said}' if said else ''}; try again later or use a backup"


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached"])
def test_used_up_credit_goes_before_the_status(code: str) -> None:
    for name in ("code", "type"):
        error = error_from_response(429, json.dumps({"error": {"message": "x", name: code}}).encode())
        assert type(error) is InsufficientQuotaError
        assert isinstance(error, APIStatusError)
        assert error.status_code == 429


def test_a_prompt_that_is_too_long_goes_before_the_status() -> None:
    body = b'{"error": {"message": "x", "code": "context_length_exceeded"}}'
    assert type(error_from_response(413, body)) is type(error_from_response(400, body)) is BadRequestError


@pytest.mark.parametrize("status", [204, 205])
def test_no_content(status: int) -> None:
    error = error_from_response(status, b"")
    assert (type(error), error.kind) == (APIResponseError, "empty")


@pytest.mark.parametrize(
    ("location", "where"),
    [
        ("https://evil.example/v1?secret=1", " to evil.example "),
        ("//evil.example:80/x", " to evil.example "),
        ("/v2/chat", " to another path "),
        ("https://[bad", " to another path "),
        ("http://user:pw@host", " to host "),
        ("https://a\nb", " to ab "),
        (None, "the provider redirects (status 307)"),
        ("", "the provider redirects (status 307)"),
    ],
)
def test_redirects_name_the_host_only(location: str | None, where: str) -> None:
    error = error_from_response(307, b"moved", location=location)
    assert (type(error), error.kind) == (APIStatusError, "redirect")
    assert where in str(error)
    assert "secret" not in str(error)
    assert "pw" not in str(error)


@pytest.mark.parametrize("status", [403, 404, 429, 200])
@pytest.mark.parametrize(
    ("body", "content_type"), [(b"\xef\xbb\xbf \n<html>Just a moment", ""), (b"Just a moment", "Text/HTML; charset=x")]
)
def test_a_web_page_is_no_answer(status: int, body: bytes, content_type: str) -> None:
    error = error_from_response(status, body, content_type=content_type)
    assert (type(error), error.kind) == (APIResponseError, "edge page")
    assert f"status {status}" in str(error)
    assert "Just a moment" in str(error)


@pytest.mark.parametrize("status", [500, 502, 520, 522, 524, 530])
def test_a_web_page_with_a_servers_status(status: int) -> None:
    error = error_from_response(status, b"<html>Bad gateway", content_type="text/html")
    assert (type(error), error.kind) == (InternalServerError, "edge")
    assert ": a web page;" in str(error)


def test_json_that_is_called_html_is_json() -> None:
    body = b'{"error": {"message": "bad key", "type": "authentication_error"}}'
    assert type(error_from_response(401, body, content_type="text/html")) is AuthenticationError


@pytest.mark.parametrize(("status", "billed"), [(500, False), (502, False), (504, True), (524, True), (429, False)])
def test_a_gateways_timeout_may_be_billed(status: int, billed: bool) -> None:
    assert error_from_response(status, b"{}").maybe_billed is billed


def test_a_key_that_is_echoed_is_scrubbed() -> None:
    key = KEY.reveal()
    fields = {"message": f"bad key {key}", "code": key, "type": f"x {key}", "param": key}
    error = error_from_response(401, json.dumps({"error": fields}).encode(), secrets=[KEY])
    assert key not in repr(vars(error)) + str(error)
    assert "[key]" in str(error)
    page = error_from_response(403, f"<html>{key}".encode(), secrets=[KEY])
    redirect = error_from_response(302, key.encode(), location=f"https://{key}/", secrets=[KEY])
    for other in (page, redirect):
        assert key not in repr(vars(other)) + str(other)
    for body in (json.dumps({"error": fields}), json.dumps({"x": key}), f'"{key}"', key, f"<{key}"):
        with pytest.raises(PiAPIError) as raised:
            decode_completion(body.encode(), secrets=[KEY])
        assert key not in repr(vars(raised.value)) + str(raised.value)
        with pytest.raises(PiAPIError) as raised:
            ChunkDecoder(AnswerBuilder(), [KEY]).decode([ServerSentEvent(body, "error")], [])
        assert key not in repr(vars(raised.value)) + str(raised.value)
