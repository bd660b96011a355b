"""`quote_batch`: what a batch would cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from piapi_async import quote_batch, run_batch
from piapi_async.testing import LocalServer
from tests.batch.runs import MODEL, content_of, exists, opened, prompts, write

pytestmark = pytest.mark.anyio


async def test_quote(server: LocalServer, tmp_path: Path, out: Path) -> None:
    rows: list[dict[str, object]] = [
        *prompts(4),
        {"prompt": "x", "model": "gpt-4o", "max_tokens": 10},
        {"prompt": "x", "model": "unheard-of"},
        {"prompt": "x", "temperature": 7},
        {"prompt": 5},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    async with opened(server) as client:
        first = {quote.model: quote for quote in await quote_batch(source, out, client=client, max_tokens=100)}
        assert not exists(out)
        await run_batch(rows[:2], out, client=client, max_tokens=100)
        content, sent = content_of(out), len(server.requests)
        second = {quote.model: quote for quote in await quote_batch(source, out, client=client, max_tokens=100)}
        assert await quote_batch(source, client=client, max_tokens=100) == list(first.values())
    assert (content_of(out), len(server.requests)) == (content, sent)
    mini = first[MODEL]
    assert (mini.rows, mini.refused, second[MODEL].rows) == (6, 2, 4)
    assert mini.tokens == 2 * second[MODEL].tokens > 0
    assert mini.least is not None
    assert mini.most is not None
    assert second[MODEL].most == mini.most / 2
    assert 0 < mini.least < mini.most
    assert (first["gpt-4o"].rows, first["unheard-of"].least, first["unheard-of"].most) == (1, None, None)
