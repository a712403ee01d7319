"""Attention that keeps a failed rank in step with its tensor-parallel partners."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from sglang_cdsp.attention.backend import ShardAttention

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

logger = logging.getLogger(__name__)


class LockstepAttention:
    """An attention that runs another one until it fails, and returns zeros from then on.

    Inside a forward the ranks of an instance meet at every layer's all-reduce. A rank that raised
    there, because its link to another instance broke, say, would leave the others waiting for
    ever. So it goes through the motions, and the failure is raised when the forward is over.

    Attributes:
        failure: what went wrong, "" while all is well.
        token_to_kv_pool, req_to_token_pool: as in ``ShardAttention``.
    """

    def __init__(
        self,
        attention: ShardAttention,
        on_failure: Callable[[], None],
        failure: str = "",
        on_layer: Callable[[], None] = lambda: None,
    ) -> None:
        """Run ``attention``.

        Args:
            on_failure: called at once when it fails.
            failure: what is wrong beforehand; then nothing is attended at all.
            on_layer: called before each layer.
        """
        self._on_layer = on_layer
        self._attention: ShardAttention | None = attention
        self._on_failure = on_failure
        self.failure = ""
        self.token_to_kv_pool = attention.token_to_kv_pool
        self.req_to_token_pool = attention.req_to_token_pool
        if failure:
            self._fail(failure)

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **unknown: Any,
    ) -> torch.Tensor:
        """As ``ShardAttention.forward``; zeros of the same shape after a failure."""
        self._on_layer()
        if self._attention is not None:
            try:
                return self._attention.forward(
                    q, k, v, layer, forward_batch, save_kv_cache, **unknown
                )
            except Exception as error:
                text = traceback.format_exc()
                logger.error("attention of layer %d failed\n%s", layer.layer_id, text)
                failure = str(error) or repr(error)
            self._fail(failure)
        rows = q.numel() // (layer.tp_q_head_num * layer.qk_head_dim)
        return q.new_zeros((rows, layer.tp_q_head_num * layer.v_head_dim))

    def _fail(self, failure: str) -> None:
        """Remember the text alone: links stay open as long as anything holds what is in flight,
        and an exception holds the frames that it came through."""
        self.failure = failure
        self._attention = None
        self._on_failure()
