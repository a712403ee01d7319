"""What is checked of a request before it waits for decode.

Whatever SGLang's own intake refuses later is refused here too. The intake sees a request only
when its turn comes, after decode has named its pages; but decode's intake refuses the same request
at once, never names pages, and the client behind the router would wait for a time-out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sglang_cdsp.form import Form
from sglang_cdsp.protocol.messages import GrammarOrder

TEXT_ONLY = "a pool serves text prompts; send text or input_ids"


@dataclass(frozen=True)
class Limit:
    """One thing that is refused.

    Attributes:
        asked: tells whether a request asks for it.
        message: what is wrong and what to do instead.
    """

    asked: Callable[[Any], Any]
    message: str


DECODE_ELSEWHERE: tuple[Limit, ...] = (
    Limit(
        lambda r: r.bootstrap_room is None,
        "no bootstrap_room: a prefill server needs one; send the request through the router",
    ),
    Limit(
        lambda r: r.disagg_prefill_dp_rank not in (None, 0),
        "disagg_prefill_dp_rank: a pool is one prefill replica; leave it out, or send 0",
    ),
)
"""What only a prefill server refuses, whose requests another one decodes."""

ANYWHERE: tuple[Limit, ...] = (
    Limit(
        lambda r: (r.sampling_params.beam_width or 1) > 1,
        "beam_width: a pool has no beam search; leave it out",
    ),
    Limit(
        lambda r: r.return_sampling_mask,
        "return_sampling_mask: a pool keeps no sampling masks; leave it out",
    ),
    Limit(
        lambda r: r.session_params is not None and r.session_params.id is not None,
        "session_params: a pool continues no sessions; send the whole prompt instead",
    ),
    Limit(lambda r: r.input_embeds is not None, f"input_embeds: {TEXT_ONLY}"),
    Limit(lambda r: r.positional_embed_overrides is not None, f"embed overrides: {TEXT_ONLY}"),
    Limit(lambda r: r.mm_inputs is not None, f"images, audio or video: {TEXT_ONLY}"),
    Limit(lambda r: r.lora_id is not None, "lora_path: a pool serves the base model; leave it out"),
    Limit(
        lambda r: r.multi_item_delimiter_indices or r.token_indices_to_pool,
        "scoring of several items: a pool generates; use a server without --cdsp",
    ),
    Limit(
        lambda r: r.return_logprob and r.logprob_start_len > len(r.input_ids or ()),
        "logprob_start_len is higher than the number of input tokens; use a smaller one",
    ),
    Limit(
        lambda r: (
            r.return_routed_experts
            and not 0 <= r.routed_experts_start_len <= len(r.input_ids or ())
        ),
        "routed_experts_start_len is not between 0 and the number of input tokens",
    ),
)


LIMITS: Mapping[Form, tuple[Limit, ...]] = MappingProxyType(
    {Form.PREFILL: (*DECODE_ELSEWHERE, *ANYWHERE), Form.ONE_SERVER: ANYWHERE}
)
"""What is refused of a request, by the form of the pool."""


def unsupported(
    request: Any, vocab_size: int, limits: Sequence[Limit] = LIMITS[Form.PREFILL]
) -> str:
    """Say why a pool cannot serve a request.

    Args:
        request: SGLang's ``TokenizedGenerateReqInput``.
        vocab_size: token ids run from 0 to one less.
        limits: of the pool's form.

    Returns:
        A reason that names the remedy, "" for a request that can be served.
    """
    for limit in limits:
        if limit.asked(request):
            return limit.message
    ids = request.input_ids or (0,)
    for token in (min(ids), max(ids)):
        # SGLang looks the embedding up without a check: one such id ends the instance.
        if not 0 <= token < vocab_size:
            return f"token id {token} is not in the vocabulary; send ids from 0 to {vocab_size - 1}"
    return ""


def grammar_order(request: Any) -> GrammarOrder | None:
    """Ask for the request's grammar to be compiled, None if it has none."""
    params = request.sampling_params
    kinds = {
        "json": params.json_schema,
        "regex": params.regex,
        "full_assistant_ebnf" if params.ebnf_full_assistant else "ebnf": params.ebnf,
        "structural_tag": params.structural_tag,
    }
    for kind, text in kinds.items():
        if text is not None:
            return GrammarOrder(
                rid=str(request.rid), kind=kind, text=text, reasoning=request.require_reasoning
            )
    return None
