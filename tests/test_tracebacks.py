"""Tracebacks that show locals, as rich's and Sentry's do, show no prompt and no password, if a call fails early too."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from piapi_async import BatchError, Client, ConfigurationError, InvalidRequestError, Provider, quote_batch, run_batch
from tests.batch.runs import standard_streams
from tests.leaks import KEY, PROMPT, assert_tight

pytestmark = pytest.mark.anyio

PASSWORD = "sk-canary-K3yK3yK3yK3y"


def client(**options: Any) -> Client:
    return Client("sk-another", **{"model": "gpt-4o-mini", "base_url": "http://127.0.0.1:9", **options})


async def stream(client: Client) -> None:
    async with client.stream(PROMPT):
        raise AssertionError("it began")


CALLS: Mapping[str, Callable[[Client], Awaitable[object]]] = {
    "complete": lambda client: client.complete(PROMPT),
    "messages": lambda client: client.complete(messages=[{"role": "user", "content": PROMPT}]),
    "stream": stream,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_client_that_is_not_open(call: Callable[[Client], Awaitable[object]]) -> None:
    with pytest.raises(RuntimeError, match="not open") as caught:
        await call(client())
    assert_tight(caught.value)


async def test_a_map_on_a_client_that_is_not_open() -> None:
    with pytest.raises(RuntimeError, match="not open") as caught:
        client().map([PROMPT])
    assert_tight(caught.value)


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"extra_body": {PROMPT: {1}}}, r"extra_body\.\[key 1\]: a set is not JSON"),
        ({"extra_body": {"a": {"b": 1, PROMPT: {1}}}}, r"extra_body\.a\.\[key 2\]: a set is not JSON"),
        (
            {"functions": [{"name": "f", "parameters": {PROMPT: b""}}]},
            r"functions\[0\]\.parameters\.\[key 1\]: a b",
        ),
        ({"logit_bias": {PROMPT: 101}}, r"logit_bias\[\[key 1\]\]: 101 is not a number in range"),
    ],
)
async def test_a_key_of_a_mapping(params: Any, match: str) -> None:
    async with client() as opened:
        with pytest.raises(InvalidRequestError, match=match) as caught:
            await opened.complete("x", **params)
        assert_tight(caught.value)


# -- passwords ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [f"https://me:{PASSWORD}@h.example/v1", f"https://h.example/?key={PASSWORD}"])
async def test_a_base_url_with_a_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (
        lambda: client(base_url=url),
        lambda: client(proxy=url.replace("https", "socks5")),
        lambda: Provider("backup", url, KEY),
    ):
        with pytest.raises(ConfigurationError) as caught:
            make()
        assert_tight(caught.value)
    monkeypatch.setenv("PIAPI_BASE_URL", url)
    with pytest.raises(ConfigurationError, match="base_url") as caught:
        client(base_url=None)
    assert_tight(caught.value)


async def test_the_password_of_a_proxy_when_something_else_is_wrong() -> None:
    with pytest.raises(ConfigurationError, match="system_role") as caught:
        client(proxy=f"http://me:{PASSWORD}@h.example:1", system_role="what")
    assert_tight(caught.value)


# -- batches -----------------------------------------------------------------------------------------------------------

BAD_LINES = {
    "JSON": b'{"prompt": "' + PROMPT.encode() + b'"',
    "no prompt": b'{"text": "' + PROMPT.encode() + b'"}',
    "id": b'{"custom_id": 5, "prompt": "' + PROMPT.encode() + b'"}',
    "body": b'{"custom_id": "a", "body": "' + PROMPT.encode() + b'"}',
    "encoding": PROMPT.encode() + b"\xff",
    "the second": b'{"prompt": "' + PROMPT.encode() + b'"}\n{"' + PROMPT.encode(),
}


@pytest.mark.parametrize("content", BAD_LINES.values(), ids=BAD_LINES)
async def test_a_bad_line_of_a_batch(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "in.jsonl"
    await anyio.Path(source).write_bytes(content + b"\n" + content)
    async with client() as opened:
        for act in (run_batch, quote_batch):
            with pytest.raises(BatchError, match=r"in\.jsonl, line [12]: ") as caught:
                await act(source, tmp_path / "out.jsonl", client=opened)
            assert_tight(caught.value)
        if content == BAD_LINES["the second"]:
            return  # the first would be sent
        read, write = os.pipe()
        os.write(write, content + b"\n" + content)
        os.close(write)
        with standard_streams(stdin=read), pytest.raises(BatchError, match=r"standard input, line [12]: ") as caught:
            await run_batch("-", tmp_path / "piped.jsonl", client=opened)
        assert_tight(caught.value)


BAD_ROWS: Mapping[str, object] = {
    "type": (PROMPT,),
    "no prompt": {"text": PROMPT},
    "id": {"custom_id": b"", "prompt": PROMPT},
    "not JSON": {"prompt": PROMPT, "x": object()},
    "key": {"prompt": "x", "extra": {1j: PROMPT}},
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
async def test_a_bad_row_of_a_batch(tmp_path: Path, row: Any) -> None:
    async def rows() -> Any:
        yield row

    async with client() as opened:
        for items in ([row], rows()):
            with pytest.raises(BatchError, match="row 1: ") as caught:
                await run_batch(items, tmp_path / "out.jsonl", client=opened)
            assert_tight(caught.value)
        with pytest.raises(BatchError, match="row 1: ") as caught:
            await quote_batch([row], client=opened)
        assert_tight(caught.value)
        with pytest.raises(BatchError, match="is no input") as caught:
            await run_batch(5, tmp_path / "out.jsonl", client=opened, user=PROMPT)  # type: ignore[arg-type]
        assert_tight(caught.value)


async def test_a_broken_line_of_the_results(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    content = b'{"answer":"' + PROMPT.encode() + b'","piapi_async":{"version":9}}\n'
    async with client() as opened:
        for broken in (content, content[:-1], content.replace(b"9", b"1")):
            await anyio.Path(out).write_bytes(broken)
            with pytest.raises(BatchError, match=r"newer release wrote line 1|lines are damaged") as caught:
                await run_batch(["x"], out, client=opened)
            assert_tight(caught.value)
