"""Policies beside the paper's: what is simulated, what is printed."""

import argparse

import numpy as np
import pytest

from bench.simulated import late, planner_load
from bench.simulated.beside_paper import Runs, add_flags, drawn
from sglang_cdsp.planner import PolicyOptions, PoolView, PromptView, make_policy
from sglang_cdsp.planner.problem import NO_LIMIT
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.metrics import ttfts
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.workload import poisson


@pytest.mark.parametrize("policy", ["cdsp", "single-chunk"])
@pytest.mark.parametrize("per_node", [8, 16])
def test_without_limits_the_simulator_is_a_queue_of_plans(policy: str, per_node: int) -> None:
    """What `planner_load` wants of it: planned at arrival, run as planned, nothing else."""
    setup = Setup(
        policy=policy,
        instances_per_node=per_node,
        kv_tokens=NO_LIMIT,
        decode_instances=0,
        improvement_rate=0.1,
    )
    requests = poisson("short", 4.0, 300, seed=3)
    planner = make_policy(policy, PolicyOptions(setup.model, setup.sp_sizes, improvement_rate=0.1))
    free_at, expected = [0.0] * setup.instances, []
    for request in requests:
        queue = tuple(max(0.0, t - request.arrival_s) for t in free_at)
        prompt = PromptView(request.rid, request.prompt_tokens)
        plan = planner.plan(prompt, PoolView(queue, None, per_node))
        assert plan is not None
        for i in plan.instances:
            free_at[i] = request.arrival_s + plan.ttft_s
        expected.append(plan.ttft_s)
    assert ttfts(simulate(setup, requests).records) == pytest.approx(expected)


def test_ratios_are_geometric_means_over_the_runs() -> None:
    paper = Runs("cdsp-paper", 0.1, np.array([[1.0, 2.0, 4.0, 1.0], [2.0, 4.0, 8.0, 1.0]]))
    mine = Runs("cdsp", 0.1, paper.figures * [[0.5], [2.0]])
    assert mine.ratios(paper).split("  ")[1] == f"1.000 +- {np.log(2) / 2**0.5:.3f}"
    assert Runs("cdsp", 0.1, mine.figures[:1]).ratios(paper) != ""
    assert Runs("x", 0.1, mine.figures[:1]).ratios(Runs("y", 0.1, paper.figures[:1])) == (
        "0.500  0.500  0.500  0.500"
    )


def test_loads_are_one_run_a_seed() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, policies="cdsp", seeds=2)
    args = parser.parse_args(["--requests", "5", "--workload", "short,long"])
    found = dict(drawn(args, {"short": (1.0, 2.0), "long": (0.5,)}))
    assert list(found) == ["short 1/s", "short 2/s", "long 0.5/s"]
    assert found["short 2/s"] == [poisson("short", 2.0, 5, seed) for seed in (0, 1)]
    chosen = parser.parse_args(["--requests", "5", "--workload", "long", "--rates", "3,4"])
    assert [name for name, _ in drawn(chosen, {})] == ["long 3/s", "long 4/s"]


@pytest.mark.parametrize("bench", [late, planner_load])
def test_every_policy_gets_a_line_beside_the_papers(
    bench: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--workload", "short", "--rates", "4", "--requests", "60", "--seeds", "2"]
    flags += ["--improvement-rates", "0.1,0.5", "--policy", "cdsp-paper,cdsp-late"]
    monkeypatch.setattr("sys.argv", ["bench", *flags])
    bench.main()
    head, paper, ours, *more = capsys.readouterr().out.splitlines()
    assert head.endswith("to cdsp-paper: P50, mean, P99, longest wait")
    assert paper.split()[:3] == ["short", "4/s", "cdsp-paper"]
    assert "+-" not in paper
    assert ours.split()[2] == "cdsp-late"
    assert ours.count("+-") == 4
    assert len(more) == (ours.split()[3] != "0.10"), "late's default rate, if another was better"
