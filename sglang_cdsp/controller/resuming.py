"""Requests that are computed anew, from their prompt and from the output that they have.

Output reaches the detokenizer by way of the controller, which so knows, whenever an instance dies,
what the client has seen: what it has passed on, no token more or less. A request that its home
gives back brings with it what its client has not seen yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType

from sglang_cdsp.controller.endings import Endings
from sglang_cdsp.controller.homes import output_tokens
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.phases import Event, Phase
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.request_table import RequestTable
from sglang_cdsp.protocol.messages import OutputState, Streamed, StreamedPart

MOST_LOSSES = 3
"""So many instances may be lost under a request: it might be what ends them."""

NOT_REBUILT: Mapping[str, str] = MappingProxyType(
    {
        "custom_logit_processor": "a custom logit processor",
        "return_hidden_states": "hidden states",
        "return_routed_experts": "routed experts",
        "return_indexer_topk": "indexer top-k",
    }
)
"""State that tokens alone do not give back, by the field of SGLang's request that asks for it."""


def obstacle(request: PoolRequest) -> str:
    """Why a request cannot be computed anew without the instance that had it; "" if it can."""
    if not request.decodes:
        return "its KV was on its way to a decode server"
    if request.losses >= MOST_LOSSES:
        return f"it is the {request.losses + 1}th that was lost under it"
    if request.output.tokens:
        for field, name in NOT_REBUILT.items():
            if getattr(request.tokenized, field, None):
                return f"output with {name} cannot be rebuilt"
    return ""


def compute_anew(request: PoolRequest) -> None:
    """A request gets another plan, once all processes that had a part in it are done with it."""
    request.recalled = True
    request.losses += 1
    request.error = ""


def resumed_state(request: PoolRequest) -> OutputState | None:
    """What a request goes on from, None for its prompt alone."""
    if request.carried is not None:
        return request.carried
    seen = request.output
    if not seen.tokens:
        return None
    return OutputState(
        tokens=list(seen.tokens),
        sent=len(seen.tokens),
        cached_tokens=seen.cached_tokens,
        retractions=seen.retractions + 1,
    )


class Resuming:
    """Keeps what clients have seen, and prepares requests to go on from it."""

    def __init__(
        self,
        *,
        table: RequestTable,
        ledger: InstanceLedger,
        endings: Endings,
        wait_again: Callable[[PoolRequest], None],
    ) -> None:
        """``wait_again`` takes a request of whose plan nothing is left."""
        self._table = table
        self._ledger = ledger
        self._endings = endings
        self._wait_again = wait_again

    def streamed(self, report: Streamed) -> None:
        """Output is passed on. SGLang's own requests, such as health checks, are not the pool's."""
        for part in report.parts:
            request = self._table.named(part.rid)
            if request is not None and report.instance not in request.lost:
                self._seen(request, part)

    def _seen(self, request: PoolRequest, part: StreamedPart) -> None:
        seen = request.output
        seen.tokens.extend(part.tokens)
        seen.cached_tokens, seen.retractions = part.cached_tokens, part.retractions
        request.carried = None
        if part.ended:
            seen.complete = request.answered = True
            request.recalled = False

    def retracted(self, request: PoolRequest, output: OutputState) -> None:
        """SGLang has retracted a request at its home, which holds nothing of it any more."""
        before = request.advance(Event.RETRACTED)
        request.joined = False
        if request.aborted or request.answered:
            # What was to end it there came too late.
            reason = request.error
            self._endings.answer(request, HTTPStatus.SERVICE_UNAVAILABLE, reason)
            request.decoded = True
            if before in (Phase.DECODING, Phase.STOCK):
                stock = before is Phase.STOCK
                request.advance(Event.STOCK_ENDED if stock else Event.DECODE_ENDED)
                self._endings.over(request)
            return
        # What went wrong at other members, once home had all KV, does not count.
        request.error = ""
        request.carried = output
        if before in (Phase.DECODING, Phase.STOCK):
            request.advance(Event.RECALLED)
            self._wait_again(request)
        else:
            request.recalled = True

    def prepare(self, request: PoolRequest) -> None:
        """A request of whose plan nothing is left is to be planned over prompt and output."""
        request.resumes = state = resumed_state(request)
        if state is None:
            request.first_token_s = None  # which nobody has seen, and which is sampled again
            return
        done = len(state.tokens)
        longest = request.longest_output
        request.tokens = request.prompt_tokens + done
        request.output_tokens = output_tokens(
            request.tokens,
            None if longest is None else max(longest - done, 1),
            self._ledger.page_size,
            self._ledger.smallest_instance,
        )
        # It was made for the prompt; prompt log-probabilities are with the client, or carried.
        request.forced, request.joins_late = None, False
