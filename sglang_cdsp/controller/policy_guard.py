"""A policy whose faults cost nobody: one that raises, or whose plan is none, is replaced.

A policy may be anybody's code, and it runs in the controller, whose end is the server's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from sglang_cdsp.planner.errors import PlannerError
from sglang_cdsp.planner.plan_fault import plan_fault
from sglang_cdsp.planner.policies import Policy
from sglang_cdsp.planner.types import Considered, Plan, PoolView, PromptView

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class GuardedPolicy(Policy):
    """Asks one policy until that raises what it should not, and another one from then on.

    The second one learns of every prompt that waits, in the order of arrival. What it raises
    itself is not caught.
    """

    def __init__(self, policy: Policy, instead: Callable[[], Policy]) -> None:
        """``instead`` makes the policy that takes over; ``policy`` is the one in force."""
        self.policy = policy
        self.name = policy.name
        self._instead: Callable[[], Policy] | None = instead
        self._waiting: dict[str, tuple[PromptView, float]] = {}
        self.error = ""

    @property
    def replans(self) -> bool:  # type: ignore[override]
        return self.policy.replans

    @property
    def reuses(self) -> bool:  # type: ignore[override]
        return self.policy.reuses

    def _ask(self, question: Callable[[Policy], Answer]) -> Answer:
        try:
            return question(self.policy)
        except PlannerError:
            raise  # an answer
        except Exception as error:
            if self._instead is None:
                raise
            self._replace(self._instead, error)
            return question(self.policy)

    def _replace(self, instead: Callable[[], Policy], error: Exception) -> None:
        failed, self._instead = self.name, None
        self.policy = instead()
        self.name = self.policy.name
        self.error = f"policy {failed} raised {type(error).__name__}: {error}"
        logger.exception(
            "sglang-cdsp: %s; %s plans from now on: mend it, then restart the server",
            self.error,
            self.name,
        )
        for prompt, at_s in self._waiting.values():
            self.policy.arrive(prompt, at_s)

    def arrive(self, prompt: PromptView, now_s: float) -> None:
        self._ask(lambda policy: policy.arrive(prompt, now_s))
        self._waiting[prompt.rid] = (prompt, now_s)

    def take_back(self, prompt: PromptView, now_s: float) -> None:
        self._ask(lambda policy: policy.take_back(prompt, now_s))
        self._waiting[prompt.rid] = (prompt, now_s)

    def finish(self, rid: str, now_s: float) -> None:
        self._waiting.pop(rid, None)
        self._ask(lambda policy: policy.finish(rid, now_s))

    def step(self, pool: PoolView, now_s: float) -> list[tuple[str, Plan]]:
        plans = self._ask(lambda policy: self._sound(policy.step(pool, now_s), pool))
        for rid, _ in plans:
            self._waiting.pop(rid, None)
        return plans

    def waiting(self) -> tuple[str, ...]:
        return self._ask(lambda policy: policy.waiting())

    def _sound(self, plans: list[tuple[str, Plan]], pool: PoolView) -> list[tuple[str, Plan]]:
        """The plans of a policy, each sound and for a prompt that waits."""
        for rid, plan in plans:
            if rid not in self._waiting:
                raise ValueError(f"it planned {rid!r}, which does not wait")
            _refuse_fault(plan, self._waiting[rid][0], pool)
        return plans

    def check(self, prompt: PromptView, pool: PoolView) -> None:
        self._ask(lambda policy: policy.check(prompt, pool))

    def could_run(self, prompt: PromptView, pool: PoolView) -> bool:
        return self._ask(lambda policy: policy.could_run(prompt, pool))

    def plan(self, prompt: PromptView, pool: PoolView) -> Plan | None:
        return self._ask(lambda policy: policy.plan(prompt, pool))

    def replan(self, rest: PromptView, current: Plan, pool: PoolView) -> Plan | None:
        def ask(policy: Policy) -> Plan | None:
            plan = policy.replan(rest, current, pool)
            if plan is not None:
                _refuse_fault(plan, rest, pool)
            return plan

        return self._ask(ask)

    def explain(
        self, prompt: PromptView, pool: PoolView
    ) -> tuple[Plan | None, tuple[Considered, ...]]:
        return self._ask(lambda policy: policy.explain(prompt, pool))


def _refuse_fault(plan: Plan, prompt: PromptView, pool: PoolView) -> None:
    fault = plan_fault(plan, prompt, pool)
    if fault:
        raise ValueError(f"it planned {fault}")
