"""Foreign exceptions → this library's errors: whatever aiohttp, ssl or the operating system raised.

aiohttp's exceptions hold the key and the prompt. So these errors are raised outside the `except` block that caught
them, or they would hide in `__context__`.
"""

from __future__ import annotations

import errno
import socket
from typing import cast

import aiohttp
from aiohttp.http_exceptions import BadStatusLine, HttpProcessingError

from piapi_async.errors import APIConnectionError, APIError, ErrorKind
from piapi_async.policy import NEVER, Deadline, timed_out

FOREIGN = (aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError, ValueError)
"""What aiohttp, ssl and the loop raise when an exchange fails; anything else is a mistake of ours and passes."""

_LOCAL_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EACCES})


_PROXY: tuple[ErrorKind, str] = "proxy", "the proxy does not let the request through; check the proxy setting"


def closed(host: str, *, sent: bool) -> APIConnectionError:
    """Make the error of a request whose client was closed."""
    return APIConnectionError(
        f"the client was closed while it waited for {host}; keep it open", kind="closed", maybe_billed=sent
    )


def translate(
    error: BaseException,
    host: str,
    *,
    in_body: bool = False,
    stale: bool = False,
    tunnel: bool = False,
    connect_timeout: float | None = None,
) -> APIError:
    """Say in this library's words what went wrong.

    Args:
        error: What was raised.
        host: For the text.
        in_body: Whether the answer's headers had come.
        stale: Whether the request went out on a kept connection that must have been closed before.
        tunnel: Whether a proxy was still to make the connection.
        connect_timeout: What the connect timer was set to, in seconds.
    """
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return timed_out(Deadline(NEVER, "connect", connect_timeout or NEVER), host, sent=False)
    kind, text = _connect_problem(error)
    if kind is None and tunnel:
        kind, text = _PROXY
    if kind is not None:
        return APIConnectionError(f"{text} ({host})", kind=kind)
    fault = _protocol_fault(error)
    if fault is not None:
        return APIConnectionError(f"{host}{fault}", kind="protocol", maybe_billed=True)
    if in_body or isinstance(error, aiohttp.ClientPayloadError):
        return APIConnectionError(
            f"{host} broke the connection off in the middle of its answer; try again",
            kind="truncated body",
            maybe_billed=True,
        )
    return APIConnectionError(
        f"{host} closed the connection before it answered; try again",
        kind="stale" if stale else "reset",
        maybe_billed=True,
    )


def _connect_problem(error: BaseException) -> tuple[ErrorKind | None, str]:
    """Kind and text of an error before the connection was there; None for any other."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "certificate", "the server's certificate is not trusted; check the host name or pass an ssl context"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return "tls", "no TLS connection; check that the port speaks https"
    if _is_local(error):
        return "local", "this process can open no more connections; lower the concurrency or raise its limits"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "dns", "the host name is not known; check the base URL for a typo"
    if isinstance(error, (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError)):
        return _PROXY
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connect", "the connection was refused or the host can't be reached; check the base URL, or use a backup"
    return None, ""


def _is_local(error: BaseException) -> bool:
    """Whether this process is out of files, ports or threads. A resolver's own numbers mean other things."""
    is_resolvers = isinstance(getattr(error, "os_error", None), socket.gaierror)
    return isinstance(error, OSError) and error.errno in _LOCAL_ERRNOS and not is_resolvers


def _protocol_fault(error: BaseException) -> str | None:
    """Say in which way an answer is not HTTP; None for an error of another kind."""
    if _is_half_a_header(error):
        what = "it ends within its headers"
    elif isinstance(error, (aiohttp.ClientResponseError, HttpProcessingError)):
        while error.__cause__ is not None:  # what the parser raised is at the bottom of what aiohttp made of it
            error = error.__cause__
        if _is_no_status_line(error):
            return " does not answer in HTTP; check the base URL's port"
        what = _broken_rule(error)
    else:
        return None
    return f"'s answer breaks the rules of HTTP ({what}); try again or use a backup"


def _is_half_a_header(error: BaseException) -> bool:
    """Tell an end inside the headers, which comes with what was parsed of them, from one before any byte."""
    return isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(cast("object", error.message), str)


def _is_no_status_line(error: BaseException) -> bool:
    """Whether the answer begins with something else than `HTTP/`: aiohttp's parser then says what it expected."""
    return isinstance(error, BadStatusLine) and "\n  Expected HTTP/" in error.message


_BROKEN_RULES = (
    ("status line", "a bad status line"),
    ("got more than", "a line that is too long"),
    ("too many headers", "too many headers"),
    ("data after", "bytes behind its end"),
    ("content-length", "a bad Content-Length"),
    ("chunk", "a bad chunk"),
    ("header", "a bad header"),
)


def _broken_rule(error: BaseException) -> str:
    """Name the rule, in words of our own: the parser's quote the answer."""
    problem = str(getattr(error, "message", "")).partition(":")[0].lower()  # behind the colon it quotes
    return next((words for part, words in _BROKEN_RULES if part in problem), "it is malformed")
