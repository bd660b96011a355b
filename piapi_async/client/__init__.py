"""`Client`: the one door; and `options`, which checks what goes through it."""

from __future__ import annotations

from piapi_async.client.client import Client

__all__ = ["Client"]
