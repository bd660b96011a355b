"""`quote_batch`: what a batch would cost."""

from __future__ import annotations

import os
from contextlib import aclosing, closing
from typing import Unpack

import anyio.lowlevel
import attrs

from piapi_async.batch.checkpoint import Checkpoint
from piapi_async.batch.input import Requests, open_input
from piapi_async.batch.rows import Row, RowReader, make_request
from piapi_async.batch.status import BatchQuote
from piapi_async.client import Client
from piapi_async.errors import InvalidRequestError
from piapi_async.models import ChatParams

__all__ = ["quote_batch"]


async def quote_batch(
    requests: Requests,
    output: str | os.PathLike[str] | None = None,
    *,
    client: Client,
    model: str | None = None,
    retry_failed: bool = False,
    **params: Unpack[ChatParams],
) -> list[BatchQuote]:
    """Tell what a batch would cost, by model, without sending or writing anything.

    Args:
        requests: As in `run_batch`.
        output: The file of results, if some rows may be done already.
        client: The client that would ask; it need not be open.
        model: As in `run_batch`.
        retry_failed: As in `run_batch`.
        params: As in `run_batch`.

    Raises:
        BatchError: As `run_batch` would before it sends.
    """
    reader = RowReader(client.base_url, model or client.model, params)
    quotes: dict[str, BatchQuote] = {}
    results = os.devnull if output is None else output
    source_of = open_input(requests, reader, output)
    del requests, params  # a traceback that shows locals must not show prompts
    with (
        source_of as source,
        closing(Checkpoint(results, retry_failed=retry_failed, read_only=True)) as checkpoint,
    ):
        for _ in checkpoint.load():
            await anyio.lowlevel.checkpoint()
        async with aclosing(source.rows()) as rows:
            async for row in rows:
                if checkpoint.admit(row):
                    name = str(row.fields.get("model"))
                    quotes[name] = _add(quotes.get(name, BatchQuote(name)), row, client)
    return list(quotes.values())


def _add(total: BatchQuote, row: Row, client: Client) -> BatchQuote:
    try:
        quote = client.quote(make_request(row))
    except (InvalidRequestError, TypeError):
        return attrs.evolve(total, rows=total.rows + 1, refused=total.refused + 1)
    return attrs.evolve(
        total,
        rows=total.rows + 1,
        tokens=total.tokens + quote.tokens,
        least=None if total.least is None or quote.least is None else total.least + quote.least,
        most=None if total.most is None or quote.most is None else total.most + quote.most,
    )
