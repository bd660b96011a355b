"""Where a batch stands, and what it would cost."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal, TypeAlias

import attrs

from piapi_async.errors import PiAPIError

__all__ = ["BatchQuote", "BatchStatus", "Stop"]

Stop: TypeAlias = Literal["interrupted", "deadline", "budget", "failures", "key", "disk"]
"""Why a run ended before its input did."""


@attrs.define(kw_only=True)
class BatchStatus:
    """Where a batch stands, while it runs and at its end.

    Attributes:
        total: Rows of the input and of earlier results; None if that is unknown, as with a stream.
        done: Rows that have an answer, from earlier runs too.
        failed: Rows recorded as failed, from earlier runs too.
        before: Rows that earlier runs had finished.
        under_way: Rows in flight.
        tokens: Tokens of this run's answers.
        spent: US dollars for all answers, from earlier runs too, as far as prices are known.
        unknown: US dollars that requests may have cost on top of that, where the bill is unknown.
        maybe_billed: Ids of the rows in flight when an earlier run ended. They may have been billed, and are asked
            again.
        cut: At the end, ids of the rows that were sent and have no result. They may have been billed too.
        torn: Whether the last line of the results was cut short. It was set aside, and its row is asked again.
        broken: Damaged lines of the results. They were set aside too.
        aside: The file that has what was set aside, beside the results; None if nothing was. What can't be read of the
            notes about requests in flight goes there too: what those cost is on no record.
        stopped: Why the run ended before its input did; None if it did not.
        error: The error that ended it, if any.
        seconds: How long the run has taken.
    """

    total: int | None = None
    done: int = 0
    failed: int = 0
    before: int = 0
    under_way: int = 0
    tokens: int = 0
    spent: Decimal = Decimal(0)
    unknown: Decimal = Decimal(0)
    maybe_billed: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    torn: bool = False
    broken: int = 0
    aside: str | None = None
    stopped: Stop | None = None
    error: PiAPIError | None = None
    seconds: float = 0.0

    @property
    def pending(self) -> int | None:
        """Rows without a result; None if their number is unknown."""
        return None if self.total is None else self.total - self.done - self.failed


@attrs.frozen
class BatchQuote:
    """What the rows of one model would cost.

    Attributes:
        model: The caller's name of the model.
        rows: Rows that are yet to be done.
        tokens: Tokens of their prompts, estimated.
        least: US dollars for the prompts alone; None if the price is unknown.
        most: US dollars at worst; None if a price is unknown, or if nothing limits an answer's length.
        refused: Rows that the provider would refuse. They cost nothing.
    """

    model: str
    rows: int = 0
    tokens: int = 0
    least: Decimal | None = Decimal(0)
    most: Decimal | None = Decimal(0)
    refused: int = 0
