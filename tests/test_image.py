"""`image`: pictures as parts of messages."""

from __future__ import annotations

import base64
import importlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import piapi_async
from piapi_async import ChatRequest, Client, InvalidRequestError, Message, Prompt, image
from piapi_async.client.image import MAX_IMAGE_BYTES
from piapi_async.testing import LocalServer

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
PICTURES = [
    (PNG, "image/png"),
    (b"\xff\xd8\xff\xe0" + bytes(8), "image/jpeg"),
    (b"GIF87a" + bytes(8), "image/gif"),
    (b"GIF89a" + bytes(8), "image/gif"),
    (b"RIFF\x08\0\0\0WEBPVP8 ", "image/webp"),
]
OTHERS = [b"BM" + bytes(8), b"II*\0", b"\0\0\0\x18ftypheic", b"<svg/>", b"%PDF-1.7", b"RIFF\x08\0\0\0WAVEfmt ", b"\n"]


def data_url(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def part(url: str, **others: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url, **others}}


@pytest.mark.parametrize(("content", "media_type"), PICTURES)
def test_the_media_type_is_that_of_the_content(content: bytes, media_type: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.bmp"
    path.write_bytes(content)
    expected = part(data_url(content, media_type))
    apart = memoryview(b"".join(bytes([byte, 0]) for byte in content))[::2]
    for source in (path, str(path), content, bytearray(content), memoryview(content), apart):
        assert image(source) == expected
    assert ChatRequest([Message("user", [image(path)])]).messages[0].content == (expected,)


@pytest.mark.parametrize(
    "url",
    ["https://example.com/cat.png", "http://example.com/cat", "HTTPS://example.com", "data:image/png;base64,AA=="],
)
def test_a_url_stays_as_it_is(url: str) -> None:
    assert image(url) == part(url)
    assert image(url, "high") == part(url, detail="high")


@pytest.mark.parametrize("detail", ["auto", "low", "high"])
def test_detail(detail: Any) -> None:
    assert image(PNG, detail) == image(PNG, detail=detail) == part(data_url(PNG), detail=detail)


def test_a_path_may_be_relative_and_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("kätzchen").write_bytes(PNG)
    monkeypatch.chdir(tmp_path)
    assert image("kätzchen") == image(Path("kätzchen")) == part(data_url(PNG))


def refusal(source: Any, detail: Any = None) -> str:
    with pytest.raises(InvalidRequestError) as raised:
        image(source, detail)
    assert raised.value.__context__ is None
    return str(raised.value)


@pytest.mark.parametrize("detail", ["", "medium", 5, [], True])
def test_an_unknown_detail(detail: object) -> None:
    assert refusal(PNG, detail) == 'image: detail is not known; pass "auto", "low", "high" or None'


@pytest.mark.parametrize("content", OTHERS)
def test_what_is_no_picture_that_models_take(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(content)
    says = "it is none of PNG, JPEG, GIF and WebP; convert it to one of them"
    assert refusal(content) == f"image: the bytes: {says}"
    assert refusal(path) == f"image: 'cat.png': {says}"


def test_what_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.touch()
    assert refusal(b"") == "image: the bytes: it is empty; pass a PNG, JPEG, GIF or WebP"
    assert refusal(path) == "image: 'cat.png': it is empty; pass a PNG, JPEG, GIF or WebP"


@pytest.mark.parametrize("source", [None, 5, ["cat.png"], object()])
def test_what_is_no_source(source: object) -> None:
    says = f"image: a {type(source).__name__} is no picture; pass a path, bytes, or a URL"
    assert refusal(source) == says


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "cat.pgn"
    assert refusal(path) == "image: 'cat.pgn' is no file that can be read (No such file or directory); check the path"
    assert refusal(str(path)) == (
        "image: 'cat.pgn' is neither a URL (https://, http://, data:) nor a file that can be read (No such file or "
        "directory); check the path, or pass the bytes of the picture"
    )


@pytest.mark.parametrize("source", ["", "ftp://example.com/cat.png", "example.com/cat.png", "cat\0.png", "x" * 200])
def test_a_text_that_is_neither_url_nor_file(source: str) -> None:
    assert "is neither a URL (https://, http://, data:) nor a file that can be read" in refusal(source)


def test_a_long_text_is_not_shown() -> None:
    says = refusal("treasure/" * 30_000)
    assert says.startswith("image: a text of 270,000 characters is neither a URL")
    assert "treasure" not in says


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "(it is a directory)" in refusal(tmp_path)
    assert "(it is no regular file)" in refusal(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(PNG)
    path.chmod(0)
    assert "(Permission denied)" in refusal(path)


def test_the_largest_picture(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    content = PNG + bytes(MAX_IMAGE_BYTES - len(PNG))
    path.write_bytes(content)
    assert image(path) == image(content) == part(data_url(content))
    path.write_bytes(content + b"x")
    says = "20,000,001 bytes are more than 20,000,000; make the picture smaller"
    assert refusal(path) == f"image: 'cat.png': {says}"
    assert refusal(content + b"x") == f"image: the bytes: {says}"


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    with path.open("wb") as file:
        file.truncate(1 << 34)
    assert "17,179,869,184 bytes are more than" in refusal(path)


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(bytes(MAX_IMAGE_BYTES + 5))
    before = os.stat(Path(__file__))
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda _: before)
        says = refusal(path)
    assert "20,000,001 bytes are more than" in says


def test_the_name_is_the_function_whatever_was_imported() -> None:
    importlib.import_module("piapi_async.client.image")
    assert piapi_async.image is image
    assert callable(image)
    code = "import sys, piapi_async.client.image; from piapi_async import image; print(image(b'GIF89a')['type'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "image_url"
    code = "import sys, piapi_async; print('piapi_async.client.image' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.anyio
async def test_a_picture_is_sent() -> None:
    expected = [{"type": "text", "text": "What is this?"}, part(data_url(PNG), detail="low")]
    question: list[str | Mapping[str, object]] = ["What is this?", image(PNG, detail="low")]
    prompts: list[Prompt] = [
        [Message("user", question)],
        [Message("user", ("What is this?", image(PNG, "low")))],
        [{"role": "user", "content": question}],
    ]
    async with LocalServer() as server:
        async with Client(server.api_key, base_url=server.base_url, model="gpt-4o", budget="1") as client:
            for prompt in prompts:
                assert (await client.complete(prompt)).text
    for request in server.requests:
        assert isinstance(request.body, dict)
        assert request.body["messages"] == [{"role": "user", "content": expected}]
