"""A running pool that is looked at: what was asked of it, and all facts when that is over."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from bench.servers.chaos.answers import StockAnswer, is_right
from bench.servers.chaos.checks import CLOCKS_S
from bench.servers.chaos.disk import SmallDisk
from bench.servers.chaos.load import TOKENS, Question, ids_of, questions_of
from bench.servers.chaos.record import Outcome, Run, Seat, Strike, read_plans
from bench.servers.chaos.scenario import Checks
from bench.servers.chaos.seats import SeatWatch, deaths_of, decode_used, free_slots, seats_of
from bench.servers.chaos.strikes import Striker
from bench.servers.storm_clients import End, ask
from bench.servers.storm_forms import DISAGGREGATED, StormForm
from bench.servers.storm_jobs import Job, demands_of
from sglang_cdsp.testing.first_token import prompt_tokens
from sglang_cdsp.testing.stack import RunningStack

References = Mapping[Question, StockAnswer]

PROBE_TOKENS = 130
SLOTS_WITHIN_S = 10.0
NOTICED_WITHIN_S = 30.0


@dataclass(frozen=True)
class Pool:
    """A running pool with what a scenario needs of it.

    Attributes:
        stack: pool, decode and router; in one server the pool alone.
        plan_log: of the pool.
        faults: the folder that its fault hook looks into.
        disk: the plan log's, None where it is not to be filled.
        form: of the pool.
    """

    stack: RunningStack
    plan_log: Path
    faults: Path
    disk: SmallDisk | None = None
    form: StormForm = DISAGGREGATED

    @property
    def url(self) -> str:
        """Of the server whose seats these are."""
        return self.stack.urls[self.form.asked]


def probe_question() -> Question:
    """What every seat is asked at the end."""
    return Question(tuple(prompt_tokens(0, PROBE_TOKENS)), (("max_new_tokens", TOKENS),))


class Observed:
    """A pool whose seats are watched while the block lasts.

    Attributes:
        watch, striker: of this pool.
    """

    def __init__(self, pool: Pool, instances: int) -> None:
        """``pool``'s seats are up and idle; earlier deaths are forgiven them."""
        self._pool = pool
        self._instances = instances
        self._forgive()
        self._since_s = time.time()
        self._before = free_slots(pool.stack, pool.form)
        self.watch = SeatWatch(pool.url)
        self.striker = Striker(
            pool.stack, self.watch, pool.faults, pool.disk, asked=pool.form.asked
        )

    def __enter__(self) -> Observed:
        self.watch.__enter__()
        return self

    def __exit__(self, *rest: object) -> None:
        self.watch.__exit__(*rest)

    def ask(self, kind: str, job: Job, references: References) -> Outcome:
        """Send a request to where clients do, once all servers are there, and wait for its end.

        Without a decode server the router refuses everything, and nothing of the pool would be
        tried.
        """
        self.striker.decode_is_there.wait()
        sent_s = time.time()
        end = ask(self._pool.stack, job, form=self._pool.form)
        return Outcome(
            rid=job.rid,
            ids=ids_of(job),
            kind=kind,
            sent_s=sent_s,
            ended_s=time.time(),
            how=end.how,
            wanted=job.good,
            right=_right(job, end, references) if end.how == "answered" else None,
            words=end.words,
            status=end.status,
            left_s=end.seconds if end.how == "left" else 0.0,
            demands=demands_of(job),
        )

    def facts(
        self,
        checks: Checks,
        strikes: Sequence[Strike],
        outcomes: Sequence[Outcome],
        references: References,
    ) -> Run:
        """Wait until seats are as they are to be and slots are free, and gather everything."""
        stack, log = self._pool.stack, self._pool.plan_log
        states = {s: "down" if s in checks.down else "up" for s in range(self._instances)}
        # A server that has ended comes to no state: what is waited for below says so at once.
        gone = [name for name, server in stack.servers.items() if not server.running()]
        if gone:
            raise RuntimeError(f"{', '.join(gone)} ended: see {stack.servers[gone[0]].log}")
        self._wait_for_notice(strikes)
        self.watch.wait(states, checks.back_within_s)
        seats = seats_of(self.watch.status)
        after = {seat.seat: self._answers(seat, references) for seat in seats if seat.state == "up"}
        self._wait_for_slots([seat for seat, state in states.items() if state == "up"])
        health = requests.get(f"{self._pool.url}/health_generate", timeout=60)
        return Run(
            outcomes=tuple(outcomes),
            plans=read_plans([*sorted(log.parent.glob(f"{log.name}.*")), log]),
            strikes=tuple(strikes),
            deaths=deaths_of(self.watch.status, self.watch.history, since_s=self._since_s),
            away=tuple(self.striker.away),
            unlogged=tuple(self.striker.unlogged),
            seats=seats,
            slots_before=self._before,
            slots_after=free_slots(stack, self._pool.form),
            decode_used=decode_used(stack, self._pool.form),
            after=after,
            health=health.status_code,
            degraded="sglang-cdsp: degraded" in self._log_text(),
            broken=tuple(
                f"{name} has ended: see {server.log}"
                for name, server in stack.servers.items()
                if not server.running()
            ),
        )

    def _log_text(self) -> str:
        """What the pool's server has said."""
        return self._pool.stack.servers[self._pool.form.asked].log_text()

    def _forgive(self) -> None:
        """Let earlier deaths not count for the restart limit: starting a seat says so."""
        body = {"seats": {str(seat): "start" for seat in range(self._instances)}}
        answer = requests.post(f"{self._pool.url}/cdsp/update", json=body, timeout=30)
        answer.raise_for_status()

    def _wait_for_notice(self, strikes: Sequence[Strike]) -> None:
        """Wait until the server tells of the deaths: before, all seats look as if they were up."""
        lasting = [
            strike
            for strike in strikes
            if strike.event.kind.deadly
            and not strike.note
            and not (strike.event.do == "stop" and strike.event.for_s is not None)
        ]
        deadline = time.monotonic() + NOTICED_WITHIN_S
        while time.monotonic() < deadline:
            deaths = deaths_of(self.watch.status, (), since_s=self._since_s)
            if all(
                any(d.seat == s.event.seat and d.at_s >= s.at_s - CLOCKS_S for d in deaths)
                for s in lasting
            ):
                return
            time.sleep(0.1)

    def _wait_for_slots(self, seats: Sequence[int]) -> None:
        deadline = time.monotonic() + SLOTS_WITHIN_S
        while time.monotonic() < deadline:
            free = free_slots(self._pool.stack, self._pool.form)
            all_free = all(free.get(seat) == self._before.get(seat) for seat in seats)
            if all_free and not decode_used(self._pool.stack, self._pool.form):
                return
            time.sleep(0.2)

    def _answers(self, seat: Seat, references: References) -> bool:
        """Whether a new request on a seat gets stock's answer."""
        question = probe_question()
        job = Job(
            f"after-{seat.seat}-{os.urandom(4).hex()}",
            (question.prompt,),
            ([(len(question.prompt), [seat.seat])],),
            asks=dict(question.asks),
        )
        end = ask(self._pool.stack, job)
        return end.how == "answered" and _right(job, end, references)


def _right(job: Job, end: End, references: References) -> bool:
    return all(
        is_right(references[question], tokens)
        for question, tokens in zip(questions_of(job), end.tokens, strict=True)
    )
