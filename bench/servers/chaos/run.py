"""Runs a scenario on servers: sends its load, carries out its events, gathers the facts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.servers.chaos.answers import ask_stock, keep, kept, key_of
from bench.servers.chaos.disk import small_disk
from bench.servers.chaos.killer import resolved
from bench.servers.chaos.load import Question, Timed, questions_of, requests_of
from bench.servers.chaos.observed import Observed, Pool, References, probe_question
from bench.servers.chaos.record import Run, Strike
from bench.servers.chaos.scenario import Event, Scenario
from bench.servers.chaos.strikes import Striker
from bench.servers.storm_forms import CONTEXT_LENGTH
from sglang_cdsp.args import CACHE_VAR
from sglang_cdsp.engine.fault_orders import FOLDER_VAR
from sglang_cdsp.testing.stack import disaggregated, running, single

Say = Callable[[str], None]

EVENTS_AT_ONCE = 8

_ENVIRONMENT = {
    # Ranks that start keep two cores busy for longer than decode's patience with a prefill server.
    "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE": "20",
    # Mooncake's own default wants RDMA devices.
    "MOONCAKE_PROTOCOL": "tcp",
}


def load_of(scenario: Scenario) -> list[Timed]:
    """The scenario's requests."""
    return requests_of(
        scenario.load,
        instances=scenario.servers.instances,
        seed=scenario.seed,
        name=scenario.name,
    )


def questions_to(load: Sequence[Timed]) -> list[Question]:
    """What a load asks."""
    return [question for timed in load for question in questions_of(timed.job)]


def stock_answers(
    checkpoint: Path, questions: Sequence[Question], logs: Path, file: Path | None = None
) -> References:
    """What a stock server answers to these, and to ``probe_question``; it ends before.

    Args:
        checkpoint: of the model.
        questions: to ask.
        logs: of the server.
        file: where answers are kept; what is in it already is not asked again.
    """
    wanted = [probe_question(), *questions]
    there = kept(file) if file is not None else {}
    found = {q: there[key] for q in wanted if (key := key_of(q)) in there}
    lacking = [question for question in wanted if question not in found]
    if not lacking:
        return found
    deployment = single(checkpoint, flags=("--context-length", str(CONTEXT_LENGTH)))
    with running(deployment, logs) as stack:
        found.update(ask_stock(stack.url, lacking))
    if file is not None:
        keep(file, found)
    return found


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
        opened.enter_context(environment(faults))
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
    with (
        Observed(pool, scenario.servers.instances) as seen,
        ThreadPoolExecutor(scenario.load.at_once) as clients,
        ThreadPoolExecutor(EVENTS_AT_ONCE) as hands,
    ):
        begin_s = time.monotonic()
        events = resolved(scenario)
        strikes = [hands.submit(_at, begin_s, event, seen.striker, say) for event in events]
        asked = []
        for timed in load_of(scenario):
            time.sleep(max(0.0, begin_s + timed.at_s - time.monotonic()))
            asked.append(clients.submit(seen.ask, timed.kind, timed.job, references))
        done = [future.result() for future in strikes]
        outcomes = [future.result() for future in asked]
        say("all requests have ended; waiting for the seats and their slots")
        return seen.facts(scenario.checks, done, outcomes, references)


def _at(begin_s: float, event: Event, striker: Striker, say: Say) -> Strike:
    """Wait for an event's time and carry it out."""
    time.sleep(max(0.0, begin_s + event.at_s - time.monotonic()))
    say(f"[{time.monotonic() - begin_s:5.1f} s] {event.words}")
    strike = striker.strike(event)
    if strike.note:
        say(f"[{time.monotonic() - begin_s:5.1f} s] {event.words}: {strike.note}")
    return strike


@contextlib.contextmanager
def environment(faults: Path) -> Iterator[None]:
    """What servers that are started in the block inherit, for faults to be ordered in a folder.

    Latency models are kept beside the folder, not in the user's cache.
    """
    new = {name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()}
    new[FOLDER_VAR] = str(faults)
    new[CACHE_VAR] = os.environ.get(CACHE_VAR) or str(faults.parent / "cache")
    before = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
