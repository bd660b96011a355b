"""Rows in, results out: a batch that can be killed at any moment and goes on where it ended.

    input → `rows` → `checkpoint` (yet to be done?) → `run` (asks the client) → `recorder` → `checkpoint` (saves)

`run` decides what is asked and when the run ends; `recorder` what becomes of a row. On disk, `checkpoint` keeps the
results (`output`, a line each as in `records`) and what is in flight (`inflight`). Before a run, `earlier` reads what
the last one left. `quote` tells what it would cost.

It needs POSIX, for a lock that dies with its process.
"""

from __future__ import annotations

from piapi_async.batch.input import Requests
from piapi_async.batch.quote import quote_batch
from piapi_async.batch.rows import MAX_LINE, Item
from piapi_async.batch.run import FAILURES, GRACE, run_batch
from piapi_async.batch.status import BatchQuote, BatchStatus, Stop

__all__ = [
    "FAILURES",
    "GRACE",
    "MAX_LINE",
    "BatchQuote",
    "BatchStatus",
    "Item",
    "Requests",
    "Stop",
    "quote_batch",
    "run_batch",
]
