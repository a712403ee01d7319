"""Every endpoint of SGLang's HTTP server, and what it does in front of a pool.

The table is the documentation's (``docs/control.md``), and it is what the guards act on. A route of
SGLang's that has no row makes a test fail.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Effect(Enum):
    """What an endpoint does in a pool."""

    REQUEST = "a client's request"  # docs/features.md
    STOCK = "as stock"
    QUIET = "as stock, when the pool is quiet"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path of SGLang's server.

    Attributes:
        path: as the route has it.
        effect: what it does in a pool.
        stock: what a stock server does with ``--dp-size`` instances.
        pool: what the pool does; for what is refused, why, and what to do instead.
        absent: what it does while an instance is absent; SGLang hears as many answers as ever.
        test: the test that shows it, below ``tests``; "" for a client's request.
        methods: which HTTP methods the row is about, () for all.
    """

    path: str
    effect: Effect
    stock: str
    pool: str
    test: str = ""
    methods: tuple[str, ...] = ()
    absent: str = "the same"

    def covers(self, path: str, methods: Iterable[str]) -> bool:
        """Whether the row is about a route."""
        return path == self.path and (not self.methods or set(methods) <= set(self.methods))


SERVING = "serving/test_control.py::"
APART = "serving_two/test_apart.py::"
REFUSALS = SERVING + "test_what_the_pool_cannot_do_is_refused_at_once"
HEALTH = "serving_two/test_faults.py::test_health_during_a_long_chunk_and_when_stopped"
READS = SERVING + "test_what_is_read_is_as_in_stock"


def _requests(*paths: str) -> tuple[Endpoint, ...]:
    note = "see [features.md](features.md)"
    return tuple(Endpoint(path, Effect.REQUEST, "", note) for path in paths)


def _reads(stock: str, *paths: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(path, Effect.STOCK, stock, "the same", READS) for path in paths)


def _refused(
    stock: str, why: str, *paths: str, methods: tuple[str, ...] = ()
) -> tuple[Endpoint, ...]:
    return tuple(
        Endpoint(path, Effect.REFUSED, stock, why, REFUSALS, methods, "refused") for path in paths
    )


ONE_INSTANCE = "an assertion's end (500): only without `--dp-size`"
FROM_DISK = "the pool takes new weights from a folder: call /update_weights_from_disk"
NO_LORA = "the pool does not serve LoRA adapters: load them on a prefill server without --cdsp"
NO_CACHE = (
    "the pool runs without the hierarchical cache: attach storage to a prefill server without "
    "--cdsp that has --enable-hierarchical-cache"
)
NO_SPECULATION = (
    "the pool does not prefill for speculative decoding: keep a corpus on a server without --cdsp"
)
NO_SESSION = (
    "a session's tokens lie on one instance, and decode knows no session: send each request "
    "with its whole prompt"
)
NO_RECORDER = (
    "chunks run outside of SGLang's expert recorder: record on a prefill server without --cdsp "
    "that has --expert-distribution-recorder-mode"
)
ONE_ROLE = "the pool keeps the prefill role: start a decode server without --cdsp"
NO_SEED = (
    "the pool sends its weights to nobody: start the other server from the folder, or from a "
    "prefill server without --cdsp"
)

TOLD = "the others; a new process is told before it takes part"
LOADED = (
    "the others load them, and a new process does before it takes part; its seat stays down with "
    "the reason if it cannot"
)

ENDPOINTS: tuple[Endpoint, ...] = (
    # Whether it lives, and how it is.
    *_reads("answers", "/ready", "/ping"),
    Endpoint(
        "/health",
        Effect.STOCK,
        "200 where any batch ends within `SGLANG_HEALTH_CHECK_TIMEOUT`, else 503",
        "200 while every busy instance comes on layer by layer, 503 when one is stuck or none is "
        "up, see [survive.md](survive.md)",
        HEALTH,
        absent="200 while those that are up come on; 503 while none is",
    ),
    Endpoint(
        "/health_generate",
        Effect.STOCK,
        "the same as `/health`",
        "the same as `/health`",
        HEALTH,
        absent="the same as `/health`",
    ),
    *_reads("tells", "/model_info", "/get_model_info", "/v1/models", "/v1/models/{model:path}"),
    Endpoint(
        "/server_info",
        Effect.STOCK,
        "tells, with a state for each instance",
        "the same, with the pool's part under `cdsp`",
        READS,
        absent='in its place, last, `{"cdsp": {"instance": 3, "absent": true}}`',
    ),
    Endpoint(
        "/get_server_info", Effect.STOCK, "the same", "the same", READS, absent="as `/server_info`"
    ),
    Endpoint(
        "/v1/loads",
        Effect.STOCK,
        "the load of each instance",
        "the same, with chunk tasks and what waits for decode or a plan",
        "serving/test_numbers.py::test_a_busy_pool_says_so_and_an_idle_one_too",
        absent="the load of those that are up",
    ),
    *_reads("404 without `--elastic-ep-backend`", "/is_scaling_elastic_ep", "/scale_elastic_ep"),
    # Stopping and going on.
    Endpoint(
        "/abort_request",
        Effect.STOCK,
        "ends requests by id, or all",
        "the same, answered at once; a chunk that runs ends first",
        "serving/test_ends.py",
    ),
    Endpoint(
        "/pause_generation",
        Effect.QUIET,
        "`abort` ends all requests; `in_place` and `retract` stop batches where they are",
        "`abort` the same; the others let chunks that run end, start no other, and go on with "
        "writes to decode",
        SERVING + "test_a_pause_ends_chunks_and_holds_the_rest",
        absent="the same, and no process is started before the pool goes on",
    ),
    Endpoint(
        "/continue_generation",
        Effect.STOCK,
        "goes on",
        "the same",
        SERVING + "test_a_pause_ends_chunks_and_holds_the_rest",
        absent="the same, and processes are started again",
    ),
    Endpoint(
        "/flush_cache",
        Effect.QUIET,
        "400 with requests in hand, unless they end within `timeout`; says what one instance did",
        "the same for the pool as a whole: no instance flushes while another holds requests",
        SERVING + "test_a_flush_is_one_decision_for_the_pool",
        absent="the others flush; a new process begins with an empty cache",
    ),
    Endpoint(
        "/slow_down",
        Effect.STOCK,
        "sleeps before every batch",
        "the same, before every chunk too",
        SERVING + "test_slowed_down_chunks_take_longer",
        absent=TOLD,
    ),
    # Weights and memory.
    Endpoint(
        "/update_weights_from_disk",
        Effect.QUIET,
        "waits for running requests unless paused, then loads; ends the server where paused "
        "requests hold KV that it is to flush",
        "the same, on all instances while no chunk runs; 400 where stock ends",
        APART + "test_new_weights_come_while_chunks_run",
        absent=LOADED,
    ),
    Endpoint(
        "/update_weight_version",
        Effect.STOCK,
        "renames the weights; ends all requests unless told not to",
        "the same",
        APART + "test_a_weight_version_is_told",
        absent=TOLD,
    ),
    *_refused(
        ONE_INSTANCE,
        FROM_DISK,
        "/init_weights_update_group",
        "/destroy_weights_update_group",
        "/update_weights_from_distributed",
        "/update_weights_from_tensor",
        "/update_weights_from_ipc",
    ),
    *_refused(
        "opens and closes a session of updates that need one instance",
        FROM_DISK,
        "/begin_weight_update",
        "/end_weight_update",
    ),
    *_refused(
        ONE_INSTANCE,
        NO_SEED,
        "/init_weights_send_group_for_remote_instance",
        "/send_weights_to_remote_instance",
    ),
    *_refused(
        "400 unless the server was started as a seed",
        NO_SEED,
        "/remote_instance_transfer_engine_info",
        "/get_remote_instance_transfer_engine_info",
    ),
    Endpoint(
        "/get_weights_by_name",
        Effect.STOCK,
        "values of a weight, for each instance",
        "the same",
        APART + "test_new_weights_come_while_chunks_run",
        absent="null in its place, last",
    ),
    Endpoint(
        "/weights_checker",
        Effect.STOCK,
        "checksums for each rank; 400 without CUDA",
        "the same",
        APART + "test_weights_are_checked_as_in_stock",
        absent="those of the others",
    ),
    Endpoint(
        "/release_memory_occupation",
        Effect.QUIET,
        "gives memory back; ends the server while a request is in it",
        "the same on all instances, and starts nothing until the memory is back; 400 while a "
        "request is in it, or for memory that was released",
        APART + "test_memory_is_released_and_comes_back",
        absent="the others give it back, and no process is started before it is taken again",
    ),
    Endpoint(
        "/resume_memory_occupation",
        Effect.QUIET,
        "takes memory again; ends the server where none was released",
        "the same; 400 where none was released",
        APART + "test_memory_is_released_and_comes_back",
        absent="the others take it; then processes are started again",
    ),
    # Looking inside.
    Endpoint(
        "/start_profile",
        Effect.STOCK,
        "records; a bare 500 for what cannot be, or the server's end "
        "(`SGLANG_PROFILE_V2` without `profile_by_stage`)",
        "the same, chunks count as batches; 400 with the reason for what cannot be",
        SERVING + "test_a_profile_that_cannot_be_made_is_refused",
        absent="the others record; a new process does not",
    ),
    Endpoint(
        "/stop_profile",
        Effect.STOCK,
        "writes what was recorded; a bare 500 where nothing is",
        "the same; 400 where nothing is",
        SERVING + "test_a_profile_that_cannot_be_made_is_refused",
        absent="those that record write it",
    ),
    Endpoint(
        "/configure_logging",
        Effect.STOCK,
        "what is logged of requests, in every process; a bare 500 for an unknown level",
        "the same; 400 for an unknown level",
        SERVING + "test_logging_is_configured",
        absent=TOLD,
    ),
    Endpoint(
        "/set_internal_state",
        Effect.STOCK,
        "sets a few options, and answers whether each instance did",
        "the same",
        SERVING + "test_a_few_options_are_set",
        absent=TOLD,
    ),
    Endpoint("/set_trace_level", Effect.STOCK, "detail of traces", "the same", READS),
    Endpoint(
        "/freeze_gc",
        Effect.STOCK,
        "freezes the garbage collector",
        "the same",
        READS,
        absent="the others; a new process is not told",
    ),
    Endpoint(
        "/dumper/{method}",
        Effect.STOCK,
        "with `DUMPER_SERVER_PORT=reuse` only: passes on to SGLang's dumper of tensors",
        "the same",
        APART + "test_the_dumper_is_reached",
        absent="an empty response in its place, last",
    ),
    # What the pool does not have.
    *_refused(
        "the server's end without `--expert-distribution-recorder-mode`",
        NO_RECORDER,
        "/start_expert_distribution_record",
        "/stop_expert_distribution_record",
        "/dump_expert_distribution_record",
    ),
    *_refused(
        "400 without `--enable-lora`",
        NO_LORA,
        "/load_lora_adapter",
        "/load_lora_adapter_from_tensors",
        "/unload_lora_adapter",
    ),
    *_refused("opens and closes a session", NO_SESSION, "/open_session", "/close_session"),
    *_refused("400 without `--enable-pd-role-switch`", ONE_ROLE, "/pd_role_switch"),
    *_refused(
        "400 without the hierarchical cache (and says that it was cleared)",
        NO_CACHE,
        "/hicache/storage-backend/clear",
    ),
    *_refused(
        "400 without the hierarchical cache",
        NO_CACHE,
        "/hicache/storage-backend",
        methods=("PUT", "DELETE"),
    ),
    Endpoint(
        "/hicache/storage-backend",
        Effect.STOCK,
        "tells; 400 without `--admin-api-key`",
        "the same",
        READS,
        methods=("GET",),
    ),
    *_reads("tells of the hierarchical cache", "/get_hicache_l3_cache_layout"),
    *_refused(
        "400 without n-gram speculative decoding",
        NO_SPECULATION,
        "/add_external_corpus",
        "/remove_external_corpus",
        "/list_external_corpora",
    ),
    # Text work of the HTTP process alone.
    *_reads(
        "answered without the model",
        *("/parse_function_call", "/separate_reasoning", "/v1/tokenize", "/tokenize"),
        *("/v1/detokenize", "/detokenize", "/", "/v1/messages/count_tokens", "/api/tags"),
        "/api/show",
    ),
    # What clients ask of the model.
    *_requests(
        *("/generate", "/encode", "/classify", "/v1/completions", "/v1/chat/completions"),
        *("/v1/embeddings", "/v1/classify", "/v1/audio/transcriptions", "/v1/realtime"),
        *("/v1/score", "/v1/decisions", "/v1/responses", "/v1/responses/{response_id}"),
        *("/v1/responses/{response_id}/cancel", "/v1/rerank", "/api/chat", "/api/generate"),
        *("/v1/messages", "/v1/systemone", "/invocations", "/vertex_generate"),
    ),
)


def row_of(path: str, methods: Iterable[str]) -> Endpoint | None:
    """The row about a route; None if there is none."""
    asked = tuple(methods)
    return next((row for row in ENDPOINTS if row.covers(path, asked)), None)
