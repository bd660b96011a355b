"""What becomes of each row: a line of the results, or another try in a later run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from decimal import Decimal

import anyio
import attrs
import msgspec

from piapi_async.batch.checkpoint import Checkpoint
from piapi_async.batch.failures import is_maybe_billed, kind_of
from piapi_async.batch.records import Note, make_line
from piapi_async.batch.rows import Row
from piapi_async.batch.status import BatchStatus, Stop
from piapi_async.catalog import plain_dollars
from piapi_async.errors import APIError, APIStatusError, PiAPIError
from piapi_async.ledger import Ledger, carry_forward
from piapi_async.models import Attempt, ChatCompletion

__all__ = ["Flight", "NotSentError", "Recorder"]


class NotSentError(Exception):
    """A request does not go out, as the run has stopped or nothing can be put on record. It stays in the batch."""


@attrs.define(eq=False, repr=False, slots=False)
class Flight:
    """A row in flight.

    Attributes:
        row: The row.
        began: When, on the loop's clock.
        scope: Cancels it; used only before anything was sent.
        sent: Whether it is on record that a request for it was sent.
        recorded: Whether it has its line.
        at_most: US dollars that a request for it may cost, as far as that is known.
        unknown: US dollars of this run's unknown bills that its line tells of.
    """

    row: Row
    began: float
    scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    sent: bool = False
    recorded: bool = False
    at_most: Decimal = Decimal(0)
    unknown: Decimal = Decimal(0)


class Recorder:
    """Writes results, and keeps the counts and sums of a run.

    Failures of one kind in a row are held back: after `stop_after` of them the provider is at fault, not the rows. Then
    the run stops and the rows stay pending. If something else comes first, the failures are recorded.

    Args:
        checkpoint: The files.
        ledger: The client's books.
        status: The counts and sums.
        stop_after: Failures of one kind in a row that stop the run; None for no limit.
        stop: Stops the run.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        ledger: Ledger,
        status: BatchStatus,
        *,
        stop_after: int | None,
        stop: Callable[[Stop, PiAPIError | None], None],
    ) -> None:
        self._checkpoint = checkpoint
        self._ledger = ledger
        self._status = status
        self._stop_after = stop_after
        self._stop = stop
        self._held: list[tuple[Flight, APIError, bytes]] = []
        self._carried = Decimal(0), Decimal(0)
        self._saved = Decimal(0)  # that the lines so far tell of

    # -- counts and sums ---------------------------------------------------------------------------------------------

    def carry_forward(self) -> None:
        """Begin with the counts and sums of earlier runs."""
        status, earlier = self._status, self._checkpoint.earlier
        status.done, status.failed, status.before = earlier.done, earlier.failed, earlier.done + earlier.failed
        status.torn, status.broken, status.maybe_billed = earlier.torn, earlier.broken, self._checkpoint.maybe_billed
        status.aside = self._checkpoint.aside
        carry_forward(self._ledger, earlier.spent, earlier.unknown, earlier.saved)
        self._carried = self._ledger.spent, self._ledger.unknown
        self._saved = self._ledger.saved

    def sum_up(self) -> None:
        """Bring the sums of the status up to date."""
        self._status.spent = plain_dollars(self._checkpoint.earlier.spent + self._ledger.spent - self._carried[0])
        self._status.unknown = plain_dollars(self._unknown)

    @property
    def _unknown(self) -> Decimal:
        return self._checkpoint.earlier.unknown + self._ledger.unknown - self._carried[1]

    # -- a row -------------------------------------------------------------------------------------------------------

    def sent(self, flight: Flight) -> None:
        """Note that a request is about to be sent.

        Raises:
            NotSentError: It must not be sent: it could not be noted, or its row was let go just now.
        """
        if not (flight.scope.cancel_called or self._checkpoint.is_full):
            self._checkpoint.mark_sent(flight.row, flight.at_most)
            self.stop_if_full()
        if flight.scope.cancel_called or self._checkpoint.is_full:
            raise NotSentError
        flight.sent = True

    def settled(self, flight: Flight) -> None:
        """Note that a request has ended without an answer: from here on a sum of the run tells what it may cost."""
        self._checkpoint.note_unknown(self._unknown_here())
        self._checkpoint.mark_settled(flight.row)
        self.stop_if_full()

    def answered(self, flight: Flight, completion: ChatCompletion) -> None:
        """Record an answer."""
        self.record_held()
        self._status.done += 1
        if completion.usage is not None:
            self._status.tokens += completion.usage.completion_tokens
        self._save(flight, self._answer_line(flight, completion))

    def failed(self, flight: Flight, error: Exception) -> None:
        """Record a failure, or hold it back."""
        line = self._failure_line(flight, error)
        if self._stop_after is None or not isinstance(error, APIError):  # what was refused here is the row's own fault
            self._record_failure(flight, line)
            return
        if self._held and kind_of(self._held[-1][1]) != kind_of(error):
            self.record_held()
        self._held.append((flight, error, line))
        if len(self._held) >= self._stop_after:
            self._stop("failures", error)
            for held, failure, _ in self._held:
                self.leave_pending(held, failure)
            self._held.clear()

    def leave_pending(self, flight: Flight, error: Exception) -> None:
        """Record no result: the row is asked again by a later run. What may have been billed stays on record."""
        self._leave(flight, maybe_billed=is_maybe_billed(error))

    def cut_off(self, flight: Flight) -> None:
        """Do the same for a row that ended without an answer or an error of its own."""
        self._leave(flight, maybe_billed=True)

    def _leave(self, flight: Flight, *, maybe_billed: bool) -> None:
        if flight.sent:
            if maybe_billed:
                self._checkpoint.keep_sent(flight.row)
            self._checkpoint.mark_unbilled(flight.row)
            flight.sent = False
            self.stop_if_full()

    def record_held(self) -> None:
        """Record the failures that were held back: the rows were at fault."""
        held, self._held = self._held, []
        for flight, _, line in held:
            self._record_failure(flight, line)

    def _record_failure(self, flight: Flight, line: bytes) -> None:
        self._status.failed += 1
        self._save(flight, line)

    def _save(self, flight: Flight, line: bytes) -> None:
        self._checkpoint.save(line, flight.row.key, flight.unknown)
        flight.sent, flight.recorded = False, True
        self.stop_if_full()

    def stop_if_full(self) -> None:
        """Stop the run if something can't be written."""
        if self._checkpoint.is_full:
            self._stop("disk", None)

    # -- a line ------------------------------------------------------------------------------------------------------

    def _answer_line(self, flight: Flight, completion: ChatCompletion) -> bytes:
        last, usage = completion.attempts[-1], completion.usage
        before, self._saved = self._saved, self._ledger.saved  # so that the lines' sum is the ledger's
        note = attrs.evolve(
            self._note(flight),
            provider=completion.provider,
            cost=None if completion.cost is None else _digits(completion.cost),
            cost_estimated=completion.cost_estimated,
            saved=_digits(self._saved - before),
            tokens_in=None if usage is None else usage.prompt_tokens,
            tokens_out=None if usage is None else usage.completion_tokens,
            attempts=len(completion.attempts),
            latency=last.latency,
            first_token=last.time_to_first_token,
        )
        body = msgspec.Raw(json.dumps(completion.raw, ensure_ascii=False).encode())
        response = {"status_code": 200, "request_id": completion.request_id or "", "body": body}
        return make_line(flight.row.custom_id, response, None, note)

    def _failure_line(self, flight: Flight, error: Exception) -> bytes:
        kind = kind_of(error)
        attempts: tuple[Attempt, ...] = getattr(error, "attempts", ())
        note = attrs.evolve(
            self._note(flight),
            failed=True,
            kind=kind,
            provider=getattr(error, "provider", ""),
            attempts=len(attempts),
            latency=attempts[-1].latency if attempts else 0.0,
        )
        response = _error_response(error) if isinstance(error, APIStatusError) else None
        return make_line(flight.row.custom_id, response, {"code": kind, "message": str(error)}, note)

    def _unknown_here(self, besides: str = "") -> Decimal:
        """Unknown bills that this run has to tell of: all but those that lines before it or kept requests tell of."""
        checkpoint = self._checkpoint
        return max(Decimal(0), self._unknown - checkpoint.earlier.told - checkpoint.unknown_kept(besides))

    def _note(self, flight: Flight) -> Note:
        row = flight.row
        flight.unknown = self._unknown_here(row.key)
        return Note(
            key=row.key,
            request=row.request,
            model=str(row.fields.get("model")),
            run=self._checkpoint.run,
            unknown=_digits(flight.unknown),
            elapsed=anyio.current_time() - flight.began,
            finished=time.time(),
        )


def _error_response(error: APIStatusError) -> dict[str, object]:
    details = {"message": str(error), "type": error.type, "param": error.param, "code": error.code}
    return {"status_code": error.status_code, "request_id": error.request_id or "", "body": {"error": details}}


def _digits(amount: Decimal) -> str:
    return f"{amount.normalize():f}"
