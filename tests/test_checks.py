"""What ``--cdsp`` refuses before a server starts, and with which remedy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sglang_cdsp.args import TESTED_SGLANG_VERSIONS, CdspArgs, CdspConfigError
from sglang_cdsp.checks import (
    REFUSALS,
    check_version,
    forced_settings,
    refusals,
)
from tests.server_options import GOOD, NEWER

CASES: list[tuple[dict[str, Any], str]] = [
    ({"disaggregation_mode": "decode"}, "remove --disaggregation-mode for one server"),
    ({"dp_size": 1}, "set --dp-size to the number of instances"),
    ({"speculative_algorithm": "EAGLE"}, "remove --speculative-algorithm"),
    ({"pp_size": 2}, "set --pp-size 1"),
    ({"enable_dp_attention": True}, "remove --enable-dp-attention"),
    ({"attn_cp_size": 2}, "remove --attn-cp-size"),
    ({"dcp_size": 2}, "--dcp-size"),
    ({"enable_lora": True}, "remove --enable-lora"),
    ({"lora_paths": ["a"]}, "--lora-paths"),
    ({"enable_multimodal": True}, "remove --enable-multimodal"),
    ({"enable_hierarchical_cache": True}, "remove --enable-hierarchical-cache"),
    ({"enable_pd_role_switch": True}, "remove --enable-pd-role-switch"),
    ({"tokenizer_worker_num": 2}, "set --tokenizer-worker-num 1"),
    ({"nnodes": 2}, "set --nnodes 1"),
    ({"enable_mixed_chunk": True}, "remove --enable-mixed-chunk"),
    ({"allow_auto_truncate": True}, "remove --allow-auto-truncate"),
    ({"enable_eplb": True}, "remove --enable-eplb"),
    ({"expert_distribution_recorder_mode": "stat"}, "--expert-distribution-recorder-mode"),
    ({"expert_balancedness_report_mode": "log"}, "--expert-balancedness-report-mode"),
    ({"enable_return_hidden_states": True}, "remove --enable-return-hidden-states"),
    ({"return_hidden_states_mode": "last"}, "--return-hidden-states-mode"),
    ({"enable_return_routed_experts": True}, "remove --enable-return-routed-experts"),
    ({"enable_return_indexer_topk": True}, "--enable-return-indexer-topk"),
    ({"disaggregation_enable_kv_checksum": True}, "remove --disaggregation-enable-kv-checksum"),
    ({"attn_dp_size": 2}, "--attn-dp-size, and set --dp-size"),
    (
        {"disaggregation_decode_allocation_policy": "prefill_complete"},
        "set --disaggregation-decode-allocation-policy early on both servers",
    ),
    ({"enable_kv_cache_sharding": True}, "remove --enable-kv-cache-sharding"),
    ({"enable_return_aux_hidden_states": True}, "--enable-return-aux-hidden-states"),
    ({"enable_watermark": True}, "remove --enable-watermark"),
]


def server_args(**changed: Any) -> Any:
    return SimpleNamespace(**{**GOOD, **changed})


@pytest.mark.parametrize("more", [{}, NEWER], ids=["0.5.21", "0.5.23"])
def test_a_pool_passes(more: dict[str, Any]) -> None:
    assert refusals(server_args(**more)) == []


# What one server does itself, or what only two servers can ask for.
NOT_IN_ONE_SERVER = (
    "disaggregation_enable_kv_checksum",
    "disaggregation_decode_allocation_policy",
    "enable_mixed_chunk",
)


@pytest.mark.parametrize("more", [{}, NEWER], ids=["0.5.21", "0.5.23"])
def test_one_server_passes(more: dict[str, Any]) -> None:
    assert refusals(server_args(disaggregation_mode="null", **more)) == []


@pytest.mark.parametrize(("changed", "remedy"), CASES, ids=lambda case: str(case))
def test_one_server_is_judged_by_what_it_does(changed: dict[str, Any], remedy: str) -> None:
    lines = refusals(server_args(**{"disaggregation_mode": "null", **changed}))
    if set(changed) & set(NOT_IN_ONE_SERVER):
        assert lines == []
    else:
        [line] = lines
        assert remedy in line


@pytest.mark.parametrize(("changed", "remedy"), CASES, ids=lambda case: str(case))
def test_a_refusal_names_its_remedy(changed: dict[str, Any], remedy: str) -> None:
    [line] = refusals(server_args(**changed))
    assert remedy in line
    assert "\n" not in line


def test_several_are_told_together() -> None:
    changed = {"pp_size": 2, "enable_lora": True, "dp_size": 1}
    lines = refusals(server_args(**changed))
    assert len(lines) == 3
    for flag in ("--pp-size", "--enable-lora", "--dp-size"):
        assert any(flag in line for line in lines)


def test_every_refusal_has_a_case_that_only_it_answers() -> None:
    answered = set()
    for changed, _ in CASES:
        applying = [r for r in REFUSALS if r.applies(server_args(**changed))]
        assert len(applying) == 1
        answered.add(applying[0].message)
    assert answered == {refused.message for refused in REFUSALS}
    assert all("--" in message for message in answered)


def test_tested_releases_pass_and_others_need_the_escape_flag() -> None:
    for version in TESTED_SGLANG_VERSIONS:
        check_version(CdspArgs(), version)
    with pytest.raises(CdspConfigError) as caught:
        check_version(CdspArgs(), "0.4.0")
    assert "sglang 0.4.0 was not tested" in str(caught.value)
    assert "--cdsp-any-sglang-version" in str(caught.value)
    assert all(version in str(caught.value) for version in TESTED_SGLANG_VERSIONS)
    check_version(CdspArgs(any_sglang_version=True), "0.4.0")


def test_settings_that_the_pool_decides() -> None:
    assert forced_settings("prefill", prefix_cache=False) == {
        "disable_radix_cache": True,
        "disable_overlap_schedule": True,
    }
    assert forced_settings("prefill", prefix_cache=True) == {"disable_overlap_schedule": True}


def test_one_server_keeps_its_prefix_cache_and_its_overlap() -> None:
    assert forced_settings("null", prefix_cache=False) == {}
