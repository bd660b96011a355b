"""Carries out what `route` decides: attempts as context managers, waits, hedges.

attempt      one attempt, and all that belongs to it
reservation  its money
room         waits for room in the budget
hedge        two attempts that stand for one
dispatcher   one attempt after another, until one answers
statistics   the state of it all
"""

from __future__ import annotations

from piapi_async.dispatch.attempt import AttemptInFlight
from piapi_async.dispatch.dispatcher import Dispatcher

__all__ = ["AttemptInFlight", "Dispatcher"]
