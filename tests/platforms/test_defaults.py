"""Server arguments on the CPU platform: what is filled in, and what stays the user's."""

import importlib.util
import sys
from typing import Any

import pytest

from sglang_cdsp.platforms import defaults


class Arguments:
    """SGLang's server arguments as far as the platform looks at them, all left open."""

    def __init__(self, **given: Any):
        self.dtype = "auto"
        self.max_total_tokens = None
        self.context_length = None
        self.max_running_requests = None
        self.mem_fraction_static = None
        self.sampling_backend = None
        self.disable_overlap_schedule = False
        self.disaggregation_mode = "null"
        self.disaggregation_transfer_backend = "mooncake"
        self.disaggregation_decode_retraction_backup = None
        self.dp_size = 1
        vars(self).update(given)


def applied(**given: Any) -> Any:
    arguments = Arguments(**given)
    defaults.apply_cpu_defaults(arguments)
    return arguments


def test_open_arguments_are_filled_in() -> None:
    arguments = applied()
    assert arguments.dtype == "float32"
    assert arguments.max_total_tokens == defaults.DEFAULT_MAX_TOTAL_TOKENS
    assert arguments.sampling_backend == "pytorch"
    assert arguments.disable_overlap_schedule
    assert arguments.disaggregation_transfer_backend == "mooncake"  # not used in this mode


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "bfloat16"),
        ("max_total_tokens", 777),
        ("max_running_requests", 3),
        ("mem_fraction_static", 0.4),
        ("sampling_backend", "custom"),
    ],
)
def test_the_users_arguments_stay(name: str, value: Any) -> None:
    assert getattr(applied(**{name: value}), name) == value


def test_a_long_context_fits_the_default_pool() -> None:
    assert applied(context_length=200_000).max_total_tokens == 200_000


@pytest.mark.parametrize(
    ("installed", "flags", "asked", "expected"),
    [
        ({"nixl"}, [], "mooncake", "nixl"),
        ({"nixl", "mooncake"}, ["--disaggregation-mode", "prefill"], "mooncake", "nixl"),
        (set(), [], "mooncake", "mooncake"),
        ({"nixl"}, [], "fake", "fake"),
        ({"nixl"}, ["--disaggregation-transfer-backend", "mooncake"], "mooncake", "mooncake"),
        ({"nixl"}, ["--disaggregation-transfer-backend=mooncake"], "mooncake", "mooncake"),
    ],
)
def test_a_transfer_backend_left_open_is_one_that_runs_here(
    monkeypatch: pytest.MonkeyPatch,
    installed: set[str],
    flags: list[str],
    asked: str,
    expected: str,
) -> None:
    def find(name: str) -> object:
        return object() if name in installed else None

    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(sys, "argv", ["launch_server", *flags])
    arguments = applied(disaggregation_mode="prefill", disaggregation_transfer_backend=asked)
    assert arguments.disaggregation_transfer_backend == expected


@pytest.mark.parametrize(
    ("mode", "asked", "expected"),
    [
        ("decode", None, "cpu_tensor"),
        ("decode", "host_pool", "cpu_tensor"),
        ("decode", "none", "none"),
        ("prefill", None, None),
    ],
)
def test_decode_backs_retracted_requests_up_without_cuda(
    mode: str, asked: str | None, expected: str | None
) -> None:
    arguments = applied(disaggregation_mode=mode, disaggregation_decode_retraction_backup=asked)
    assert arguments.disaggregation_decode_retraction_backup == expected
