"""What the pool's scheduler and chunk engine rely on in SGLang's scheduler."""

from __future__ import annotations

from tests.contract.changed import Changed
from tests.contract.needs import Attributes, Calls, Fields, Names, Order, Signature
from tests.contract.row import row

SCHEDULER = "sglang.srt.managers.scheduler"
PREFILL = "sglang.srt.disaggregation.prefill"
UTILS = "sglang.srt.disaggregation.utils"
BATCH = "sglang.srt.managers.schedule_batch"
IO = "sglang.srt.managers.io_struct"
LOOP = "SchedulerDisaggregationPrefillMixin.event_loop_normal_disagg_prefill"
PREFILL_QUEUE = "PrefillBootstrapQueue"

OVERRIDDEN = "overridden: we get what its callers pass"

ROWS = (
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
        ),
    ),
    row(
        "engine.scheduler engine.stock_requests",
        "overridden: start of a stock batch; the batch comes first and has `reqs`",
        Signature(SCHEDULER, "Scheduler.run_batch", ("batch",)),
    ),
    row(
        "engine.scheduler engine.stock_requests",
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
        "engine.scheduler engine.stock_requests",
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
        Changed(
            Calls(SCHEDULER, "Scheduler.handle_generate_request", "self._add_request_to_queue"),
            Calls(SCHEDULER, "Scheduler._handle_generate_request", "self._add_request_to_queue"),
            "nothing: the body has moved, its caller is overridden as before",
        ),
    ),
    row(
        "engine.scheduler",
        "a prompt longer than one instance's KV passes once this limit is the pool's",
        Changed(
            Order(SCHEDULER, "Scheduler.handle_generate_request", ("self.max_req_input_len",)),
            Order(SCHEDULER, "Scheduler._handle_generate_request", ("self.max_req_input_len",)),
            "nothing: the body has moved",
        ),
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
        "engine.stock engine.stock_requests engine.stock_numbers engine.chunk_engine "
        "engine.scheduler engine.assembly engine.decoding engine.sampling engine.joining",
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
                "schedule_stream",
                "forward_stream",
                "batch_result_processor",
                "output_streamer",
                "max_req_len",
                "max_req_input_len",
                "device",
                "is_hybrid_swa",
                "tp_cpu_group",
                "_request_dispatcher",
                "retire_unadmitted_request",
                "metrics_reporter",
                "metrics_collector",
                "pool_stats_observer",
                "load_inquirer",
                "publish_load_snapshot",
                "forward_ct",
                "profiler_manager",
                "forward_sleep_time",
                "max_running_requests",
                "future_map",
                "result_queue",
            ),
        ),
    ),
    row(
        "engine.chunk_engine",
        "a request that stock refuses at its door is answered by stock",
        Signature(SCHEDULER, "Scheduler.retire_unadmitted_request", ("req",)),
    ),
    row(
        "engine.assembly engine.stock_requests engine.chunk_work",
        "the KV manager, stock's queue, and home's metadata buffer",
        Attributes(PREFILL, PREFILL_QUEUE, ("kv_manager", "queue", "ensure_metadata_buffer")),
    ),
    row(
        "engine.chunk_work",
        "false while no buffer is free, so home's last chunk is announced later",
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
        "engine.stock_requests",
        "whether a request ended badly",
        Signature(UTILS, "is_aborted", ("req",)),
    ),
    row(
        "engine.stock_requests engine.chunk_engine",
        "why it ended badly",
        Attributes(BATCH, "FINISH_ABORT", ("message",)),
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
        "engine.scheduler engine.assembly",
        "which instance and rank this is",
        Names("sglang.srt.runtime_context", ("get_parallel", "get_disagg", "get_serving")),
    ),
    row(
        "engine.scheduler",
        "a profile with a number of steps counts forwards here, and asks for the batch's mode",
        Signature(
            "sglang.srt.managers.scheduler_components.profiler_manager",
            "SchedulerProfilerManager._profile_batch_predicate",
            ("batch",),
            exact=True,
        ),
    ),
    row(
        "engine.scheduler",
        "what a batch's start is for the profiler and for `slow_down`",
        Order(
            SCHEDULER,
            "Scheduler.run_batch",
            (
                "self.forward_ct += 1",
                "self.profiler_manager._profile_batch_predicate(batch)",
                "time.sleep(self.forward_sleep_time)",
            ),
        ),
    ),
)
