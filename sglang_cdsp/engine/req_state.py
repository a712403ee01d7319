"""What a running request is beside its KV, so that another instance can go on with it.

The other instance has SGLang's request as it came from the client, its grammar compiled. From here
it gets the output so far, log-probabilities, and how far its client and the detokenizer are. The
grammar's state follows from the output, and so do the penalties' (``joining.py``).
"""

from __future__ import annotations

from array import array
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

PLAIN = (
    "send_token_offset",
    "send_decode_id_offset",
    "send_output_token_logprobs_offset",
    "input_logprob_sent",
    "logprob_start_len",
    "surr_offset",
    "read_offset",
    "decoded_text",
    "cached_tokens",
    "cached_tokens_device",
    "cached_tokens_host",
    "cached_tokens_storage",
    "_cache_breakdown_computed",
    "reasoning_tokens",
    "_is_reasoning_over",
    "_think_end_match_len",
    "decode_batch_idx",
)
"""Attributes that are carried over as they are."""

LEFT_BEHIND = {
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
"""Attributes whose state stays where it is, and what they are called."""


class CannotMove(RuntimeError):
    """A request has a state that stays where it is; says which."""


def kv_rows(req: Req) -> int:
    """KV rows of a request between two steps: of all its tokens but the last."""
    return len(req.origin_input_ids) + len(req.output_ids) - 1


def exported(req: Req) -> bytes:
    """The state of a request between two steps, for ``take_over``.

    Raises:
        CannotMove: it has another state, too.
    """
    for name, what in LEFT_BEHIND.items():
        if getattr(req, name, None):
            raise CannotMove(f"it has {what}, which stays on its instance")
    state = {
        "output": list(req.output_ids),
        "plain": {name: getattr(req, name) for name in PLAIN},
        "logprob": {field.name: getattr(req.logprob, field.name) for field in fields(req.logprob)},
        "decode_ids": req.cur_decode_ids_len if req.surr_offset is not None else None,
    }
    try:
        return msgspec.msgpack.encode(state)
    except TypeError as error:
        raise CannotMove(f"it has log-probabilities that stay on its instance: {error}") from None


def take_over(req: Req, state: bytes) -> None:
    """Make a request that has no output yet what another one was when it was exported.

    Its grammar must be compiled.
    """
    read: dict[str, Any] = msgspec.msgpack.decode(state)
    req.output_ids = array("q", read["output"])
    for name, value in read["plain"].items():
        setattr(req, name, value)
    for name, value in read["logprob"].items():
        setattr(req.logprob, name, value)
    # Nothing of what comes with it was found in this instance's cache.
    req.already_computed = kv_rows(req)
    if read["decode_ids"] is not None:
        req.cur_decode_ids_len = read["decode_ids"]
        shown = req.output_ids[: req.cur_decode_ids_len]
        req.surr_and_decode_ids = req.origin_input_ids_unpadded[req.surr_offset :] + shown
    if req.grammar is not None:
        grammar: Any = req.grammar
        for token in req.output_ids:
            grammar.accept_token(token)
