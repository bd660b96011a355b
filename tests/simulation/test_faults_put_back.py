"""Faults put back into the code, one at a time: a seed finds each of them, so no promise is held by chance.

Each fault is one that the code had, or that a change could bring; it is put where the code prevents it now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count, islice
from typing import Any, TypeAlias

import attrs
import pytest

from piapi_async.batch.inflight import InflightFile
from piapi_async.batch.recorder import Recorder
from piapi_async.batch.run import _Run
from piapi_async.billing import Billing
from piapi_async.breaker import Breaker
from piapi_async.client import Client
from piapi_async.dispatch.attempt import AttemptInFlight
from piapi_async.dispatch.hedge import HedgedAttempt
from piapi_async.dispatch.reservation import Reservation
from piapi_async.errors import APIConnectionError, APIStatusError
from piapi_async.fanout import Results
from piapi_async.gate import Gate
from piapi_async.ledger import Books
from piapi_async.route import Router
from piapi_async.stream import ChatStream
from piapi_async.wire import AnswerBuilder
from tests.simulation.history import History, draw
from tests.simulation.search import search

SEEDS = 1500
"""Most histories of its kind until a fault is found: fewer than the test command runs."""

Patch: TypeAlias = pytest.MonkeyPatch

PutBack: TypeAlias = Callable[[Patch], None]
Kind: TypeAlias = Callable[[History], bool]

FAULTS: dict[str, tuple[PutBack, Kind]] = {}
"""What puts each fault back, and the histories that may meet it: to look at others too would only take longer."""


def any_history(history: History) -> bool:
    return True


def is_closed(history: History) -> bool:
    return bool(history.closings)


def is_batch(history: History) -> bool:
    return history.callers[0].kind == "batch"


def is_killed(history: History) -> bool:
    return is_batch(history) and history.callers[0].ending == "killed"


def fault(in_: Kind = any_history) -> Callable[[PutBack], PutBack]:
    def note(put_back: PutBack) -> PutBack:
        FAULTS[put_back.__name__] = put_back, in_
        return put_back

    return note


# -- places and probes -------------------------------------------------------------------------------------------------


@fault()
def a_place_is_lost_where_a_caller_is_cancelled_as_it_gets_it(patch: Patch) -> None:
    from piapi_async.gate import _Waiter

    patch.setattr(_Waiter, "admitted", False)


@fault()
def a_place_is_lost_where_an_attempt_is_abandoned(patch: Patch) -> None:
    leave = AttemptInFlight._leave

    def leave_good(self: AttemptInFlight, now: float, *, good: bool | None) -> None:
        if good is None:
            self.key.gate.in_flight += 1
        leave(self, now, good=good)

    patch.setattr(AttemptInFlight, "_leave", leave_good)


@fault()
def who_stood_in_the_way_of_the_next_in_the_queue_lets_nobody_pass(patch: Patch) -> None:
    def leave(self: Gate) -> None:
        self.in_flight -= 1

    patch.setattr(Gate, "leave", leave)


@fault()
def a_probe_that_says_nothing_is_not_ended(patch: Patch) -> None:
    record = Breaker.record

    def forget(self: Breaker, now: float, good: bool | None, *others: Any) -> None:
        if good is not None:
            record(self, now, good, *others)

    patch.setattr(Breaker, "record", forget)


@fault()
def an_exchange_stays_open_where_its_attempt_is_abandoned(patch: Patch) -> None:
    abandon = AttemptInFlight._abandon

    def keep_open(self: AttemptInFlight, now: float) -> None:
        self._exchange = None
        abandon(self, now)

    patch.setattr(AttemptInFlight, "_abandon", keep_open)


@fault()
def the_timer_of_a_wait_at_the_gate_is_left(patch: Patch) -> None:
    enter = Gate.enter

    async def leave_a_timer(self: Gate, deadline: Any, *others: Any) -> bool:
        entered = await enter(self, deadline, *others)
        asyncio.get_running_loop().call_later(3600.0, lambda: None)
        return entered

    patch.setattr(Gate, "enter", leave_a_timer)


@fault(is_closed)
def closing_does_not_send_the_waiting_away(patch: Patch) -> None:
    patch.setattr(Gate, "close", lambda self: None)


@fault()
def a_gate_lets_one_more_pass_than_it_may(patch: Patch) -> None:
    opens_at = Gate.opens_at

    def one_more(self: Gate, tokens: float, now: float) -> float:
        self.in_flight -= 1
        try:
            return opens_at(self, tokens, now)
        finally:
            self.in_flight += 1

    patch.setattr(Gate, "opens_at", one_more)


@fault()
def the_requests_of_a_minute_have_no_bound(patch: Patch) -> None:
    patch.setattr("piapi_async.gate._Bucket.opens_at", lambda self, amount, now: now)


# -- money -------------------------------------------------------------------------------------------------------------


@fault()
def a_reservation_is_not_released(patch: Patch) -> None:
    patch.setattr(Books, "release", lambda self, amount: None)


@fault()
def a_bill_is_forgotten_after_a_504(patch: Patch) -> None:
    fail = AttemptInFlight._fail

    def forget(self: AttemptInFlight, error: Any, now: float) -> None:
        if isinstance(error, APIStatusError):
            error.maybe_billed = False
        fail(self, error, now)

    patch.setattr(AttemptInFlight, "_fail", forget)


@fault()
def a_bill_is_forgotten_where_a_caller_is_cancelled(patch: Patch) -> None:
    abandon = AttemptInFlight._abandon

    def forget(self: AttemptInFlight, now: float) -> None:
        self._sent = False
        abandon(self, now)

    patch.setattr(AttemptInFlight, "_abandon", forget)


@fault()
def a_bill_is_forgotten_where_a_connection_is_reset(patch: Patch) -> None:
    fail = AttemptInFlight._fail

    def forget(self: AttemptInFlight, error: Any, now: float) -> None:
        if isinstance(error, APIConnectionError) and error.kind == "reset":
            error.maybe_billed = False
        fail(self, error, now)

    patch.setattr(AttemptInFlight, "_fail", forget)


@fault()
def a_stream_without_usage_is_booked_by_its_words(patch: Patch) -> None:
    patch.setattr(AnswerBuilder, "count", lambda self, chunks: None)


@fault()
def more_than_one_answer_is_reserved_as_one(patch: Patch) -> None:
    worst = Billing.worst
    patch.setattr(Billing, "worst", lambda self, request, *others: worst(self, attrs.evolve(request, n=None), *others))


@fault()
def a_bill_above_its_reservation_is_cut_down_to_it(patch: Patch) -> None:
    settle = Books.settle

    def cut(self: Books, row: Any, reserved: int, cost: int | None, **others: Any) -> None:
        settle(self, row, reserved, cost if not reserved or cost is None else min(cost, reserved), **others)

    patch.setattr(Books, "settle", cut)


@fault()
def a_bill_above_its_reservation_is_not_told(patch: Patch) -> None:
    patch.setattr(Reservation, "_compare", lambda self, upstream, bill: None)


@fault()
def what_is_spent_is_not_looked_at_before_more_is_reserved(patch: Patch) -> None:
    def reserve(self: Books, amount: int) -> None:
        self.reserved += amount

    patch.setattr(Books, "reserve", reserve)


# -- attempts and hedges -----------------------------------------------------------------------------------------------


@fault()
def attempts_have_no_bound(patch: Patch) -> None:
    after_failure = Router.after_failure

    def again(self: Router, call: Any, now: float) -> Any:
        call.begun = min(call.begun, 1)
        return after_failure(self, call, now)

    patch.setattr(Router, "after_failure", again)


@fault()
def a_stale_connection_is_no_attempt_however_often(patch: Patch) -> None:
    send = AttemptInFlight._send

    async def resend(self: AttemptInFlight, deadline: Any) -> Any:
        while True:
            try:
                return await send(self, deadline)
            except APIConnectionError as error:
                if error.kind not in ("stale", "reset"):
                    raise

    patch.setattr(AttemptInFlight, "_send", resend)


@fault()
def the_loser_of_a_hedge_is_not_cancelled(patch: Patch) -> None:
    patch.setattr(HedgedAttempt, "_end_losers", lambda self: None)


# -- answers -----------------------------------------------------------------------------------------------------------


@fault()
def a_stream_that_is_cut_is_taken_for_whole(patch: Patch) -> None:
    patch.setattr(AnswerBuilder, "check_end", lambda self, **_: None)


@fault()
def an_iteration_goes_on_after_it_failed_as_if_the_answer_were_whole(patch: Patch) -> None:
    patch.setattr(ChatStream, "_check_not_failed", lambda self: None)


@fault()
def who_leaves_does_not_stop_the_other_reader(patch: Patch) -> None:
    exit_ = ChatStream.__aexit__

    async def leave(self: Any, *error: Any) -> None:
        self._reader = None
        await exit_(self, *error)

    patch.setattr(ChatStream, "__aexit__", leave)


@fault()
def the_first_tokens_of_a_hedged_stream_are_lost(patch: Patch) -> None:
    open_stream = HedgedAttempt.open_stream

    async def lose(self: HedgedAttempt) -> Any:
        await open_stream(self)
        return []

    patch.setattr(HedgedAttempt, "open_stream", lose)


# -- many --------------------------------------------------------------------------------------------------------------


@fault()
def a_map_loses_a_result(patch: Patch) -> None:
    put = Results._put
    patch.setattr(Results, "_put", lambda self, result: None if result.index == 3 else put(self, result))


@fault()
def a_map_gives_a_result_twice(patch: Patch) -> None:
    put = Results._put

    def twice(self: Any, result: Any) -> None:
        put(self, result)
        if result.index == 2 and not self._ordered:
            put(self, result)

    patch.setattr(Results, "_put", twice)


@fault()
def a_map_that_is_ordered_is_not(patch: Patch) -> None:
    init = Results.__init__
    patch.setattr(
        Results, "__init__", lambda self, *given, **options: init(self, *given, **{**options, "ordered": False})
    )


@fault()
def a_map_leaves_its_input_open(patch: Patch) -> None:
    async def leave(generator: Any) -> None: ...

    patch.setattr("piapi_async.fanout.close_generator", leave)


@fault()
def a_map_gives_a_result_the_key_of_another(patch: Patch) -> None:
    patch.setattr(Results, "_put", lambda self, result: self._ready.append(attrs.evolve(result, key=0)))


# -- closing -----------------------------------------------------------------------------------------------------------


@fault(is_closed)
def a_closing_that_was_cancelled_is_taken_for_done(patch: Patch) -> None:
    aclose = Client.aclose

    async def once(self: Any) -> None:
        if self._loop is not None:
            await aclose(self)

    patch.setattr(Client, "aclose", once)


@fault(is_closed)
def a_call_goes_on_at_a_client_that_was_closed_meanwhile(patch: Patch) -> None:
    patch.setattr(AttemptInFlight, "_check_open", lambda self, route, began: None)


# -- batches -----------------------------------------------------------------------------------------------------------


@fault(is_batch)
def a_row_is_recorded_twice(patch: Patch) -> None:
    answered = Recorder.answered

    def twice(self: Recorder, flight: Any, completion: Any) -> None:
        answered(self, flight, completion)
        if flight.row.custom_id == "r1":
            answered(self, flight, completion)

    patch.setattr(Recorder, "answered", twice)


@fault(is_batch)
def a_row_is_lost(patch: Patch) -> None:
    ask = _Run._ask

    async def lose(self: Any, index: int, row: Any) -> Any:
        return None if row.custom_id == "r2" else await ask(self, index, row)

    patch.setattr(_Run, "_ask", lose)


@fault(is_killed)
def only_the_first_request_of_a_row_is_on_record(patch: Patch) -> None:
    add = InflightFile.add

    def first(self: InflightFile, key: str, *others: Any) -> None:
        if not self._slots.get(key):
            add(self, key, *others)

    patch.setattr(InflightFile, "add", first)


@fault(is_killed)
def no_request_is_on_record_before_it_goes_out(patch: Patch) -> None:
    patch.setattr(Recorder, "sent", lambda self, flight: None)


@fault(is_batch)
def a_request_stays_on_record_when_it_has_ended(patch: Patch) -> None:
    patch.setattr(InflightFile, "settle", lambda self, key: None)


@pytest.mark.slow  # all together; most take a second
@pytest.mark.parametrize("name", FAULTS)
def test_a_seed_finds_that(name: str, monkeypatch: Patch) -> None:
    put_back, is_of_this_kind = FAULTS[name]
    put_back(monkeypatch)
    seeds = (seed for seed in count() if is_of_this_kind(draw(seed)))
    assert search(islice(seeds, SEEDS), short=False) is not None
