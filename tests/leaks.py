"""A walk over all that an error, a log or a client might show, for a key and a prompt that must not be there."""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path

import piapi_async
from piapi_async import APIError, PiAPIError

KEY = "sk-canary-K3yK3yK3yK3y"
PROMPT = "canary prompt: where does the treasure lie"
CANARIES = (KEY, PROMPT)

_PACKAGE = str(Path(piapi_async.__file__).parent)


def _shown(error: BaseException, seen: set[int]) -> Iterator[str]:
    if id(error) in seen:
        return
    seen.add(id(error))
    yield from (repr(error), str(error), repr(error.args), repr(vars(error)), repr(getattr(error, "__notes__", ())))
    yield from traceback.format_exception_only(error)
    if isinstance(error, PiAPIError):
        yield repr(pickle.dumps(error))
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename.startswith(_PACKAGE):
            yield from (f"{name} = {value!r}" for name, value in frame.f_locals.items())
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        if other is not None:
            yield from _shown(other, seen)


def assert_tight(error: BaseException) -> None:
    """Assert that nothing of an error shows the key or the prompt, and that it pickles and copies whole."""
    for text in _shown(error, set()):
        for canary in CANARIES:
            assert canary not in text, f"{canary!r} in {text!r}"
    if isinstance(error, APIError):
        for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert type(twin) is type(error)
            assert str(twin) == str(error)
            assert vars(twin).keys() == vars(error).keys()
            assert twin.attempts == error.attempts
