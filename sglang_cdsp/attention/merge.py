"""A running attention state that partial attentions are merged into."""

from __future__ import annotations

import math

import torch

from sglang_cdsp.attention.pacing import UNPACED, Pacing
from sglang_cdsp.attention.partial import partial_attention
from sglang_cdsp.kernels.merge import merge_into


class RunningState:
    """The exact attention of some queries over all keys given so far.

    Example:
        >>> state = RunningState(q, value_dim=64, scale=0.125)
        >>> state.attend(k_history, v_history, causal=False)
        >>> state.attend(k, v, causal=True)
        >>> out = state.result()

    Attributes:
        queries: ``[Tq, Hq, D]``.
        pacing: where others may run meanwhile.
        out: ``[Tq, Hq, Dv]``, float32; zeros where no key was seen.
        lse: ``[Tq, Hq]``, float32, natural log-sum-exp; ``-inf`` where no key was seen.
    """

    def __init__(
        self,
        q: torch.Tensor,
        value_dim: int,
        scale: float,
        pacing: Pacing = UNPACED,
        into: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        """Begin with no key seen.

        Args:
            q: the queries.
            value_dim: Dv.
            scale: factor on the logits.
            pacing: where others may run meanwhile.
            into: memory for ``out`` and ``lse``, contiguous float32; new by default.
        """
        self.queries = q
        self.pacing = pacing
        self._scale = scale
        self._fresh = True
        tokens, heads, _ = q.shape
        self.out, self.lse = into or (
            torch.empty((tokens, heads, value_dim), dtype=torch.float32, device=q.device),
            torch.empty((tokens, heads), dtype=torch.float32, device=q.device),
        )
        self.out.zero_()
        self.lse.fill_(-math.inf)

    def attend(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        causal: bool,
        rows: slice = slice(None),
    ) -> None:
        """Let the queries in ``rows`` see the keys ``k`` ``[Tk, Hkv, D]`` with ``v``.

        In tiles as the pacing has it, giving way between them.
        """
        start, stop, _ = rows.indices(self.queries.shape[0])
        if not k.shape[0] or start >= stop:
            return
        flops = 2.0 * self.queries.shape[1] * (k.shape[2] + v.shape[2])
        fresh = self._fresh
        pieces = self.pacing.pieces(stop - start, k.shape[0], flops, causal=causal)
        for number, tile in enumerate(pieces):
            if number:
                self.pacing.boundary()
            seeing = slice(start + tile.rows.start, start + tile.rows.stop)
            out, lse = partial_attention(
                self.queries[seeing],
                *(k[tile.keys], v[tile.keys]),
                causal=tile.causal,
                scale=self._scale,
            )
            # Of the first block a row's first tile starts at the first key.
            self._put(out, lse, seeing, fresh=fresh and not tile.keys.start)
        self._fresh = False

    def merge(self, out: torch.Tensor, lse: torch.Tensor, *, rows: slice = slice(None)) -> None:
        """Merge a state over keys that the queries in ``rows`` have not seen yet."""
        self._put(out, lse, rows, fresh=self._fresh)
        self._fresh = False

    def _put(self, out: torch.Tensor, lse: torch.Tensor, rows: slice, *, fresh: bool) -> None:
        """Take in a state; ``fresh``: its rows have seen nothing, and what they hold is nothing."""
        if fresh:
            self.out[rows].copy_(out)
            self.lse[rows].copy_(lse)
        else:
            merge_into(self.out[rows], self.lse[rows], out, lse)

    def result(self, sinks: torch.Tensor | None = None) -> torch.Tensor:
        """Return the attention ``[Tq, Hq, Dv]`` in the dtype of the queries. Call it once.

        Args:
            sinks: a logit for each query head, ``[Hq]``, that takes its part of the softmax and
                has no value. With ``Z`` the sum of the weights seen so far it leaves
                ``Z / (Z + exp(sink))`` of the output; so it enters here, after all merges.
        """
        if sinks is not None:
            self.out.mul_(torch.sigmoid(self.lse - sinks.float()).unsqueeze(-1))
        return self.out.to(self.queries.dtype)
