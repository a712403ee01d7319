"""Ring attention over an SP group with history, KV circulating.

Tetris (section 4) runs a chunk this way: the intra-chunk part is causal and balanced by the
zigzag split, history circulates with it and is seen by every query. Each member's block of K and
V, history and chunk together, is one message; it moves on to the next member while the block at
hand is computed (``streams.py``). Partial attentions are merged exactly by their log-sum-exp, in
float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from sglang_cdsp.attention.blocks import Block, check_rows, see
from sglang_cdsp.attention.circulation import choose_circulation
from sglang_cdsp.attention.merge import RunningState
from sglang_cdsp.attention.pacing import UNPACED, Pacing
from sglang_cdsp.attention.q_ring import q_ring_attention
from sglang_cdsp.attention.ring_layout import RingLayout, Visible
from sglang_cdsp.attention.steps import KvRing
from sglang_cdsp.attention.streams import RING_TAG, circulate
from sglang_cdsp.parallel.links.types import Exchanger

__all__ = [
    "RING_TAG",
    "RingLayout",
    "Visible",
    "choose_circulation",
    "q_ring_attention",
    "ring_attention",
]

Keep = Callable[[int, torch.Tensor], None]


def ring_attention(
    q: torch.Tensor,
    block: Block,
    layout: RingLayout,
    links: Exchanger | None,
    *,
    scale: float,
    ring: KvRing | None = None,
    layer: int = 0,
    pacing: Pacing = UNPACED,
    keep: Keep | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend this member's tokens of a chunk to everything before them. All members call it.

    Args:
        q: ``[Tq, Hq, D]``, this member's tokens in ascending position; ``Tq`` may be 0.
        block: what this member holds: its rows of the history, in any order, then the same
            tokens.
        layout: who holds and computes what; the same at all members but for ``me``.
        links: to the group; None will do for a group of one.
        scale: factor on the logits.
        ring: the steps of ``layout``, for callers that run many layers; worked out by default.
        layer: which layer this is, so that a block of another one is noticed.
        pacing: where others may run meanwhile.
        keep: called with each block that comes past, by its holder's index: the message, with the
            rows of its history and then of its part of the chunk. To be copied at once.
        sinks: see ``RunningState.result``.

    Returns:
        ``[Tq, Hq, Dv]`` in the dtype of ``q``.

    Raises:
        AttentionError: the tensors do not have the rows that the layout says.
        LinkError: a partner is gone.
    """
    check_rows(q, block, layout, links)
    ring = ring or KvRing.of(layout)
    shape = block.shape
    state = RunningState(q, shape.value_dim, scale, pacing)

    # Only a block that some other member needs is copied together.
    own = block.message() if ring.packs else None
    stream = circulate(ring, own, partial(shape.empty, like=q), links, layer=layer, pacing=pacing)
    del own
    for passing in stream:
        if passing.number == 0:
            block.attend_own(state)
        elif passing.message is not None and (keep is not None or passing.step.parts):
            holder = (layout.me - passing.number) % layout.size
            message = shape.whole(passing.message, layout.block_rows(holder))
            if keep is not None:
                keep(holder, message)
            see(state, shape, message, passing.step.parts)
            del message
        del passing
    return state.result(sinks)
