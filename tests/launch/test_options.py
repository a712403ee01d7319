"""Values and files of the ``--cdsp`` flags are checked against the pool before it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_cdsp.args import CACHE_VAR, CdspArgs
from sglang_cdsp.launch.options import problems, try_to_append
from sglang_cdsp.planner import Coefficients, LatencyModel

ROW = {"a": 0.01, "b": 1e-4, "c": 1e-9, "d": 1e-9}
GOOD_MODEL = {"sp": {"1": ROW, "4": ROW}}
GOOD_RATES = {"0.5": 0.3, "2": 0.1}


def found(
    cdsp: CdspArgs, *, dp_size: int = 4, page_size: int | None = None, form: str = "prefill"
) -> list[str]:
    mode = {"disaggregation_mode": form}
    lines = problems(cdsp, SimpleNamespace(dp_size=dp_size, page_size=page_size, **mode))
    assert all(line and "\n" not in line for line in lines)
    return lines


def one(cdsp: CdspArgs, **pool: Any) -> str:
    [line] = found(cdsp, **pool)
    return line


def written(path: Path, content: Any) -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_good_command_line(tmp_path: Path) -> None:
    cdsp = CdspArgs(
        sp_sizes=(1, 2, 4),
        instances_per_node=2,
        min_chunk=64,
        latency_model=written(tmp_path / "model.json", GOOD_MODEL),
        improvement_rates=written(tmp_path / "rates.json", GOOD_RATES),
        plan_log=str(tmp_path / "new" / "plans.jsonl"),
    )
    assert found(cdsp, page_size=64) == []
    assert found(CdspArgs()) == []


# -- numbers --------------------------------------------------------------------------------


def test_sizes_beyond_the_pool() -> None:
    line = one(CdspArgs(sp_sizes=(2, 8, 16)))
    assert "--cdsp-sp-sizes [8, 16] exceed the pool of 4" in line
    assert "lower them or raise --dp-size" in line


@pytest.mark.parametrize(
    ("cdsp", "says"),
    [
        (CdspArgs(roles="6p2d"), "gives roles to 8 instances, the pool has 4"),
        (CdspArgs(roles="2p2d", policy="fixed-sp:4"), "exceed the 2 that --cdsp-roles 2p2d"),
    ],
)
def test_roles_that_do_not_fit_the_pool(cdsp: CdspArgs, says: str) -> None:
    line = one(cdsp, form="null")
    assert says in line
    assert line.startswith(("--cdsp-roles", "--cdsp-policy"))


def test_roles_of_the_pool_pass() -> None:
    assert found(CdspArgs(roles="2p1d1b"), form="null") == []


def test_nodes_that_do_not_divide_the_pool() -> None:
    assert "--cdsp-instances-per-node 3 does not divide the pool of 4" in one(
        CdspArgs(instances_per_node=3)
    )


def test_chunks_below_a_page() -> None:
    line = one(CdspArgs(min_chunk=32), page_size=64)
    assert "--cdsp-min-chunk 32 is less than a page of 64 tokens" in line
    assert found(CdspArgs(min_chunk=64), page_size=64) == []
    assert found(CdspArgs(), page_size=1024) == [], "the default means nothing by itself"


# -- policies -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "instances", "remedy"),
    [
        ("fixed-sp:3", 2, "groups of 3 instances exceed the pool of 2; lower it"),
        ("fixed-sp:5", 4, "raise --dp-size"),
    ],
)
def test_a_policy_larger_than_the_pool(policy: str, instances: int, remedy: str) -> None:
    line = one(CdspArgs(policy=policy), dp_size=instances)
    assert f"--cdsp-policy {policy}" in line
    assert remedy in line


@pytest.mark.parametrize("policy", ["data-parallel", "threshold:100", "fixed-sp:1"])
def test_a_policy_that_needs_a_size_which_is_not_measured(policy: str) -> None:
    line = one(CdspArgs(policy=policy, sp_sizes=(2, 4)))
    assert f"--cdsp-policy {policy} needs SP size 1" in line
    assert "add 1 to --cdsp-sp-sizes" in line
    assert found(CdspArgs(policy=policy)) == []


@pytest.mark.parametrize(
    ("policy", "sp_sizes", "missing"),
    [
        ("cdsp", (), "[4]"),  # the default sizes go up to the pool
        ("cdsp", (1, 2), ""),
        ("fixed-sp:3", (1, 2), "[3]"),
        ("threshold:9", (1, 2), "[4]"),  # the whole pool
        ("data-parallel", (1, 2), ""),
    ],
)
def test_a_latency_model_that_lacks_sizes(
    tmp_path: Path, policy: str, sp_sizes: tuple[int, ...], missing: str
) -> None:
    path = written(tmp_path / "model.json", {"sp": {"1": ROW, "2": ROW}})
    lines = found(CdspArgs(policy=policy, sp_sizes=sp_sizes, latency_model=path))
    if not missing:
        assert lines == []
        return
    [line] = lines
    assert f"--cdsp-latency-model {path} covers SP sizes 1 to 2" in line
    assert f"need {missing}" in line


def test_a_policy_from_outside_is_tried(tmp_path: Path) -> None:
    text = "from sglang_cdsp.planner.policies.rivals import DataParallel as Base\n"
    name = written(
        tmp_path / "mine.py", text + "class Mine(Base): ...\nclass Other(Base):\n    step = 5\n"
    )
    assert found(CdspArgs(policy=f"{name}:Mine")) == []
    line = one(CdspArgs(policy=f"{name}:Other"))
    assert line.startswith(f"--cdsp-policy {name}:Other: planning 1 tokens on an idle pool raised ")


# -- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "line 1: not JSON"),
        ("[]", 'an object with a key "sp"'),
        ('{"sp": {}}', "no SP size"),
        ('{"sp": {"one": {}}}', "SP sizes are integers"),
        ('{"sp": {"1": {"a": 1, "b": -1, "c": 0, "d": 0}}}', "coefficient b is -1"),
        ('{"sp": {"1": {"a": 1e999, "b": 1, "c": 0, "d": 0}}}', "coefficient a is inf"),
        (f'{{"sp": {{"1": {{"a": {"9" * 400}, "b": 1, "c": 0, "d": 0}}}}}}', "too large"),
        ("9" * 5000, "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_malformed_latency_model(tmp_path: Path, content: str, says: str) -> None:
    path = written(tmp_path / "model.json", content)
    line = one(CdspArgs(latency_model=path))
    assert f"--cdsp-latency-model {path}" in line
    assert says in line
    assert "leave the option out" in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("[]", "must map arrival rates"),
        ("{}", "must map arrival rates"),
        ('{"fast": 0.1}', "'fast' is not a number"),
        ('{"1": 1.5}', "it must be in [0, 1)"),
        (f'{{"1": {"9" * 400}}}', "give a finite number"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_malformed_rate_table(tmp_path: Path, content: str, says: str) -> None:
    path = written(tmp_path / "rates.json", content)
    line = one(CdspArgs(improvement_rates=path))
    assert "--cdsp-improvement-rates" in line
    assert path in line
    assert says in line
    assert "python -m sglang_cdsp tune" in line


@pytest.mark.parametrize("option", ["latency_model", "improvement_rates", "plan_log"])
def test_a_folder_is_no_file(tmp_path: Path, option: str) -> None:
    values: dict[str, Any] = {option: str(tmp_path)}
    line = one(CdspArgs(**values))
    assert "--cdsp-" + option.replace("_", "-") in line
    assert "Is a directory" in line


def test_a_plan_log_below_a_file(tmp_path: Path) -> None:
    written(tmp_path / "file", "")
    line = one(CdspArgs(plan_log=str(tmp_path / "file" / "plans.jsonl")))
    assert "--cdsp-plan-log" in line
    assert "name a file in a folder that you may write to" in line


def test_a_plan_log_where_nobody_may_write() -> None:
    line = one(CdspArgs(plan_log="/proc/plans.jsonl"))
    assert line.startswith("--cdsp-plan-log /proc/plans.jsonl cannot be written (")


def test_a_pipe_that_nobody_reads_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "--cdsp-plan-log" in one(CdspArgs(plan_log=str(tmp_path / "pipe")))


def test_trying_leaves_nothing_behind(tmp_path: Path) -> None:
    try_to_append(tmp_path / "a" / "b" / "plans.jsonl")
    assert list(tmp_path.iterdir()) == []
    kept = tmp_path / "old.jsonl"
    kept.write_text("{}\n")
    try_to_append(kept)
    assert kept.read_text() == "{}\n"


# -- all of it ------------------------------------------------------------------------------


def test_any_combination_of_mistakes_names_each(tmp_path: Path) -> None:
    """Every mistake has its line whatever else is wrong, and good values have none."""
    log = tmp_path / "log"
    written(log, "")
    wrong: dict[str, tuple[Any, str]] = {
        "policy": ("fixed-sp:7", "--cdsp-policy fixed-sp:7"),
        "sp_sizes": ((1, 8), "--cdsp-sp-sizes [8]"),
        "min_chunk": (8, "--cdsp-min-chunk 8"),
        "instances_per_node": (3, "--cdsp-instances-per-node 3"),
        "latency_model": (written(tmp_path / "m", "{}"), "--cdsp-latency-model"),
        "improvement_rates": (written(tmp_path / "r", "{}"), "--cdsp-improvement-rates"),
        "plan_log": (str(log / "plans.jsonl"), "--cdsp-plan-log"),
    }
    good = {
        "latency_model": written(tmp_path / "good", GOOD_MODEL),
        "improvement_rates": written(tmp_path / "table", GOOD_RATES),
        "plan_log": str(tmp_path / "plans.jsonl"),
        "instances_per_node": 2,
    }

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sets(st.sampled_from(sorted(wrong))), st.sets(st.sampled_from(sorted(good))))
    def check(mistakes: set[str], given_well: set[str]) -> None:
        values: dict[str, Any] = {name: good[name] for name in given_well}
        values |= {name: wrong[name][0] for name in mistakes}
        lines = found(CdspArgs(**values), page_size=16)
        assert len(lines) == len(mistakes)
        for name in mistakes:
            assert sum(wrong[name][1] in line for line in lines) == 1

    check()


def test_the_checks_load_neither_torch_nor_numba() -> None:
    """They run in the launching process of every server, before the heavy imports."""
    code = (
        "import sys, sglang_cdsp.launch.options, sglang_cdsp.launch.ports\n"
        "assert not {'torch', 'numba', 'numpy', 'sglang'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_saved_model_passes(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    LatencyModel(tuple((s, Coefficients(**ROW)) for s in (1, 2, 4))).save(path)
    assert found(CdspArgs(latency_model=str(path))) == []


def test_a_prefix_cache_of_its_own_is_for_a_prefill_server() -> None:
    assert found(CdspArgs(prefix_cache=True)) == []
    line = one(CdspArgs(prefix_cache=True), form="null")
    assert "prefixes are reused anyway; remove it" in line


# -- kept latency models --------------------------------------------------------------------


def test_a_folder_for_kept_models_that_is_not_there_yet(tmp_path: Path) -> None:
    assert found(CdspArgs(cache=str(tmp_path / "new" / "folder"))) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stated", [True, False])
def test_a_folder_for_kept_models_that_cannot_be(
    stated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "inside")
    monkeypatch.setenv(CACHE_VAR, "" if stated else folder)
    line = one(CdspArgs(cache=folder if stated else None))
    assert line.startswith(f"{'--cdsp-cache' if stated else CACHE_VAR} {folder}: ")
    assert "name a folder" in line


def test_nothing_is_measured_anew_where_a_model_is_given(tmp_path: Path) -> None:
    path = written(tmp_path / "model.json", GOOD_MODEL)
    assert "remove one of them" in one(CdspArgs(latency_model=path, measure_anew=True))
    assert found(CdspArgs(measure_anew=True)) == []
