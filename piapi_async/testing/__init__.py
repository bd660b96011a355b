"""A local server that behaves like PiAPI, faults included, and a pytest fixture for it.

    from piapi_async.testing import LocalServer

Each name is loaded at its first use. pytest imports this package at every start, for the fixture, and must not wait for
a web server that most test runs never use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from piapi_async.testing.faults import (
        HTML_PAGE,
        WRONG_JSON,
        Cut,
        Delay,
        Drop,
        Fault,
        FaultRule,
        Garbage,
        Stall,
        Status,
        StreamError,
        random_faults,
    )
    from piapi_async.testing.raw import (
        Close,
        RawServer,
        ReadRequest,
        Repeat,
        Reset,
        Send,
        Step,
        Wait,
        http_response,
    )
    from piapi_async.testing.server import LocalServer, ReceivedRequest

__all__ = [
    "HTML_PAGE",
    "WRONG_JSON",
    "Close",
    "Cut",
    "Delay",
    "Drop",
    "Fault",
    "FaultRule",
    "Garbage",
    "LocalServer",
    "RawServer",
    "ReadRequest",
    "ReceivedRequest",
    "Repeat",
    "Reset",
    "Send",
    "Stall",
    "Status",
    "Step",
    "StreamError",
    "Wait",
    "http_response",
    "random_faults",
]

_MODULES = {
    "server": ("LocalServer", "ReceivedRequest"),
    "raw": ("Close", "RawServer", "ReadRequest", "Repeat", "Reset", "Send", "Step", "Wait", "http_response"),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), "faults")
    return getattr(import_module(f"{__name__}.{module}"), name)
