"""What a request is beside its prompt and its KV, so that another instance can go on with it.

SGLang's own intake makes a request's object from what its tokenizer sent, grammar and all. What
other instances have added to it is read off by :func:`state_of` and put back by :func:`restore`.
The KV of its output moves along with that of its prompt, or is computed anew with it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from sglang_cdsp.engine.stock import StockScheduler
from sglang_cdsp.protocol.messages import OutputState

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

OUTPUT_LOGPROBS = (
    "output_token_logprobs_val",
    "output_token_logprobs_idx",
    "output_top_logprobs_val",
    "output_top_logprobs_idx",
    "output_token_ids_logprobs_val",
    "output_token_ids_logprobs_idx",
)
"""Lists in SGLang's record of log-probabilities with an entry for each output token."""

STAYS: Mapping[str, str] = MappingProxyType(
    {
        "custom_logit_processor": "a custom logit processor",
        "multimodal_inputs": "multimodal inputs",
        "input_embeds": "input embeddings",
        "session": "a session",
        "lora_id": "a LoRA adapter",
        "beam_group": "beam search",
        "dllm_config": "a diffusion model",
        "return_hidden_states": "hidden states to return",
        "return_routed_experts": "routed experts to return",
        "return_indexer_topk": "indexer choices to return",
        "return_sampling_mask": "sampling masks to return",
        "customized_info": "customised information",
        "weight_version_events": "weights that changed in the middle of it",
    }
)
"""Attributes whose state stays where it is, and what they are called."""


class StaysError(RuntimeError):
    """A request has a state that stays on its instance; says which."""


def kv_rows(req: Req) -> int:
    """KV rows of a request between two steps: of all its tokens but the last."""
    return len(req.origin_input_ids) + len(req.output_ids) - 1


def state_of(req: Req) -> OutputState:
    """What a request has between two steps, for :func:`restore`.

    Raises:
        StaysError: it has another state, too.
    """
    for name, what in STAYS.items():
        if getattr(req, name, None):
            raise StaysError(f"it has {what}")
    return OutputState(
        tokens=[int(token) for token in req.output_ids],
        sent=int(req.send_token_offset),
        cached_tokens=int(req.cached_tokens),
        retractions=int(req.retraction_count),
        logprobs=_packed(req.logprob) if req.return_logprob else b"",
    )


class _PlainPickler(pickle.Pickler):
    """Takes no tensors: those of another process's device would be made on the same one here."""

    def reducer_override(self, thing: Any) -> Any:
        """How ``thing`` is packed."""
        if isinstance(thing, torch.Tensor):
            raise StaysError("it has log-probabilities that are tensors")
        return NotImplemented


def _packed(record: Any) -> bytes:
    """SGLang's record of log-probabilities."""
    into = io.BytesIO()
    _PlainPickler(into).dump(record)
    return into.getvalue()


def restore(scheduler: StockScheduler, req: Req, state: OutputState) -> None:
    """Let a new request go on from ``state``: it becomes what it was, without any KV.

    Args:
        req: as SGLang's intake has made it, its grammar compiled; changed in place.

    Raises:
        ValueError: its grammar does not accept the output, so SGLang says.
    """
    sent = state.tokens[: state.sent]
    req.output_ids.extend(sent)
    if sent:
        # The detokenizer has the prompt's last tokens, too, and goes on where it is.
        decode_ids, _ = req.init_incremental_detokenize()
        req.send_decode_id_offset = len(decode_ids)
    req.output_ids.extend(state.tokens[state.sent :])
    req.send_token_offset = len(sent)
    _restore_logprobs(req, state)
    # As after a retraction of SGLang's own: what was cached is told as it was.
    req.retracted_stain = True
    req.retraction_count = state.retractions
    req.cached_tokens = req.cached_tokens_device = state.cached_tokens
    for token in state.tokens:
        if req.grammar is not None:
            req.grammar.accept_token(token)
        scheduler.batch_result_processor._maybe_update_reasoning_tokens(req, token)


def _restore_logprobs(req: Req, state: OutputState) -> None:
    if not req.return_logprob:
        return
    if state.logprobs:
        req.logprob = pickle.loads(state.logprobs)
    else:
        for name in OUTPUT_LOGPROBS:
            getattr(req.logprob, name).extend([None] * state.sent)  # sent, and not read again
    req.send_output_token_logprobs_offset = state.sent
    req.input_logprob_sent = state.sent > 0


def recall_penalties(batch: ScheduleBatch, tokens: list[int]) -> None:
    """Count output tokens into the penalties of a batch of one request.

    SGLang counts only what it samples while a request stays in a batch.
    """
    info: Any = batch.sampling_info
    orchestrator = info.penalizer_orchestrator
    if orchestrator.is_required:
        for token in tokens:
            ids = torch.tensor([token], dtype=torch.int64, device=batch.device)
            orchestrator.cumulate_output_tokens(ids)
