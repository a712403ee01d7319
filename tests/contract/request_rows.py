"""What the chunk engine relies on in requests, their grammars and the sampling of a first token."""

from __future__ import annotations

from tests.contract.needs import Attributes, Fields, Names, Order, Signature
from tests.contract.row import row

BATCH = "sglang.srt.managers.schedule_batch"
RESULTS = "sglang.srt.managers.scheduler_components.batch_result_processor"
LOGPROBS = "sglang.srt.managers.scheduler_components.logprob_result_processor"
STREAMER = "sglang.srt.managers.scheduler_components.output_streamer"
STATS = "sglang.srt.observability.req_time_stats"

ROWS = (
    # -- grammars ------------------------------------------------------------------------------
    row(
        "engine.grammars controller.request_checks",
        "the key of a grammar, by which a request's own is compiled later",
        Order(
            "sglang.srt.constrained.grammar_manager",
            "GrammarManager.process_req_with_grammar",
            (
                "key = ('json', req.sampling_params.json_schema)",
                "key = ('regex', req.sampling_params.regex)",
                "'full_assistant_ebnf' if req.sampling_params.ebnf_full_assistant else 'ebnf'",
                "key = ('structural_tag', req.sampling_params.structural_tag)",
                "self.grammar_backend.get_cached_or_future_value(key, req.require_reasoning)",
            ),
        ),
    ),
    row(
        "engine.grammars",
        "None, or compiles; returns a value and whether it was cached, else a future",
        Attributes(
            "sglang.srt.constrained.grammar_manager", "GrammarManager", ("grammar_backend",)
        ),
    ),
    row(
        "engine.grammars",
        "compiles in a thread of its own",
        Signature(
            "sglang.srt.constrained.base_grammar_backend",
            "BaseGrammarBackend.get_cached_or_future_value",
            ("key", "require_reasoning"),
        ),
    ),
    row(
        "engine.grammars",
        "why a grammar cannot be compiled",
        Attributes(
            "sglang.srt.constrained.base_grammar_backend",
            "InvalidGrammarObject",
            ("error_message",),
        ),
    ),
    row(
        "engine.stock_requests",
        "requests whose grammar is being compiled wait here",
        Attributes("sglang.srt.constrained.grammar_manager", "GrammarManager", ("grammar_queue",)),
    ),
    # -- requests ------------------------------------------------------------------------------
    row(
        "engine.chunk_engine engine.home_requests engine.stock_requests engine.writes "
        "engine.sampling engine.tasks",
        "what is read from or set on SGLang's request",
        Attributes(
            BATCH,
            "Req",
            (
                "rid",
                "output_ids",
                "to_finish",
                "finished_reason",
                "finished",
                "sampling_params",
                "metadata_buffer_index",
                "time_stats",
                "grammar",
                "return_logprob",
                "logprob",
                "hidden_states_tensor",
                "output_dsa_topk_indices",
            ),
        ),
    ),
    row(
        "engine.chunk_engine engine.sampling engine.writes",
        "time stamps in the order that stock sets them",
        Attributes(
            STATS,
            "SchedulerReqTimeStats",
            (
                "set_forward_entry_time",
                "set_prefill_transfer_queue_entry_time",
                "set_prefill_kv_transfer_finish_time",
                "set_completion_time",
            ),
        ),
    ),
    # -- sampling ------------------------------------------------------------------------------
    row(
        "engine.sampling",
        "a batch of one request that owns no KV",
        Signature(
            BATCH,
            "ScheduleBatch.init_new",
            (
                "reqs",
                "req_to_token_pool",
                "token_to_kv_pool_allocator",
                "tree_cache",
                "model_config",
                "enable_overlap",
                "spec_algorithm",
            ),
        ),
    ),
    row(
        "engine.sampling engine.forward",
        "what sampling needs of a batch",
        Fields(
            BATCH,
            "ScheduleBatch",
            (
                "reqs",
                "forward_mode",
                "return_logprob",
                "top_logprobs_nums",
                "token_ids_logprobs",
                "sampling_info",
                "has_grammar",
            ),
        ),
    ),
    row(
        "engine.sampling",
        "sampling parameters of that batch",
        Signature(
            "sglang.srt.sampling.sampling_batch_info",
            "SamplingBatchInfo.from_schedule_batch",
            ("batch", "vocab_size"),
        ),
    ),
    row(
        "engine.sampling",
        "samples from the logits of the last row",
        Signature(
            "sglang.srt.model_executor.model_runner",
            "ModelRunner.sample",
            ("logits_output", "forward_batch"),
        ),
    ),
    row(
        "engine.sampling engine.prompt_logprobs",
        "log-probabilities as lists; reads `batch.return_logprob` only",
        Signature(
            RESULTS,
            "SchedulerBatchResultProcessor.move_logprobs_to_cpu",
            (),
            ("batch", "logits_output"),
        ),
    ),
    row(
        "engine.sampling engine.prompt_logprobs",
        "the part that puts log-probabilities into requests",
        Attributes(RESULTS, "SchedulerBatchResultProcessor", ("logprob_result_processor",)),
    ),
    row(
        "engine.sampling",
        "the first token's log-probabilities",
        Signature(
            LOGPROBS,
            "SchedulerLogprobResultProcessor.add_logprob_return_values",
            ("i", "req", "pt", "next_token_ids", "num_input_logprobs", "output"),
        ),
    ),
    row(
        "engine.prompt_logprobs",
        "the prompt's log-probabilities, gathered from all members",
        Signature(
            LOGPROBS,
            "SchedulerLogprobResultProcessor.add_input_logprob_return_values",
            ("i", "req", "output", "logprob_pt", "num_input_logprobs"),
            ("last_prefill_chunk",),
        ),
    ),
    row(
        "engine.sampling",
        "answers the prefill server's client",
        Signature(
            STREAMER,
            "SchedulerOutputStreamer.stream_output",
            ("reqs", "return_logprob", "skip_req"),
        ),
    ),
    row(
        "engine.moving engine.sampling",
        "the prefill server's own end of a request",
        Names(BATCH, ("FINISH_LENGTH", "FINISH_ABORT", "ScheduleBatch", "Req", "NextBatchPlan")),
    ),
)
