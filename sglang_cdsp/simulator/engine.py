"""The simulation: discrete events over the production policies.

Everything of one moment happens before the policy is asked once, as the server reads all reports
before it plans. A run is a function of set-up and requests: same input, same output, to the byte.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from heapq import heappop

from sglang_cdsp.planner.correction import OnlineCorrection
from sglang_cdsp.planner.errors import PlannerError
from sglang_cdsp.planner.forced import timed_plan
from sglang_cdsp.planner.policies import Policy, make_policy
from sglang_cdsp.planner.types import Plan, PlannedChunk, PromptView
from sglang_cdsp.simulator.errors import InvariantError
from sglang_cdsp.simulator.events import Agenda
from sglang_cdsp.simulator.homes import Homes
from sglang_cdsp.simulator.keeping import Keeping, parts_to_send
from sglang_cdsp.simulator.links import Links
from sglang_cdsp.simulator.noise import make_noise
from sglang_cdsp.simulator.prefill import PrefillPool
from sglang_cdsp.simulator.prefixes import Prefixes
from sglang_cdsp.simulator.replanning import rebind, rest_of
from sglang_cdsp.simulator.result import Result
from sglang_cdsp.simulator.router import DecodeRouter
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.task import Task, make_tasks
from sglang_cdsp.simulator.types import Request
from sglang_cdsp.simulator.unified import UnifiedDecode

PROGRESS_EVERY = 512
AUDIT_EVERY = 256
Progress = Callable[[int, int], None]
"""`progress(ended, all)`, called every 512 ended requests and at the end."""

__all__ = ["Progress", "Result", "simulate"]


def simulate(
    setup: Setup,
    requests: Sequence[Request],
    *,
    progress: Progress | None = None,
    policy: Policy | None = None,
) -> Result:
    """Run the requests through the system to the last token.

    A request that can never fit ends as a failed record with the planner's words. `policy` takes
    the place of the set-up's (a scripted one, say).

    Raises:
        SetupError: two requests have one id, or a request has no tokens.
        InvariantError: the pool did what no pool can do.
        PlannerError: the planner does not take the set-up's options.
    """
    tasks = make_tasks(requests)
    prefixes = Prefixes(setup) if setup.prefix_cache else None
    options = setup.make_options()
    if prefixes is not None:
        options = replace(options, prefixes=prefixes.held)
    made = policy or make_policy(setup.policy, options)
    learner = None if policy else options.correction
    with _paused_collector():
        return _Run(setup, tasks, made, learner, progress, prefixes).run()


@contextmanager
def _paused_collector() -> Iterator[None]:
    """A run makes many objects, keeps them all, and none in circles: looking for circles among
    them would take a third of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Run:
    """One run's state: who is where, and the parts of the system."""

    def __init__(
        self,
        setup: Setup,
        tasks: tuple[Task, ...],
        policy: Policy,
        correction: OnlineCorrection | None,
        progress: Progress | None,
        prefixes: Prefixes | None,
    ) -> None:
        self._prefixes = prefixes
        self._setup, self._policy, self._progress = setup, policy, progress
        self._correction = correction
        self._agenda = agenda = Agenda()
        self._tasks = tasks
        noise = make_noise(setup.noise, setup.seed, len(tasks))
        self._pool = PrefillPool(setup, agenda, self, noise)
        self._links = Links(
            agenda, setup.send_bytes_per_s, setup.receive_bytes_per_s, self._arrived
        )
        self._unified: UnifiedDecode | None = None
        self._router: DecodeRouter | None = None
        self._homes: Homes | None = None
        if setup.one_server:
            self._homes = Homes(
                setup,
                setup.one_server,
                agenda,
                self._pool,
                self._links,
                self._end_in_pool,
                prefixes,
                lambda: len(self._waiting) + len(self._homeless),
            )
        elif setup.unified:
            self._unified = UnifiedDecode(setup, agenda, self._pool, self._links, self._end_in_pool)
        elif setup.decode_instances:
            self._router = DecodeRouter(setup, agenda, self._reserved, self._end)
        self._keeping: Keeping | None = None
        if prefixes is not None and not setup.one_server:
            self._keeping = Keeping(setup, self._pool, prefixes, reuses=policy.reuses)
        self._idle_pool = self._pool.view(0.0)
        self._longest_fit = 0
        # Where the requests that arrived are; those in `_reserving` wait for decode's slots.
        self._arrived_count = self._reserving = self._done = self._failed = 0
        self._waiting: dict[str, Task] = {}
        self._bound: set[Task] = set()
        # Plans for which there is no home yet, in the policy's order; each keeps its place.
        self._homeless: list[tuple[Task, Plan]] = []
        # Whether anything happened since the last step that a policy could act on.
        self._changed = False

    def run(self) -> Result:
        events, now, count = self._agenda.events, 0.0, 0
        if self._tasks:
            self._agenda.at(self._tasks[0].request.arrival_s, self._arrive, self._tasks[0])
        while events:
            now, _, act, what = heappop(events)
            act(now, what)
            count += 1
            if events and events[0][0] == now:
                continue
            if self._changed and (self._waiting or self._homeless):
                self._step(now)
            self._account(now, count)
        self._check_end(now)
        decode = self._homes or self._unified or self._router
        return Result(
            setup=self._setup,
            records=tuple(task.record() for task in self._tasks),
            end_s=max((task.end_s for task in self._tasks if task.end_s is not None), default=0.0),
            busy_s=tuple(self._pool.instances.busy_s),
            peak_slots=tuple(self._pool.peak_slots),
            decode_busy_s=decode.busy_s if decode else (),
            decode_peak_slots=tuple(self._router.peak_slots) if self._router else (),
            events=count,
            moved_tokens=self._homes.moved_tokens if self._homes else 0,
            reused_tokens=self._prefixes.reused_tokens if self._prefixes else 0,
            cached_tokens=self._prefixes.cached_tokens if self._prefixes else 0,
            evicted_blocks=self._prefixes.evicted_blocks if self._prefixes else 0,
            copied_tokens=self._prefixes.copied_tokens if self._prefixes else 0,
            hot_copies=self._prefixes.hot_copies if self._prefixes else 0,
        )

    # -- a request's way --------------------------------------------------------------------

    def _arrive(self, now: float, task: Task) -> None:
        following = task.order + 1
        if following < len(self._tasks):
            later = self._tasks[following]
            self._agenda.at(later.request.arrival_s, self._arrive, later)
        self._arrived_count += 1
        task.error = self._refusal(task)
        if task.error:
            self._failed += 1
            task.end_s = now
            self._report()
        elif self._router and self._setup.reserve_at_arrival:
            self._reserving += 1
            self._router.reserve(now, task)
        else:
            self._wait(now, task)

    def _refusal(self, task: Task) -> str:
        """Why the request can never run, "" if it can."""
        tokens = task.request.prompt_tokens
        if self._router and task.total_tokens > self._setup.decode_kv_tokens:
            return (
                f"prompt {task.rid}: prompt and output of {task.total_tokens} tokens do not fit a "
                f"decode instance of {self._setup.decode_kv_tokens} KV slots"
            )
        if self._homes and (refusal := self._homes.refusal(task)):
            return refusal
        # What fits an empty pool fits it also when it is shorter.
        if tokens > self._longest_fit:
            try:
                self._policy.check(PromptView(task.rid, tokens), self._idle_pool)
            except PlannerError as error:
                return str(error)
            self._longest_fit = tokens
        return ""

    def _wait(self, now: float, task: Task) -> None:
        self._changed = True
        self._waiting[task.rid] = task
        if self._prefixes is not None:
            self._prefixes.waits(task)
        self._policy.arrive(_prompt(task), now)

    def _step(self, now: float) -> None:
        """Ask the policy, and start what it starts."""
        self._changed = False
        while self._homeless:
            task, plan = self._homeless[0]
            # Its times are long over.
            view = self._pool.view(now)
            anew = replace(timed_plan(plan.placement, self._setup.model, view), policy=plan.policy)
            settled = self._settled(now, task, anew)
            if settled is None:
                return  # what comes behind it would take the room that it waits for
            del self._homeless[0]
            # Other instances may be free by now than when it was made.
            better = None
            if self._policy.replans:
                better = self._policy.replan(_prompt(task), settled, view)
            if not (better and self._settle(now, task, replace(better, replanned=""))):
                self._settle(now, task, settled)
        moved = False
        alone = True
        for rid, plan in self._policy.step(self._pool.view(now), now):
            waiting = self._waiting.pop(rid, None)
            if waiting is None:
                raise InvariantError(now, rid, "bound, but it was not waiting")
            # Who passes may do so on these instances at this moment, if all is as planned: one that
            # was bound a moment ago may stand behind those that are passed, with less to spare.
            stale = plan.passes and (moved or not (alone or self._pool.may_pass(now, plan)))
            alone = False
            if plan.reused:
                if self._homeless or stale or not self._settle(now, waiting, plan):
                    # Its holder has no room any more: planned anew, before those behind it.
                    self._waiting[rid] = waiting
                    self._policy.take_back(_prompt(waiting), now)
                    self._changed = True
                continue
            if self._homeless or stale or not self._settle(now, waiting, plan):
                self._homeless.append((waiting, plan))
                self._changed = self._changed or stale
                continue
            assert waiting.plan is not None
            moved = moved or set(waiting.plan.instances) != set(plan.instances)

    def _settle(self, now: float, task: Task, plan: Plan) -> bool:
        """Bind a plan; False if its home has not the room that it needs now."""
        settled = self._settled(now, task, plan)
        if settled is None:
            return False
        self._bound.add(task)
        if self._prefixes is not None:
            # Before its slots are promised: they may be those of other prefixes, not of its own.
            self._prefixes.bound(now, task, settled)
        self._pool.bind(now, task, settled)
        if self._prefixes is not None:
            self._prefixes.promised(now, task)
            arrives_s = self._prefixes.used(now, task, self._pool.view(now).queue_s)
            if arrives_s is not None:
                self._agenda.at(arrives_s, self._copied, arrives_s)
        return True

    def _copied(self, now: float, _: float) -> None:
        """A copy of what is asked for often has arrived."""
        assert self._prefixes is not None
        self._changed = True
        self._prefixes.copied(now)

    def _settled(self, now: float, task: Task, plan: Plan) -> Plan | None:
        """The plan as its home can carry it out; None while it has not the room."""
        if self._homes:
            return self._homes.settled(now, task, plan)
        return self._keeping.settled(task, plan) if self._keeping else plan

    def chunk_started(self, now: float, task: Task) -> None:
        """Its first chunk runs: decode is asked for room meanwhile (as the paper's handshake)."""
        if self._router and not task.chunk and task.decode_instance is None:
            self._router.reserve(now, task)
        assert task.plan is not None
        if self._homes and task.chunk == len(task.plan.chunks) - 1:
            self._homes.last_chunk_started(now, task)

    def _reserved(self, now: float, task: Task) -> None:
        if task.plan is None:
            self._reserving -= 1
            self._wait(now, task)
            return
        held_back, task.unsent = task.unsent, []
        for chunk in held_back:
            self._send(now, task, chunk)

    def chunk_ended(self, now: float, task: Task, chunk: PlannedChunk) -> None:
        """Its KV goes to decode; after the last chunk home has the first token."""
        self._changed = True
        if self._correction:
            assert task.plan is not None
            history = task.plan.reused + sum(before.tokens for before in task.ran[:-1])
            seconds = chunk.end_s - chunk.start_s - task.stood_s[-1] - task.slowed_s[-1]
            self._correction.observe(chunk.sp_size, history, chunk.tokens, seconds)
        assert task.plan is not None
        if task.chunk < len(task.plan.chunks):
            self._replan(now, task)
        else:
            task.first_token_s = now
            if self._homes:
                self._homes.place(now, task)
            elif self._unified:
                self._unified.place(now, task)
            elif not self._router:
                self._release(now, task)
                self._end_in_pool(now, task)
        if self._router:
            for part in parts_to_send(task.plan, chunk, first=task.chunk == 1):
                task.in_flight += 1
                if task.decode_instance is None:
                    task.unsent.append(part)
                else:
                    self._send(now, task, part)

    def _replan(self, now: float, task: Task) -> None:
        """Ask the policy whether the rest of the prompt should run otherwise."""
        if not self._policy.replans:
            return
        page = self._setup.page_size
        rest = rest_of(now, task, self._pool, page)
        plan = self._policy.replan(rest.prompt, rest.current, rest.pool)
        if plan is not None:
            rebind(now, task, self._pool, plan, page)

    def _send(self, now: float, task: Task, chunk: PlannedChunk) -> None:
        assert task.decode_instance is not None
        size = chunk.tokens * self._setup.kv_bytes_per_token
        self._links.start(now, task, size, chunk.instances, (task.decode_instance,))

    def _arrived(self, now: float, task: Task) -> None:
        """A transfer ended; with the last one every holder has drained and slots are released."""
        if self._homes:
            self._changed = True
            self._homes.arrived(now, task)
            return
        if self._unified:
            self._changed = True
            self._unified.arrived(now, task)
            return
        task.in_flight -= 1
        if task.in_flight or task.first_token_s is None:
            return
        assert self._router is not None
        task.transferred_s = now
        self._release(now, task)
        self._leave_pool(now, task)
        self._router.join(now, task)

    def _release(self, now: float, task: Task) -> None:
        """Its KV is at decode; what its home keeps of it gives way to whoever needs the slots."""
        self._pool.release(now, task)
        if self._keeping:
            self._keeping.sent(now, task)

    def _leave_pool(self, now: float, task: Task) -> None:
        """For the prefill server a request ends when its slots are released."""
        self._changed = True
        self._policy.finish(task.rid, now)

    def _end_in_pool(self, now: float, task: Task) -> None:
        self._leave_pool(now, task)
        self._end(now, task)

    def _end(self, now: float, task: Task) -> None:
        task.end_s = now
        self._bound.remove(task)
        self._done += 1
        self._report()

    # -- accounts ------------------------------------------------------------------------------

    def _report(self) -> None:
        over = self._done + self._failed
        if self._progress and (over % PROGRESS_EVERY == 0 or over == len(self._tasks)):
            self._progress(over, len(self._tasks))

    def _account(self, now: float, count: int) -> None:
        """Requests in = waiting + bound + done + failed; the policy knows the same waiting ones."""
        waiting = self._reserving + len(self._waiting) + len(self._homeless)
        here = waiting + len(self._bound) + self._done + self._failed
        if here != self._arrived_count:
            raise InvariantError(now, "-", f"{self._arrived_count} requests in, {here} accounted")
        if count % AUDIT_EVERY == 0 and set(self._policy.waiting()) != set(self._waiting):
            raise InvariantError(now, "-", "the policy's waiting requests are not the pool's")

    def _check_end(self, now: float) -> None:
        homeless = [task for task, _ in self._homeless]
        left = next(iter((*self._waiting.values(), *homeless, *self._bound)), None)
        if left is not None or self._reserving:
            rid = left.rid if left else "-"
            raise InvariantError(now, rid, "nothing will happen any more, and it has not ended")
        last = self._tasks[-1].rid if self._tasks else "-"
        self._pool.check_empty(now, last)
        if self._unified:
            self._unified.check_empty(now, last)
        if self._homes:
            self._homes.check_empty(now, last)
        if self._router:
            self._router.check_empty(now, last)


def _prompt(task: Task) -> PromptView:
    request = task.request
    return PromptView(request.rid, request.prompt_tokens, arrival_s=request.arrival_s)
