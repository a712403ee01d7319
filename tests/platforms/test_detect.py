"""The CPU platform takes effect by itself, and never in the place of one that works."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_cdsp.platforms import PLATFORM_CLASS, activate, detect


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing but the CPU is there and nobody chose anything."""
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    monkeypatch.setattr(detect, "accelerator_present", lambda: False)
    monkeypatch.setattr(detect, "sgl_kernel_has_cpu_ops", lambda: False)
    monkeypatch.setattr(detect, "other_platform_active", lambda: False)


def test_a_bare_machine_gets_the_platform() -> None:
    assert activate() == PLATFORM_CLASS
    assert activate() == PLATFORM_CLASS  # every process may ask more than once


@pytest.mark.parametrize(
    "better", ["accelerator_present", "sgl_kernel_has_cpu_ops", "other_platform_active"]
)
def test_a_better_platform_is_left_in_place(monkeypatch: pytest.MonkeyPatch, better: str) -> None:
    monkeypatch.setattr(detect, better, lambda: True)
    assert activate() is None


def test_an_explicit_choice_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert activate() is None
    monkeypatch.setenv("SGLANG_PLATFORM", "cdsp_cpu")
    monkeypatch.setattr(detect, "accelerator_present", lambda: True)
    assert activate() == PLATFORM_CLASS
    monkeypatch.setenv("SGLANG_PLATFORM", "another")
    assert activate() is None


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_devices_of_torch_count_as_accelerators(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(getattr(torch, device), "is_available", lambda: True)
    assert detect.accelerator_present()


@pytest.mark.parametrize(
    ("activation", "expected"),
    [(lambda: "vendor.Platform", True), (lambda: None, False), (lambda: 1 / 0, False)],
)
def test_only_a_plugin_that_activates_counts(
    monkeypatch: pytest.MonkeyPatch, activation: Any, expected: bool
) -> None:
    monkeypatch.undo()
    own = SimpleNamespace(name=detect.ENTRY_POINT_NAME, load=lambda: activate)
    other = SimpleNamespace(name="vendor", load=lambda: activation)
    monkeypatch.setattr(detect, "entry_points", lambda group: [own, other])
    assert detect.other_platform_active() is expected
