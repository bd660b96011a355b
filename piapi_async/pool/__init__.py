"""`SessionPool`: one aiohttp session per provider and key; bytes in, bytes out. All IO of the client is here.

transport   what a client sends through, as protocols
session     the pool and its sessions
exchange    one request and its answer
encoding    undoes content encodings
timer       one timer of the loop for all waits
foreign     the one boundary where foreign exceptions end
"""

from __future__ import annotations

from piapi_async.pool.exchange import INFLATED_PIECE, MAX_BODY_BYTES
from piapi_async.pool.session import SessionPool
from piapi_async.pool.transport import Exchange, Transport

__all__ = ["INFLATED_PIECE", "MAX_BODY_BYTES", "Exchange", "SessionPool", "Transport"]
