"""Step 6: a member's rows read in the KV pool where they lie, beside rows gathered first."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bench.gpu.attention import LSE_TOLERANCE, within
from bench.gpu.record import CheckFailed, Recorder
from bench.gpu.target import Target, host_milliseconds, milliseconds
from sglang_cdsp.attention.merge import RunningState
from sglang_cdsp.attention.pacing import UNPACED, Pacing
from sglang_cdsp.attention.paged import PagedReader, paged_reader
from sglang_cdsp.attention.paged_kernel import PAGED_KERNELS, PagedKernel, Wrapper
from sglang_cdsp.attention.partial import reference_attention
from sglang_cdsp.attention.pool_block import PoolBlock
from sglang_cdsp.attention.ring_layout import RingLayout, Visible
from sglang_cdsp.attention.steps import LayerShape, QRing
from sglang_cdsp.testing.paged import Emulated
from sglang_cdsp.testing.rings import RingCase

HEADS, KV_HEADS, DIM = 32, 8, 128
PAGE = 64


@dataclass(frozen=True)
class Held:
    """One member of two, with its rows in a pool.

    Attributes:
        layout: of the chunk.
        ring: its steps if Q circulates.
        q, guest: own queries and those of the other member, ``[rows, HEADS, DIM]``.
        keys, values: the pool, ``[slots, KV_HEADS, DIM]``; NaN in all other slots.
        slots: of its rows, int64.
    """

    layout: RingLayout
    ring: QRing
    q: torch.Tensor
    guest: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    slots: torch.Tensor

    @property
    def parts(self) -> tuple[Visible, ...]:
        """What the other member sees of the rows."""
        return self.ring.steps[0].parts

    @property
    def history(self) -> int:
        """How many of the rows are history."""
        return self.layout.history_tokens[0]

    def block(self, reader: PagedReader | None) -> PoolBlock:
        """The rows as a block."""
        return PoolBlock(self.keys, self.values, self.slots, self.history, reader=reader)


def held(target: Target, history: int, chunk: int, seed: int = 0) -> Held:
    """A member that holds ``history`` rows and computes ``chunk``; its pages are scattered."""
    case = RingCase((0, 1), 2 * history, 2 * chunk, 1, HEADS, KV_HEADS, DIM, DIM)
    layout = case.layout(0)
    ring = QRing.of(layout)
    rows = layout.block_rows(0)
    pages = -(-rows // PAGE)
    order = torch.randperm(2 * pages, generator=torch.Generator().manual_seed(seed))[:pages]
    slots = (order[:, None] * PAGE + torch.arange(PAGE)).flatten()[:rows].to(target.device)
    keys, values = (
        torch.full(
            (2 * pages * PAGE, KV_HEADS, DIM), math.nan, dtype=target.dtype, device=target.device
        )
        for _ in range(2)
    )
    keys[slots] = target.randn(rows, KV_HEADS, DIM, seed=1)
    values[slots] = target.randn(rows, KV_HEADS, DIM, seed=2)
    q = target.randn(layout.own_tokens, HEADS, DIM, seed=3)
    guest = target.randn(ring.steps[0].guest_rows, HEADS, DIM, seed=4)
    return Held(layout, ring, q, guest, keys, values, slots)


def reader(target: Target, one: Held, kernel: PagedKernel, pacing: Pacing) -> PagedReader:
    """What a chunk plans at its first layer.

    Raises:
        CheckFailed: the kernel does not serve these rows.
    """
    shape = LayerShape(KV_HEADS, HEADS, DIM, DIM, target.dtype.itemsize)
    found = paged_reader(
        (kernel,), one.layout, one.ring, one.slots, shape, target.dtype, DIM**-0.5, pacing
    )
    if found is None:
        raise CheckFailed(f"{kernel.name} serves no {target.dtype} with heads of {DIM} here")
    return found


def kernels(target: Target) -> Sequence[PagedKernel]:
    """What is to be checked: the one that servers use first, then what it is compared with."""
    if not target.cuda:
        return (Emulated().kernel(),)
    return (*PAGED_KERNELS, replace(PAGED_KERNELS[0], name="FlashInfer's FA2", make=_fa2))


def _fa2(workspace: torch.Tensor) -> Wrapper:
    """What SGLang itself uses; it splits keys, so that few queries on many keep a GPU busy."""
    flashinfer = importlib.import_module("flashinfer")
    return flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend="fa2")


def check_paged(
    target: Target, kernel: PagedKernel, history: int, chunk: int, tile_flops: float | None = None
) -> dict[str, float]:
    """Compare rows read in the pool with gathered ones and with float64, output and log-sum-exp.

    Raises:
        CheckFailed: either is off.
    """
    one, pacing = held(target, history, chunk), Pacing(None, tile_flops)
    paged = one.block(reader(target, one, kernel, pacing))
    gathered = one.block(None)
    k, v = one.keys[one.slots], one.values[one.slots]
    found: dict[str, float] = {}
    states = []
    for block in (paged, gathered):
        state = RunningState(one.q, DIM, DIM**-0.5, pacing)
        block.attend_own(state)
        states.append((state.out, state.lse))
    expected = reference_attention(one.q, k, v, causal=True, scale=DIM**-0.5, q_start=one.history)
    found |= _compared(target, "own", states, expected)
    answers = [block.serve(one.guest, one.parts, DIM**-0.5, pacing) for block in (paged, gathered)]
    each = [
        reference_attention(
            one.guest[part.first : part.last], k[: part.keys], v[: part.keys],
            causal=False, scale=DIM**-0.5,
        )
        for part in one.parts
    ]  # fmt: skip
    expected = torch.cat([out for out, _ in each]), torch.cat([lse for _, lse in each])
    return found | _compared(
        target, "guests", [(answer.out, answer.lse) for answer in answers], expected
    )


def _compared(
    target: Target,
    whose: str,
    states: Sequence[tuple[torch.Tensor, torch.Tensor]],
    expected: tuple[torch.Tensor, torch.Tensor],
) -> dict[str, float]:
    (out, lse), (other, other_lse) = states
    return {
        f"{whose} off by": within(f"{whose}, output", out, expected[0], target.tolerance),
        f"{whose} lse off by": within(
            f"{whose}, log-sum-exp", lse, expected[1], LSE_TOLERANCE, unit=1.0
        ),
        f"{whose} apart": max(
            within(f"{whose}, output beside gathered", out, other, 2 * target.tolerance),
            within(f"{whose}, lse beside gathered", lse, other_lse, 2 * LSE_TOLERANCE, unit=1.0),
        ),
    }


def check_turns(target: Target, kernel: PagedKernel) -> dict[str, float]:
    """Two forwards that take turns, launched without a wait: each keeps its own plans.

    Raises:
        CheckFailed: one of them gives something else than alone.
    """
    size = (64, 33) if target.small else (4096, 1000)
    both = [held(target, *size, seed) for seed in range(2)]
    readers: list[PagedReader] = []

    def run(number: int) -> torch.Tensor:
        one = both[number]
        state = RunningState(one.q, DIM, DIM**-0.5)
        readers[number].attend_own(state, one.keys, one.values)
        return state.out

    alone = []
    for number, one in enumerate(both):
        readers.append(reader(target, one, kernel, UNPACED))
        alone.append(run(number).clone())
        target.synchronize()
    for _ in range(10):
        for number in range(2):
            if not torch.equal(run(number), alone[number]):
                raise CheckFailed(f"forward {number} is off when another one takes turns with it")
    return {"turns": 20}


def times(target: Target, kernel: PagedKernel, history: int, chunk: int) -> dict[str, float]:
    """A layer's own part and a guest's, in the pool and gathered, by device events; the plans."""
    one = held(target, history, chunk)
    before = torch.cuda.memory_allocated(target.device) if target.cuda else 0
    planned = reader(target, one, kernel, UNPACED)
    after = torch.cuda.memory_allocated(target.device) if target.cuda else 0

    def own(reads: PagedReader | None) -> torch.Tensor:
        state = RunningState(one.q, DIM, DIM**-0.5)
        one.block(reads).attend_own(state)
        return state.out

    def guests(reads: PagedReader | None) -> torch.Tensor:
        return one.block(reads).serve(one.guest, one.parts, DIM**-0.5, UNPACED).message

    found: dict[str, float] = {}
    for name, work in (("own", own), ("guests", guests)):
        in_pool = milliseconds(target, partial(work, planned))
        gathered = milliseconds(target, partial(work, None))
        found |= {
            f"{name} ms": in_pool,
            f"{name} gathered ms": gathered,
            f"{name} ratio": in_pool / gathered,
        }
    rows = one.q.shape[0]
    pairs = rows * (one.history + rows / 2)
    return {
        **found,
        "own TFLOP/s": 4 * pairs * HEADS * DIM / found["own ms"] / 1e9,
        "host ms a layer": host_milliseconds(target, partial(own, planned)),
        "plan ms": host_milliseconds(target, lambda: reader(target, one, kernel, UNPACED)),
        "plan MiB": (after - before) / 2**20,
    }


def arguments(target: Target) -> dict[str, Any]:
    """Whether the installed FlashInfer takes the arguments that the emulated one does.

    Raises:
        CheckFailed: one is missing.
    """
    if not target.cuda:
        return {"FlashInfer": "emulated"}
    flashinfer = importlib.import_module("flashinfer")
    theirs = flashinfer.BatchPrefillWithPagedKVCacheWrapper
    ours = type(Emulated().kernel().make(torch.empty(16, dtype=torch.uint8)))
    tree = ast.parse(inspect.getsource(importlib.import_module(theirs.__module__)))
    (node,) = (x for x in tree.body if isinstance(x, ast.ClassDef) and x.name == theirs.__name__)
    found = {
        method.name: {a.arg for a in (*method.args.args, *method.args.kwonlyargs)}
        for method in node.body
        if isinstance(method, ast.FunctionDef)
    }
    for name in ("__init__", "plan", "reset_workspace_buffer"):
        # ``run`` is wrapped by the emulation, and checked by every other check.
        missing = set(inspect.signature(getattr(ours, name)).parameters) - found[name]
        if missing:
            raise CheckFailed(f"{theirs.__name__}.{name} takes no {sorted(missing)}")
    return {"FlashInfer": flashinfer.__version__}


def checks(target: Target) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name and work of every check of the step."""
    yield "arguments", partial(arguments, target)
    sizes = ((0, 33), (128, 65), (192, 1)) if target.small else ((0, 1000), (4096, 1000), (8192, 1))
    for kernel in kernels(target):
        for history, chunk in sizes:
            words = f"{chunk} rows after {history}, {kernel.name}"
            yield words, partial(check_paged, target, kernel, history, chunk)
        tile = 4.0 * HEADS * DIM * sizes[1][1] * sizes[1][0] / 3
        words = f"{sizes[1][1]} rows in tiles, {kernel.name}"
        yield words, partial(check_paged, target, kernel, sizes[1][0], sizes[1][1], tile)
        yield f"turns, {kernel.name}", partial(check_turns, target, kernel)
    timed = ((128, 65),) if target.small else ((16_384, 4096), (65_536, 256), (65_536, 8192))
    for kernel in kernels(target):
        for history, chunk in timed:
            words = f"time of {chunk} rows after {history}, {kernel.name}"
            yield words, partial(times, target, kernel, history, chunk)


def run(target: Target, recorder: Recorder) -> None:
    """All of the step's checks."""
    for name, work in checks(target):
        recorder.check(name, work)
