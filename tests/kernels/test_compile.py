"""The kernels compile for NVIDIA GPUs, for which the compiler needs none."""

from __future__ import annotations

from typing import Any

import pytest
from sglang_cdsp.kernels import merge
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

TENSORS = {
    "_merge_states_kernel": ("outs", "lses", "out", "lse"),
    "_merge_into_kernel": ("out", "lse", "other_out", "other_lse"),
}
PARTS = ("outs", "other_out")  # the only tensors that are not float32 in every kernel


def compiled(name: str, dtype: str, dim: int, capability: int, numbers: dict[str, int]) -> Any:
    """Compile as at run time: aligned tensors, numbers that are 1 made constants."""
    kernel = getattr(merge, name)
    columns, rows = merge._tile(dim)
    constants = {"DIM": dim, "COLUMNS": columns, "ROWS": rows}
    constants |= {key: value for key, value in numbers.items() if value == 1}
    merged = dtype if name == "_merge_states_kernel" else "fp32"
    kinds = dict.fromkeys(TENSORS[name], "*fp32")
    kinds |= {tensor: f"*{dtype}" for tensor in TENSORS[name] if tensor in PARTS}
    kinds["out"] = f"*{merged}"
    kinds |= dict.fromkeys(numbers, "i32") | dict.fromkeys(constants, "constexpr")
    order = {argument: (place,) for place, argument in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel,
        {argument: kinds[argument] for argument in kernel.arg_names},
        {order[argument]: value for argument, value in constants.items()},
        {order[tensor]: [["tt.divisibility", 16]] for tensor in TENSORS[name]},
    )
    return compile(source, target=GPUTarget("cuda", capability, 32))


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", list(TENSORS))
def test_compiles_to_machine_code(name: str, dtype: str, capability: int) -> None:
    count = {"states": 3} if name == "_merge_states_kernel" else {}
    kernel = compiled(name, dtype, 128, capability, {**count, "rows": 4096})
    assert kernel.asm["cubin"]
    assert "ld.global.v4" in kernel.asm["ptx"], "rows are read 16 bytes at a time"


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("name", list(TENSORS))
@pytest.mark.parametrize("dim", [80, 100])
def test_single_rows_and_odd_head_dimensions_compile(name: str, dim: int) -> None:
    count = {"states": 1} if name == "_merge_states_kernel" else {}
    assert compiled(name, "bf16", dim, 90, {**count, "rows": 1}).asm["cubin"]
