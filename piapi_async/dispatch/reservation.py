"""The money of one attempt: reserved before it is sent, then booked, kept or released."""

from __future__ import annotations

import logging
from decimal import Decimal
from typing import TYPE_CHECKING

from piapi_async.billing import Account
from piapi_async.catalog import to_dollars
from piapi_async.ledger import show_dollars
from piapi_async.models import ChatCompletion
from piapi_async.route import Call, Upstream
from piapi_async.wire import AnswerBuilder

if TYPE_CHECKING:
    from piapi_async.dispatch.dispatcher import Dispatcher

_log = logging.getLogger("piapi_async")


class Reservation:
    """What an attempt has reserved of the budget, and what becomes of it. Without a budget it reserves nothing.

    Attributes:
        estimated: Whether the tokens of the answer are an estimate, once they are counted.

    Args:
        dispatcher: Whose books it is entered in.
        call: What the attempt belongs to.
    """

    def __init__(self, dispatcher: Dispatcher, call: Call) -> None:
        self._dispatcher = dispatcher
        self._call = call
        self._held: int | None = None  # picodollars
        self.estimated = False
        self._tokens = 0, 0  # of the prompt and of all choices

    # -- before sending ------------------------------------------------------------------------------------------------

    def _amount(self) -> int:
        """What is to be reserved by now."""
        return self._dispatcher.billing.to_reserve(self._call.model, self._call.worst or 0)

    def take(self) -> None:
        """Reserve what the attempt may cost at most.

        Raises:
            BudgetExceededError: The budget has no room for it.
        """
        if self._call.worst is not None:
            amount = self._amount()
            self._dispatcher.books.reserve(amount)
            self._held = amount

    async def take_in_time(self) -> None:
        """Do so; a call that waits for room, as soon as there is some.

        Raises:
            BudgetExceededError: The budget has no room for it, and nothing under way can make any.
            APITimeoutError: The call's deadline came first.
        """
        if self._call.waits_for_room and self._call.worst is not None:
            self._held = await self._dispatcher.room.reserve(self._amount, self._call.deadline)
        else:
            self.take()

    @property
    def is_enough(self) -> bool:
        """Whether it is enough by now, and the budget not passed: a bill may have been above its own reservation."""
        return self._held is None or (self._dispatcher.books.fits(0) and self._held >= self._amount())

    def release(self) -> None:
        """Give it back: nothing can have been billed."""
        if self._held is not None:
            self._dispatcher.books.release(self._held)
            self._held = None
            self._dispatcher.room.changed()

    # -- at the end ----------------------------------------------------------------------------------------------------

    def count(self, completion: ChatCompletion, builder: AnswerBuilder | None, upstream: Upstream) -> None:
        """Count the tokens of a good answer, or estimate them. The caller's tokenizer may raise.

        Args:
            completion: The answer.
            builder: What its chunks were added to; None where it came whole.
            upstream: Who answered.
        """
        usage, billing, request = completion.usage, self._dispatcher.billing, self._call.request
        counted = (0, 0) if usage is None else (usage.prompt_tokens, usage.output_tokens)
        # Zeros count nothing, and counts with more of the answer behind them not all of it.
        self.estimated = not any(counted) or (builder is not None and builder.uncounted)
        self._tokens = counted
        if self.estimated:
            prompt = billing.estimate_prompt(request, self._call.model, upstream.provider)
            chunks = 0 if builder is None else builder.chunks
            answer = billing.estimate_answer(request, [choice.message for choice in completion.choices], chunks)
            self._tokens = counted[0] or prompt, max(counted[1], answer)

    def book(self, upstream: Upstream) -> Decimal | None:
        """Turn it into what the counted answer cost, and return that in US dollars; None where the price is unknown."""
        account = self._account(upstream)
        bill = self._dispatcher.billing.book(account, self._held, *self._tokens, estimated=self.estimated)
        self._compare(upstream, bill)
        return None if bill is None else to_dollars(bill)

    def keep(self, upstream: Upstream, builder: AnswerBuilder | None) -> None:
        """Turn it into what an attempt may have cost whose bill is unknown.

        Args:
            upstream: Who was asked.
            builder: What the chunks that came were added to; None where none can have come.
        """
        call, account, came = self._call, self._account(upstream), _came(builder)
        bill = self._dispatcher.billing.keep(account, self._held, call.request, call.model, upstream.provider, came)
        self._compare(upstream, bill)

    def _account(self, upstream: Upstream) -> Account:
        account = upstream.accounts.get(self._call.model)
        if account is None:
            account = self._dispatcher.billing.account(upstream.provider, self._call.model)
            upstream.accounts[self._call.model] = account
        return account

    def _compare(self, upstream: Upstream, bill: int | None) -> None:
        """Tell of a bill that is above its reservation, and reserve more for the model from now on."""
        held, call = self._held, self._call
        if bill is None or held is None or call.worst is None or bill <= held:
            return
        self._dispatcher.billing.grow(call.model, bill, call.worst)
        _log.warning(
            "%s: a call of %r cost %s, or may have, where %s was reserved for it; "
            "from now on more is reserved for this model, by the same share",
            upstream.provider.name,
            call.model,
            show_dollars(bill),
            show_dollars(held),
        )


def _came(builder: AnswerBuilder | None) -> tuple[int, int]:
    """Tokens of the prompt and of a streamed answer, as far as is known: one a chunk at least."""
    if builder is None:
        return 0, 0
    usage, chunks = builder.usage, builder.chunks
    return (0, chunks) if usage is None else (usage.prompt_tokens, max(chunks, usage.output_tokens))
