"""Runs a scenario on servers: sends its load, carries out its events, gathers the facts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import requests

from bench.servers.chaos.answers import StockAnswer, ask_stock, is_right
from bench.servers.chaos.disk import SmallDisk, small_disk
from bench.servers.chaos.killer import resolved
from bench.servers.chaos.load import (
    TOKENS,
    Question,
    Timed,
    ids_of,
    questions_of,
    requests_of,
)
from bench.servers.chaos.record import Outcome, Run, Strike, read_plans
from bench.servers.chaos.scenario import Event, Scenario
from bench.servers.chaos.seats import SeatWatch, deaths_of, decode_used, free_slots, seats_of
from bench.servers.chaos.strikes import Striker
from bench.servers.storm import CONTEXT_LENGTH, End, Job, ask
from sglang_cdsp.engine.fault_orders import FOLDER_VAR
from sglang_cdsp.testing.first_token import prompt_tokens
from sglang_cdsp.testing.stack import RunningStack, disaggregated, running, single

Say = Callable[[str], None]
References = Mapping[Question, StockAnswer]

PROBE_TOKENS = 130
EVENTS_AT_ONCE = 8

_ENVIRONMENT = {
    # Ranks that start keep two cores busy for longer than decode's patience with a prefill server.
    "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE": "20",
    # Mooncake's own default wants RDMA devices.
    "MOONCAKE_PROTOCOL": "tcp",
}


@dataclass(frozen=True)
class Pool:
    """A running pool with what a scenario needs of it.

    Attributes:
        stack: pool, decode and router.
        plan_log: of the pool.
        faults: the folder that its fault hook looks into.
        disk: the plan log's, None where it is not to be filled.
    """

    stack: RunningStack
    plan_log: Path
    faults: Path
    disk: SmallDisk | None = None


def probe_question() -> Question:
    """What every seat is asked at the end."""
    return Question(tuple(prompt_tokens(0, PROBE_TOKENS)), (("max_new_tokens", TOKENS),))


def load_of(scenario: Scenario) -> list[Timed]:
    """The scenario's requests."""
    return requests_of(
        scenario.load,
        instances=scenario.servers.instances,
        seed=scenario.seed,
        name=scenario.name,
    )


def references_of(checkpoint: Path, load: Sequence[Timed], logs: Path) -> References:
    """What a stock server answers to all of a load; it has ended when this returns."""
    questions = [question for timed in load for question in questions_of(timed.job)]
    deployment = single(checkpoint, flags=("--context-length", str(CONTEXT_LENGTH)))
    with running(deployment, logs) as stack:
        return ask_stock(stack.url, [probe_question(), *questions])


@contextlib.contextmanager
def pool_of(scenario: Scenario, checkpoint: Path, scratch: Path, say: Say) -> Iterator[Pool]:
    """Start the scenario's pool, decode and router; they end with the block."""
    servers = scenario.servers
    faults, logs = scratch / "faults", scratch / "log"
    faults.mkdir()
    logs.mkdir()
    with contextlib.ExitStack() as opened:
        disk = None
        if any(event.do == "full-disk" for event in resolved(scenario)):
            disk = opened.enter_context(small_disk(logs))
        deployment = disaggregated(
            checkpoint,
            prefill_flags=(
                *("--cdsp", "--dp-size", str(servers.instances), "--cdsp-allow-request-plans"),
                *("--cdsp-plan-log", str(logs / "plans.jsonl"), *servers.flags),
            ),
            flags=(
                *("--context-length", str(CONTEXT_LENGTH), "--tp-size", str(servers.tp)),
                *("--disaggregation-transfer-backend", servers.backend),
            ),
        )
        opened.enter_context(_environment({**_ENVIRONMENT, FOLDER_VAR: str(faults)}))
        stack = opened.enter_context(running(deployment, scratch / "servers", progress=say))
        yield Pool(stack, logs / "plans.jsonl", faults, disk)


def run(scenario: Scenario, pool: Pool, references: References, say: Say) -> Run:
    """Send the load, carry out the events, wait until all is quiet, and gather the facts.

    Args:
        scenario: what to do.
        pool: where; its seats are up.
        references: stock's answers to the load and to ``probe_question``.
        say: hears of each event.
    """
    url = pool.stack.urls["prefill"]
    before = free_slots(pool.stack)
    with SeatWatch(url) as watch, ThreadPoolExecutor(scenario.load.at_once) as clients:
        striker = Striker(pool.stack, watch, pool.faults, pool.disk)
        with ThreadPoolExecutor(EVENTS_AT_ONCE) as hands:
            begin_s = time.monotonic()
            strikes = [
                hands.submit(_at, begin_s, event, striker, say) for event in resolved(scenario)
            ]
            asked = _send(load_of(scenario), begin_s, clients, pool.stack, striker, references)
            done = [future.result() for future in strikes]
            outcomes = [future.result() for future in asked]
        say("all requests have ended; waiting for the seats and their slots")
        broken = _settle(scenario, pool.stack, watch, before)
        seats = seats_of(watch.status)
        health = requests.get(f"{url}/health_generate", timeout=60)
        up = [seat.seat for seat in seats if seat.state == "up"]
        after = {seat: _answers(pool.stack, scenario, seat, references) for seat in up}
        slots = free_slots(pool.stack)
        log = pool.plan_log
        return Run(
            outcomes=tuple(outcomes),
            plans=read_plans([*sorted(log.parent.glob(f"{log.name}.*")), log]),
            strikes=tuple(done),
            deaths=deaths_of(watch.status, watch.history),
            away=tuple(striker.away),
            unlogged=tuple(striker.unlogged),
            seats=seats,
            slots_before=before,
            slots_after=slots,
            decode_used=decode_used(pool.stack),
            after=after,
            health=(health.status_code, health.text),
            broken=tuple(broken),
        )


def _at(begin_s: float, event: Event, striker: Striker, say: Say) -> Strike:
    """Wait for an event's time and carry it out."""
    time.sleep(max(0.0, begin_s + event.at_s - time.monotonic()))
    say(f"[{time.monotonic() - begin_s:5.1f} s] {event.words}")
    strike = striker.strike(event)
    if strike.note:
        say(f"[{time.monotonic() - begin_s:5.1f} s] {event.words}: {strike.note}")
    return strike


def _send(
    load: Sequence[Timed],
    begin_s: float,
    clients: ThreadPoolExecutor,
    stack: RunningStack,
    striker: Striker,
    references: References,
) -> list[Future[Outcome]]:
    """Send requests at their times, as far as clients are free and there is a decode server."""
    sent = []
    for timed in load:
        time.sleep(max(0.0, begin_s + timed.at_s - time.monotonic()))
        sent.append(clients.submit(_outcome, stack, timed, striker, references))
    return sent


def _outcome(
    stack: RunningStack, timed: Timed, striker: Striker, references: References
) -> Outcome:
    # Without a decode server the router refuses everything, and nothing of the pool is tried.
    striker.decode_is_there.wait()
    sent_s = time.time()
    end = ask(stack, timed.job)
    job = timed.job
    return Outcome(
        rid=job.rid,
        ids=ids_of(job),
        kind=timed.kind,
        sent_s=sent_s,
        ended_s=time.time(),
        how=end.how,
        wanted=job.good,
        right=_right(job, end, references) if end.how == "answered" else None,
        words=end.words,
        status=end.status,
        left_s=end.seconds if end.how == "left" else 0.0,
    )


def _right(job: Job, end: End, references: References) -> bool:
    return all(
        is_right(references[question], tokens)
        for question, tokens in zip(questions_of(job), end.tokens, strict=True)
    )


def _settle(
    scenario: Scenario, stack: RunningStack, watch: SeatWatch, before: Mapping[int, int]
) -> list[str]:
    """Wait until seats are as they are to be and slots are free; what broke meanwhile."""
    checks = scenario.checks
    seats = range(scenario.servers.instances)
    watch.wait(
        {seat: "down" if seat in checks.down else "up" for seat in seats}, checks.back_within_s
    )
    wanted = {seat: free for seat, free in before.items() if seat not in checks.down}
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        free = free_slots(stack)
        all_free = all(free.get(seat) == slots for seat, slots in wanted.items())
        if all_free and not decode_used(stack):
            break
        time.sleep(0.2)
    return [
        f"{name} has ended: see {server.log}"
        for name, server in stack.servers.items()
        if not server.running()
    ]


def _answers(stack: RunningStack, scenario: Scenario, seat: int, references: References) -> bool:
    """Whether a new request on a seat gets stock's answer."""
    question = probe_question()
    job = Job(
        f"{scenario.name}-after-{seat}-{os.urandom(4).hex()}",
        (question.prompt,),
        ([(len(question.prompt), [seat])],),
        asks=dict(question.asks),
    )
    end = ask(stack, job)
    return end.how == "answered" and _right(job, end, references)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables that the servers inherit; those that are set already stay."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]
