"""Going on where an earlier run ended, and refusing what does not match it; `faults.md` K6 and K8 to K10."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from piapi_async import BatchError
from piapi_async.testing import LocalServer
from tests.batch.runs import MODEL, check_whole, content_of, prompts, refused, run, until, write
from tests.leaks import KEY, PROMPT

pytestmark = pytest.mark.anyio


async def test_K6_second_run(server: LocalServer, out: Path) -> None:
    tried = anyio.Event()

    async def rows() -> AsyncIterator[dict[str, object]]:
        for n, row in enumerate(prompts(9)):
            if n == 4:
                await tried.wait()
            yield row

    async with anyio.create_task_group() as group:
        group.start_soon(run, server, rows(), out)
        await until(lambda: server.requests)
        with pytest.raises(BatchError, match="another batch is writing it"):
            await run(server, prompts(9), out)
        tried.set()
    check_whole(out, 9)
    assert len(server.requests) == 9


async def test_K8_duplicate_ids(server: LocalServer, tmp_path: Path, out: Path) -> None:
    rows = [*prompts(3), *prompts(1)]
    source = write(tmp_path / "in.jsonl", rows)
    await refused(server, source, out, "line 4: the custom_id 'id-0' was there before; give each row its own")
    await refused(server, source, "/dev/null", "line 4: the custom_id 'id-0' was there before")
    with pytest.raises(BatchError, match="row 4: the custom_id 'id-0' was there before"):
        await run(server, rows, out)
    check_whole(out, 3)  # what was sent before is saved
    await refused(server, source, out, "line 4: the custom_id 'id-0' was there before")


async def test_K8_an_id_like_another_rows_number(server: LocalServer, out: Path) -> None:
    with pytest.raises(BatchError, match="row 2: the custom_id 'row-2'"):
        await run(server, [{"custom_id": "row-2", "prompt": "x"}, "y"], out)


async def test_K9_another_body(server: LocalServer, tmp_path: Path, out: Path) -> None:
    rows = prompts(3)
    source = write(tmp_path / "in.jsonl", rows)
    await run(server, source, out)
    content = content_of(out)
    for change in ({"prompt": f"{PROMPT} x"}, {"temperature": 1}, {"stop": ["x"]}, {"vendor": 1}, {"stream": True}):
        write(source, [rows[0], {**rows[1], **change}, rows[2]])
        await refused(server, source, out, "line 2: .* has a result for 'id-1' that answers another request")
    write(source, [{**rows[0], "prompt": None, "messages": [{"role": "user", "content": "x"}]}])
    await refused(server, source, out, "line 1")
    assert content_of(out) == content


async def test_K9_the_same_in_other_bytes(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"custom_id": "a", "body": {"messages": [{"role": "user", "content": "é"}], "seed": 1}}')
    await run(server, source, out)
    for same in (
        '{"body":{"seed":1,"messages":[{"content":"\\u00e9","role":"user"}]},"custom_id":"a"}\r\n',
        '\n{"custom_id": "a", "messages": [{"role": "user", "content": "é"}], "seed": 1, "top_p": null}',
        '{"custom_id": "a", "messages": [{"role": "user", "content": "é"}], "seed": 1, "model": "gpt-4o-mini"}',
    ):
        source.write_text(same)
        status = await run(server, source, out)
        assert (status.before, status.done) == (1, 1)
    assert len(server.requests) == 1


async def test_K10_another_model_provider_or_parameter(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(2))
    await run(server, source, out, seed=1)
    content = content_of(out)
    match = "line 1: .* answers another request: its body, the model, a parameter or the base URL was different"
    await refused(server, source, out, match, seed=2)
    await refused(server, source, out, match)
    await refused(server, source, out, match, seed=1, model="gpt-4o")
    await refused(server, source, out, match, seed=1, options={"model": "gpt-4o"})
    async with LocalServer(api_key=KEY) as other:
        await refused(other, source, out, match, seed=1)
    assert content_of(out) == content
    assert (await run(server, source, out, seed=1, options={"model": None}, model=MODEL)).before == 2
    assert len(server.requests) == 2
