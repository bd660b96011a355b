"""Errors that providers send, in any shape and with any status."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async import (
    APIError,
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
from piapi_async.wire.error_objects import implied_status
from piapi_async.wire.failure import error_in, error_object, raise_error_object, status_error
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


# -- where the error stands, and what its parts are called -------------------------------------------------------------


def inside(levels: int, error: dict[str, object]) -> dict[str, object]:
    """An error that is the message of another, as JSON in JSON, so many times."""
    for _ in range(levels):
        error = {"message": json.dumps({"error": error})}
    return {"error": error}


def choices(*several: object, **fields: object) -> dict[str, object]:
    return {"choices": list(several), **fields}


FAULT = {"loc": ["body", "messages", 0], "msg": "Field required", "type": "missing"}
BAD = {"code": 400, "message": "bad temperature"}


@pytest.mark.parametrize(
    ("value", "status", "code", "said"),
    [
        # in a list
        ([{"error": {"code": 404, "message": "no such model", "status": "NOT_FOUND"}}], 404, "404", "no such model"),
        ([1, {"type": "ping"}, {"error": "x", "code": 401}, {"error": "y"}], 401, "401", "x"),
        ({"error": [{}, {"code": 429, "message": "slow"}]}, 429, "429", "slow"),
        ({"error": ["no", "", "never"]}, 500, None, "no; never"),
        ({"error": [1, [2]]}, 500, None, "[1, [2]]"),
        # by a code
        ({"code": 1001, "msg": "no"}, 500, "1001", "no"),
        ({"code": "429", "msg": "no", "data": {"x": 1}}, 429, "429", "no"),
        ({"code": 1001, "msg": ""}, 500, "1001", ""),
        ({"error_code": 110, "error_msg": "bad token"}, 500, "110", "bad token"),
        ({"errcode": 401, "errmsg": "bad token"}, 401, "401", "bad token"),
        ({"errorCode": "UNAUTHENTICATED", "errorMessage": "bad token"}, 401, "UNAUTHENTICATED", "bad token"),
        ({"error_msg": "bad token"}, 500, None, "bad token"),
        ({"success": False, "errors": [{"code": 7003, "message": "no route"}]}, 500, "7003", "no route"),
        ({"success": False, "message": "no"}, 500, None, "no"),
        ({"success": False}, 500, None, ""),
        ({"errors": [{"message": "no"}], "data": None}, 500, None, "no"),
        # by a status
        ({"message": "no", "status": 500}, 500, None, "no"),
        ({"message": "no", "status": "PERMISSION_DENIED"}, 403, None, "no"),
        ({"message": "no", "status": "error"}, 500, None, "no"),
        ({"message": "no", "statusCode": 404}, 404, None, "no"),
        ({"message": ["a", "b"], "statusCode": 400, "error": "Bad Request"}, 400, None, "Bad Request: a; b"),
        ({"status": 404, "error": "Not Found", "path": "/v1"}, 404, None, "Not Found"),
        ({"error": {"http_code": "429", "message": "no", "type": "x"}}, 429, None, "no"),
        ({"error": {"message": "no"}, "statusCode": 401}, 401, None, "no"),
        ({"type": "about:blank", "title": "No", "status": 422, "detail": "no"}, 422, None, "no"),
        # by a name
        ({"type": "error", "error": {"type": "overloaded_error", "message": "no"}}, 529, None, "no"),
        ({"type": "error", "message": "no"}, 500, None, "no"),
        ({"type": "authentication_error", "message": "no"}, 401, None, "no"),
        ({"object": "error", "message": "no", "status": "UNAVAILABLE"}, 503, None, "no"),
        # by a text
        ({"detail": "no"}, 500, None, "no"),
        ({"detail": {"error": {"message": "no", "code": 403}}}, 403, "403", "no"),
        ({"detail": [FAULT, FAULT]}, 422, None, "body.messages.0: Field required; body.messages.0: Field required"),
        ({"error": "no"}, 500, None, "no"),
        ({"error": "no", "message": "no"}, 500, None, "no"),
        ({"error": "Too Many Requests"}, 429, None, "Too Many Requests"),
        ({"error": True, "message": "no", "code": 404}, 404, "404", "no"),
        ({"error": 401, "message": "no"}, 401, "401", "no"),
        # of one vendor
        ({"base_resp": {"status_code": 1004, "status_msg": "no"}}, 401, "1004", "no"),
        ({"base_resp": {"status_code": 1002, "status_msg": "no"}, "choices": None}, 429, "1002", "no"),
        ({"base_resp": {"status_code": 1039, "status_msg": "no"}}, 429, "1039", "no"),
        ({"base_resp": {"status_code": 1008, "status_msg": "no"}}, 402, "1008", "no"),
        ({"base_resp": {"status_code": 2013, "status_msg": "no"}}, 400, "2013", "no"),
        ({"base_resp": {"status_code": "1001", "status_msg": "no"}}, 504, "1001", "no"),
        ({"base_resp": {"status_code": 1027, "status_msg": "no"}}, 500, "1027", "no"),
        ({"x_groq": {"id": "req_1", "error": "over_capacity"}, "choices": []}, 503, None, "over_capacity"),
        ({"x_groq": {"error": {"message": "no", "code": 429}}}, 429, "429", "no"),
        # in a choice
        (choices({"finish_reason": "error", "error": {"code": 502, "message": "no"}}), 502, "502", "no"),
        (choices({}, {"error": "no", "finish_reason": None}), 500, None, "no"),
        (choices({"error": {"x": 1}}), 500, None, '{"x": 1}'),
        (choices({"finish_reason": "error"}), 500, None, 'it ended the answer with finish_reason "error"'),
        ({"choices": {"finish_reason": "error", "error": {"code": 429}}}, 429, "429", ""),
        (choices({"finish_reason": "error"}, error={"code": 502, "message": "no"}), 502, "502", "no"),
        (choices({"finish_reason": "error"}, error={}), 500, None, 'it ended the answer with finish_reason "error"'),
        # JSON in JSON
        (inside(1, BAD), 400, "400", "bad temperature"),
        (inside(2, BAD), 400, "400", "bad temperature"),
        (inside(3, BAD), 400, "400", "bad temperature"),
        ({"error": {"message": json.dumps({"detail": "no"}), "code": 401}}, 401, "401", "no"),
        ({"error": {"message": json.dumps([{"error": BAD}]), "code": "x"}}, 500, "x", "bad temperature"),
        ({"error": {"message": '{"a": 1}'}}, 500, None, '{"a": 1}'),
        ({"error": {"message": "{x}", "error": 1}}, 500, None, "{x}"),
        ({"error": {"message": {"message": "no", "code": 404}}}, 404, "404", "no"),
        ({"error": {"message": {"a": 1}}}, 500, None, '{"a": 1}'),
        ({"error": {"error": {"error": {"message": "no"}}}}, 500, None, "no"),
        # nothing that can be read, and nothing at all
        ({"error": {"a": 1}}, 500, None, '{"a": 1}'),
        ({"error": {}}, 500, None, ""),
        ({"error": []}, 500, None, ""),
        ({"error": {"message": "", "code": None, "details": [{}]}}, 500, None, ""),
    ],
)
def test_where_an_error_stands(value: object, status: int, code: str | None, said: str) -> None:
    details = error_in(value)
    assert details is not None
    error = status_error(implied_status(details), details, "", [])
    assert (error.status_code, error.code) == (status, code)
    shown = f" ({code})" if code not in (None, str(status)) else ""
    assert str(error).startswith(f"the provider answered {status}{shown}{f': {said}' if said else ''}; ")
    with_status = error_from_response(418, json.dumps(value).encode())
    assert isinstance(with_status, APIStatusError)
    assert (with_status.status_code, with_status.code) == (418, code)
    assert said in str(with_status)


FINE: tuple[object, ...] = (None, 0, 200, "0", "200", "success", "OK", False, "", {}, [1])
NOTHING_BESIDE_AN_ANSWER: tuple[dict[str, object], ...] = (
    {"error": {}},
    {"error": []},
    {"error": {"message": " ", "type": "", "param": None, "code": 0, "more": {"x": [False, {}]}}},
    {"code": 500, "msg": "x"},
    {"detail": "x", "success": False},
)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"type": "ping"},
        {"status": "processing"},
        {"message": "processing"},
        {"message": "working", "status": "processing", "detail": "step 2"},
        {"message": "x", "status": 200},
        {"message": "x", "status": True},
        {"success": True, "message": "x", "detail": "x"},
        {"code": 0, "detail": "x"},
        *({"code": code, "msg": "x"} for code in FINE),
        {"error_code": 0, "error_msg": ""},
        {"error_code": 0, "error_msg": "x"},
        {"error_msg": "Success"},
        {"errcode": 0, "errmsg": "ok"},
        {"errors": [], "detail": None},
        {"base_resp": {"status_code": 0, "status_msg": "success"}},
        {"base_resp": "x", "x_groq": "x"},
        {"x_groq": {"id": "req_1", "error": None}},
        {"choices": [], "usage": {"total_tokens": 1}, "error": {"message": ""}},
        *({"error": error} for error in (None, "", False, 0)),
        *(choices({"index": 0, "finish_reason": "stop"}, **beside) for beside in NOTHING_BESIDE_AN_ANSWER),
        *(choices({"error": error}) for error in (None, {}, "", {"message": ""})),
        {"choices": "x"},
        {"choices": [1, None, []]},
        {"choices": {"delta": {}}},
        choices({"finish_reason": {"error": 1}}),
    ],
)
def test_what_says_nothing_of_an_error(fields: dict[str, object]) -> None:
    assert error_object(fields) is None
    assert error_in(fields) is None
    assert error_in([fields]) is None


@pytest.mark.parametrize(
    "choice",
    [
        {"index": 0, "delta": {"error": {"code": 503, "message": "no"}}},
        {"index": 0, "message": {"role": "assistant", "content": "", "error": {"code": 503, "message": "no"}}},
    ],
)
def test_an_error_in_what_a_choice_brings(choice: dict[str, object]) -> None:
    assert error_object(choices(choice)) == {"code": 503, "message": "no"}


def test_minimax_says_in_every_answer_how_it_went() -> None:
    answer = choices({"index": 0, "finish_reason": "stop"})
    assert error_object({**answer, "base_resp": {"status_code": 0}}) is None
    assert error_object({**answer, "base_resp": {"status_code": 1004}}) is not None


def test_an_error_that_says_success_beside_an_answer_is_none() -> None:
    fine: dict[str, object] = {"error": {"code": 0, "message": "success"}}
    assert error_object(choices({"index": 0, "finish_reason": "stop"}, **fine)) is None
    assert error_object(fine) is not None


def test_only_objects_and_lists_hold_errors() -> None:
    for value in (None, 1, "error", True, [], ["error"], [[{"error": "x"}]]):
        assert error_in(value) is None


@pytest.mark.parametrize("status", [200, 400, 403, 429, 500])
def test_the_words_of_resellers_for_used_up_credit(status: int) -> None:
    words = (
        "insufficient_user_quota",
        "pre_consume_token_quota_failed",
        "exceeded_current_quota_error",
        "1113",
        "Arrearage",
        "insufficient_balance",
        "INSUFFICIENT_QUOTA",
    )
    for word in words:
        for name in ("code", "type", "status"):
            body = json.dumps({"error": {"message": "x", name: word}}).encode()
            if status == 200:
                with pytest.raises(InsufficientQuotaError) as raised:
                    decode_completion(body)
                assert raised.value.status_code == 402
            else:
                error = error_from_response(status, body)
                assert isinstance(error, InsufficientQuotaError)
                assert error.status_code == status


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("RESOURCE_EXHAUSTED", 429),
        ("too_many_requests", 429),
        ("NOT_FOUND", 404),
        ("INVALID_ARGUMENT", 400),
        ("PERMISSION_DENIED", 403),
        ("UNAUTHENTICATED", 401),
        ("UNAVAILABLE", 503),
        ("INTERNAL", 500),
        ("DEADLINE_EXCEEDED", 504),
    ],
)
def test_googles_words(word: str, status: int) -> None:
    for name in ("status", "code", "type"):
        with pytest.raises(APIStatusError) as raised:
            decode_completion(json.dumps({"error": {"message": "x", name: word}}).encode())
        assert raised.value.status_code == status


def test_an_inner_error_fills_in_what_the_outer_lacks() -> None:
    inner = json.dumps({"error": {"message": "no", "code": "inner", "type": "inner", "param": "n"}})
    error = error_from_response(400, json.dumps({"error": {"message": inner, "code": "outer", "type": ""}}).encode())
    assert isinstance(error, APIStatusError)
    assert (error.code, error.type, error.param) == ("outer", "inner", "n")
    assert "(outer): no; " in str(error)


def test_text_in_json_in_json_is_unicode() -> None:
    inner = json.dumps({"error": {"message": "\ud83d\ude00 \ud800"}})
    error = error_from_response(400, json.dumps({"error": {"message": inner}}).encode())
    assert ": \U0001f600 \ufffd; " in str(error)


@pytest.mark.parametrize(
    "body",
    [
        '{"error": ' * 400 + '"no"' + "}" * 400,
        '{"error":' * 99 + '"no"' + "}" * 99,
        '{"error":{"message":' + "[" * 700 + "]" * 700 + "}}",
        '{"a":' + "[" * 790 + "]" * 790 + "}",
        '{"error":{"message":"' + "[" * 60_000 + '"}}',
        '{"error":{"message":"{' + "x" * 1_000_000 + '"}}',
        '{"error":{"message":"{' + r"\"x\":" * 5_000 + '"}}',
        '{"error":[' + "{}," * 10_000 + '{"message":"no"}]}',
        '{"choices":[{"finish_reason":"error"},' + '{"error":{}},' * 10_000 + "{}]}",
        "[" + "{}," * 10_000 + "{}]",
        json.dumps(inside(9, BAD)),
    ],
)
def test_deep_and_huge_errors(body: str) -> None:
    for prefix in ("", BOM.decode()):
        assert isinstance(error_from_response(400, (prefix + body).encode()), BadRequestError)
        with pytest.raises(PiAPIError):
            decode_completion((prefix + body).encode())


FORMS = ("error", "errors", "detail", "choices", "finish_reason", "success", "base_resp", "x_groq", "object", "usage")
PARTS = ("message", "msg", "code", "type", "status", "status_code", "http_code", "status_msg", "loc")
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(
        ["error", "402", "NOT_FOUND", '{"error": {"message": "x"}}', '[{"detail": 1}]', '{"message": "{}"}']
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FORMS + PARTS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(value=ANY_JSON, status=st.sampled_from([200, 400, 403, 404, 429, 500, 520]))
def test_property_any_json_is_an_error_or_none(value: object, status: int) -> None:
    details = error_in(value)
    if details is not None:
        assert 400 <= implied_status(details) <= 599
        assert isinstance(status_error(500, details, "", [KEY]), APIStatusError)
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        assert (error_object(fields) is None) == (details is None)
        try:
            raise_error_object(fields, [KEY])
        except APIStatusError:
            assert details is not None
        else:
            assert details is None
    assert isinstance(error_from_response(status, json.dumps(value).encode()), APIError)


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
        (b'"no"', "no"),
        (b'[{"message": "no"}]', "no"),
        (b'[7, {"error": {"message": "no"}}]', "no"),
        (b'{"error": {"status": "x"}}', '{"error": {"status": "x"}}'),
        (b'{"status": "processing"}', '{"status": "processing"}'),
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


@pytest.mark.parametrize("status", [403, 200, 226])
@pytest.mark.parametrize(
    ("body", "content_type"), [(b"\xef\xbb\xbf \n<html>Just a moment", ""), (b"Just a moment", "Text/HTML; charset=x")]
)
def test_a_web_page_is_no_answer(status: int, body: bytes, content_type: str) -> None:
    error = error_from_response(status, body, content_type=content_type)
    assert (type(error), error.kind) == (APIResponseError, "edge page")
    assert f"status {status}" in str(error)
    assert "Just a moment" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Attention Required! | Cloudflare</html>",
        b'<html><div class="cf-error-details">no</div></html>',
        b"<!doctype html><title>Just a moment...</title>",
        b"<html>Please solve the CAPTCHA</html>",
        b"<html>Access Denied. https://errors.edgesuite.net/18.1",
        b"<html>Generated by cloudfront (CloudFront)",
        b"<html>Incapsula incident ID",
        b"<html>Sucuri Website Firewall",
        b"<html>Request blocked by the web application firewall",
        b"<p>Access denied",
    ],
)
def test_a_firewalls_403(body: bytes) -> None:
    error = error_from_response(403, body)
    assert (type(error), error.kind) == (APIResponseError, "edge page")
    as_json = json.dumps({"error": {"message": body.decode()}}).encode()
    assert type(error_from_response(403, as_json)) is PermissionDeniedError


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
        (413, RequestTooLargeError),
        (429, RateLimitError),
    ],
)
def test_any_other_web_page_is_the_error_of_its_status(status: int, cls: type[APIStatusError]) -> None:
    text = b"nginx" if status == 403 else b"nginx, just a moment"
    for body, content_type in ((b"\xef\xbb\xbf\n<html>" + text, ""), (text, "text/html")):
        error = error_from_response(status, body, content_type=content_type)
        assert isinstance(error, APIStatusError)
        assert (type(error), error.kind, error.status_code, error.code) == (cls, "status", status, None)
        assert str(error).startswith(f"the provider answered {status}: a web page; ")
        assert "nginx" not in str(error)


@pytest.mark.parametrize("body", [b"<html>nginx", b"404 page not found\n", b"", b'"Not Found"'])
def test_a_404_of_a_web_server_points_at_the_base_url(body: bytes) -> None:
    error = error_from_response(404, body)
    assert type(error) is NotFoundError
    assert str(error).endswith("; check the base URL; it usually ends in /v1. If it is right, check the model name")


@pytest.mark.parametrize("body", [b'{"detail": "Not Found"}', b'[{"error": {"message": "x"}}]', b'{"error": {"mess'])
def test_a_404_of_an_api_points_at_the_model_name(body: bytes) -> None:
    assert str(error_from_response(404, body)).endswith("; check the model name and the base URL")


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
