"""The pool's answers are stock SGLang's, for any plan."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.client import Client, Plan, difference, text_tokens
from tests.serving.conftest import INSTANCE_TOKENS, POOL_SIZE
from tests.serving.plans import Case, cases
from tests.serving.reference import TOLERANCE, Reference

CASES = cases(POOL_SIZE)
ALONE = [case for case in CASES if case.seed < 2]
"""What is asked for alone, too: all are among those that run eight at a time."""


@pytest.fixture(scope="module")
def reference(client: Client, checkpoint: Path) -> Iterator[Reference]:
    found = Reference(client, checkpoint)
    yield found
    print(f"\n{found.summary()}")


@pytest.mark.parametrize(("length", "way"), [(case.length, f"seed{case.seed}") for case in ALONE])
def test_forced_plan_alone(length: int, way: str, reference: Reference) -> None:
    case = next(case for case in ALONE if (case.length, f"seed{case.seed}") == (length, way))
    reference.check(case, reference.ask(case))


def test_forced_plans_eight_at_a_time(reference: Reference) -> None:
    reference.check_all(CASES)
    # Near ties are stock's own: they must stay rare, or the suite would compare little.
    assert reference.early_stops <= len(CASES) // 10


REST_PLANS: list[tuple[Plan, list[Plan]]] = [
    (
        [(900, [0]), (1200, [0, 1]), (1996, [0, 1])],
        [[(1100, [0, 2, 3]), (2096, [0, 2, 3])]],
    ),
    (
        [(700, [1]), (700, [1]), (2696, [1, 0])],
        [[(1, [1]), (3395, [1, 3])], [(3395, [1, 3, 0, 2])]],
    ),
    (
        [(2048, [2, 3]), (2048, [2, 3, 0, 1])],
        [[(1024, [2, 3]), (1024, [2, 3, 1])], [(1024, [2, 3])]],
    ),
]


@pytest.mark.parametrize(("plan", "rests"), REST_PLANS, ids=("other", "twice", "narrower"))
def test_a_rest_that_is_planned_anew(
    plan: Plan, rests: list[Plan], client: Client, reference: Reference, plan_log: Path
) -> None:
    """Tokens and log-probabilities are stock's, so decode has every page, and once."""
    case = Case(4096, 0, tuple((n, tuple(group)) for n, group in plan))
    seen = len(plan_log.read_text().splitlines())
    answer = client.pool(reference.prompt(case), {"plan": plan, "rests": rests})
    reference.check(case, answer)
    entry = json.loads(wait_logged(plan_log, seen + 1)[seen])
    assert [change["to"]["chunks"] for change in entry["replans"]] == [
        [[tokens, group] for tokens, group in rest] for rest in rests
    ]
    last = [(c["tokens"], c["instances"]) for c in entry["chunks"][-len(rests[-1]) :]]
    assert last == rests[-1]
    assert entry["outcome"] == "finished"


def wait_logged(plan_log: Path, count: int) -> list[str]:
    """The plan log's lines, once there are so many."""
    deadline = time.monotonic() + 20
    while len(lines := plan_log.read_text().splitlines()) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    return lines


def test_own_plans_on_a_burst(reference: Reference) -> None:
    reference.check_all(ALONE, plan=False, at_once=len(ALONE))


def test_longer_than_one_instance(client: Client, checkpoint: Path) -> None:
    prompt = text_tokens(checkpoint, INSTANCE_TOKENS + 1000, 7)
    stock = client.stock(prompt)
    difference(stock, client.pool(prompt), TOLERANCE)
    plan = [(6000, [2, 1]), (INSTANCE_TOKENS - 5000, [2, 1, 3])]
    difference(stock, client.pool(prompt, plan), TOLERANCE)
