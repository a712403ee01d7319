"""Requests that go on here from output that they have got elsewhere.

SGLang's own intake makes a request's object from what its tokenizer sent, grammar and all. What
other instances have added to it is put back by :func:`restore`, and read off by :func:`state_of`.
The KV of its output is computed with that of its prompt.
"""

from __future__ import annotations

import pickle
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


def can_leave(req: Req) -> bool:
    """Whether output tokens and log-probabilities are all that a request would have to take along.

    What cannot leave stays with its own scheduler: see ``controller/resuming.py`` for why.
    """
    elsewhere = (req.return_hidden_states, req.return_routed_experts, req.return_indexer_topk)
    return req.custom_logit_processor is None and not any(elsewhere)


def state_of(req: Req) -> OutputState:
    """What a request has that has been retracted."""
    return OutputState(
        tokens=[int(token) for token in req.output_ids],
        sent=int(req.send_token_offset),
        cached_tokens=int(req.cached_tokens),
        retractions=int(req.retraction_count),
        logprobs=pickle.dumps(req.logprob) if req.return_logprob else b"",
    )


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
