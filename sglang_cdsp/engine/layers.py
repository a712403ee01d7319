"""What happens at each layer boundary of a chunk's forward, around its attention."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from sglang_cdsp.attention.backend import ShardAttention

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

    from sglang_cdsp.engine.coroutines import Ready

LAYERS_AHEAD = 2
"""Layers that the host may launch ahead of a CUDA device.

What is launched cannot be taken back: whoever is more urgent waits until the device has run it.
"""


class LayerSteps:
    """An attention that gives way before each layer and then runs another one.

    Attributes:
        token_to_kv_pool, req_to_token_pool: as in ``ShardAttention``.
    """

    def __init__(
        self,
        attention: ShardAttention,
        give_way: Callable[[Ready | None], None],
        on_layer: Callable[[], None],
        device: str,
    ) -> None:
        """Run ``attention``.

        Args:
            give_way: lets others go on until something is ready, see ``Coroutines.give_way``.
            on_layer: called before each layer.
            device: of the model.
        """
        self._attention = attention
        self._give_way = give_way
        self._on_layer = on_layer
        self._launched: deque[torch.cuda.Event] | None = None
        if torch.device(device).type == "cuda":
            self._launched = deque()
        self.token_to_kv_pool = attention.token_to_kv_pool
        self.req_to_token_pool = attention.req_to_token_pool

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
        self._give_way(self._paced())
        return self._attention.forward(q, k, v, layer, forward_batch, save_kv_cache, **unknown)

    def _paced(self) -> Ready | None:
        """Whether the device has come near enough; None where the host computes itself."""
        if self._launched is None:
            return None
        event = torch.cuda.Event()
        event.record()
        self._launched.append(event)
        if len(self._launched) <= LAYERS_AHEAD:
            return None
        return self._launched.popleft().query
