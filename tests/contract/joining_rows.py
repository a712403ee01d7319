"""What computed prompts rely on that join SGLang's running batch in one server."""

from __future__ import annotations

from tests.contract.changed import Changed, Not
from tests.contract.needs import Attributes, Calls, Order, Signature
from tests.contract.row import row

SCHEDULER = "sglang.srt.managers.scheduler"
DECODE = "sglang.srt.disaggregation.decode"
PREBUILT = "sglang.srt.disaggregation.decode_schedule_batch_mixin"
MIXIN = "ScheduleBatchDisaggregationDecodeMixin"
BATCH = "sglang.srt.managers.schedule_batch"
CACHE = "sglang.srt.mem_cache.common"
BASE = "sglang.srt.mem_cache.base_prefix_cache"
POOL = "sglang.srt.mem_cache.memory_pool"
RESULTS = "sglang.srt.managers.scheduler_components.batch_result_processor"

CHECKPOINTS = "both forms are served (`engine.joining`)"

ROWS = (
    row(
        "engine.scheduler",
        "overridden: the engine's turn, and who joins, before stock chooses a batch",
        Signature(
            SCHEDULER,
            "Scheduler.get_next_batch_to_run",
            ("running_batch", "last_batch"),
            exact=True,
        ),
    ),
    row(
        "engine.scheduler",
        "overridden: slots that only wait are given back before anybody is retracted",
        Signature(SCHEDULER, "Scheduler.update_running_batch", ("batch",), exact=True),
    ),
    row(
        "engine.decoding",
        "whether the next decode step finds its slots",
        Signature(BATCH, "ScheduleBatch.check_decode_mem", ()),
    ),
    row(
        "engine.decoding",
        "frees a request's slots; it can be prefilled again",
        Signature(BATCH, "ScheduleBatch.release_req", ("idx", "remaing_req_count")),
    ),
    row(
        "engine.decoding",
        "takes requests out of a batch: those that have ended, or all but some",
        Signature(BATCH, "ScheduleBatch.filter_batch", (), ("keep_indices",)),
    ),
    row(
        "engine.decoding",
        "ends the last request of a batch that is short of slots, who has nobody to retract",
        Order(
            BATCH,
            "ScheduleBatch.retract_decode",
            ("if len(sorted_indices) == 1:", "last_req.to_finish = FINISH_ABORT("),
        ),
    ),
    row(
        "engine.scheduler",
        "the loop of one server without overlap",
        Calls(SCHEDULER, "Scheduler.event_loop_normal", "self.get_next_batch_to_run", in_loop=True),
    ),
    row(
        "engine.scheduler",
        "the loop of one server with overlap",
        Calls(
            SCHEDULER, "Scheduler.event_loop_overlap", "self.get_next_batch_to_run", in_loop=True
        ),
    ),
    row(
        "engine.stock_requests",
        "with overlap batches end in the order in which they began",
        Order(
            SCHEDULER,
            "Scheduler.event_loop_overlap",
            ("self.result_queue.popleft()", "self.run_batch(batch)", "self.result_queue.append("),
        ),
    ),
    row(
        "engine.decoding",
        "results are taken in early as before a pause, and the loop finds no last batch",
        Order(
            SCHEDULER,
            "Scheduler.event_loop_overlap",
            ("if self.last_batch:", "pop_and_process()", "self.last_batch = batch"),
        ),
    ),
    row(
        "engine.decoding",
        "whether a batch's requests have penalties, which count the last known token at each step",
        Order(
            BATCH,
            "ScheduleBatch.prepare_for_decode",
            (
                "if self.sampling_info.penalizer_orchestrator.is_required:",
                "self.cumulate_penalty_output_tokens()",
            ),
        ),
    ),
    row(
        "engine.joining",
        "a batch that decode servers make of requests whose KV has arrived",
        Signature(PREBUILT, f"{MIXIN}.prepare_for_prebuilt", ()),
    ),
    row(
        "engine.joining",
        "its first tokens enter the next batch, and its prompts the prefix tree",
        Signature(PREBUILT, f"{MIXIN}.process_prebuilt", ("future_map",)),
    ),
    row(
        "engine.joining",
        "with overlap a decode server waits for forwards that read old rows",
        Order(
            DECODE,
            "SchedulerDisaggregationDecodeMixin._get_new_prebuilt_batch",
            (
                "new_batch.prepare_for_prebuilt()",
                "if self.enable_overlap:",
                "self.schedule_stream.wait_stream(self.forward_stream)",
            ),
        ),
    ),
    row(
        "engine.joining",
        "a request that owns its whole row, at the tree's root",
        Signature(DECODE, "_bind_root_prefix", ("req", "tree_cache")),
    ),
    row(
        "engine.joining",
        "a request's row",
        Attributes(POOL, "ReqToTokenPool", ("alloc", "write", "available_size")),
    ),
    row(
        "engine.joining",
        "cached prefixes make room",
        Signature(CACHE, "evict_from_tree_cache", ("tree_cache", "num_tokens")),
    ),
    row(
        "engine.joining",
        "how much of the cache nobody uses",
        Attributes(BASE, "BasePrefixCache", ("evictable_size",)),
    ),
    row(
        "engine.joining",
        "reasoning tokens are counted from the first on",
        Signature(
            RESULTS,
            "SchedulerBatchResultProcessor._maybe_update_reasoning_tokens",
            ("req", "next_token_id"),
        ),
    ),
    row(
        "engine.joining",
        "an aborted request ends with its first token",
        Attributes(BATCH, "FINISH_ABORT", ("message", "to_json")),
    ),
    row(
        "engine.joining releases",
        "a request that ends gives its slots back, the tree keeps what it can",
        Changed(
            Signature(CACHE, "release_kv_cache", ("req", "tree_cache", "is_insert")),
            Signature(CACHE, "release_kv_cache", ("req", "tree_cache"), ("checkpoint",)),
            CHECKPOINTS,
            "kv_is_checkpointed",
        ),
    ),
    row(
        "engine.joining",
        "how much of a request the tree may key",
        Changed(
            Signature(BATCH, "Req.set_extend_range", ("start", "end")),
            Not(Attributes(BATCH, "Req", ("set_extend_range",))),
            CHECKPOINTS,
            "kv_is_checkpointed",
        ),
    ),
    row(
        "engine.joining",
        "whether a cache keeps prefixes for others",
        Changed(
            Signature(BASE, "BasePrefixCache.is_chunk_cache", ()),
            Signature(BASE, "BasePrefixCache.supports_prefix_sharing", ()),
            CHECKPOINTS,
            "kv_is_checkpointed",
        ),
    ),
    row(
        "engine.moving_in engine.moving_out",
        "with overlap a step under way keeps its requests, whoever leaves the running batch",
        Order(
            SCHEDULER,
            "Scheduler.event_loop_overlap",
            ("self.result_queue.append((batch.copy(), batch_result))",),
        ),
    ),
    row(
        "engine.joining",
        "the token that counts at the next step",
        Attributes(BATCH, "ScheduleBatch", ("cumulate_penalty_output_tokens",)),
    ),
)
