"""A crash at any moment: after each change of the files, and in the middle of each write; `faults.md` K1 to K3, K16.

A run is recorded once. Then a batch goes on from each state that a crash could have left, and must end whole: each row
has one result, no line that was there is gone, no bill is forgotten, and what was answered is not asked again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from piapi_async import BatchStatus, Client, Health, Retry, run_batch
from piapi_async.batch.records import read_short_note
from piapi_async.errors import APIConnectionError
from piapi_async.policy import Deadline
from piapi_async.provider import Endpoint
from piapi_async.wire import Body
from tests.batch.checkpoints import line
from tests.batch.recorded import Recording, Sent, State, recorded
from tests.dispatch.scripted import Answer, ScriptedExchange, ScriptedTransport, broken, refused
from tests.leaks import KEY
from tests.wires import completion

pytestmark = pytest.mark.anyio

ROWS = 6
OUT = "results.jsonl"
RETRY = Retry(attempts=3, base=0.0001, cap=0.0001, throttle_base=0.0001, throttle_cap=0.0001)
HEALTH = Health(failure_threshold=10**6, minimum_calls=10**6)
USAGE = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
ANSWERED = Answer([completion("an answer", usage=USAGE)])
HANGS = Answer(think=1000.0)
LOST = 504
"""A status after which the bill is unknown."""


def rows() -> list[dict[str, object]]:
    return [{"custom_id": f"row-{number}", "prompt": f"row-{number}"} for number in range(ROWS)]


class RowTransport(ScriptedTransport):
    """Answers each row by a script of its own, and when that is over with an answer.

    Args:
        scripts: By the row's id.
        note: Told of each request: its row, and what is answered.
    """

    def __init__(self, scripts: Mapping[str, Sequence[Answer]], note: Callable[[str, Answer], object]) -> None:
        super().__init__({})
        self.rows = {name: list(answers) for name, answers in scripts.items()}
        self._note = note

    async def send(
        self,
        endpoint: Endpoint,
        body: Body,
        headers: Mapping[str, str],
        deadline: Deadline,
        *,
        on_sent: Callable[[], None],
        fresh: bool = False,
    ) -> ScriptedExchange:
        name = json.loads(body.content)["messages"][0]["content"]
        script = self.rows.get(name)
        answer = script.pop(0) if script else ANSWERED
        self._note(name, answer)
        self.scripts[endpoint.provider] = [answer]
        return await super().send(endpoint, body, headers, deadline, on_sent=on_sent, fresh=fresh)


@attrs.frozen
class World:
    """What an answer costs, and a request at most."""

    cost: Decimal
    worst: Decimal

    def bill(self, answer: Answer) -> Decimal:
        """What a request costs that is answered so: the most, where only the provider knows."""
        if answer.error is not None or answer.status == LOST:
            return self.worst
        return self.cost if answer.status == 200 and answer is not HANGS else Decimal(0)


async def ask(
    directory: Path,
    scripts: Mapping[str, Sequence[Answer]] | None = None,
    note: Callable[[str, Answer], object] = lambda _, __: None,
    first: Callable[[BatchStatus], object] = lambda _: None,
    **arguments: Any,
) -> BatchStatus:
    """One run. `first` is told the status when what was there is read."""
    reported: list[BatchStatus] = []

    def progress(status: BatchStatus) -> None:
        if not reported:
            first(status)
        reported.append(status)

    transport = RowTransport(scripts or {}, note)
    arguments = {"concurrency": 2, "stop_after": None, "max_tokens": 100, **arguments}
    async with Client(KEY, model="gpt-4o-mini", transport=transport, retry=RETRY, health=HEALTH) as client:
        with anyio.fail_after(20):
            return await run_batch(rows(), directory / OUT, client=client, progress=progress, **arguments)


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    status = await ask(tmp_path_factory.mktemp("world"))
    async with Client(KEY, model="gpt-4o-mini") as client:
        worst = client.quote("row-0", max_tokens=100).most
    assert worst is not None
    assert status.done == ROWS
    return World(status.spent / ROWS, worst)


# -- what is recorded --------------------------------------------------------------------------------------------------


async def record(directory: Path, world: World, scripts: Mapping[str, Sequence[Answer]], **arguments: Any) -> Recording:
    """Record one run, with what its requests are billed."""
    with recorded(directory) as recording:
        await ask(
            directory,
            scripts,
            lambda name, answer: recording.events.append(Sent(name, world.bill(answer))),
            **arguments,
        )
    return recording


RESET = broken(APIConnectionError("reset", kind="reset", maybe_billed=True))
TROUBLE: Mapping[str, Sequence[Answer]] = {
    "row-0": [refused(LOST), refused(503), refused(LOST)],
    "row-1": [refused(400)],
    "row-2": [RESET, refused(LOST)],
    "row-4": [refused(503), RESET],
    "row-5": [refused(LOST), RESET, refused(503)],
}


async def a_fresh_run(directory: Path, world: World) -> Recording:
    return await record(directory, world, TROUBLE)


async def a_run_that_is_stopped(directory: Path, world: World) -> Recording:
    """Ten failures of one kind in a row are three here: the rows stay pending, and their bills on record."""
    lost = {f"row-{number}": [refused(503), *[refused(LOST)] * 4] for number in range(1, ROWS)}
    return await record(directory, world, lost, stop_after=3)


async def a_run_that_goes_on(directory: Path, world: World) -> Recording:
    """After one that was stopped."""
    before = await a_run_that_is_stopped(directory, world)
    return carry(before, await record(directory, world, TROUBLE))


async def a_repair(directory: Path, world: World) -> Recording:
    """Damaged lines in the middle and at the end, damaged slots, and a repair that was killed."""
    before = await a_run_that_is_stopped(directory, world)
    out, slots = directory / OUT, directory / f"{OUT}.inflight"
    good = out.read_bytes()
    out.write_bytes(good + line(7)[:80] + b"\n" + line(8) + line(9) + b"\r\n" + line(10)[:-30])
    slots.write_bytes(slots.read_bytes() + b'{"key":"' + b" " * 247 + b"\n")
    (directory / f"{OUT}.repaired").write_bytes(b"half of a li")
    return carry(before, await record(directory, world, TROUBLE))


async def a_retry(directory: Path, world: World) -> Recording:
    """`--retry-failed`, with the failed lines here and there."""
    before = await record(directory, world, TROUBLE)
    return carry(
        before, await record(directory, world, {"row-0": [refused(LOST)], "row-1": [RESET]}, retry_failed=True)
    )


async def a_retry_of_the_last_line(directory: Path, world: World) -> Recording:
    """`--retry-failed`, where the only failed line is the last one and lacks its newline."""
    scripts = {f"row-{ROWS - 1}": [refused(LOST)] * 3}
    before = await record(directory, world, scripts, concurrency=1)
    out = directory / OUT
    out.write_bytes(out.read_bytes()[:-1])
    return carry(before, await record(directory, world, scripts, retry_failed=True))


async def line_ends_changed(directory: Path, world: World) -> Recording:
    """An editor wrote CRLF into both files."""
    before = await a_run_that_is_stopped(directory, world)
    for path in files_of(directory):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    return carry(before, await record(directory, world, TROUBLE))


def files_of(directory: Path) -> list[Path]:
    return list(directory.iterdir())


def carry(before: Recording, after: Recording) -> Recording:
    """What was billed before the recording counts too."""
    sent = [event for event in before.events if isinstance(event, Sent)]
    return Recording(after.start, [*sent, *after.events])


HISTORIES = (
    a_fresh_run,
    a_run_that_is_stopped,
    a_run_that_goes_on,
    a_repair,
    a_retry,
    a_retry_of_the_last_line,
    line_ends_changed,
)


# -- each crash --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize(
    "again", [{}, pytest.param({"retry_failed": True}, marks=pytest.mark.slow)], ids=["go on", "retry failed"]
)
@pytest.mark.parametrize("cuts", [0, pytest.param(None, marks=pytest.mark.slow)], ids=["whole writes", "torn writes"])
async def test_K1_K2_a_crash_at_any_moment(
    tmp_path: Path, world: World, history: Callable[[Path, World], Any], again: Mapping[str, Any], cuts: int | None
) -> None:
    directory = tmp_path / "recorded"
    directory.mkdir()
    recording = await history(directory, world)
    crashes = [crash for crash in recording.crashes() if cuts is None or crash[1] is None]
    assert len(crashes) > 20
    for number, (count, torn) in enumerate(crashes):
        state = recording.state(count, torn)
        place = tmp_path / str(number)
        place.mkdir()
        for name, content in state.items():
            (place / name).write_bytes(content)
        try:
            await go_on(place, state, recording.bills(count if torn is None else count - 1), again)
        except Exception as error:
            error.add_note(
                f"crash {number}: after {count} events, torn at {torn}: {recording.events[count - 1 : count]}"
            )
            raise


async def go_on(place: Path, state: State, bills: Sequence[Decimal], again: Mapping[str, Any]) -> None:
    """Go on from a state, and check that nothing is lost and nothing doubled."""
    kept = [each for each in whole_lines(state) if not (is_failed(each) and again)]
    asked: Counter[str] = Counter()
    begun: list[Decimal] = []
    status = await ask(
        place,
        note=lambda name, _: asked.update([name]),
        first=lambda status: begun.append(status.spent + status.unknown),
        **again,
    )
    assert begun[0] >= sum(bills), f"{sum(bills) - begun[0]} of {sum(bills)} forgotten"
    found = (place / OUT).read_bytes()
    lines = [json.loads(each.removeprefix(b"\xef\xbb\xbf")) for each in found.splitlines()]
    ids = Counter(each["custom_id"] for each in lines)
    assert set(ids.values()) == {1}
    assert {f"row-{number}" for number in range(ROWS)} <= ids.keys()
    answered = {json.loads(each)["custom_id"] for each in kept}
    assert asked.keys() == {f"row-{number}" for number in range(ROWS)} - answered
    assert set(asked.values()) <= {1}
    aside = (place / f"{OUT}.set-aside").read_bytes() if (place / f"{OUT}.set-aside").exists() else b""
    for each in state.get(OUT, b"").splitlines():
        dropped = again and is_failed(each + b"\n")
        assert dropped or not each.strip() or each in found or each in aside
    assert {path.name for path in files_of(place)} <= {OUT, f"{OUT}.set-aside"}
    last: list[Decimal] = []
    await ask(place, first=lambda status: last.append(status.spent + status.unknown))
    assert last == [status.spent + status.unknown]


def whole_lines(state: State) -> list[bytes]:
    """The good lines of the results, each with its newline."""
    lines = [each.rstrip(b"\r") + b"\n" for each in state.get(OUT, b"").split(b"\n")]
    return [each for each in lines if read_short_note(each) is not None]


def is_failed(content: bytes) -> bool:
    note = read_short_note(content.rstrip(b"\r\n") + b"\n")
    return note is not None and note.failed
