"""What a failure says: of which kind it is, whether the key is bad, whether it may have been billed."""

from __future__ import annotations

from collections.abc import Sequence

from piapi_async.errors import AllProvidersFailedError, APIError, APIStatusError, AuthenticationError

__all__ = ["is_bad_key", "is_maybe_billed", "kind_of"]


def kind_of(error: Exception) -> str:
    """Name what failed, in a word or two. Failures of one kind are counted together."""
    if isinstance(error, APIStatusError):
        return error.code or f"status {error.status_code}"
    return error.kind if isinstance(error, APIError) else "invalid request"


def is_bad_key(error: Exception) -> bool:
    """Tell whether every provider refused the key."""
    return all(isinstance(each, AuthenticationError) for each in _each(error))


def is_maybe_billed(error: Exception) -> bool:
    """Tell whether a provider may have billed the request."""
    return any(isinstance(each, APIError) and each.maybe_billed for each in _each(error))


def _each(error: Exception) -> Sequence[Exception]:
    """Return the providers' own errors."""
    return error.errors if isinstance(error, AllProvidersFailedError) else (error,)
