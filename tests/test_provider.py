"""Keys, URLs, headers and providers: what is refused at construction, in words that show no key."""

from __future__ import annotations

import pickle
import traceback
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async import ConfigurationError, Limits, Provider
from piapi_async.errors import Secret
from piapi_async.provider import check_base_url, check_headers, check_keys, check_proxy, read_keys

KEY = "canary-0123456789-key"
URL = "https://api.example.com/v1"


def provider(**changes: Any) -> Provider:
    fields: dict[str, Any] = {"name": "backup", "base_url": URL, "api_key": KEY}
    return Provider(**fields | changes)


# -- base URLs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "whole"),
    [
        ("https://api.piapi.ai", "https://api.piapi.ai/v1"),
        ("https://api.piapi.ai/", "https://api.piapi.ai/v1"),
        ("https://api.piapi.ai/v1", "https://api.piapi.ai/v1"),
        ("https://api.piapi.ai/v1/", "https://api.piapi.ai/v1"),
        ("https://api.piapi.ai//v1//", "https://api.piapi.ai/v1"),
        ("HTTPS://api.piapi.ai/v1", "https://api.piapi.ai/v1"),
        ("https://host/api", "https://host/api/v1"),
        ("https://host/api/v1", "https://host/api/v1"),
        ("https://host/v1beta/openai/", "https://host/v1beta/openai"),
        ("https://host/openai/v2", "https://host/openai/v2"),
        ("https://host:8443/", "https://host:8443/v1"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443/v1"),
        ("https://host/video", "https://host/video/v1"),
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://a.localhost", "http://a.localhost/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://127.9.9.9", "http://127.9.9.9/v1"),
        ("http://[::1]:80", "http://[::1]:80/v1"),
    ],
)
def test_F8_one_canonical_join(base_url: str, whole: str) -> None:
    assert check_base_url(base_url) == whole
    assert check_base_url(whole) == whole
    assert provider(base_url=base_url).base_url == whole


@pytest.mark.parametrize(
    "base_url",
    [
        "http://api.piapi.ai/v1",
        "http://10.0.0.1",
        "http://0.0.0.0:8000",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://[::]:80",
    ],
)
def test_F6_no_key_without_encryption(base_url: str) -> None:
    with pytest.raises(ConfigurationError, match="http:// would send the API key unencrypted; use https://, or pass"):
        check_base_url(base_url)
    with pytest.raises(ConfigurationError, match="allow_http=True"):
        provider(base_url=base_url)
    assert check_base_url(base_url, allow_http=True).startswith(base_url.rstrip("/"))
    assert provider(base_url=base_url, allow_http=True).base_url.startswith(base_url)


@pytest.mark.parametrize(
    ("base_url", "says"),
    [
        ("https://user:canary@host/v1", "it has a user name or password"),
        ("https://canary@host/v1", "it has a user name or password"),
        ("https://:canary@host", "it has a user name or password"),
        ("https://@host", "it has a user name or password"),
        ("https://host/v1?canary=1", "it has a query or a fragment"),
        ("https://host/v1?", "it has a query or a fragment"),
        ("https://host/v1#canary", "it has a query or a fragment"),
        ("https://host/v1#", "it has a query or a fragment"),
        ("https://ho st/v1", "it has a blank, a line break, or a character that is not ASCII"),
        (" https://host/v1", "it has a blank"),
        ("https://host/v1\r\nX: canary", "it has a blank"),
        ("https://host\t/v1", "it has a blank"),
        ("https://host/\x00", "it has a blank"),
        ("https://h\u00f6st/v1", "it has a blank"),
        ("https://host/\ud800", "it has a blank"),
        ("ftp://host/v1", "it does not begin with https://"),
        ("file:///etc/passwd", "it does not begin with https://"),
        ("host/v1", "it does not begin with https://"),
        ("api.piapi.ai", "it does not begin with https://"),
        ("//host/v1", "it does not begin with https://"),
        ("", "it does not begin with https://"),
        ("https://", "it has no host"),
        ("https:///v1", "it has no host"),
        ("https:host", "it has no host"),
        ("https://:443/v1", "it has no host"),
        ("https://host:port", "it is not a URL"),
        ("https://host:99999", "it is not a URL"),
        ("https://[::1", "it is not a URL"),
        ("https://host/v1/chat/completions", "it ends in /chat/completions, which the client adds itself; pass what"),
        ("https://host/v1//Chat/completions//", "it ends in /chat/completions, which the client adds itself"),
        (None, "a NoneType is not a URL; pass a str"),
        (b"https://host", "a bytes is not a URL; pass a str"),
    ],
)
def test_F7_what_is_no_base_url(base_url: Any, says: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        provider(base_url=base_url)
    assert str(raised.value).startswith(f"base_url: {says}")
    assert "canary" not in str(raised.value)
    assert raised.value.__context__ is None


@given(st.text(max_size=30) | st.text("htps:/[]@.%?#a1-", max_size=20).map("https://{}".format))
def test_property_a_base_url_is_checked_or_refused(base_url: str) -> None:
    try:
        whole = check_base_url(base_url)
    except ConfigurationError:
        return
    assert whole.startswith(("https://", "http://"))
    assert "//" not in whole.partition("://")[2]
    assert not whole.endswith("/")
    assert check_base_url(whole) == whole


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["k", KEY, "x" * 512, "!~", "Bearer-like", "sk-a.b_c/d+e="])
def test_good_keys(key: str) -> None:
    (secret,) = check_keys(key)
    assert secret.reveal() == key
    assert check_keys([key, "another"]) == (Secret(key), Secret("another"))
    assert check_keys((secret,)) == (secret,)


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\r\n", f"  {KEY}\t", f"\n{KEY}\n\n"])
def test_G2_white_space_around_a_key_is_trimmed(key: str) -> None:
    assert provider(api_key=key).api_key == (Secret(KEY),)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (f"{KEY}\r\nX: 1", "it has a line break, a blank, a control or non-ASCII character"),
        (f"{KEY}\nx", "it has a line break"),
        (f"{KEY}\x00", "it has a line break"),
        (f"{KEY}\x7f", "it has a line break"),
        (f"{KEY} x", "it has a line break"),
        (f"{KEY}é", "it has a line break"),
        (f"{KEY}😀", "it has a line break"),
        (f"{KEY}\ud800", "it has a line break"),
        (KEY * 30, "it has a line break, a blank, a control or non-ASCII character, or more than 512 characters"),
        (f"Bearer {KEY}", "it begins with 'Bearer '; pass the key alone"),
        (f"bearer {KEY}", "it begins with 'Bearer '; pass the key alone"),
        ("", "it is empty; pass the key, or set PIAPI_API_KEY"),
        (" \n", "it is empty; pass the key, or set PIAPI_API_KEY"),
        (None, "a NoneType is not a key; pass a str"),
        (KEY.encode(), "a bytes is not a key; pass a str"),
        ({KEY}, "a set is not a key; pass a str"),
        ([], "there is none; pass at least one"),
        ([KEY, ""], "it is empty"),
        ([KEY, None], "a NoneType is not a key"),
    ],
)
def test_G1_G3_what_is_no_key(key: Any, says: str) -> None:
    error = read_keys(key)
    assert isinstance(error, ConfigurationError)
    assert str(error).startswith(f"api_key: {says}")
    with pytest.raises(ConfigurationError) as raised:
        check_keys(key)
    assert str(raised.value) == str(error)
    assert KEY not in str(error)
    own = [frame for frame, _ in traceback.walk_tb(raised.value.__traceback__)][1:]
    assert own
    assert all(KEY not in repr(frame.f_locals) for frame in own)


# -- headers and models ------------------------------------------------------------------------------------------------


def test_headers() -> None:
    headers = {"X-Team": "a b\tc", "openai-organization": ""}
    checked = check_headers(headers)
    assert checked == headers
    assert checked is not headers
    assert provider(headers=headers).headers == headers


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"X Team": "a"}, "a name is not an HTTP token"),
        ({"X-Team:": "a"}, "a name is not an HTTP token"),
        ({"": "a"}, "a name is not an HTTP token"),
        ({"X\r\nY": "a"}, "a name is not an HTTP token"),
        ({"X-Té": "a"}, "a name is not an HTTP token"),
        ({5: "a"}, "a name is not an HTTP token"),
        ({"Authorization": "canary"}, "Authorization is set by the client itself; leave it out"),
        ({"HOST": "canary"}, "HOST is set by the client itself"),
        ({"content-length": "1"}, "content-length is set by the client itself"),
        ({"Transfer-Encoding": "chunked"}, "Transfer-Encoding is set by the client itself"),
        ({"Content-Type": "a/b"}, "Content-Type is set by the client itself"),
        ({"X": "canary\r\nY: 1"}, "the value of X is not printable ASCII text; pass a str"),
        ({"X": "canary\n"}, "the value of X is not printable ASCII text; pass a str"),
        ({"X": "é"}, "the value of X is not printable ASCII text"),
        ({"X": None}, "the value of X is not printable ASCII text"),
        ({"X": b"a"}, "the value of X is not printable ASCII text"),
    ],
)
def test_what_are_no_headers(headers: Any, says: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        provider(headers=headers)
    assert str(raised.value).startswith(f"headers: {says}")
    assert "canary" not in str(raised.value)


def test_model_names() -> None:
    models = {"gpt-4o": "openai/gpt-4o"}
    backup = provider(models=models)
    models["gpt-4o"] = "changed"
    assert backup.name_of("gpt-4o") == "openai/gpt-4o"
    assert backup.name_of("gpt-4o-mini") == "gpt-4o-mini"


@pytest.mark.parametrize("models", [{"a": ""}, {"a": None}, {5: "a"}, {"a": b"b"}])
def test_what_are_no_model_names(models: Any) -> None:
    with pytest.raises(ConfigurationError, match="models: it must map model names to model names"):
        provider(models=models)


# -- providers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", None, 5, b"backup"])
def test_a_provider_needs_a_name(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="name: a provider needs one"):
        provider(name=name)


def test_a_provider_is_a_frozen_value() -> None:
    backup = provider(api_key=[KEY, "another"], limits=Limits(concurrency=2), stream_usage=True)
    assert backup == provider(api_key=(KEY, "another"), limits=Limits(concurrency=2), stream_usage=True)
    assert len(backup.api_key) == 2
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        backup.name = "x"  # type: ignore[misc]


def test_the_defaults_of_a_provider() -> None:
    backup = provider()
    assert (dict(backup.models), dict(backup.prices), dict(backup.headers)) == ({}, {}, {})
    assert (backup.limits, backup.stream_usage, backup.allow_http) == (None, False, False)
    assert attrs.evolve(backup, name="other").api_key == backup.api_key


def test_G4_G5_a_provider_shows_no_key() -> None:
    backup = provider(api_key=[KEY, KEY + "2"])
    assert KEY not in repr(backup) + str(backup) + str(attrs.asdict(backup)) + str(attrs.astuple(backup))
    with pytest.raises(TypeError, match="can't be pickled"):
        pickle.dumps(backup)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"models": ["gpt-4o"]}, "models"),
        ({"models": {"gpt-4o": 5}}, "models"),
        ({"headers": None}, "headers: a NoneType"),
        ({"limits": 5}, "limits"),
    ],
)
def test_options_of_a_wrong_type(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Provider("backup", "https://example.com", "sk-some-key-0000", **options)


@pytest.mark.parametrize("host", ["1.2.3.4.5", "a" * 64, "-a.example", "a..b", ".".join(["a" * 60] * 5)])
def test_hosts_that_can_be_none(host: str) -> None:
    with pytest.raises(ConfigurationError, match="host"):
        check_base_url(f"https://{host}/v1")


@pytest.mark.parametrize(
    "host", ["api.example.com", "a-b.c_d.example", "10.0.0.1", "[::1]", "localhost", "example.com."]
)
def test_hosts_that_can_be_one(host: str) -> None:
    assert check_base_url(f"https://{host}:8443/v1") == f"https://{host}:8443/v1"


def test_each_key_has_an_endpoint() -> None:
    backup = provider(api_key=[KEY, "another"], headers={"X-Team": "blue"})
    endpoints = backup.endpoints()
    assert [(each.secret, each.provider) for each in endpoints] == [
        (Secret(KEY), "backup"),
        (Secret("another"), "backup"),
    ]
    assert {each.url for each in endpoints} == {f"{URL}/chat/completions"}
    assert all(each.headers == {"X-Team": "blue"} for each in endpoints)
    assert KEY not in repr(endpoints)


# -- proxies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "proxy",
    [
        "http://proxy.example:3128",
        "https://proxy.example",
        "http://user:pw@proxy.example:3128",
        "http://10.0.0.1:3128",
        "http://[::1]:3128",
    ],
)
def test_good_proxies(proxy: str) -> None:
    assert check_proxy(proxy) == proxy


@pytest.mark.parametrize(
    "proxy",
    [
        "",
        "proxy.example:3128",
        "socks5://canary@proxy.example",
        "http://",
        "http://canary:pw@",
        "http://-canary.example",
        "http://proxy.example:0",
        "http://proxy.example:canary",
        "http://[::canary",
        "http://proxy.example/can ary",
        "http://proxy.example/canary\x00",
        b"http://canary.example",
        None,
        5,
    ],
)
def test_what_is_no_proxy(proxy: object) -> None:
    with pytest.raises(ConfigurationError, match="proxy: it is not the URL of an HTTP proxy; pass one like") as raised:
        check_proxy(proxy)
    assert "canary" not in str(raised.value)
    assert raised.value.__context__ is None
