"""Runs the model on one shard of one chunk, beside SGLang's own batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.model_executor.forward_batch_info import (
    CaptureHiddenMode,
    ForwardBatch,
    ForwardMode,
)
from sglang.srt.model_executor.forward_context import ForwardContext, set_forward_context

from sglang_cdsp.engine.layers import LayerSteps
from sglang_cdsp.engine.stock import ModelRunner

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

# SGLang's allocators never hand out slot 0: padding rows write there.
PADDING_SLOT = 0


@dataclass(frozen=True)
class ShardInput:
    """The rows of one forward.

    Attributes:
        tokens: token ids of the shard, int64 ``[T]``; empty for a member without tokens.
        positions: prompt positions of the rows, int64 ``[T]``.
        slots: KV slots of the rows, int64 ``[T]``.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor

    def padded(self) -> ShardInput:
        """Itself, or one padding row where there are no tokens (a forward needs one)."""
        if self.tokens.numel():
            return self
        zero = torch.zeros(1, dtype=torch.int64)
        return ShardInput(zero, zero.clone(), torch.full((1,), PADDING_SLOT))


def build_forward_batch(
    shard: ShardInput, device: str, batch: ScheduleBatch | None = None
) -> ForwardBatch:
    """Make SGLang's input of one forward from a shard, without a ``req_to_token`` row.

    Args:
        shard: the rows, padded.
        device: device of the model.
        batch: at home, for the last chunk: the batch that carries the sampling parameters.
    """
    rows = shard.tokens.numel()
    last = int(shard.positions[-1]) + 1
    lengths = torch.tensor([rows], dtype=torch.int32, device=device)
    zeros = torch.zeros(1, dtype=torch.int32, device=device)
    forward = ForwardBatch(
        forward_mode=ForwardMode.EXTEND,
        batch_size=1,
        input_ids=shard.tokens.to(device),
        req_pool_indices=torch.zeros(1, dtype=torch.int64, device=device),
        seq_lens=torch.tensor([last], dtype=torch.int64, device=device),
        out_cache_loc=shard.slots.to(device),
        seq_lens_sum=last,
        orig_seq_lens=torch.tensor([last], dtype=torch.int32, device=device),
        seq_lens_cpu=torch.tensor([last], dtype=torch.int64),
        # A copy: Gemma 3 with images adds 1 to them in place.
        positions=shard.positions.to(device, copy=True),
        extend_num_tokens=rows,
        extend_seq_lens=lengths,
        extend_prefix_lens=zeros,
        extend_start_loc=zeros.clone(),
        extend_prefix_lens_cpu=[0],
        extend_seq_lens_cpu=[rows],
        # Equal to the row count: no input logprobs are taken from these rows.
        extend_logprob_start_lens_cpu=[rows],
        capture_hidden_mode=CaptureHiddenMode.NULL,
        global_num_token_non_padded_cpu=rows,
        top_logprobs_nums=[0],
        token_ids_logprobs=[None],
    )
    if batch is not None:
        forward.sampling_info = batch.sampling_info
        grammars = [req.grammar for req in batch.reqs] if batch.has_grammar else None
        forward.sampling_info.grammars = grammars
        forward.return_logprob = batch.return_logprob
        forward.top_logprobs_nums = batch.top_logprobs_nums
        forward.token_ids_logprobs = batch.token_ids_logprobs
        forward.rids = [req.rid for req in batch.reqs]
    # The configured backend must not plan for rows that it will never see.
    forward.mark_forward_metadata_ready()
    return forward


def run_forward(model_runner: ModelRunner, forward: ForwardBatch, attention: LayerSteps) -> Any:
    """Run the model eagerly under the chunk's attention; returns the logits output.

    CUDA graphs are bypassed: a captured graph holds the configured backend. SGLang's eager runner
    is passed by: it copies a batch into static buffers that layers read, and another forward that
    runs while this one is suspended would overwrite them.
    """
    inputs = model_runner._extend_forward_kwargs(forward, None)
    set_forward_context(ForwardContext(attn_backend=attention))
    try:
        return model_runner.model.forward(forward.input_ids, forward.positions, forward, **inputs)
    finally:
        set_forward_context(None)
