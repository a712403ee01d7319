"""What the controller makes of a request that SGLang's tokenizer sends."""

from __future__ import annotations

from typing import Any

from sglang.srt.disaggregation.utils import FAKE_BOOTSTRAP_HOST
from sglang.srt.managers.io_struct import AbortReq, TokenizedGenerateReqInput

from sglang_cdsp.controller.dispatcher import logprob_spec
from sglang_cdsp.controller.homes import output_tokens
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.prefixes.namespaces import salt_of
from sglang_cdsp.controller.request import PoolRequest


def joins_a_room(tokenized: TokenizedGenerateReqInput) -> bool:
    """Whether a decode server waits for it, and not this server alone."""
    return tokenized.bootstrap_room is not None and tokenized.bootstrap_host != FAKE_BOOTSTRAP_HOST


def name_its_space(tokenized: TokenizedGenerateReqInput) -> None:
    """Make one salt of its two keys, in place, before anything looks for its pages."""
    salt = salt_of(tokenized.extra_key, tokenized.cache_salt)
    tokenized.extra_key, tokenized.cache_salt = None, salt


def pool_request(
    tokenized: TokenizedGenerateReqInput,
    *,
    arrival_s: float,
    urgency: int,
    decodes: bool,
    ledger: InstanceLedger,
) -> PoolRequest:
    """A request as the pool keeps it.

    Args:
        tokenized: SGLang's.
        arrival_s: now, monotonic seconds.
        urgency: of its priority.
        decodes: the pool decodes it, too.
        ledger: for the sizes that its output is promised in.
    """
    fake = decodes or tokenized.bootstrap_host == FAKE_BOOTSTRAP_HOST
    request = PoolRequest(
        rid=str(tokenized.rid),
        tokenized=tokenized,
        tokens=len(tokenized.input_ids or ()),
        arrival_s=arrival_s,
        room=None if fake else tokenized.bootstrap_room,
        urgency=urgency,
        decodes=decodes,
        joins_late=logprob_spec(tokenized) is not None,
    )
    if decodes:
        request.longest_output = tokenized.sampling_params.max_new_tokens
        request.output_tokens = output_tokens(
            request.tokens, request.longest_output, ledger.page_size, ledger.smallest_instance
        )
    return request


def turned_away(tokenized: TokenizedGenerateReqInput, message: str) -> Any:
    """SGLang's answer to a request that is not taken now: 503, with a message."""
    reason = {"type": "abort", "message": message, "status_code": 503}
    worker = getattr(tokenized, "http_worker_ipc", None)
    return AbortReq(rid=tokenized.rid, finished_reason=reason, http_worker_ipc=worker)
