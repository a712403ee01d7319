"""A member's own rows read in the KV pool where they lie, without a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sglang_cdsp.attention.answers import Answer
from sglang_cdsp.attention.merge import RunningState
from sglang_cdsp.attention.pacing import Pacing
from sglang_cdsp.attention.paged_calls import guest_calls, own_calls
from sglang_cdsp.attention.paged_kernel import PagedKernel, PlannedCall, plan_calls
from sglang_cdsp.attention.ring_layout import RingLayout, Visible
from sglang_cdsp.attention.steps import KvRing, LayerShape, QRing


@dataclass(frozen=True)
class PagedReader:
    """The planned calls of one forward, for all its layers of one shape.

    They belong to that forward: another one that runs while this one is suspended has its own.

    Attributes:
        own: of the member's own queries.
        guests: of other members', by what those see of this block.
    """

    own: tuple[PlannedCall, ...]
    guests: dict[tuple[Visible, ...], tuple[PlannedCall, ...]]

    def attend_own(self, state: RunningState, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Let the own queries see all history, and the chunk's rows up to their own.

        Args:
            state: of the own queries.
            keys, values: the layer's pool, ``[slots, Hkv, D]`` and ``[slots, Hkv, Dv]``.
        """
        for number, planned in enumerate(self.own):
            if number:
                state.pacing.boundary()
            q = state.queries[planned.call.rows]
            out = q.new_empty((*q.shape[:2], values.shape[2]))
            lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
            planned.run(state.queries, keys, values, out, lse)
            state.merge(out, lse, rows=planned.call.rows)

    def serve(
        self,
        guest: torch.Tensor,
        parts: tuple[Visible, ...],
        keys: torch.Tensor,
        values: torch.Tensor,
        pacing: Pacing,
    ) -> Answer:
        """Attend another member's queries ``[rows, Hq, D]``; the kernel fills the message itself.

        Raises:
            KeyError: it was not planned that these rows see this.
        """
        answer = Answer.empty(guest.shape[0], guest.shape[1], values.shape[2], guest)
        for number, planned in enumerate(self.guests[parts]):
            if number:
                pacing.boundary()
            rows = planned.call.rows
            planned.run(guest, keys, values, answer.out[rows], answer.lse[rows])
        return answer


def paged_reader(
    kernels: Sequence[PagedKernel],
    layout: RingLayout,
    ring: KvRing | QRing,
    slots: torch.Tensor,
    shape: LayerShape,
    dtype: torch.dtype,
    scale: float,
    pacing: Pacing,
) -> PagedReader | None:
    """Plan a member's calls for layers of one shape; None where no kernel serves them.

    It gives way until the plans are on the device, so that a forward that ends early leaves no
    launched kernel whose plan could change.

    Args:
        kernels: in the order of preference.
        layout, ring: the chunk.
        slots: of the rows held, int64 ``[history and chunk]``.
        shape, dtype, scale: of the layers.
        pacing: where others may run meanwhile.
    """
    kernel = next((k for k in kernels if k.usable(slots.device, dtype, shape)), None)
    if kernel is None:
        return None
    flops = 2.0 * shape.q_heads * (shape.head_dim + shape.value_dim)
    steps = ring.steps if isinstance(ring, QRing) else ()
    guests = list(dict.fromkeys(step.parts for step in steps))
    lists = [
        own_calls(layout.history_tokens[layout.me], layout.own_tokens, pacing, flops),
        *(guest_calls(parts, pacing, flops) for parts in guests),
    ]
    flat = [call for calls in lists for call in calls]
    if flat:
        made = plan_calls(kernel, flat, slots.to(torch.int32), shape, dtype, scale, pacing)
        if (passed := _passed(slots.device)) is not None:
            pacing.until(passed)
    planned = iter(made if flat else ())
    own, *others = [tuple(next(planned) for _ in calls) for calls in lists]
    return PagedReader(own, dict(zip(guests, others, strict=True)))


def _passed(device: torch.device) -> Callable[[], bool] | None:
    """Whether a device has done what it was told so far; None where the host computes itself."""
    if device.type != "cuda":
        return None
    event: Any = torch.cuda.Event()
    event.record()
    return event.query
