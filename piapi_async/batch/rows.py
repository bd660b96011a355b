"""A line or an item of the input becomes a row, and a row becomes a request."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, TypeAlias, cast

import attrs
import msgspec

from piapi_async.batch.records import key_of
from piapi_async.errors import BatchError
from piapi_async.models import ChatParams, ChatRequest

__all__ = ["MAX_LINE", "Item", "Row", "RowReader", "make_request"]

MAX_LINE = 64 << 20
"""Bytes of the longest line of the input: twice the largest request, as JSON may be written with escapes (ours)."""

Item: TypeAlias = "str | Mapping[str, object]"
"""A row as Python has it: a prompt, or a mapping of what a JSON line would hold."""

_PARAMETERS = frozenset(ChatParams.__annotations__)
_OWN = frozenset({"custom_id", "messages", "model", "prompt", "stream"})
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@attrs.frozen(repr=False)
class Row:
    """One row of the input.

    Attributes:
        where: What to call the row in an error.
        custom_id: Its id.
        key: Hash of the id.
        request: Hash of the request and of the base URL.
        fields: What the request holds.
    """

    where: str
    custom_id: str
    key: str
    request: str
    fields: Mapping[str, object]


class RowReader:
    """Makes rows of lines and items.

    Args:
        base_url: Where the requests go. It is part of a request's hash, so a result from elsewhere is not reused.
        model: The model of rows that name none.
        params: The parameters of rows that don't set them.
    """

    def __init__(self, base_url: str, model: str | None, params: Mapping[str, object]) -> None:
        self._salt = base_url.encode()
        given = {name: value for name, value in params.items() if value is not None}  # None: left out
        self._defaults: dict[str, object] = {"model": model, **given}
        self._is_text: bool | None = None

    def read_line(self, source: str, number: int, line: bytes) -> Row | BatchError | None:
        """Make a row of a line; None if the line is blank.

        Where it is no row, the error is returned, to be raised where no variable holds the line: it may be a prompt.

        Args:
            source: What to call the input in an error.
            number: Of the line.
            line: What it holds.
        """
        try:
            return self._read_line(source, number, line)
        except BatchError as error:
            return error.with_traceback(None)

    def _read_line(self, source: str, number: int, line: bytes) -> Row | None:
        where = f"{source}, line {number}"
        if len(line) >= MAX_LINE:
            raise BatchError(f"{where}: it is longer than {MAX_LINE:,} bytes; is it a file of requests?")
        content = line.strip()
        while content.startswith(_BYTE_ORDER_MARK):  # files that were joined have several
            content = content.removeprefix(_BYTE_ORDER_MARK).strip()
        if not content:
            return None
        if self._is_text is None:  # the first line tells for all
            self._is_text = not content.startswith(b"{")
        fields = {"prompt": _decode_text(where, content)} if self._is_text else _decode_object(where, content)
        return self._make_row(where, number, fields)

    def read_item(self, number: int, item: object) -> Row | BatchError:
        """Make a row of an item, or the error, as `read_line` does."""
        try:
            return self._read_item(number, item)
        except BatchError as error:
            return error.with_traceback(None)

    def _read_item(self, number: int, item: object) -> Row:
        where = f"row {number}"
        if isinstance(item, str):
            item = {"prompt": item}
        if not isinstance(item, Mapping):
            raise BatchError(f"{where}: a {type(item).__name__} is no row; pass a str or a mapping")
        return self._make_row(where, number, cast("Mapping[str, object]", item))

    def _make_row(self, where: str, number: int, fields: Mapping[str, object]) -> Row:
        custom_id = fields.get("custom_id", f"row-{number}")
        if not isinstance(custom_id, str) or not custom_id:
            raise BatchError(f"{where}: custom_id: it is not text; write a string of its own for each row")
        asked = self._defaults | {name: value for name, value in _find_body(where, fields).items() if value is not None}
        try:
            content, key = msgspec.json.encode(asked, order="sorted"), key_of(custom_id)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            problem = str(error)
        else:
            request = blake2b(self._salt + content, digest_size=8).hexdigest()
            return Row(where, custom_id, key, request, asked)
        raise _not_json(where, problem)


def _decode_text(where: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        pass
    raise _not_utf8(where)


def _decode_object(where: str, content: bytes) -> Mapping[str, object]:
    try:
        fields: object = msgspec.json.decode(content)
    except UnicodeDecodeError:
        problem = _not_utf8(where)
    except (msgspec.DecodeError, RecursionError) as error:
        problem = _not_json(where, str(error))
    else:
        if isinstance(fields, dict):
            return cast("Mapping[str, object]", fields)
        problem = BatchError(f'{where}: it is not a JSON object; a line looks like {{"prompt": "…"}}')
    raise problem


def _not_utf8(where: str) -> BatchError:
    return BatchError(f"{where}: it is not UTF-8; convert it first")


def _not_json(where: str, problem: str) -> BatchError:
    return BatchError(f"{where}: it is not JSON ({problem}); correct it")


def _find_body(where: str, fields: Mapping[str, object]) -> Mapping[str, object]:
    """Return what a row asks: the body of OpenAI's format, or everything but the id of a plain row."""
    if "body" not in fields:
        if "prompt" in fields or "messages" in fields:
            return {name: value for name, value in fields.items() if name != "custom_id"}
        raise BatchError(f'{where}: it has neither body, prompt nor messages; a line looks like {{"prompt": "…"}}')
    body = fields["body"]
    if not isinstance(body, Mapping):
        raise BatchError(f"{where}: body: it is not an object; write the request's JSON there")
    if fields.get("method", "POST") != "POST":
        raise BatchError(f"{where}: method: it is not POST, which a chat completion needs")
    if not str(fields.get("url", "/v1/chat/completions")).endswith("/chat/completions"):
        raise BatchError(f"{where}: url: it is not /v1/chat/completions; no other one is supported")
    return cast("Mapping[str, object]", body)


def make_request(row: Row) -> ChatRequest:
    """Make the request of a row.

    Raises:
        InvalidRequestError: The provider would refuse it.
        TypeError: A field has a wrong type.
    """
    fields = row.fields
    known = {name: value for name, value in fields.items() if name in _PARAMETERS and value is not None}
    others = {name: value for name, value in fields.items() if name not in _PARAMETERS | _OWN}
    if others:
        known["extra_body"] = {**cast("Mapping[str, object]", known.get("extra_body", {})), **others}
    prompt = cast("Any", fields.get("messages", fields.get("prompt")))
    return ChatRequest(prompt, cast("str | None", fields.get("model")), **cast("Any", known))
