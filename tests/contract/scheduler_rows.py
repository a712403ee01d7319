"""What the pool's scheduler and chunk engine rely on."""

from __future__ import annotations

from tests.contract.needs import Attributes, Calls, Fields, Names, Order, Signature
from tests.contract.row import row

SCHEDULER = "sglang.srt.managers.scheduler"
PREFILL = "sglang.srt.disaggregation.prefill"
UTILS = "sglang.srt.disaggregation.utils"
BATCH = "sglang.srt.managers.schedule_batch"
IO = "sglang.srt.managers.io_struct"
RESULTS = "sglang.srt.managers.scheduler_components.batch_result_processor"
LOGPROBS = "sglang.srt.managers.scheduler_components.logprob_result_processor"
STREAMER = "sglang.srt.managers.scheduler_components.output_streamer"
STATS = "sglang.srt.observability.req_time_stats"
LOOP = "SchedulerDisaggregationPrefillMixin.event_loop_normal_disagg_prefill"
PREFILL_QUEUE = "PrefillBootstrapQueue"

OVERRIDDEN = "overridden: we get what its callers pass"

ROWS = (
    row(
        "engine.grammars pool.intake",
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
    # -- methods that PoolScheduler overrides ---------------------------------------------------
    row(
        "engine.scheduler",
        OVERRIDDEN,
        Signature(
            SCHEDULER,
            "Scheduler.handle_generate_request",
            ("recv_req",),
            ("mm_input_error",),
            exact=True,
        ),
    ),
    row(
        "engine.scheduler",
        OVERRIDDEN,
        Signature(
            SCHEDULER, "Scheduler._add_request_to_queue", ("req", "is_retracted"), exact=True
        ),
    ),
    row(
        "engine.scheduler",
        OVERRIDDEN,
        Signature(SCHEDULER, "Scheduler.abort_request", ("recv_req",), exact=True),
    ),
    row(
        "engine.scheduler",
        OVERRIDDEN,
        Signature(SCHEDULER, "Scheduler.get_internal_state", ("recv_req",), exact=True),
    ),
    row(
        "engine.scheduler",
        OVERRIDDEN,
        Signature(SCHEDULER, "Scheduler.init_request_dispatcher", (), exact=True),
    ),
    row(
        "engine.scheduler",
        "overridden; the engine takes its turn before stock chooses a batch",
        Signature(
            PREFILL,
            "SchedulerDisaggregationPrefillMixin.get_next_disagg_prefill_batch_to_run",
            ("running_batch", "last_batch"),
            exact=True,
        ),
    ),
    row(
        "engine.scheduler engine.turns",
        "overridden: start of a stock batch; the batch comes first and has `reqs`",
        Signature(SCHEDULER, "Scheduler.run_batch", ("batch",)),
    ),
    row(
        "engine.scheduler engine.turns",
        "overridden: first tokens of a stock batch",
        Signature(SCHEDULER, "Scheduler.process_batch_result", ("batch", "result"), exact=True),
    ),
    row(
        "engine.scheduler platforms.idle",
        "overridden: slots that the engine holds are no leak",
        Signature(
            SCHEDULER,
            "Scheduler.is_fully_idle",
            ("for_health_check", "ignore_waiting"),
            exact=True,
        ),
    ),
    # -- where they are called from ------------------------------------------------------------
    row(
        "engine.scheduler",
        "orders get their handlers when the scheduler is built",
        Calls(SCHEDULER, "Scheduler.__init__", "self.init_request_dispatcher"),
    ),
    row(
        "engine.scheduler",
        "the loop of a prefill server without overlap, which `--cdsp` forces",
        Calls(PREFILL, LOOP, "self.get_next_disagg_prefill_batch_to_run", in_loop=True),
    ),
    row(
        "engine.scheduler engine.turns",
        "messages come before, batches after the engine's turn",
        Order(
            PREFILL,
            LOOP,
            (
                "self.ingest_requests()",
                "self.get_next_disagg_prefill_batch_to_run",
                "self.run_batch(batch)",
                "self.process_batch_result(batch, result)",
                "self.process_disagg_prefill_inflight_queue()",
            ),
        ),
    ),
    row(
        "engine.scheduler platforms.idle",
        "an idle scheduler comes by here in each round",
        Calls(PREFILL, LOOP, "self.on_idle", in_loop=True),
    ),
    row(
        "engine.scheduler",
        "stock's own checks of slots run only while nobody holds any",
        Calls(SCHEDULER, "Scheduler.on_idle", "self.is_fully_idle"),
    ),
    row(
        "engine.chunk_engine",
        "home's request reaches the engine after stock made and checked it",
        Calls(SCHEDULER, "Scheduler.handle_generate_request", "self._add_request_to_queue"),
    ),
    row(
        "engine.scheduler",
        "a prompt longer than one instance's KV passes once this limit is the pool's",
        Order(SCHEDULER, "Scheduler.handle_generate_request", ("self.max_req_input_len",)),
    ),
    row(
        "engine.scheduler hooks plugin",
        "a scheduler process loads plugins before it looks its class up",
        Order(
            SCHEDULER,
            "run_scheduler_process",
            ("load_plugins()", "scheduler = Scheduler(server_args, port_args)"),
        ),
    ),
    row(
        "engine.scheduler",
        "a scheduler that stops with an exception stops the server",
        Order(SCHEDULER, "run_scheduler_process", ("parent_process.send_signal(signal.SIGQUIT)",)),
    ),
    # -- what the engine takes from the scheduler ----------------------------------------------
    row(
        "engine.turns engine.chunk_engine engine.scheduler engine.sampling",
        "queues, allocators and parts that the engine uses",
        Attributes(
            SCHEDULER,
            "Scheduler",
            (
                "waiting_queue",
                "grammar_manager",
                "disagg_prefill_bootstrap_queue",
                "disagg_prefill_inflight_queue",
                "disagg_metadata_buffers",
                "running_batch",
                "last_batch",
                "chunked_req",
                "tp_worker",
                "token_to_kv_pool_allocator",
                "req_to_token_pool",
                "req_to_metadata_buffer_idx_allocator",
                "tree_cache",
                "model_config",
                "enable_overlap",
                "spec_algorithm",
                "batch_result_processor",
                "output_streamer",
                "max_req_len",
                "max_req_input_len",
                "device",
                "is_hybrid_swa",
                "_request_dispatcher",
                "retire_unadmitted_request",
            ),
        ),
    ),
    row(
        "engine.turns",
        "requests whose grammar is being compiled wait here",
        Attributes("sglang.srt.constrained.grammar_manager", "GrammarManager", ("grammar_queue",)),
    ),
    row(
        "engine.chunk_engine",
        "a request that stock refuses at its door is answered by stock",
        Signature(SCHEDULER, "Scheduler.retire_unadmitted_request", ("req",)),
    ),
    row(
        "engine.scheduler engine.turns engine.chunk_engine",
        "the KV manager, stock's queue, and home's metadata buffer",
        Attributes(PREFILL, PREFILL_QUEUE, ("kv_manager", "queue", "ensure_metadata_buffer")),
    ),
    row(
        "engine.chunk_engine",
        "false while no buffer is free, so the chunk is announced later",
        Signature(PREFILL, f"{PREFILL_QUEUE}.ensure_metadata_buffer", ("req",)),
    ),
    row(
        "engine.sampling",
        "gives the buffer back, if there is one",
        Signature(PREFILL, "maybe_release_metadata_buffer", ("req", "allocator")),
    ),
    row(
        "engine.writes",
        "fills the buffer that decode reads the first token from",
        Signature(UTILS, "MetadataBuffers.set_buf", ("req",)),
    ),
    row(
        "engine.writes",
        "decode's metadata: first token and room come from the request",
        Order(
            UTILS,
            "MetadataBuffers.set_buf",
            ("req.output_ids[0]", "req.bootstrap_room"),
        ),
    ),
    row(
        "engine.sampling",
        "an error answer with a status",
        Signature(UTILS, "prepare_abort", ("req", "error_message"), ("status_code",)),
    ),
    row(
        "engine.turns",
        "whether a request ended badly",
        Signature(UTILS, "is_aborted", ("req",)),
    ),
    row(
        "engine.turns engine.chunk_engine",
        "why it ended badly",
        Attributes(BATCH, "FINISH_ABORT", ("message",)),
    ),
    # -- requests ------------------------------------------------------------------------------
    row(
        "engine.chunk_engine engine.turns engine.writes engine.sampling engine.tasks",
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
        "engine.sampling",
        "the prefill server's own end of a request",
        Names(BATCH, ("FINISH_LENGTH", "FINISH_ABORT", "ScheduleBatch", "Req", "NextBatchPlan")),
    ),
    # -- messages ------------------------------------------------------------------------------
    row(
        "engine.scheduler",
        "adding handlers to a dispatcher keeps those that are there",
        Order("sglang.utils", "TypeBasedDispatcher.__iadd__", ("if ty not in self._mapping:",)),
    ),
    row(
        "engine.scheduler",
        "`/server_info` shows what stands here",
        Fields(IO, "GetInternalStateReqOutput", ("internal_state",)),
    ),
    row(
        "engine.scheduler",
        "which instance and rank this is",
        Names("sglang.srt.runtime_context", ("get_parallel", "get_disagg", "get_serving")),
    ),
)
