"""A policy from outside plans a few prompts before a server starts with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_cdsp.launch.outside_policy import outside_problem

HEAD = """\
from dataclasses import replace
from sglang_cdsp.planner.policies.chunkwise import SingleChunk
class Mine(SingleChunk):
"""


def problem(tmp_path: Path, body: str, instances: int = 4) -> str | None:
    path = tmp_path / "mine.py"
    path.write_text(HEAD + body, encoding="utf-8")
    said = outside_problem(f"{path}:Mine", instances, (1, 2), 64)
    assert said is None or "\n" not in said
    return said


@pytest.mark.parametrize("instances", [1, 3, 40])
def test_a_sound_policy_starts(tmp_path: Path, instances: int) -> None:
    assert problem(tmp_path, "    pass", instances) is None


@pytest.mark.parametrize("name", ["cdsp", "fixed-sp:3", "nonsense"])
def test_policies_of_the_package_are_not_tried(name: str) -> None:
    assert outside_problem(name, 2, (1, 2), 1) is None


def test_one_that_keeps_a_prompt_waiting_may(tmp_path: Path) -> None:
    assert problem(tmp_path, "    def step(self, pool, now_s): return []") is None


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            "    def __init__(self, options): 1 / 0",
            "planning 1 tokens on an idle pool raised ZeroDivisionError: division by zero; mend it",
        ),
        (
            "    def arrive(self, prompt, now_s):\n        assert prompt.tokens < 500, 'a\\nb'\n"
            "        super().arrive(prompt, now_s)",
            "planning 500 tokens on an idle pool raised AssertionError: a b",
        ),
        (
            "    def step(self, pool, now_s):\n"
            "        plan = self.plan(self._waiting['prompt'], pool)\n"
            "        return [('prompt', replace(plan, chunks=plan.chunks * 2))]",
            "it planned 'prompt' as chunks of [1, 1] tokens, which has 1; mend it",
        ),
        (
            "    def step(self, pool, now_s):\n"
            "        return [('other', p) for _, p in super().step(pool, now_s)]",
            "it planned 'other', which does not wait; mend it",
        ),
    ],
    ids=["made", "arrive", "plan", "whom"],
)
def test_a_fault_is_told_before_the_start(tmp_path: Path, body: str, says: str) -> None:
    assert says in str(problem(tmp_path, body))
