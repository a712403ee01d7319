"""The emulated wrapper takes what FlashInfer's does, wherever its source is at hand.

FlashInfer is installed with SGLang on CUDA machines. ``SGLANG_CDSP_TEST_FLASHINFER`` names a
directory with its package, for a machine without.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch

from sglang_cdsp.attention.pacing import UNPACED
from sglang_cdsp.attention.paged_calls import own_calls
from sglang_cdsp.attention.paged_kernel import _arguments
from sglang_cdsp.attention.steps import LayerShape
from sglang_cdsp.testing.paged import BatchPrefillWithPagedKVCacheWrapper as Emulated

SOURCE = "prefill.py"
"""In the package ``flashinfer``."""

READ = {"0.6.18", "0.7.2"}
"""Releases whose wrapper, planner and Hopper kernel were read: what 0.5.21 and 0.5.23 pin."""


def test_the_installed_sglang_pins_a_flashinfer_that_was_read() -> None:
    """Red for another: read there what ``plan`` keeps and where, then add it."""
    wanted = [need for need in requires("sglang") or () if need.startswith("flashinfer")]
    pinned = {need.partition("==")[2].partition(";")[0].strip() for need in wanted}
    assert pinned <= READ
    assert pinned


def source() -> Path | None:
    """FlashInfer's prefill module, not imported; None where there is none."""
    if named := os.environ.get("SGLANG_CDSP_TEST_FLASHINFER"):
        return Path(named) / "flashinfer" / SOURCE
    spec = importlib.util.find_spec("flashinfer")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / SOURCE


@pytest.fixture(scope="module")
def methods() -> dict[str, list[str]]:
    """Names of arguments by method; of overloads the last, which is the method itself."""
    path = source()
    if path is None:
        pytest.skip("FlashInfer is not installed")
    (wrapper,) = (
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == Emulated.__name__
    )
    return {
        node.name: [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
        for node in wrapper.body
        if isinstance(node, ast.FunctionDef)
    }


def test_it_has_the_arguments_that_are_passed(methods: dict[str, list[str]]) -> None:
    for name in ("__init__", "plan", "run", "reset_workspace_buffer"):
        ours = list(inspect.signature(getattr(Emulated, name)).parameters)
        assert [argument for argument in ours if argument not in methods[name]] == []
    held = torch.arange(8, dtype=torch.int32)
    (call,) = own_calls(3, 5, UNPACED, 1.0)
    planned = _arguments(call, held, LayerShape(1, 2, 64, 64, 2), torch.bfloat16, 0.1)
    for name in ("plan", "workspace_size"):
        assert set(planned) <= set(methods[name])


def test_its_log_sum_exp_has_base_2_by_default(methods: dict[str, list[str]]) -> None:
    """Where the base can be chosen, nothing else is the default."""
    path = source()
    assert path is not None
    if "lse_base" in methods["run"]:
        assert 'lse_base: str = "log2"' in path.read_text(encoding="utf-8")
