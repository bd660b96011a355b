"""Failover on real sockets: many calls, many faults, the primary gone for a while, and nothing lost or doubled.

The servers' own logs are the witnesses. The slow run has 2,000 calls, or as many as PIAPI_FAILOVER_CALLS says:
`PIAPI_FAILOVER_CALLS=10000 pytest --slow tests/test_failover_real.py`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from piapi_async import Attempt, Client, Health, Limits, Provider, Result, Retry
from piapi_async.testing import Cut, LocalServer, ReceivedRequest, random_faults

pytestmark = pytest.mark.anyio

CALLS = int(os.environ.get("PIAPI_FAILOVER_CALLS", "2000"))
FAULTS = 0.3
CONCURRENCY = 64
MODEL, THEIRS = "gpt-4o-mini", "vendor/gpt-4o-mini"

# With the defaults, three attempts of which 30 % fail would lose 1 call in 40, whatever the client does; and a retry
# budget of a tenth is there to refuse what these faults need. So that all calls can be answered, each may try 20 times
# (0.3²⁰ of them fail), a retry costs what a first attempt gives back, and only a provider that is gone, not one that
# fails now and then, opens the breaker (0.3¹⁶: never by chance). Waits are short because the test should be.
RETRY = Retry(20, base=0.01, cap=0.1, throttle_base=0.01, throttle_cap=0.1, budget=100_000, budget_ratio=1.0)
HEALTH = Health(failure_threshold=16, failure_ratio=0.95, open=0.1, open_cap=0.2)
LIMITS = Limits(ramp=0.02)

NEVER_ARRIVED = {"connect", "stale", "reset"}
"""How an attempt may end that a server has not seen: refused, or sent on a connection that the server had closed."""


def answering(name: str) -> LocalServer:
    def answer(messages: Any) -> str:
        return f"{name} answers {messages[-1]['content']}"

    return LocalServer(
        answer=answer, models=[THEIRS], faults=random_faults(FAULTS, seed=len(name)), api_key=f"sk-{name}-key"
    )


Seen = dict[int, tuple[str, ReceivedRequest]]
"""A call as the servers saw it: the number of the attempt, who got it, and what."""


def read_logs(servers: dict[str, LocalServer]) -> dict[str, Seen]:
    """What both servers saw of each prompt."""
    calls: dict[str, Seen] = defaultdict(dict)
    for name, server in servers.items():
        for request in server.requests:
            call = calls[request.headers["Idempotency-Key"]]
            number = int(request.headers["X-Attempt"])
            assert number not in call
            call[number] = (name, request)
    prompts: dict[str, Seen] = {}
    for call in calls.values():
        # A server that is closed while it reads a request has no body of it.
        bodies = [request.body for _, request in call.values() if request.body is not None]
        (prompt,) = {body["messages"][-1]["content"] for body in bodies}
        assert prompt not in prompts
        prompts[prompt] = call
    return prompts


def whole(request: ReceivedRequest) -> bool:
    """Whether the server sent its answer to the end."""
    return request.status == 200 and not isinstance(request.fault, Cut) and not request.disconnected


def check_attempts(attempts: tuple[Attempt, ...], seen: Seen) -> None:
    """What the client tells of a call is what the servers saw of it."""
    assert set(seen) <= set(range(1, len(attempts) + 1))
    for number, attempt in enumerate(attempts, 1):
        if number not in seen:
            assert (attempt.status, attempt.kind in NEVER_ARRIVED) == (None, True), attempt
            continue
        name, request = seen[number]
        assert attempt.provider == name
        if attempt.status is not None:
            assert attempt.status == request.status
        assert (attempt.kind == "ok") == whole(request), (attempt, request)


def check_requests(seen: Seen) -> None:
    """All attempts of a call ask the same: the same bytes at each provider, under its own name of the model."""
    for name, model in (("piapi", MODEL), ("backup", THEIRS)):
        requests = [request for provider, request in seen.values() if provider == name and request.body is not None]
        assert len({request.raw for request in requests}) <= 1
        assert all(request.body["model"] == model for request in requests)
        assert all(request.headers["Authorization"] == f"Bearer sk-{name}-key" for request in requests)


@pytest.mark.parametrize("calls", [500, pytest.param(CALLS, marks=pytest.mark.slow)])
async def test_nothing_is_lost_or_doubled_while_the_primary_dies_and_comes_back(calls: int) -> None:
    revived = 0  # requests that the primary had seen when it came back

    def is_back() -> bool:
        return bool(revived) and len(primary.requests) >= revived + CONCURRENCY

    def prompts() -> Iterator[str]:
        for index in count():
            # Not before the primary has its traffic back; the second bound is for a client that never returns to it.
            if (index >= calls and is_back()) or index >= 20 * calls:
                return
            yield f"question {index}"

    results: list[Result] = []
    async with answering("piapi") as primary, answering("backup") as backup:
        spare = Provider("backup", backup.base_url, backup.api_key, models={MODEL: THEIRS})
        options: dict[str, Any] = {"backups": [spare], "retry": RETRY, "health": HEALTH, "limits": LIMITS}
        async with (
            Client(primary.api_key, base_url=primary.base_url, model=MODEL, **options) as client,
            client.map(prompts(), concurrency=CONCURRENCY) as answers,
        ):
            async for result in answers:
                results.append(result)
                if len(results) == calls // 4:
                    await primary.close()
                elif len(results) == calls // 2:
                    revived = len(primary.requests)
                    await primary.start()
            assert is_back()
            statistics = client.statistics()

    # None lost: each prompt has one result, and that is an answer.
    assert sorted(result.index for result in results) == list(range(len(results)))
    assert [result.error for result in results if result.error is not None] == []
    assert (statistics.in_flight, statistics.queued) == (0, 0)

    log = read_logs({"piapi": primary, "backup": backup})
    assert set(log) == {f"question {result.index}" for result in results}
    for result in results:
        prompt, completion = f"question {result.index}", result.unwrap()
        seen, last = log[prompt], len(completion.attempts)
        assert completion.text == f"{completion.provider} answers {prompt}"
        check_attempts(completion.attempts, seen)
        check_requests(seen)
        # None doubled: of all its requests one was answered to the end, the last, and that is the answer.
        assert [number for number, (_, request) in seen.items() if whole(request)] == [last]
        assert seen[last][0] == completion.provider

    # The run was what it should be: faults all along, an outage in which the backup answered, and a return.
    kinds = {attempt.kind for result in results for attempt in result.unwrap().attempts}
    assert kinds >= {"ok", "connect", "status", "truncated body"}
    assert statistics.outcomes["ok"] == len(results)
    assert sum(map(len, log.values())) > len(results) * (1 + FAULTS)
