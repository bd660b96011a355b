"""Outages, simulated: the real client in virtual time, with the outcomes that callers are promised."""

from __future__ import annotations

import asyncio
import math
from functools import cache

import pytest

from benchmarks import outage
from benchmarks.outage import BACKUP, PRIMARY, SCENARIOS, Report, Spell
from piapi_async import APIConnectionError, APITimeoutError, Health
from piapi_async.policy import Deadline

LONGEST_OPEN = Health().open_cap
BACKED_UP = sorted(set(SCENARIOS) - {"both"})


@cache
def ours(scenario: str, seed: int = outage.SEED) -> Report:
    return outage.simulate(SCENARIOS[scenario], seed)


@cache
def three_tries(scenario: str) -> Report:
    return outage.simulate_three_tries(SCENARIOS[scenario])


# -- what is promised --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scenario", BACKED_UP)
def test_with_a_healthy_backup_every_call_succeeds(scenario: str) -> None:
    report = ours(scenario)
    assert len(report.outcomes) > 5000
    assert report.failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["down", "drain"])
def test_a_dead_provider_gets_few_requests(scenario: str) -> None:
    report = ours(scenario)
    assert report.requests_per_call(PRIMARY) <= 0.02
    assert report.requests_per_call(PRIMARY) + report.requests_per_call(BACKUP) <= 1.1
    assert "open" in report.states


@pytest.mark.slow
def test_with_both_down_each_gets_a_request_a_call() -> None:
    report = ours("both")
    assert report.success < 0.01
    assert 1 <= report.requests_per_call(PRIMARY) <= 1.1
    assert report.requests_per_call(BACKUP) <= 1.1
    assert all(call.provider for call in report.outcomes if call.began >= report.healed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_traffic_is_back_soon_after_an_outage(seed: int) -> None:
    assert ours("down", seed).recovery <= LONGEST_OPEN + 5


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["errors-10", "errors-50", "flapping", "slow", "both"])
def test_traffic_is_back_soon_after_other_trouble(scenario: str) -> None:
    assert ours(scenario).recovery <= LONGEST_OPEN + 5


def test_a_few_errors_open_no_breaker() -> None:
    report = ours("errors-10")
    assert report.success >= 0.999
    assert report.states == {"closed"}
    assert report.requests_per_call(BACKUP) == pytest.approx(0.1, abs=0.02)


@pytest.mark.slow
def test_flapping() -> None:
    report = ours("flapping")
    assert report.success >= 0.995
    assert report.states == {"closed", "open", "half-open"}
    assert report.probes == 1


def test_slow_death_costs_a_call_one_timeout_and_little_more() -> None:
    assert ours("slow").p99 <= outage.PATIENCE * 1.5
    assert three_tries("slow").p99 > outage.PATIENCE * 3


@pytest.mark.slow
@pytest.mark.parametrize("backup", [False, True])
@pytest.mark.parametrize("seed", [outage.SEED, None])
def test_clients_that_start_at_once_do_not_retry_at_once(seed: int | None, backup: bool) -> None:
    herd = outage.restart(seed=seed, backup=backup)
    assert len(herd.retries) == 1000
    assert len(herd.slots) >= 5
    assert herd.crowding <= 3


@pytest.mark.slow
@pytest.mark.parametrize("scenario", BACKED_UP)
def test_the_usual_loop_does_worse(scenario: str) -> None:
    assert three_tries(scenario).success < ours(scenario).success
    assert three_tries(scenario).p99 > ours(scenario).p99 or scenario == "drain"  # there it gives up sooner


@pytest.mark.slow
def test_the_usual_loop_floods_a_dead_provider() -> None:
    assert three_tries("down").requests_per_call(PRIMARY) > 2.9
    assert outage.restart_three_tries().crowding > 3


@pytest.mark.slow
# -- the simulation itself ---------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_figures() -> None:
    assert outage.simulate(SCENARIOS["flapping"]) == ours("flapping")
    assert ours("down", 2) != ours("down", 3)


def test_time_jumps() -> None:
    async def day() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(100_000):
            await asyncio.gather(asyncio.sleep(86_400), asyncio.sleep(5))
        return loop.time() - began

    assert outage.run(day()) == pytest.approx(86_400)


def test_a_simulation_in_which_nothing_can_happen_ends() -> None:
    async def never() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        outage.run(never())


def test_spells() -> None:
    spells = [Spell(10, 20, refuses=True), Spell(30, 40, errors=1.0), Spell(50, 100, doubling=1.0)]

    sent: list[float] = []

    async def ask(at: float, patience: float = math.inf) -> tuple[int, float]:
        clock = asyncio.get_running_loop().time
        provider = outage.FakeProvider("x", spells, seed=1)
        await asyncio.sleep(at)
        exchange = await provider.answer(Deadline(at + patience), lambda: sent.append(clock()))
        return exchange.status, clock()

    status, at = outage.run(ask(0))
    assert status == 200
    assert 0.1 < at < 5
    with pytest.raises(APIConnectionError, match="refused"):
        outage.run(ask(15))
    with pytest.raises(APIConnectionError, match="broke"):
        outage.run(ask(9.99))
    assert outage.run(ask(35)) == (503, 35 + outage.ROUND_TRIP)
    with pytest.raises(APITimeoutError):
        outage.run(ask(60, patience=20))
    status, at = outage.run(ask(60))
    assert status == 200
    assert 100 < at < 105
    assert sent == [0, 9.99, 35, 60, 60]  # nothing is sent to one that refuses


def test_a_provider_that_never_heals_never_has_its_traffic_back() -> None:
    calls = [outage.Outcome(outage.HEALED + n, 1.0, BACKUP) for n in range(10)]
    assert Report(outage.HEALED, calls, {}).recovery == math.inf


@pytest.mark.slow
def test_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert outage.main(["--scenarios", "down"]) == 0
    _, _, row, *lines = capsys.readouterr().out.splitlines()
    assert row.split("|")[1].strip() == SCENARIOS["down"].name
    assert "| 100.00%" in row
    assert lines[-1].endswith("× the mean).")


def test_command_refuses_an_unknown_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        outage.main(["--scenarios", "down,sideways"])
    assert "unknown scenarios: sideways" in capsys.readouterr().err
