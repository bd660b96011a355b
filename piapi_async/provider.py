"""`Provider`: one place that answers, with its keys; and the checks of keys, URLs and headers. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import cast
from urllib.parse import SplitResult, urlsplit

import attrs

from piapi_async.catalog import ModelInfo
from piapi_async.errors import ConfigurationError, Secret
from piapi_async.models.checks import show_fields
from piapi_async.policy import Limits

__all__ = [
    "Endpoint",
    "Provider",
    "check_base_url",
    "check_headers",
    "check_keys",
    "check_proxy",
    "read_base_url",
    "read_keys",
]

_KEY = r"[\x21-\x7e]{1,512}"
_HEADER_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEADER_VALUE = r"[\t\x20-\x7e]*"
_OWN_HEADERS = frozenset({"authorization", "content-length", "content-type", "host", "transfer-encoding"})
_CONNECTION_HEADERS = frozenset({"connection", "content-encoding", "expect", "keep-alive", "te", "trailer", "upgrade"})
"""They would change how a request is sent: with `Expect`, it waits for a "continue" that many servers never send."""


def read_keys(keys: object) -> tuple[Secret, ...] | ConfigurationError:
    """Make secrets of one key or several, white space around each trimmed (keys come from files with a line end).

    Returns:
        The secrets; or the error to raise, from where no local variable holds a key any more.
    """
    several = cast("Sequence[object]", keys) if isinstance(keys, (list, tuple)) else (keys,)
    problems = [problem for key in several if (problem := _key_problem(key))]
    if problems or not several:
        return ConfigurationError(f"api_key: {problems[0] if problems else 'there is none; pass at least one'}")
    return tuple(key if isinstance(key, Secret) else Secret(cast("str", key).strip()) for key in several)


def check_keys(keys: object) -> tuple[Secret, ...]:
    """Do as `read_keys`, and raise.

    Raises:
        ConfigurationError: No key, or one that can't be a bearer token; the text never shows it.
    """
    secrets = read_keys(keys)
    del keys
    if isinstance(secrets, ConfigurationError):
        raise secrets
    return secrets


def _key_problem(key: object) -> str:
    if isinstance(key, Secret):
        return ""
    if not isinstance(key, str):
        return f"a {type(key).__name__} is not a key; pass a str"
    value = key.strip()
    if not value:
        return "it is empty; pass the key, or set PIAPI_API_KEY"
    if value.lower().split(maxsplit=1)[0] == "bearer":
        return "it begins with 'Bearer '; pass the key alone"
    if re.fullmatch(_KEY, value):
        return ""
    return (
        "it has a line break, a blank, a control or non-ASCII character, or more than 512 characters; "
        "pass the key as the provider shows it"
    )


def check_base_url(base_url: object, *, allow_http: bool = False) -> str:
    """Check a base URL and bring it into the one form that paths are joined to.

    Args:
        base_url: Such as `https://api.piapi.ai/v1`; the `/v1` is added where the path names no version.
        allow_http: Whether a key may go unencrypted to a host that is not this machine.

    Returns:
        The URL without a trailing slash.

    Raises:
        ConfigurationError: The URL can't be one; the text shows the problem, not the URL, which may hold a password.
    """
    if not isinstance(base_url, str):
        raise ConfigurationError(f"base_url: a {type(base_url).__name__} is not a URL; pass a str")
    parts, problem = _split(base_url)
    if parts is None or problem:
        raise ConfigurationError(f"base_url: {problem}; pass one like https://api.piapi.ai/v1")
    if parts.scheme == "http" and not allow_http and not _is_loopback(parts.hostname or ""):
        raise ConfigurationError(
            "base_url: http:// would send the API key unencrypted; use https://, or pass allow_http=True"
        )
    path = re.sub(r"/{2,}", "/", parts.path).rstrip("/")
    if path.lower().endswith("/chat/completions"):
        raise ConfigurationError(
            "base_url: it ends in /chat/completions, which the client adds itself; pass what stands before it"
        )
    if not re.search(r"/v\d", path):
        path += "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def read_base_url(base_url: str, *, allow_http: bool) -> str | ConfigurationError:
    """Check a URL; return the error to raise where it is not bound, as it may hold a password."""
    try:
        return check_base_url(base_url, allow_http=allow_http)
    except ConfigurationError as error:
        return error.with_traceback(None)


def _split(url: str) -> tuple[SplitResult | None, str]:
    if not url.isascii() or not url.isprintable() or " " in url:
        return None, "it has a blank, a line break, or a character that is not ASCII"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises where the port is no number
    except ValueError:
        return None, "it is not a URL"
    if parts.scheme not in ("http", "https"):
        return parts, "it does not begin with https://"
    if not parts.hostname:
        return parts, "it has no host"
    if not _is_host(parts.hostname):
        return parts, "its host can't be one"
    if parts.username is not None or parts.password is not None:
        return parts, "it has a user name or password"
    if "?" in url or "#" in url:
        return parts, "it has a query or a fragment"
    return parts, ""


_NAME = r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?"


def _is_host(host: str) -> bool:
    """Whether a host is an IP address, or a name that a lookup can be asked for."""
    if ":" not in host and not re.fullmatch(r"[\d.]+", host):
        return len(host) <= 253 and re.fullmatch(_NAME, host) is not None
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_proxy(proxy: object) -> str:
    """Check the URL of a proxy; it may hold a user name and password, which no error shows.

    Raises:
        ConfigurationError: It is not like `http://proxy.example:3128`.
    """
    text = proxy if isinstance(proxy, str) else ""
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and _is_host(parts.hostname or "") and parts.port != 0
    except ValueError:
        good = False
    if not good or not text.isprintable() or " " in text:
        raise ConfigurationError("proxy: it is not the URL of an HTTP proxy; pass one like http://proxy.example:3128")
    return text


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Check headers that the caller adds to every request of a provider.

    Raises:
        ConfigurationError: A name or value that HTTP does not allow, or a header that is the client's own.
    """
    if not isinstance(cast("object", headers), Mapping):
        raise ConfigurationError(f"headers: a {type(headers).__name__} is not a mapping; pass {{'X-Team': 'blue'}}")
    for name, value in cast("Mapping[object, object]", headers).items():
        if not isinstance(name, str) or not re.fullmatch(_HEADER_NAME, name):
            raise ConfigurationError("headers: a name is not an HTTP token; pass names like X-Team")
        if name.lower() in _OWN_HEADERS:
            raise ConfigurationError(f"headers: {name} is set by the client itself; leave it out")
        if name.lower() in _CONNECTION_HEADERS:
            raise ConfigurationError(f"headers: {name} would change how requests are sent; leave it out")
        if not isinstance(value, str) or not re.fullmatch(_HEADER_VALUE, value):
            raise ConfigurationError(f"headers: the value of {name} is not printable ASCII text; pass a str")
    return dict(headers)


def _check_models(models: Mapping[str, str]) -> Mapping[str, str]:
    given = cast("object", models)
    pairs = cast("Mapping[object, object]", given).items() if isinstance(given, Mapping) else [(None, None)]
    if all(isinstance(name, str) and name for pair in pairs for name in pair):
        return dict(models)
    raise ConfigurationError("models: it must map model names to model names; pass {'gpt-4o': 'openai/gpt-4o'}")


def _check_prices(prices: Mapping[str, ModelInfo]) -> Mapping[str, ModelInfo]:
    given = cast("object", prices)
    pairs = cast("Mapping[object, object]", given).items() if isinstance(given, Mapping) else [(None, None)]
    if all(isinstance(name, str) and isinstance(info, ModelInfo) for name, info in pairs):
        return dict(prices)
    raise ConfigurationError("prices: it must map model names to prices; pass {'gpt-4o': ModelInfo('gpt-4o', …)}")


@attrs.frozen(slots=False, repr=False)
class Provider:
    """One place that answers chat completions: PiAPI itself, or a backup.

    Attributes:
        name: What it is called in attempts, errors and statistics.
        base_url: Such as `https://api.example.com/v1`.
        api_key: Its keys. Each gets its own session, gate and breaker; the least loaded healthy one is used.
        models: The caller's model names to this provider's; others are passed on as they are.
        prices: Prices of this provider's models, by its names.
        limits: How much each key may be asked at once; None for the client's limits.
        stream_usage: Whether to ask it for token counts in streams (`stream_options`), which some gateways refuse.
        headers: Sent with every request to it.
        allow_http: Whether its key may go unencrypted to a host that is not this machine.

    Raises:
        ConfigurationError: A key, URL or other value that can't work.
    """

    name: str
    base_url: str
    api_key: tuple[Secret, ...] = attrs.field(converter=check_keys)
    models: Mapping[str, str] = attrs.field(factory=dict[str, str], kw_only=True, converter=_check_models)
    prices: Mapping[str, ModelInfo] = attrs.field(factory=dict[str, ModelInfo], kw_only=True, converter=_check_prices)
    limits: Limits | None = attrs.field(default=None, kw_only=True)
    stream_usage: bool = attrs.field(default=False, kw_only=True)
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str], kw_only=True, converter=check_headers, repr=False)
    allow_http: bool = attrs.field(default=False, kw_only=True)

    __repr__ = show_fields

    def __attrs_post_init__(self) -> None:
        if not isinstance(cast("object", self.name), str) or not self.name:
            raise ConfigurationError("name: a provider needs one; pass a word such as 'backup'")
        if not isinstance(cast("object", self.limits), (Limits, type(None))):
            raise ConfigurationError("limits: it is no Limits; pass Limits(concurrency=…), or None for the client's")
        given = self.base_url
        object.__setattr__(self, "base_url", "")  # a traceback that shows this object must not show a password
        url = read_base_url(given, allow_http=self.allow_http)
        del given
        if isinstance(url, ConfigurationError):
            raise url
        object.__setattr__(self, "base_url", url)

    def name_of(self, model: str) -> str:
        """Return this provider's name for the model that the caller asks for."""
        return self.models.get(model, model)

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return where to send, for each key."""
        url = f"{self.base_url}/chat/completions"
        return tuple(Endpoint(self.name, url, secret, self.headers) for secret in self.api_key)


@attrs.define(eq=False, repr=False, slots=False)
class Endpoint:
    """Where one key's requests go.

    Attributes:
        provider: Name of the provider.
        url: The whole URL of chat completions.
        secret: The key, which goes to this URL's origin only.
        headers: Extra headers; those of a single request win over them.
    """

    provider: str
    url: str
    secret: Secret
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
