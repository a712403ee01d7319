"""What ``--cdsp`` refuses before a server starts, and with which remedy."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sglang_cdsp.args import TESTED_SGLANG_VERSIONS, CdspArgs, CdspConfigError
from sglang_cdsp.checks import (
    REFUSALS,
    check_transfer_backend,
    check_version,
    forced_settings,
    refusals,
)

GOOD: dict[str, Any] = {
    "disaggregation_mode": "prefill",
    "dp_size": 4,
    "speculative_algorithm": None,
    "pp_size": 1,
    "enable_dp_attention": False,
    "attn_cp_size": 1,
    "dcp_size": 1,
    "enable_lora": None,
    "lora_paths": None,
    "enable_multimodal": None,
    "enable_hierarchical_cache": False,
    "enable_pd_role_switch": False,
    "tokenizer_worker_num": 1,
    "nnodes": 1,
    "enable_mixed_chunk": False,
    "enable_return_hidden_states": False,
    "return_hidden_states_mode": None,
    "enable_return_routed_experts": False,
    "enable_return_indexer_topk": False,
}
# What a pool's server needs besides that is not refused.
UNREFUSED: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 0,
    "disaggregation_bootstrap_port": 0,
    "grpc_port": None,
    "page_size": None,
    "disaggregation_transfer_backend": "mooncake",
    "model_path": "some/model",
    "json_model_override_args": "{}",
    "revision": None,
}
CASES: list[tuple[dict[str, Any], str]] = [
    ({"disaggregation_mode": "null"}, "add --disaggregation-mode prefill"),
    ({"disaggregation_mode": "decode"}, "add --disaggregation-mode prefill"),
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
    ({"enable_return_hidden_states": True}, "remove --enable-return-hidden-states"),
    ({"return_hidden_states_mode": "last"}, "--return-hidden-states-mode"),
    ({"enable_return_routed_experts": True}, "remove --enable-return-routed-experts"),
    ({"enable_return_indexer_topk": True}, "--enable-return-indexer-topk"),
]


def server_args(**changed: Any) -> Any:
    return SimpleNamespace(**{**GOOD, **changed})


def test_a_pool_passes() -> None:
    assert refusals(server_args()) == []


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


def test_the_transfer_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    check_transfer_backend("nixl")
    with pytest.raises(CdspConfigError, match="set --disaggregation-transfer-backend nixl"):
        check_transfer_backend("mori")
    monkeypatch.setitem(sys.modules, "mooncake", ModuleType("mooncake"))
    monkeypatch.setitem(sys.modules, "mooncake.engine", ModuleType("mooncake.engine"))
    check_transfer_backend("mooncake")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ModuleNotFoundError("No module named 'mooncake'"), "install mooncake-transfer-engine"),
        (ImportError("libibverbs.so.1: cannot open shared object file"), "libibverbs1"),
    ],
)
def test_what_mooncake_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, error: ImportError, remedy: str
) -> None:
    def load(name: str) -> None:
        assert name == "mooncake.engine"
        raise error

    monkeypatch.setattr(importlib, "import_module", load)
    with pytest.raises(CdspConfigError) as caught:
        check_transfer_backend("mooncake")
    assert str(error) in str(caught.value)
    assert remedy in str(caught.value)
    assert "--disaggregation-transfer-backend nixl" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("SGLANG_MOONCAKE_SEND_AUX_TCP", "1"), ("SGLANG_MOONCAKE_CUSTOM_MEM_POOL", "NVLINK")],
)
def test_metadata_beside_mooncake_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setattr(importlib, "import_module", lambda name: None)
    monkeypatch.setenv(name, value)
    with pytest.raises(CdspConfigError, match=f"unset .*{name}"):
        check_transfer_backend("mooncake")


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
    assert forced_settings(CdspArgs()) == {
        "disable_radix_cache": True,
        "disable_overlap_schedule": True,
    }
