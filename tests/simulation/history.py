"""One history: a client, its callers, and what befalls them. All of it is drawn from a seed, and can be left out."""

from __future__ import annotations

import random

import attrs

from tests.simulation.loop import HOW

BACKUPS = ("second", "third")

READINGS = (
    "tokens",
    "chunks",
    "events",
    "completion",
    "anext",
    "impatient",
    "left early",
    "left by another",
    "restart",
)
"""How a caller reads a stream."""

INPUTS = ("list", "keyed", "generator", "async generator", "raises")
"""What a `map` gets its prompts from; a batch has a file besides, and ids instead of keys."""

ENDINGS = ("killed", "cancelled", "told", "deadline", "budget", "none")
"""How a run of a batch ends."""


@attrs.frozen
class Cancel:
    """A caller is cancelled.

    Attributes:
        at: At which await, from 1.
        how: One of `loop.HOW`.
    """

    at: int
    how: str = HOW[0]


@attrs.frozen
class Caller:
    """A task that asks something.

    Attributes:
        kind: "complete", "stream", "map" or "batch".
        begins: When, in seconds.
        choices: `n`.
        most: `max_tokens`; None for the model's.
        deadline: Seconds; None for none.
        via_stream: Of `complete`.
        reading: One of `READINGS`, of a stream.
        patience: Seconds that one read may take, of an impatient reader; or that a reader rests in between.
        items: Prompts of a `map` or rows of a batch.
        width: Its concurrency.
        ordered: Of `map`.
        leaves: After how many items or results it leaves; None for never.
        input: One of `INPUTS`.
        stumbles: At which of its requests `on_send` raises, from 1; 0 for never.
        cancel: When it is cancelled.
        ending: One of `ENDINGS`, of a batch.
        at: When its run ends, in awaits or in seconds, as that ending has it.
        retry_failed: Whether the next run asks failed rows again.
    """

    kind: str
    begins: float = 0.0
    choices: int = 1
    most: int | None = 10
    deadline: float | None = None
    via_stream: bool | None = None
    reading: str = READINGS[0]
    patience: float = 0.5
    items: int = 0
    width: int = 2
    ordered: bool = False
    leaves: int | None = None
    input: str = INPUTS[0]
    stumbles: int = 0
    cancel: Cancel | None = None
    ending: str = "none"
    at: int = 0
    retry_failed: bool = False

    @property
    def has_no_rest(self) -> bool:
        """Whether all its time goes by inside of one call."""
        resting = ("events", "restart", "left by another")
        return self.kind == "complete" or (self.kind == "stream" and self.reading not in resting)


@attrs.frozen
class Closing:
    """The client is closed while callers use it, and opened again.

    Attributes:
        at: When, in seconds.
        cancel: At which await the closing is cancelled, and done again; 0 for never.
        reopens: Seconds later.
    """

    at: float
    cancel: int = 0
    reopens: float = 0.5


@attrs.frozen
class History:
    """What happens.

    Attributes:
        seed: Of all else that is drawn, such as answers and jitter.
        attempts: `Retry.attempts`.
        backups: How many there are.
        keys: Of the first provider.
        hedge: Whether calls are hedged.
        concurrency: `Limits.concurrency`.
        requests_per_minute: As in `Limits`.
        tokens_per_minute: As in `Limits`.
        budget: In worst cases of a call; None for none.
        threshold: `Health.failure_threshold`.
        quick: Whether the timers are short.
        stream_usage: As in `Client`.
        faults: Share of bad answers.
        callers: Who asks.
        closings: When the client is closed and opened again.
        mended: Requests that are answered well whatever was drawn.
    """

    seed: int
    attempts: int = 3
    backups: int = 0
    keys: int = 1
    hedge: bool = False
    concurrency: int = 256
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    budget: float | None = None
    threshold: int = 5
    quick: bool = True
    stream_usage: bool = False
    faults: float = 0.3
    callers: tuple[Caller, ...] = ()
    closings: tuple[Closing, ...] = ()
    mended: frozenset[tuple[str, int]] = frozenset()

    @property
    def providers(self) -> tuple[str, ...]:
        """Names of the providers, the preferred one first."""
        return ("piapi", *BACKUPS[: self.backups])

    def __str__(self) -> str:
        lines = [f"History {_told(attrs.evolve(self, callers=(), closings=()), History(0))}"]
        lines += [f"Caller {_told(caller, Caller(caller.kind))}" for caller in self.callers]
        lines += [f"Closing {_told(closing, Closing(closing.at))}" for closing in self.closings]
        return "\n".join(lines)


def _told(value: attrs.AttrsInstance, usual: attrs.AttrsInstance) -> str:
    """The first field, and those that are not as usual."""
    first, *others = [field.name for field in attrs.fields(type(value))]
    names = [first, *(name for name in others if getattr(value, name) != getattr(usual, name))]
    return ", ".join(f"{name}={getattr(value, name)!r}" for name in names)


def draw(seed: int) -> History:
    """Draw the history of a seed."""
    rng = random.Random(seed)
    batch = rng.random() < 0.08
    callers = [_draw_batch(rng)] if batch else [_draw_caller(rng) for _ in range(rng.choice((1, 1, 2, 3, 4, 6)))]
    backups = rng.choice((0, 1, 1, 2))
    return History(
        seed,
        attempts=rng.choice((1, 2, 3, 3, 4)),
        backups=backups,
        keys=rng.choice((1, 1, 2)),
        hedge=backups > 0 and rng.random() < 0.5,
        concurrency=rng.choice((1, 1, 2, 3, 256)),
        requests_per_minute=rng.choice((None, None, None, 6, 60)),
        tokens_per_minute=rng.choice((None, None, None, 3000)),
        budget=rng.choice((None, 1.5, 2.5, 5, 20, 50)),
        threshold=rng.choice((1, 2, 5)),
        quick=rng.random() < 0.7,
        stream_usage=rng.random() < 0.3,
        faults=rng.choice((0.0, 0.15, 0.3, 0.6, 0.9)),
        callers=tuple(callers),
        closings=() if batch or rng.random() < 0.7 else (_draw_closing(rng),),
    )


def _draw_closing(rng: random.Random) -> Closing:
    return Closing(rng.choice((0.0, 0.05, 0.5, 0.8, 3.0)), rng.choice((0, 0, 1, 2)), rng.choice((0.0, 0.2, 5.0)))


def _draw_cancel(rng: random.Random, share: float, most: int) -> Cancel | None:
    return Cancel(rng.randint(1, most), rng.choice(HOW)) if rng.random() < share else None


def _draw_caller(rng: random.Random) -> Caller:
    kind = rng.choice(("complete", "complete", "stream", "stream", "map"))
    return Caller(
        kind,
        begins=rng.choice((0.0, 0.0, 0.05, 0.5, 4.0)),
        choices=rng.choice((1, 1, 1, 2, 3)),
        most=rng.choice((1, 4, 10, 10, None)),
        deadline=rng.choice((None, None, None, 0.3, 2.0, 20.0)),
        via_stream=rng.choice((None, None, True, False)) if kind == "complete" else None,
        reading=rng.choice(READINGS) if kind == "stream" else READINGS[0],
        patience=rng.choice((0.005, 0.02, 0.5)),
        items=rng.randint(1, 8) if kind == "map" else 0,
        width=rng.choice((1, 2, 4)),
        ordered=rng.random() < 0.4,
        leaves=rng.choice((None, None, 0, 1, 3)),
        input=rng.choice(INPUTS),
        stumbles=rng.choice((0,) * 12 + (1, 2)),
        cancel=_draw_cancel(rng, 0.35, rng.choice((5, 20, 60))),
    )


def _draw_batch(rng: random.Random) -> Caller:
    ending = rng.choice(ENDINGS)
    return Caller(
        "batch",
        choices=rng.choice((1, 1, 2)),
        most=rng.choice((4, 10, None)),
        via_stream=rng.choice((None, True)),
        items=rng.randint(1, 8),
        width=rng.choice((1, 2, 4)),
        input=rng.choice((*INPUTS[:1], *INPUTS[2:], "file")),
        ending=ending,
        at=rng.randint(1, rng.choice((10, 60, 200))) if ending in ("killed", "cancelled") else rng.randint(0, 5),
        retry_failed=rng.random() < 0.5,
        stumbles=rng.choice((0,) * 8 + (1, 2)),
    )
