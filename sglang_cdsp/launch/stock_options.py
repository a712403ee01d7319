"""SGLang's options about order, time-outs, limits and attention: what they do in a pool.

Requests wait at the controller, and chunk plans run beside SGLang's batches, so an option of
SGLang's queue has no effect by itself. Each is honoured, or refused at start, or has nothing to do
on a prefill server; `table` is the documentation's. What differs in one server that prefills and
decodes is in `one_server_options.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

ATTENTION_BACKENDS = (
    *("torch_native", "flex_attention", "triton", "flashinfer", "fa3", "fa4", "trtllm_mha"),
    *("intel_amx", "flashmla", "trtllm_mla"),
)
"""Backends that stock batches may run on; see ``engine.model_check``."""


class Effect(Enum):
    """What an option does in a pool."""

    HONOURED = "honoured"
    INSTANCE = "one-instance requests"
    NOTHING = "nothing to do"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Option:
    """One option of SGLang's.

    Attributes:
        name: the flag, or the environment variable.
        effect: what it does in a pool.
        why: by whom, or why not; for what is refused also what to do instead.
        asked: for what is refused, whether the command line or the environment asks for it.
    """

    name: str
    effect: Effect
    why: str
    asked: Callable[[Any], bool] = lambda args: False

    @property
    def field(self) -> str:
        """The flag's field in SGLang's arguments."""
        return self.name.lstrip("-").replace("-", "_")


def honoured(name: str, why: str) -> Option:
    """An option that has its effect on every request."""
    return Option(name, Effect.HONOURED, why)


def instance(name: str, why: str) -> Option:
    """An option that has its effect in an instance's own queue and batches only."""
    return Option(name, Effect.INSTANCE, why)


def nothing(name: str, why: str) -> Option:
    """An option that could not have an effect."""
    return Option(name, Effect.NOTHING, why)


def refused(name: str, why: str, unless: tuple[Any, ...] = ()) -> Option:
    """A flag that is refused where it has a value, unless that is one of these."""
    field = name.lstrip("-").replace("-", "_")

    def asked(args: Any) -> bool:
        value = getattr(args, field, None)
        return bool(value) and value not in unless

    return Option(name, Effect.REFUSED, why, asked)


def refused_variable(name: str, why: str) -> Option:
    """An environment variable that is refused where it is set to a number over 0, or to true."""

    def asked(args: Any) -> bool:
        text = os.environ.get(name, "").strip().lower()
        try:
            return float(text) > 0
        except ValueError:
            return text in ("true", "yes", "y", "on")

    return Option(name, Effect.REFUSED, why, asked)


def _unknown_backend(flag: str) -> Option:
    option = refused(
        flag,
        "backends that were not tried with chunk tasks are refused; name one of "
        f"{', '.join(ATTENTION_BACKENDS)}, or leave it out",
    )
    asked = option.asked
    return Option(
        flag,
        Effect.REFUSED,
        option.why,
        lambda args: asked(args) and getattr(args, option.field, None) not in ATTENTION_BACKENDS,
    )


PER_INSTANCE = "each instance needs one of its own; remove it"
DECODE_ONLY = "a prefill server does not decode"
OTHER_MODELS = "for models that are refused"
WAITS = "the controller counts requests without a plan"
STOCK_BATCHES = "SGLang's own batches; chunks are the policy's"
OTHER_LAUNCH = "the pool's processes are not started that way; remove it"

OPTIONS: tuple[Option, ...] = (
    # Order and limits of the queue.
    honoured("--enable-priority-scheduling", "urgent requests get their plans first"),
    honoured("--schedule-low-priority-values-first", "with priorities"),
    honoured("--default-priority-value", "with priorities, by SGLang's tokenizer manager"),
    honoured("--abort-on-priority-when-disabled", "by the controller, on arrival"),
    honoured("--max-queued-requests", f"{WAITS} (stock ignores it on a prefill server)"),
    honoured("SGLANG_REQ_WAITING_TIMEOUT", "from arrival to plan"),
    refused(
        "--schedule-policy",
        "the pool's queue has the order of --cdsp-policy; set it to fcfs",
        unless=("fcfs",),
    ),
    refused(
        "--load-balance-method",
        "--cdsp-policy chooses instances; set it to auto",
        unless=("auto",),
    ),
    refused_variable("SGLANG_REQ_RUNNING_TIMEOUT", "a plan that has begun runs to its end; unset"),
    refused(
        "--enable-prefill-delayer",
        "a prompt starts when its plan says; remove it",
    ),
    refused(
        "--min-free-slots-delay",
        "a prompt starts when its plan says; remove it",
    ),
    refused(
        "--optimistic-prefill-attempts",
        "a prompt gets its plan when decode has named its pages; set it to 0",
    ),
    refused(
        "--scheduler-recv-interval",
        "instances that look for messages less often hold up every group; set it to 1",
        unless=(1,),
    ),
    nothing("--disable-priority-preemption", "nothing on a prefill server decodes and could yield"),
    nothing("--priority-scheduling-preemption-threshold", "the same"),
    # Sizes of batches and of memory.
    honoured("--mem-fraction-static", "each instance's memory"),
    honoured("--max-total-tokens", "each instance's KV"),
    honoured("--page-size", "chunks are whole pages; 64 on GPUs if left open; alike at decode"),
    honoured("--prefill-max-requests", "SGLang's batches; a chunk is of one request"),
    honoured("SGLANG_MAX_NEW_TOKENS_LIMIT", "by the intake of the instance that answers"),
    instance("--max-running-requests", STOCK_BATCHES),
    instance("--chunked-prefill-size", STOCK_BATCHES),
    instance("--max-prefill-tokens", STOCK_BATCHES),
    instance("--schedule-conservativeness", STOCK_BATCHES),
    instance("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", STOCK_BATCHES),
    instance("SGLANG_PREFILL_TILE_BUDGET", STOCK_BATCHES),
    instance("SGLANG_PREFILL_TILE_BUDGET_MODE", STOCK_BATCHES),
    instance("SGLANG_EXACT_CHUNK_FILL", STOCK_BATCHES),
    instance("SGLANG_EMPTY_CACHE_INTERVAL", "when an instance is idle"),
    instance("SGLANG_SCHEDULER_MAX_RECV_PER_POLL", "messages a loop; none is lost"),
    instance("SGLANG_KILLPG_ON_SCHEDULER_EXCEPTION", "an instance that fails ends the server"),
    instance("--watchdog-timeout", "SGLang's own batches"),
    instance("--soft-watchdog-timeout", "SGLang's own batches"),
    instance("--dist-timeout", "the ranks of one instance; links between instances have their own"),
    honoured("--disable-overlap-schedule", "set by --cdsp"),
    nothing("--enable-mixed-chunk", "refused: instances do not decode"),
    refused("--prefill-only-disable-kv-cache", "prompts need their KV; remove it"),
    nothing("--prefill-decode-interval", DECODE_ONLY),
    nothing("--prefill-decode-interval-min-bs", DECODE_ONLY),
    nothing("--num-continuous-decode-steps", DECODE_ONLY),
    nothing("--retraction-policy", DECODE_ONLY),
    nothing("SGLANG_FORCE_STREAM_INTERVAL", DECODE_ONLY),
    nothing("SGLANG_INIT_NEW_TOKEN_RATIO", DECODE_ONLY),
    nothing("SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR", DECODE_ONLY),
    nothing("SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS", DECODE_ONLY),
    nothing("SGLANG_RETRACT_DECODE_STEPS", DECODE_ONLY),
    nothing("--enable-dynamic-chunking", "for pipeline parallelism, which is refused"),
    nothing("SGLANG_DYNAMIC_CHUNKING_SMOOTH_FACTOR", "for pipeline parallelism"),
    nothing("--c128-page-size", OTHER_MODELS),
    nothing("--swa-full-tokens-ratio", OTHER_MODELS),
    nothing("--swa-prefix-tails", OTHER_MODELS),
    honoured(
        "--disable-hybrid-swa-memory",
        "models that keep windows in a pool of their own need it, here and at decode",
    ),
    instance("--disable-chunked-prefix-cache", STOCK_BATCHES),
    nothing("--max-mamba-cache-size", OTHER_MODELS),
    nothing("--mamba-full-memory-ratio", OTHER_MODELS),
    nothing("--prefill-delayer-max-delay-passes", "without --enable-prefill-delayer"),
    nothing("--prefill-delayer-token-usage-low-watermark", "without --enable-prefill-delayer"),
    nothing("--prefill-delayer-forward-passes-buckets", "without --enable-prefill-delayer"),
    nothing("--prefill-delayer-wait-seconds-buckets", "without --enable-prefill-delayer"),
    nothing("--prefill-delayer-queue-min-ratio", "without --enable-prefill-delayer"),
    nothing("--prefill-delayer-max-delay-ms", "without --enable-prefill-delayer"),
    nothing("SGLANG_PREFILL_DELAYER_MAX_DELAY_PASSES", "a flag took its place"),
    nothing("SGLANG_PREFILL_DELAYER_TOKEN_USAGE_LOW_WATERMARK", "a flag took its place"),
    nothing("SGLANG_PREFILL_DELAYER_MAX_PREFILL_BS_WINDOW_SIZE", "no prefill delayer"),
    nothing("SGLANG_SCHEDULER_DECREASE_PREFILL_IDLE", "a flag took its place"),
    nothing("SGLANG_SCHEDULER_SKIP_ALL_GATHER", "for --enable-dp-attention, which is refused"),
    nothing("SGLANG_SCHEDULER_RECV_SKIPPER_WEIGHT_DEFAULT", "no --scheduler-recv-interval"),
    nothing("SGLANG_SCHEDULER_RECV_SKIPPER_WEIGHT_DECODE", "no --scheduler-recv-interval"),
    nothing("SGLANG_SCHEDULER_RECV_SKIPPER_WEIGHT_TARGET_VERIFY", "no --scheduler-recv-interval"),
    nothing("SGLANG_SCHEDULER_RECV_SKIPPER_WEIGHT_NONE", "no --scheduler-recv-interval"),
    nothing("SGLANG_DATA_PARALLEL_BUDGET_INTERVAL", "--cdsp-policy chooses instances"),
    honoured("--kv-events-config", "with --cdsp-prefix-cache: the controller publishes, as one"),
    refused(
        "--load-publish-endpoint",
        "the pool's load is that of one replica, and /v1/loads shows it; remove it",
        unless=("off",),
    ),
    instance("SGLANG_CACHE_HIT_RATE_WINDOW_SECONDS", "with --cdsp-prefix-cache"),
    # Disaggregation.
    honoured("SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT", "how long the controller waits for decode"),
    honoured("SGLANG_DISAGGREGATION_BOOTSTRAP_ENTRY_CLEANUP_INTERVAL", "SGLang's own server"),
    honoured("SGLANG_DISAGGREGATION_NIXL_BACKEND", "by the transfer engine"),
    honoured("SGLANG_DISAGGREGATION_NIXL_BACKEND_PARAMS", "by the transfer engine"),
    honoured("SGLANG_DISAGGREGATION_ENGINE_INIT_TIMEOUT", "by the transfer engine"),
    honoured("SGLANG_DISAGGREGATION_THREAD_POOL_SIZE", "by the transfer engine, if it has one"),
    honoured("SGLANG_DISAGGREGATION_QUEUE_SIZE", "by the transfer engine, if it has one"),
    instance("SGLANG_DISAGGREGATION_ZMQ_SEND_TIMEOUT", "the controller's sends never wait"),
    instance("SGLANG_DISAGGREGATION_ZMQ_MAX_SOCKETS", "the controller has a context of its own"),
    nothing("SGLANG_DISAGGREGATION_WAITING_TIMEOUT", "decode's"),
    nothing("SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL", "decode's"),
    nothing("SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE", "decode's"),
    nothing("SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE", "decode's"),
    nothing("SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE_TIMEOUT", "decode's"),
    nothing("SGLANG_DISAGGREGATION_FORCE_QUERY_PREFILL_DP_RANK", "decode sees one replica"),
    nothing("SGLANG_DISAGGREGATION_ALL_CP_RANKS_TRANSFER", "for static context parallelism"),
    nothing("SGLANG_DISAGGREGATION_SAMPLING_MASK_MAX_TOKENS", "SGLang refuses it"),
    refused_variable("SGLANG_DISAGG_STAGING_BUFFER", "members write KV themselves; unset"),
    # How the server is launched.
    refused("--nccl-port", PER_INSTANCE),
    refused("--dist-init-addr", PER_INSTANCE),
    refused("--gated-launch-port", PER_INSTANCE),
    refused("--use-ray", OTHER_LAUNCH),
    refused("--smg-grpc-mode", OTHER_LAUNCH),
    refused("--grpc-mode", OTHER_LAUNCH),
    refused("--enable-pdmux", OTHER_LAUNCH),
    refused_variable("SGLANG_RUST_SERVER", "the pool needs SGLang's controller process; unset"),
    # What runs the model, and where its KV is.
    _unknown_backend("--attention-backend"),
    _unknown_backend("--prefill-attention-backend"),
    _unknown_backend("--decode-attention-backend"),
    refused(
        "--model-impl",
        "only SGLang's own models were read; set it to auto or sglang",
        unless=("auto", "sglang"),
    ),
    refused("--enable-two-batch-overlap", "a chunk is one batch; remove it"),
    refused("--enable-prefill-cp", "--cdsp takes the place of static context parallelism; remove"),
    refused("--dllm-algorithm", "the pool prefills for autoregressive models; remove it"),
    refused("--enable-page-major-kv-layout", "chunk tasks need plain KV slots; remove it"),
    refused("--enable-unified-memory", "chunk tasks need plain KV slots; remove it"),
    refused("--enable-hisparse", "chunk tasks need plain KV slots; remove it"),
    refused(
        "--enable-lmcache", "the pool counts every KV slot that nobody uses as free; remove it"
    ),
    refused("--enable-flexkv", "the pool counts every KV slot that nobody uses as free; remove it"),
    refused(
        "--radix-cache-backend",
        "only SGLang's own tree was tried beside chunks; remove it",
    ),
    refused(
        "--enable-unified-cache-external-linker",
        "only SGLang's own tree was tried beside chunks; remove it",
    ),
    refused("--enable-session-radix-cache", "a pool continues no sessions; remove it"),
    refused("--enable-streaming-session", "a pool continues no sessions; remove it"),
    refused_variable("SGLANG_USE_HND_KVCACHE", "chunk tasks need plain KV slots; unset"),
)


def problems(server_args: Any, options: Sequence[Option] = OPTIONS) -> list[str]:
    """What is asked for and refused, one line each with the remedy."""
    return [
        f"{option.name} has no place in a pool: {option.why}"
        for option in options
        if option.effect is Effect.REFUSED and option.asked(server_args)
    ]


def table(options: Sequence[Option] = OPTIONS) -> str:
    """The options as a Markdown table, for the documentation."""
    lines = ["| option | in a pool | how |", "|---|---|---|"]
    lines += [
        f"| `{option.name}` | {option.effect.value} | {option.why} |"
        for effect in Effect
        for option in options
        if option.effect is effect
    ]
    return "\n".join(lines) + "\n"
