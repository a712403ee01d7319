"""A request on its way through the simulated system."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sglang_cdsp.planner.types import Plan, PlannedChunk
from sglang_cdsp.simulator.errors import SetupError
from sglang_cdsp.simulator.types import Record, Request, TokenGaps


@dataclass(slots=True, eq=False)
class Task:
    """One request's state; what `Record` names alike means the same.

    Attributes:
        order: position among the arrivals.
        plan: None until bound. seq: position among the bound. chunk: the one that runs or is next.
        expected_s: when the pool believes its last chunk will end; late_s: by how much chunks
            before it moved that since it was bound.
        joins: per instance of the plan, the chunk at which it comes in.
        missing: per chunk, new members still busy with earlier tasks.
        own_s: what its plan takes when nobody passes it. delayed_s: by how much those that pass
            delay it, as far as is known.
        stood_s: per chunk that ran, how long it stood still.
        slowed_s: per chunk that ran, how much longer it took beside decode.
        keeps: before decode instances, its home ends with all of its prompt.
        slots: KV slots held or promised, per prefill instance.
        unsent: ended chunks whose KV waits for decode's slots. in_flight: chunks on the way.
        decode_slots: KV slots held at decode.
        replanned: how often its rest got another plan.
        first_run, last_iteration: where its tokens begin and end in its decode batch's runs.
    """

    request: Request
    order: int
    plan: Plan | None = None
    bound_s: float | None = None
    seq: int = -1
    chunk: int = 0
    running: bool = False
    expected_s: float = 0.0
    late_s: float = 0.0
    joins: Mapping[int, int] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    ran: list[PlannedChunk] = field(default_factory=list)
    own_s: float = 0.0
    delayed_s: float = 0.0
    stood_s: list[float] = field(default_factory=list)
    slowed_s: list[float] = field(default_factory=list)
    keeps: bool = False
    slots: Mapping[int, int] = field(default_factory=dict)
    first_token_s: float | None = None
    unsent: list[PlannedChunk] = field(default_factory=list)
    in_flight: int = 0
    transferred_s: float | None = None
    decode_instance: int | None = None
    decode_slots: int = 0
    decode_s: float | None = None
    first_run: int = 0
    last_iteration: int = 0
    end_s: float | None = None
    token_gaps_s: TokenGaps = ()
    error: str = ""
    replanned: int = 0

    @property
    def rid(self) -> str:
        return self.request.rid

    @property
    def total_tokens(self) -> int:
        """KV slots that decode needs for it from the first token to the last."""
        return self.request.prompt_tokens + self.request.output_tokens

    def record(self) -> Record:
        """What became of it."""
        return Record(
            request=self.request,
            bound_s=self.bound_s,
            chunks=tuple(self.ran),
            first_token_s=self.first_token_s,
            transferred_s=self.transferred_s,
            decode_instance=self.decode_instance,
            decode_s=self.decode_s,
            end_s=self.end_s,
            token_gaps_s=self.token_gaps_s,
            error=self.error,
            passed=self.plan is not None and self.plan.passes,
            stood_s=tuple(self.stood_s) if any(self.stood_s) else (),
            replanned=self.replanned,
            reused=self.plan.reused if self.plan is not None else 0,
            cached=self.plan.cached if self.plan is not None else 0,
        )


def make_tasks(requests: Iterable[Request]) -> tuple[Task, ...]:
    """A task per request, in order of arrival; those of one moment in the order given.

    Raises:
        SetupError: two requests have one id, or a request has no tokens.
    """
    ordered = sorted(requests, key=lambda request: request.arrival_s)
    seen: set[str] = set()
    for request in ordered:
        if request.rid in seen:
            raise SetupError(f"two requests have the id {request.rid}; give each its own")
        seen.add(request.rid)
        if min(request.prompt_tokens, request.output_tokens) < 1 or not request.arrival_s >= 0:
            raise SetupError(
                f"request {request.rid}: give at least one prompt and one output token, and an "
                "arrival at or after 0 s"
            )
    return tuple(Task(request, order) for order, request in enumerate(ordered))
