"""The requests of a scenario, stock's answers beside them, and lines of the plan log."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.servers.chaos.answers import (
    TIE,
    StockAnswer,
    is_right,
    keep,
    kept,
    key_of,
    stock_answer,
)
from bench.servers.chaos.load import Question, ids_of, questions_of, requests_of
from bench.servers.chaos.record import PlanLine, Planned, read_plans
from bench.servers.chaos.scenario import MIX, Load
from bench.servers.storm_jobs import Job, body_of


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1 << 31), st.integers(2, 6))
def test_a_load_has_what_was_asked_for(seed: int, instances: int) -> None:
    load = Load(seconds=200.0, rate=2.0, mix=dict.fromkeys(MIX, 1.0), stream=0.5, abort=0.3)
    jobs = requests_of(load, instances=instances, seed=seed, name="t")
    assert jobs == requests_of(load, instances=instances, seed=seed, name="t")
    assert {timed.kind for timed in jobs} == set(MIX)
    assert [timed.at_s for timed in jobs] == sorted(timed.at_s for timed in jobs)
    assert all(0 <= timed.at_s < load.seconds for timed in jobs)
    assert len({timed.job.rid for timed in jobs}) == len(jobs)
    for timed in jobs:
        job = timed.job
        assert (len(job.prompts) > 1) == (timed.kind == "batch")
        assert ("regex" in job.asks) == (timed.kind == "grammar")
        assert job.good == (job.leave_s is None)
        assert not job.disconnect or job.stream
        for prompt, plan in zip(job.prompts, job.plans, strict=True):
            assert (plan is not None) == (timed.kind == "shared")
            if plan is not None:
                assert sum(tokens for tokens, _ in plan) == len(prompt)
                groups = [set(group) for _, group in plan]
                assert groups[0] <= groups[1] <= set(range(instances))
                assert len(groups[1]) > 1


def test_kinds_without_weight_do_not_come() -> None:
    load = Load(seconds=100.0, rate=2.0, mix={"short": 1.0}, abort=0.0)
    jobs = requests_of(load, instances=4, seed=1, name="t")
    assert {timed.kind for timed in jobs} == {"short"}
    assert all(timed.job.good for timed in jobs)


def test_a_question_is_all_that_decides_an_answer() -> None:
    job = Job("r", ((1, 2), (3,)), (None, None), asks={"regex": "a*", "max_new_tokens": 24})
    first, second = questions_of(job)
    assert first.prompt == (1, 2)
    assert dict(first.asks) == dict(second.asks) == job.asks
    assert ids_of(job) == ("r_0", "r_1")
    assert ids_of(Job("r", ((1,),))) == ("r",)
    for sampling in body_of(job)["sampling_params"]:
        assert sampling["regex"] == "a*"
        assert sampling["max_new_tokens"] == 24


def test_an_answer_is_right_up_to_a_tie_of_stocks_own() -> None:
    stock = StockAnswer((5, 6, 7), (1.0, TIE / 2, 1.0))
    assert is_right(stock, (5, 6, 7))
    assert is_right(stock, (5, 9, 1))
    assert not is_right(stock, (4, 6, 7))
    assert not is_right(stock, (5, 6, 8))
    assert not is_right(stock, (5, 6))


def test_answers_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    first, second = (Question((n,), (("max_new_tokens", 4),)) for n in (1, 2))
    assert kept(path) == {}
    keep(path, {first: StockAnswer((7,), (0.5,))})
    keep(path, {second: StockAnswer((8,), (float("inf"),))})
    assert kept(path) == {
        key_of(first): StockAnswer((7,), (0.5,)),
        key_of(second): StockAnswer((8,), (float("inf"),)),
    }


def test_stocks_answer_is_read_with_its_margins() -> None:
    tops = [[[-0.5, 7, None], [-2.0, 8, None]], [[-0.1, 9, None]]]
    data = {"output_ids": [7, 9], "meta_info": {"output_top_logprobs": tops}}
    assert stock_answer(data) == StockAnswer((7, 9), (1.5, float("inf")))


def test_plan_logs_are_read_whatever_a_full_disk_left_of_them(tmp_path: Path) -> None:
    record = {
        "rid": "a",
        "arrival_unix_s": 100.0,
        "bound_s": 0.5,
        "chunks": [
            {"instances": [1], "end_s": 2.5},
            {"instances": [1, 0], "end_s": None},
        ],
        "outcome": "failed",
        "error": "instance 0 was lost",
    }
    path = tmp_path / "plans.jsonl"
    path.write_text(
        json.dumps(record)
        + "\n"
        + json.dumps({"kind": "seat", "seat": 1, "state": "up"})
        + "\n"
        + '{"rid": "torn", "chu\n',
        encoding="utf-8",
    )
    found = read_plans([path, tmp_path / "none"])
    chunks = (Planned((1,), 102.5), Planned((1, 0), None))
    assert found == {"a": PlanLine("a", 100.0, chunks, "failed", "instance 0 was lost", 100.5)}
    assert found["a"].touched(102.0) == {1}
    assert found["a"].touched(100.2) == frozenset()
    assert found["a"].touched(103.0) == {0, 1}
