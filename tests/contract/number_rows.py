"""What SGLang's own numbers are made of, into which the pool's are counted."""

from __future__ import annotations

from tests.contract.changed import Changed
from tests.contract.needs import Attributes, Fields, Names, Options, Order, Signature
from tests.contract.row import row

SCHEDULER = "sglang.srt.managers.scheduler"
PARTS = "sglang.srt.managers.scheduler_components"
COLLECTOR = "sglang.srt.observability.metrics_collector"
STATS = "sglang.srt.observability.req_time_stats"
SNAPSHOT = "sglang.srt.managers.load_snapshot"
BATCH = "sglang.srt.managers.schedule_batch"
FORWARD = "sglang.srt.model_executor.forward_batch_info"

ROWS = (
    row(
        "engine.stock engine.stock_numbers",
        "whether this rank has a collector, and what it published last",
        Attributes(
            f"{PARTS}.metrics_reporter",
            "SchedulerMetricsReporter",
            ("current_scheduler_metrics_enabled", "stats"),
        ),
    ),
    row(
        "engine.stock_numbers",
        "all gauges are published here, from one record",
        Signature(COLLECTOR, "SchedulerMetricsCollector.log_stats", ("stats",), exact=True),
    ),
    row(
        "engine.stock_numbers",
        "the record's counts of requests",
        Fields(COLLECTOR, "SchedulerStats", ("num_running_reqs", "num_queue_reqs")),
    ),
    row("engine.stock_numbers", "a count", Fields(COLLECTOR, "QueueCount", ("total",))),
    row(
        "engine.stock_numbers",
        "counters of prefilled tokens",
        Signature(
            COLLECTOR,
            "SchedulerMetricsCollector.increment_realtime_tokens",
            (),
            ("dp_cooperation_info", "prefill_compute_tokens"),
        ),
    ),
    row(
        "engine.stock_numbers",
        "counters of prefilled tokens, by where they came from",
        Signature(
            COLLECTOR,
            "SchedulerMetricsCollector.increment_effective_prefill_tokens",
            (),
            ("input_tokens", "device_hit_tokens", "host_hit_tokens", "storage_hit_tokens"),
        ),
    ),
    row(
        "engine.stock_numbers",
        "KV usage goes into the record",
        Signature(f"{PARTS}.pool_stats_observer", "PoolStats.update_scheduler_stats", ("stats",)),
    ),
    row(
        "engine.stock_numbers",
        "loads are asked for when they are published",
        Order(SCHEDULER, "Scheduler.publish_load_snapshot", ("self.load_inquirer.get_loads()",)),
    ),
    row(
        "engine.stock engine.stock_numbers",
        "at once, if so wished",
        Signature(SCHEDULER, "Scheduler.publish_load_snapshot", ("force",)),
    ),
    row(
        "engine.stock_numbers",
        "what `/v1/loads` shows of a rank",
        Fields(
            SNAPSHOT,
            "LoadSnapshot",
            (
                "num_running_reqs",
                "num_waiting_reqs",
                "num_waiting_uncached_tokens",
                "num_total_tokens",
                "num_active_tokens",
                "queues",
            ),
        ),
    ),
    row("engine.stock_numbers", "its queues", Fields(SNAPSHOT, "QueueMetrics", ("waiting",))),
    row(
        "engine.chunk_engine engine.stock_requests",
        "times from which the queue time is reckoned",
        Fields(STATS, "SchedulerReqTimeStats", ("wait_queue_entry_time", "forward_entry_time")),
    ),
    row(
        "engine.chunk_engine engine.chunk_work engine.stock_requests",
        "the queue time is one subtraction, when the first forward begins",
        Order(
            STATS,
            "SchedulerReqTimeStats.set_forward_entry_time",
            ("if self.forward_entry_time == 0.0:", "ts - self.wait_queue_entry_time"),
        ),
    ),
    row(
        "engine.stock engine.stock_requests",
        "what a batch computes, request by request",
        Fields(BATCH, "ScheduleBatch", ("forward_mode", "prefix_lens", "extend_lens")),
    ),
    row(
        "engine.stock engine.stock_requests",
        "whether that is prefill",
        Signature(FORWARD, "ForwardMode.is_extend", ()),
    ),
    # -- the pool as one replica ----------------------------------------------------------------
    row(
        "hooks engine.metric_labels",
        "every rank's labels are made here, the collector gets them by name",
        Order(
            COLLECTOR,
            "SchedulerMetricsCollector.init_new",
            (
                "'tp_rank': parallel.tp_rank",
                "labels['dp_rank'] = parallel.dp_rank",
                "labels.update(get_observability().extra_metric_labels)",
                "labels=labels",
            ),
        ),
    ),
    row(
        "hooks engine.metric_labels",
        "they come first",
        Signature(
            COLLECTOR,
            "SchedulerMetricsCollector.__init__",
            ("labels",),
            ("server_args", "enable_lora", "enable_hierarchical_cache"),
        ),
    ),
    row(
        "hooks loads",
        "the front end's reader of loads is made here",
        Order(
            "sglang.srt.managers.tokenizer_manager",
            "TokenizerManager",
            ("self.load_snapshot_reader = create_load_snapshot_reader(",),
        ),
    ),
    row(
        "loads",
        "made with what is passed on",
        Signature(SNAPSHOT, "create_load_snapshot_reader", ("port_args", "caller"), exact=True),
    ),
    row(
        "loads",
        "`/v1/loads` asks it for one rank or for all",
        Order(
            "sglang.srt.managers.tokenizer_control_mixin",
            "TokenizerControlMixin.get_loads",
            ("reader = self.load_snapshot_reader", "reader.read(dp_rank)", "reader.read_all()"),
        ),
    ),
    row(
        "loads",
        "numbers of a load that are no sums",
        Fields(
            SNAPSHOT,
            "LoadSnapshot",
            ("timestamp", "token_usage", "cache_hit_rate", "utilization", "total_prefill_busy_us"),
        ),
    ),
    row(
        "loads",
        "and of its sections",
        Fields(SNAPSHOT, "DisaggregationMetrics", ("mode", "kv_transfer_latency_ms")),
    ),
    row(
        "loads",
        "and of speculative decoding, whose shares are no sums either",
        Fields(SNAPSHOT, "SpeculativeMetrics", ("accept_length", "accept_rate")),
    ),
    row(
        "hooks loads",
        "accelerators behind one entry of `/v1/loads`",
        Order("sglang.srt.entrypoints.v1_loads", "get_loads", ("_num_accelerators_per_dp_rank()",)),
    ),
    row(
        "loads engine.metric_labels",
        "how many instances and ranks there are",
        Names("sglang.srt.runtime_context", ("get_parallel",)),
    ),
    row(
        "controller.controller",
        "whether metrics are asked for, and the labels that all have",
        Names("sglang.srt.runtime_context", ("get_observability", "get_serving")),
    ),
    row(
        "controller.controller",
        "the options of that",
        Options(
            "sglang.srt.arg_groups.fields",
            ("enable_metrics", "extra_metric_labels", "served_model_name"),
        ),
    ),
    row(
        "controller.exported.instruments",
        "`/metrics` reads what all processes leave in one folder, the controller's among them",
        Order(
            "sglang.srt.utils.common",
            "add_prometheus_middleware",
            ("multiprocess.MultiProcessCollector(registry)", "make_asgi_app(registry=registry)"),
        ),
    ),
    row(
        "controller.process",
        "`/server_info` shows what the controller says on its pipe, over the flags",
        Changed(
            Order(
                "sglang.srt.entrypoints.http_server",
                "server_info",
                ("**server_args.resolved_dict()", "**_global_state.scheduler_info"),
            ),
            Order(
                "sglang.srt.utils.common",
                "build_server_info",
                ("server_args.resolved_dict()", "result.update(scheduler_info)"),
            ),
            "nothing: the order is the same",
        ),
    ),
)
