"""Home's part of a plan's last chunk: the first token and its log-probabilities."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from sglang.srt.disaggregation.prefill import maybe_release_metadata_buffer
from sglang.srt.disaggregation.utils import prepare_abort
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, ScheduleBatch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

from sglang_cdsp.engine.req_state import recall_penalties
from sglang_cdsp.engine.stock import StockScheduler

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def sampling_batch(scheduler: StockScheduler, req: Req) -> ScheduleBatch:
    """SGLang's batch of one request, as far as sampling needs it: it owns no KV."""
    batch = ScheduleBatch.init_new(
        [req],
        scheduler.req_to_token_pool,
        scheduler.token_to_kv_pool_allocator,
        scheduler.tree_cache,
        scheduler.model_config,
        scheduler.enable_overlap,
        scheduler.spec_algorithm,
    )
    batch.forward_mode = ForwardMode.EXTEND
    if batch.return_logprob:
        batch.top_logprobs_nums = [req.logprob.top_logprobs_num]
        batch.token_ids_logprobs = [req.logprob.token_ids_logprob]
    batch.sampling_info = SamplingBatchInfo.from_schedule_batch(
        batch, scheduler.model_config.vocab_size
    )
    recall_penalties(batch, list(req.output_ids))
    return batch


def sample_first_token(
    scheduler: StockScheduler, batch: ScheduleBatch, forward: ForwardBatch, logits: Any
) -> None:
    """Sample, and leave token and log-probabilities in the batch's only request.

    Raises:
        ValueError: when the request's grammar refuses the sampled token.
    """
    (req,) = batch.reqs
    if logits.next_token_logits.shape[0] != 1:
        raise RuntimeError("a chunk task samples one row")
    tokens = scheduler.tp_worker.model_runner.sample(logits, forward)
    (token,) = tokens.tolist()
    results = scheduler.batch_result_processor
    results.move_logprobs_to_cpu(batch=batch, logits_output=logits)
    req.output_ids.append(token)
    if req.grammar is not None:
        req.grammar.accept_token(token)
        req.grammar.finished = req.finished()
    req.hidden_states_tensor = None
    req.output_dsa_topk_indices = None
    if req.return_logprob:
        results.logprob_result_processor.add_logprob_return_values(0, req, 0, [token], 0, logits)


def finish_at_prefill(scheduler: StockScheduler, req: Req) -> None:
    """Answer the prefill server's client, as stock does once the KV has arrived."""
    req.finished_reason = FINISH_LENGTH(length=0)
    req.time_stats.set_prefill_kv_transfer_finish_time()
    req.time_stats.set_completion_time()
    scheduler.output_streamer.stream_output([req], req.return_logprob, None)


def retire(scheduler: StockScheduler, req: Req, error: str, *, silent: bool) -> None:
    """End home's request: answer its client and give the metadata buffer back, if it has one.

    Args:
        error: "" for a success, else the text that the client gets with status 500.
        silent: the client was answered already.
    """
    if not silent and not error:
        finish_at_prefill(scheduler, req)
    elif not silent:
        prepare_abort(req, error, status_code=HTTPStatus.INTERNAL_SERVER_ERROR)
        scheduler.output_streamer.stream_output([req], req.return_logprob, None)
    if scheduler.disagg_prefill_bootstrap_queue is not None:  # else it hands no metadata over
        maybe_release_metadata_buffer(req, scheduler.req_to_metadata_buffer_idx_allocator)
