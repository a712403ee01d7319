"""A policy from outside of the package is tried before a server starts with it."""

from __future__ import annotations

from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from sglang_cdsp.planner.plan_fault import plan_fault
from sglang_cdsp.planner.policies.options import PolicyOptions
from sglang_cdsp.planner.policies.outside import is_outside
from sglang_cdsp.planner.policies.registry import make_policy
from sglang_cdsp.planner.types import PoolView, PromptView

PROMPTS = (1, 500, 40_000)
"""Lengths that it plans, in tokens; each for an idle pool."""

SECOND_A_TOKEN = 1e-4
"""Of the latency model that it plans with: the real one is not known yet."""


def outside_problem(
    name: str, instances: int, sp_sizes: tuple[int, ...], page_size: int
) -> str | None:
    """What is wrong with the policy of that name in a pool of that size; None if nothing is.

    A policy of the package is not tried. One that keeps a prompt waiting is no problem.
    """
    if not is_outside(name):
        return None
    sizes = sorted({1, *sp_sizes, instances})
    rows = tuple((s, Coefficients(0.01, SECOND_A_TOKEN / s, 1e-9 / s, 1e-9 / s)) for s in sizes)
    pool = PoolView((0.0,) * instances, None, instances)
    try:
        for tokens in PROMPTS:
            options = PolicyOptions(LatencyModel(rows), sp_sizes, page_size)
            policy, prompt = make_policy(name, options), PromptView("prompt", tokens)
            policy.check(prompt, pool)
            policy.could_run(prompt, pool)
            policy.arrive(prompt, 0.0)
            for rid, plan in policy.step(pool, 0.0):
                fault = plan_fault(plan, prompt, pool)
                if rid != prompt.rid or fault:
                    return f"it planned {fault or f'{rid!r}, which does not wait'}; mend it"
            policy.finish(prompt.rid, 1.0)
    except Exception as error:  # it is anybody's code
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return f"planning {tokens} tokens on an idle pool raised {said}; mend it"
    return None
