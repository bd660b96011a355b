"""What a caller passes to a client, checked: each refusal names the option and says what to pass."""

from __future__ import annotations

import inspect
import logging
import os
import ssl as ssl_module
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, cast

import attrs

from piapi_async.errors import ConfigurationError, InvalidRequestError, Secret
from piapi_async.models import ChatParams, ChatRequest, Message, Prompt
from piapi_async.models.checks import plain_number
from piapi_async.models.requests import check_names
from piapi_async.policy import Deadline, Health, Limits, Retry, Timeout
from piapi_async.provider import Provider, check_proxy, read_keys

BASE_URL = "https://api.piapi.ai/v1"
"""Where PiAPI answers, by its page."""

FILES_LEFT = 64
"""Open files that are left to the rest of the process (ours)."""


class KeyedPrompts(Protocol):
    """A mapping of keys to prompts, whatever its keys are."""

    def items(self) -> Iterable[tuple[object, Prompt]]:
        """Its pairs."""
        ...


Item: TypeAlias = "Prompt | tuple[object, Prompt]"
"""One prompt of a `map`, or its key and the prompt."""

Items: TypeAlias = "Iterable[Item] | AsyncIterable[Item] | KeyedPrompts"
"""What a `map` is to ask."""


def one_prompt(prompt: Prompt | None, messages: Prompt | None) -> Prompt:
    """Return what is asked, which has two names.

    Raises:
        TypeError: Both are given, or neither.
    """
    if prompt is None and messages is None:
        raise TypeError("there is no prompt; pass a text, messages, or a ChatRequest")
    if prompt is not None and messages is not None:
        raise TypeError("prompt and messages are the same thing by two names; pass one of them")
    return cast("Prompt", messages if prompt is None else prompt)


def read_items(items: Items) -> Iterable[Item] | AsyncIterable[Item]:
    """Return what a `map` is to ask; of a mapping, its pairs."""
    if isinstance(items, Mapping):
        return cast("Mapping[object, Prompt]", items).items()
    return cast("Iterable[Item]", items)


def read_item(index: int, item: Item) -> tuple[object, Prompt]:
    """Return the key and the prompt of an item of a `map`; one without a key is known by its index."""
    if isinstance(item, tuple) and len(item) == 2 and not isinstance(item[0], (Message, Mapping)):
        return cast("tuple[object, Prompt]", item)
    return index, cast("Prompt", item)


def make_request(
    prompt: Prompt, model: str | None, default: str | None, params: ChatParams, *, stream: bool
) -> ChatRequest:
    """Make the request of a call, which names a model.

    Args:
        prompt: What is asked.
        model: The call's model; without it the request's own counts, then `default`.
        default: The client's model.
        params: The call's parameters.
        stream: Whether the answer is to come as events.

    Raises:
        InvalidRequestError: A value that the provider would refuse, or no model.
        TypeError: There is no such parameter.
    """
    if params:
        check_names(params)
    if isinstance(prompt, ChatRequest):
        request = _changed(prompt, model or prompt.model or default, params, stream=stream)
    else:
        asked: Any = prompt  # the class takes what a prompt may be, though its field says what it becomes
        request = ChatRequest(asked, model or default, stream=stream, **params)
    if not request.model:
        raise InvalidRequestError("model: there is none; pass model=…, or set it with Client(model=…)")
    return request


def _changed(request: ChatRequest, model: str | None, params: ChatParams, *, stream: bool) -> ChatRequest:
    """A request that the caller made, with what the call says beside it."""
    if request.stream and not stream:
        raise InvalidRequestError(
            "stream: complete() does not stream; use client.stream(), or complete(via_stream=True) for the whole answer"
        )
    changes: dict[str, Any] = {name: value for name, value in params.items() if value is not None}
    if model != request.model:
        changes["model"] = model
    if request.stream != stream:
        changes["stream"] = stream
    return attrs.evolve(request, **changes) if changes else request


def read_deadline(now: float, seconds: object) -> Deadline:
    """Return the moment at which a call must be over.

    Raises:
        InvalidRequestError: The seconds are no number above 0.
    """
    number = plain_number(seconds)
    if number is None or not number > 0:
        raise InvalidRequestError("deadline: it is not a number above 0; pass seconds, or None")
    return Deadline(now + number, "deadline", number)


def read_via_stream(via_stream: object) -> bool | None:
    """Return whether a call for the whole answer asks by stream.

    Raises:
        InvalidRequestError: It is something else.
    """
    if via_stream is None or isinstance(via_stream, bool):
        return via_stream
    raise InvalidRequestError(f"via_stream: this {type(via_stream).__name__} does not fit; pass True, False or None")


def read_on_send(on_send: Callable[[], object] | None) -> Callable[[], object] | None:
    """Return what is called before each request.

    Raises:
        InvalidRequestError: It can't be called, or would have to be awaited.
    """
    if on_send is None or (callable(on_send) and not inspect.iscoroutinefunction(on_send)):
        return on_send
    raise InvalidRequestError(f"on_send: this {type(on_send).__name__} does not fit; pass a function that is not async")


def read_api_key(api_key: object) -> tuple[Secret, ...] | ConfigurationError:
    """Return the keys, from the environment where none is given; or the error to raise where no key is bound."""
    if api_key is None:
        api_key = os.environ.get("PIAPI_API_KEY")
    if api_key is None:
        return ConfigurationError("api_key: there is none; pass it, or set the environment variable PIAPI_API_KEY")
    return read_keys(api_key)


def read_proxy(proxy: str | None) -> Secret | ConfigurationError | None:
    """Return the URL of a proxy, which may hold a password, or the error to raise where it is not bound."""
    try:
        return None if proxy is None else Secret(check_proxy(proxy))
    except ConfigurationError as error:
        return error.with_traceback(None)


def fit_open_files(concurrency: int) -> int:
    """Return how many requests may be under way at once, where each takes one of the files that a process may open."""
    try:
        import resource
    except ImportError:  # not on Windows
        return concurrency
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY or concurrency + FILES_LEFT <= limit:
        return concurrency
    fitting = max(1, limit - FILES_LEFT)
    logging.getLogger("piapi_async").warning(
        "this process may open no more than %d files, so %d requests go out at once instead of %d; raise the limit "
        "with `ulimit -n`, or lower the concurrency",
        limit,
        fitting,
        concurrency,
    )
    return fitting


def _is_list_of_providers(value: object) -> bool:
    return isinstance(value, Sequence) and all(isinstance(item, Provider) for item in cast("Sequence[object]", value))


def _is_whole_number(value: object) -> bool:
    return isinstance(plain_number(value), int)


def _is_none_or(is_right: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or is_right(value)


def _is_a(cls: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, cls)


_FLAG = (_is_a(bool), "True or False")

_OPTIONS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "limits": (_is_a(Limits), "Limits(concurrency=…)"),
    "retry": (_is_a(Retry), "Retry(attempts=…)"),
    "timeout": (_is_a(Timeout), "Timeout(total=…)"),
    "health": (_is_a(Health), "Health(failure_threshold=…)"),
    "model": (_is_none_or(_is_a(str)), "a name such as 'gpt-4o-mini', or None"),
    "backups": (_is_list_of_providers, "a list: [Provider(name, base_url, api_key)]"),
    "tokenizer": (_is_none_or(callable), "a function of a text that returns its number of tokens, or None"),
    "stream_usage": _FLAG,
    "require_finish_reason": _FLAG,
    "ssl": (_is_none_or(_is_a(ssl_module.SSLContext)), "an ssl.SSLContext, or None"),
    "insecure": _FLAG,
    "trust_env": _FLAG,
    "allow_http": _FLAG,
    "seed": (_is_none_or(_is_whole_number), "a whole number, or None"),
}
"""The check of each option that nothing else checks, and what to pass."""


def check_types(**options: object) -> None:
    """Check the type of options.

    Raises:
        ConfigurationError: One has a wrong type; the text names it and says what to pass.
    """
    for name, value in options.items():
        is_right, wanted = _OPTIONS[name]
        if not is_right(value):
            raise ConfigurationError(f"{name}: this {type(value).__name__} does not fit; pass {wanted}")
