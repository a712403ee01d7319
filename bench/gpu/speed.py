"""Step 4: what the parts cost. Results are checked, times are reported."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from sglang_cdsp.kernels.merge import merge_states

from bench.gpu.attention import within
from bench.gpu.pacing import pace_bound, stopwatch
from bench.gpu.record import Recorder
from bench.gpu.target import Target, copy_bandwidth, host_milliseconds, milliseconds
from bench.micro.merge import Shape, measure
from sglang_cdsp.attention.blocks import TensorBlock
from sglang_cdsp.attention.partial import partial_attention
from sglang_cdsp.attention.pool_block import PoolBlock
from sglang_cdsp.attention.ring import q_ring_attention, ring_attention
from sglang_cdsp.attention.steps import KvRing, QRing
from sglang_cdsp.parallel.links.types import Message
from sglang_cdsp.testing.rings import Attention, RingCase

PARTS = 8
HEADS, KV_HEADS, DIM = 32, 8, 128


def run(target: Target, recorder: Recorder) -> None:
    """All of the step's checks."""
    for rows, keys in ((64, 256),) if target.small else ((2048, 16_384), (512, 65_536)):
        name = f"attention of {rows} queries to {keys} keys"
        recorder.check(name, partial(parts_against_whole, target, rows, keys))
    shapes = (
        (Shape(2, 64, 4, 64), Shape(4, 64, 4, 64))
        if target.small
        else (Shape(2, 4096, 32, 128), Shape(2, 32_768, 32, 128), Shape(8, 4096, 32, 128))
    )
    for shape in shapes:
        recorder.check(
            f"merge of {shape.states} x {shape.tokens} tokens", partial(merge, target, shape)
        )
    recorder.check("gather into a message", partial(gathered_message, target))
    recorder.check("pieces ahead of the device", partial(pace_bound, target))
    recorder.check("times by events", partial(stopwatch, target))
    for size in (1, 2, 8):
        for name, way in (("KV", ring_attention), ("Q", q_ring_attention)):
            recorder.check(
                f"host, one layer, {name} ring of {size}", partial(host_time, target, way, size)
            )


def merge(target: Target, shape: Shape) -> dict[str, Any]:
    """Our merge beside the device's copy bandwidth and plain torch."""
    bandwidth = copy_bandwidth(target)
    return measure(shape, target.dtype, bandwidth, target, with_flashinfer=False)


def parts_against_whole(target: Target, rows: int, keys: int) -> dict[str, float]:
    """Attention to all keys at once, beside ``PARTS`` calls and their merge."""
    q = target.randn(rows, HEADS, DIM, seed=1)
    k, v = (target.randn(keys, KV_HEADS, DIM, seed=seed) for seed in (2, 3))
    scale = DIM**-0.5
    blocks = list(zip(k.chunk(PARTS), v.chunk(PARTS), strict=True))

    def whole() -> torch.Tensor:
        return partial_attention(q, k, v, causal=False, scale=scale)[0]

    def attended() -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [partial_attention(q, *block, causal=False, scale=scale) for block in blocks]

    def merged(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        outs, lses = (torch.stack([part[i] for part in parts]) for i in (0, 1))
        return merge_states(outs, lses)[0]

    apart = within("8 parts against whole", merged(attended()), whole(), target.tolerance)
    whole_ms = milliseconds(target, whole)
    parts_ms = milliseconds(target, lambda: merged(attended()))
    done = attended()
    return {
        "whole ms": whole_ms,
        "TFLOP/s": 4 * rows * keys * HEADS * DIM / whole_ms / 1e9,
        f"{PARTS} parts and merge ms": parts_ms,
        "ratio": parts_ms / whole_ms,
        "of it stack and merge ms": milliseconds(target, lambda: merged(done)),
        "apart": apart,
    }


def gathered_message(target: Target) -> dict[str, float]:
    """A member's block as one message, straight out of a pool, beside gather and copy."""
    slots, rows, history = (1024, 256, 224) if target.small else (65_536, 16_384, 14_336)
    keys, values = (target.randn(slots, KV_HEADS, DIM, seed=seed) for seed in (1, 2))
    held = torch.randperm(slots, generator=torch.Generator().manual_seed(0))[:rows]
    held = held.to(target.device)
    k, v = keys[held[history:]], values[held[history:]]

    def at_once() -> torch.Tensor:
        return PoolBlock(keys, values, held, history).message()

    def in_two() -> torch.Tensor:
        past = held[:history]
        return TensorBlock(k, v, keys[past], values[past]).message()

    message = at_once()
    within("message", message, in_two(), 0.0)
    once_ms, two_ms = milliseconds(target, at_once), milliseconds(target, in_two)
    return {
        "ms": once_ms,
        "GB/s": 2 * message.nbytes / once_ms / 1e6,  # read and written
        "gather and copy ms": two_ms,
        "ratio": once_ms / two_ms,
    }


class Unlinked:
    """Sends nothing and leaves what is received as it is: the host's work without partners."""

    def exchange(
        self, sends: Sequence[Message], recvs: Sequence[Message], note: int = 0
    ) -> Unlinked:
        return self

    def wait(self) -> None:
        """Nothing is under way."""


def host_time(target: Target, way: Attention, size: int) -> dict[str, Any]:
    """Milliseconds for which one layer's attention keeps the host, and the device.

    The chunk is short, so that the device is not what the host waits for.
    """
    tokens, history = (64 * size, 256 * size) if target.small else (256 * size, 2048 * size)
    case = RingCase(
        tuple(range(size)), history, tokens, 64, HEADS, KV_HEADS, head_dim=DIM, value_dim=DIM
    )
    inputs = case.member_inputs(0, target.dtype, target.device)
    layout = case.layout(0)
    # As the backend has it: the steps are worked out once a chunk.
    ring = KvRing.of(layout) if way is ring_attention else QRing.of(layout)

    def layer() -> torch.Tensor:
        return way(*inputs, layout, Unlinked(), scale=case.scale, ring=ring)

    host = host_milliseconds(target, layer)
    return {"host ms": host, "in all ms": milliseconds(target, layer)}
