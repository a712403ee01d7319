"""What happens at each layer boundary of a chunk's forward, around its attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang_cdsp.attention.backend import ShardAttention
from sglang_cdsp.engine.latent_form import BACKEND

if TYPE_CHECKING:
    import torch
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from sglang_cdsp.engine.device import Pace
    from sglang_cdsp.parallel.gather import Gather


class LayerSteps:
    """An attention that gives way before each layer and then runs another one.

    Attributes:
        token_to_kv_pool, req_to_token_pool: as in ``ShardAttention``.
        prefill_attention_backend_str, decode_attention_backend_str: the name under which layers
            ask in which form they shall compute (``latent_form.py``).
        data_type, kv_cache_dtype: no other than the model's; layers ask for them by name.
    """

    prefill_attention_backend_str = decode_attention_backend_str = BACKEND
    data_type = kv_cache_dtype = None

    def __init__(
        self,
        attention: ShardAttention,
        pace: Pace,
        on_layer: Callable[[], None],
        gather: Gather | None = None,
        on_kept: Callable[[int], None] = lambda layers: None,
    ) -> None:
        """Run ``attention``; before each layer ``on_layer`` is called and a piece ends.

        Args:
            gather: the attention's, if it has one.
            on_kept: hears of how many layers, from the first on, all KV that is to be kept here
                lies in the pool, or will once the current stream has run.
        """
        self._attention = attention
        self._gather = gather
        self._on_kept = on_kept
        self._ran = self._kept = 0
        self._pace = pace
        self._on_layer = on_layer
        self.token_to_kv_pool = attention.token_to_kv_pool
        self.req_to_token_pool = attention.req_to_token_pool

    @property
    def form(self) -> str:
        """As ``ShardAttention.form``."""
        return self._attention.form

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
        """As ``ShardAttention.forward``.

        Raises:
            StoppedError: the chunk is not to go on.
        """
        self._on_layer()
        self._pace()
        out = self._attention.forward(q, k, v, layer, forward_batch, save_kv_cache, **unknown)
        # What is gathered of a layer comes while later ones are computed.
        pending = self._gather.pending if self._gather is not None else None
        if pending is None:
            self._kept = self._ran + 1
        elif pending == layer.layer_id:
            self._kept = self._ran
        self._ran += 1
        self._on_kept(self._kept)
        return out

    def finish(self) -> None:
        """All layers have run: return when nothing of the forward is under way on the links.

        Raises:
            StoppedError: the chunk is not to go on.
        """
        if self._gather is not None:
            self._gather.finish()
        self._on_kept(self._ran)
