"""Log-probabilities of the prompt, computed where its tokens are.

A row at position ``p`` tells the log-probability of the prompt's token ``p + 1``, so a shard
needs the first token of the next piece as a target; every member has the whole prompt, which
settles targets across piece and chunk borders. The parts of all members meet at home.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from sglang_cdsp.engine.stock import StockScheduler
from sglang_cdsp.protocol.messages import LogprobPart, LogprobSpec

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def rows_asked(positions: torch.Tensor, spec: LogprobSpec | None) -> int:
    """How many of a shard's rows are asked for, its last ones; positions ascend."""
    if spec is None:
        return 0
    return int((positions >= spec.start).sum())


def ask_for_rows(
    forward: ForwardBatch, tokens: torch.Tensor, positions: torch.Tensor, spec: LogprobSpec
) -> None:
    """Make SGLang's logits processor compute the rows of a shard that are asked for.

    Args:
        forward: the shard's batch, changed in place.
        tokens: the whole prompt, int64 ``[L]``.
        positions: prompt positions of the shard's rows, int64 ``[T]``, at least one asked for.
        spec: what the request asked for.
    """
    rows = rows_asked(positions, spec)
    following = (positions[-rows:] + 1).clamp(max=tokens.numel() - 1)
    targets = tokens[following]
    if int(positions[-1]) == tokens.numel() - 1:
        targets[-1] = 0  # nothing follows the prompt's last token; SGLang pads so too
    forward.return_logprob = True
    forward.top_logprobs_nums = [spec.top]
    forward.token_ids_logprobs = [spec.token_ids]
    forward.extend_logprob_start_lens_cpu = [positions.numel() - rows]
    forward.extend_input_logprob_token_ids_gpu = targets.to(forward.input_ids.device)


def collect(
    scheduler: StockScheduler, logits: Any, positions: torch.Tensor, spec: LogprobSpec, *, seq: int
) -> LogprobPart:
    """Read the rows that are asked for out of a forward's logits output."""
    rows = positions[-rows_asked(positions, spec) :].tolist()
    if isinstance(logits.input_token_logprobs, torch.Tensor):  # sampling moved them already
        scheduler.batch_result_processor.move_logprobs_to_cpu(
            batch=SimpleNamespace(return_logprob=True), logits_output=logits
        )
    return LogprobPart(
        seq=seq,
        positions=rows,
        values=list(logits.input_token_logprobs),
        top_values=_rows(logits.input_top_logprobs_val, spec.top > 0),
        top_ids=_rows(logits.input_top_logprobs_idx, spec.top > 0),
        chosen_values=_rows(logits.input_token_ids_logprobs_val, spec.token_ids is not None),
        chosen_ids=_rows(logits.input_token_ids_logprobs_idx, spec.token_ids is not None),
    )


def _rows(per_request: Any, wanted: bool) -> list[Any]:
    """The only request's rows as plain lists; [] where they were not asked for."""
    if not wanted:
        return []
    return [row.tolist() if isinstance(row, torch.Tensor) else list(row) for row in per_request[0]]


def assemble(scheduler: StockScheduler, req: Req, parts: Iterable[LogprobPart]) -> None:
    """Put the parts of all members into home's request, as stock leaves them there."""
    order = sorted(
        ((position, part, row) for part in parts for row, position in enumerate(part.positions)),
        key=lambda found: found[0],
    )

    def gathered(field: str) -> list[list[Any]]:
        return [[getattr(part, field)[row] for _, part, row in order if getattr(part, field)]]

    output = SimpleNamespace(
        input_token_logprobs=tuple(part.values[row] for _, part, row in order),
        input_top_logprobs_val=gathered("top_values"),
        input_top_logprobs_idx=gathered("top_ids"),
        input_token_ids_logprobs_val=gathered("chosen_values"),
        input_token_ids_logprobs_idx=gathered("chosen_ids"),
    )
    record = req.logprob
    record.input_token_logprobs_val = record.input_token_logprobs_idx = None
    record.input_top_logprobs_val = record.input_top_logprobs_idx = None
    record.input_token_ids_logprobs_val = record.input_token_ids_logprobs_idx = None
    processor = scheduler.batch_result_processor.logprob_result_processor
    processor.add_input_logprob_return_values(
        0, req, output, 0, len(order), last_prefill_chunk=True
    )
