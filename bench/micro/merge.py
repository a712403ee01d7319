"""How fast the Triton merge of attention states is, beside plain torch and FlashInfer.

Run on a CUDA machine: ``python -m bench.micro.merge [--output results.json]``. For each shape it
prints the median time of the Triton kernel, the share of the GPU's measured copy bandwidth that it
reaches, and the time of each rival as a multiple of it (above 1: Triton is faster). Results are
checked against the reference before anything is timed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sglang_cdsp.kernels.merge import merge_into, merge_states
from sglang_cdsp.kernels.merge_reference import merge_into_reference, merge_states_reference

from bench.gpu.environment import described
from bench.gpu.target import Target, copy_bandwidth, milliseconds, target_for
from sglang_cdsp.cli.outputs import OutputError, check_file
from sglang_cdsp.cli.parser import OneLineParser


@dataclass(frozen=True)
class Shape:
    """``states`` attention states of ``tokens`` tokens, ``heads`` heads of ``dim``."""

    states: int
    tokens: int
    heads: int
    dim: int


SHAPES = (
    Shape(2, 512, 32, 128),
    Shape(2, 4096, 32, 128),
    Shape(2, 32768, 32, 128),
    Shape(4, 4096, 32, 128),
    Shape(8, 4096, 32, 128),
    Shape(4, 4096, 64, 128),
    Shape(4, 4096, 32, 64),
    Shape(4, 4096, 32, 80),
)


def flashinfer_merge(
    outs: torch.Tensor, lses: torch.Tensor
) -> Callable[[], tuple[torch.Tensor, torch.Tensor]] | None:
    """Return FlashInfer's merge of the same states (base 2 there), if it is installed."""
    if importlib.util.find_spec("flashinfer") is None:
        return None
    flashinfer = importlib.import_module("flashinfer")
    base_2 = lses / math.log(2.0)
    if outs.shape[0] == 2:
        pair = (outs[0], base_2[0].contiguous(), outs[1], base_2[1].contiguous())
        return lambda: flashinfer.merge_state(*pair)
    values, logs = outs.transpose(0, 1).contiguous(), base_2.transpose(0, 1).contiguous()
    return lambda: flashinfer.merge_states(values, logs)


def measure(
    shape: Shape,
    dtype: torch.dtype,
    bandwidth: float,
    target: Target,
    *,
    with_flashinfer: bool = True,
) -> dict[str, Any]:
    """Check and time all merges of one shape.

    Args:
        shape, dtype: of the states.
        bandwidth: of a copy on the device, in bytes a millisecond.
        target: the device.
        with_flashinfer: beside FlashInfer's merge too, which it may have to compile for a minute.
    """
    draw = target.generator(0)
    size = (shape.states, shape.tokens, shape.heads)
    outs = torch.randn(*size, shape.dim, generator=draw, device=target.device).to(dtype)
    lses = torch.randn(size, generator=draw, device=target.device) * 5
    expected, _ = merge_states_reference(outs, lses)
    torch.testing.assert_close(merge_states(outs, lses)[0], expected, atol=2e-2, rtol=2e-2)

    ours = milliseconds(target, lambda: merge_states(outs, lses))
    # Every state read once, one written; a log-sum-exp is 4 bytes.
    row = shape.dim * outs.element_size() + 4
    moved = (shape.states + 1) * shape.tokens * shape.heads * row
    result: dict[str, Any] = {
        **asdict(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "ours_ms": ours,
        "of_copy_bandwidth": moved / ours / bandwidth,
        "torch_ratio": milliseconds(target, lambda: merge_states_reference(outs, lses)) / ours,
    }
    rival = flashinfer_merge(outs, lses) if target.cuda and with_flashinfer else None
    if rival is not None:
        torch.testing.assert_close(rival()[0], expected, atol=2e-2, rtol=2e-2)
        result["flashinfer_ratio"] = milliseconds(target, rival) / ours
    if shape.states == 2:
        running = outs[0].float(), lses[0].clone()
        into = milliseconds(target, lambda: merge_into(*running, outs[1], lses[1]))
        plain = milliseconds(target, lambda: merge_into_reference(*running, outs[1], lses[1]))
        result |= {"into_ms": into, "into_torch_ratio": plain / into}
    return result


def main() -> int:
    """Print a table; write JSON where asked."""
    parser = OneLineParser(
        prog="python -m bench.micro.merge", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--output", type=Path, help="write the results as JSON here")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "bench.micro.merge needs a CUDA device and a CUDA build of torch; there is none "
            "here, and times of interpreted kernels would mean nothing.",
            file=sys.stderr,
        )
        return 2
    try:
        check_file(options.output, "--output")
    except OutputError as error:
        parser.error(str(error))
    target = target_for(dry_run=False)
    about = described(target)
    print("  ".join(f"{name} {version}" for name, version in about.items()))
    bandwidth = copy_bandwidth(target)
    dtype = getattr(torch, options.dtype)
    results = [measure(shape, dtype, bandwidth, target) for shape in SHAPES]
    columns = list(results[0])  # the first shape has two states, so it has every column
    print("  ".join(f"{name:>{max(8, len(name))}}" for name in columns))
    for result in results:
        cells = (result.get(name, "-") for name in columns)
        texts = (f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells)
        print("  ".join(f"{t:>{max(8, len(n))}}" for t, n in zip(texts, columns, strict=True)))
    if options.output:
        options.output.write_text(json.dumps({"versions": about, "results": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
