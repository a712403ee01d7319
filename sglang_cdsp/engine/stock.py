"""What the engine touches of SGLang's scheduler and its parts, as protocols.

SGLang ships no types, so nothing else says what a new release must still have, or what a fake must
offer. `tests/contract` holds every name here against SGLang's sources. *Stock* means SGLang's own.
Arguments before a ``/`` are passed by position.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from sglang.srt.managers.schedule_batch import Req


# -- memory ---------------------------------------------------------------------------------


class SlotAllocator(Protocol):
    """Hands out KV slots in whole pages: ``BaseTokenToKVPoolAllocator`` and its subclasses."""

    page_size: int
    device: Any

    def available_size(self) -> int:
        """Free slots."""

    def alloc(self, need_size: int, /) -> torch.Tensor | None:
        """Slots, int64 ``[need_size]``; None when too few are free."""

    def free(self, free_index: torch.Tensor, /) -> None:
        """Take slots back, whole pages of them."""


class KVPool(Protocol):
    """Keys and values by layer and slot: ``MHATokenToKVPool``."""

    dtype: torch.dtype
    kv_cache_layout: str

    def get_key_buffer(self, layer_id: int, /) -> torch.Tensor:
        """K of a layer, ``[slots, Hkv, D]``."""

    def get_value_buffer(self, layer_id: int, /) -> torch.Tensor:
        """V of a layer, ``[slots, Hkv, Dv]``."""


class MetadataBuffers(Protocol):
    """Buffers that decode reads a first token and its log-probabilities from."""

    def set_buf(self, req: Req, /) -> None:
        """Fill the request's buffer."""


# -- the model ------------------------------------------------------------------------------


class ModelConfig(Protocol):
    """What kind of model is served."""

    is_multimodal: bool
    is_generation: bool
    is_encoder_decoder: bool
    is_hybrid_swa: bool
    attention_arch: Any
    attention_chunk_size: int | None
    num_hidden_layers: int
    hf_config: Any
    hf_text_config: Any
    hidden_size: int
    context_len: int
    vocab_size: int
    dtype: torch.dtype


class ModelRunner(Protocol):
    """The model of one rank and all that its forwards need."""

    model: torch.nn.Module
    device: str
    dtype: torch.dtype
    attn_backend: Any
    token_to_kv_pool: KVPool

    def _extend_forward_kwargs(
        self, forward_batch: Any, pp_proxy_tensors: Any, /
    ) -> dict[str, Any]:
        """What the model's ``forward`` takes beside tokens, positions and batch."""

    def sample(self, logits_output: Any, forward_batch: Any, /) -> torch.Tensor:
        """Sample a token a row, int64 ``[rows]``."""


class TpWorker(Protocol):
    """The worker of one rank: ``TpModelWorker``."""

    model_runner: ModelRunner


# -- requests -------------------------------------------------------------------------------


class ForwardMode(Protocol):
    """What a batch computes."""

    def is_extend(self) -> bool:
        """Whether it prefills."""


class Batch(Protocol):
    """A batch of requests, as far as it says who is in it.

    Attributes:
        prefix_lens, extend_lens: tokens before and in this forward, by request.
    """

    reqs: list[Req]
    forward_mode: ForwardMode
    prefix_lens: list[int]
    extend_lens: list[int]


class GrammarBackend(Protocol):
    """Compiles grammars in threads of its own."""

    def get_cached_or_future_value(
        self, key: tuple[str, str], require_reasoning: bool, /
    ) -> tuple[Any, bool]:
        """A compiled grammar and True, or a future of one and False."""


class GrammarManager(Protocol):
    """Holds requests back while their grammars are compiled.

    Attributes:
        grammar_backend: None where the server compiles no grammars.
        grammar_queue: the requests.
    """

    grammar_backend: GrammarBackend | None
    grammar_queue: list[Req]


class BootstrapQueue(Protocol):
    """Requests whose decode server has not answered yet: ``PrefillBootstrapQueue``."""

    kv_manager: Any
    queue: list[Req]

    def ensure_metadata_buffer(self, req: Req, /) -> bool:
        """Give a request a metadata buffer; False while none is free."""


class LogprobResultProcessor(Protocol):
    """Puts log-probabilities of a forward into its requests."""

    def add_logprob_return_values(
        self,
        i: int,
        req: Req,
        pt: int,
        next_token_ids: list[int],
        num_input_logprobs: int,
        output: Any,
        /,
    ) -> None:
        """Those of a sampled token."""

    def add_input_logprob_return_values(
        self,
        i: int,
        req: Req,
        output: Any,
        logprob_pt: int,
        num_input_logprobs: int,
        /,
        *,
        last_prefill_chunk: bool,
    ) -> None:
        """Those of the prompt."""


class BatchResultProcessor(Protocol):
    """Works a forward's results into its batch."""

    logprob_result_processor: LogprobResultProcessor

    def move_logprobs_to_cpu(self, *, batch: Any, logits_output: Any) -> None:
        """Turn log-probabilities into lists, in place; reads ``batch.return_logprob`` only."""

    def _maybe_update_reasoning_tokens(self, req: Req, next_token_id: int, /) -> None:
        """Count a sampled token that belongs to the model's reasoning."""


class OutputStreamer(Protocol):
    """Answers clients."""

    def stream_output(self, reqs: list[Req], return_logprob: bool, skip_req: Req | None, /) -> None:
        """Send what is new of each request, and ends."""


# -- the scheduler --------------------------------------------------------------------------


class MetricsReporter(Protocol):
    """Keeps and publishes the scheduler's numbers: ``SchedulerMetricsReporter``.

    Attributes:
        current_scheduler_metrics_enabled: whether this rank has a collector.
        stats: what was published last, a ``SchedulerStats``.
    """

    current_scheduler_metrics_enabled: bool
    stats: Any


class StockScheduler(Protocol):
    """SGLang's scheduler of one rank, a prefill server's.

    Attributes:
        waiting_queue, grammar_manager, disagg_prefill_bootstrap_queue,
        disagg_prefill_inflight_queue, running_batch, last_batch, chunked_req: all places in which
            a one-instance request may be.
        token_to_kv_pool_allocator: KV slots of the instance.
        disagg_metadata_buffers, req_to_metadata_buffer_idx_allocator: metadata for decode.
        metrics_reporter, metrics_collector, pool_stats_observer, load_inquirer: SGLang's numbers.
        req_to_token_pool, tree_cache, enable_overlap, spec_algorithm: passed on to a batch.
        schedule_stream, forward_stream: CUDA streams; SGLang's forwards run on the latter with
            ``enable_overlap`` and else on the former.
    """

    waiting_queue: list[Req]
    grammar_manager: GrammarManager
    disagg_prefill_bootstrap_queue: BootstrapQueue
    disagg_prefill_inflight_queue: list[Req]
    running_batch: Batch
    last_batch: Batch | None
    chunked_req: Req | None

    tp_worker: TpWorker
    model_config: ModelConfig
    is_hybrid_swa: bool

    token_to_kv_pool_allocator: SlotAllocator
    disagg_metadata_buffers: MetadataBuffers
    req_to_metadata_buffer_idx_allocator: Any

    metrics_reporter: MetricsReporter
    metrics_collector: Any
    pool_stats_observer: Any
    load_inquirer: Any

    batch_result_processor: BatchResultProcessor
    output_streamer: OutputStreamer

    req_to_token_pool: Any
    tree_cache: Any
    enable_overlap: bool
    spec_algorithm: Any

    schedule_stream: Any
    forward_stream: Any

    def publish_load_snapshot(self, force: bool = False) -> Any:
        """Publish the load of this rank for ``/v1/loads`` and for balancing."""

    def retire_unadmitted_request(self, req: Req, /) -> None:
        """Answer a request that was refused at the door."""


class JoinedScheduler(StockScheduler, Protocol):
    """SGLang's scheduler of one rank of a server that decodes what it prefills.

    Attributes:
        max_running_requests: how many requests may decode at once.
        future_map: the way of sampled tokens into the next batch's input.
    """

    max_running_requests: int
    future_map: Any


class RankScheduler(JoinedScheduler, Protocol):
    """SGLang's scheduler of one rank, with its loop, for which an engine is put together.

    Attributes:
        result_queue: with overlap, batches whose results are not processed, each with its result.
        tp_cpu_group: of the instance's ranks, a process group of torch's.
        max_req_input_len: tokens of the longest prompt that SGLang takes.
    """

    device: str
    tp_cpu_group: Any
    max_req_input_len: int
    result_queue: deque[tuple[Any, Any]]

    def process_batch_result(self, batch: Any, result: Any, /) -> Any:
        """Take a batch's tokens in."""

    def _add_request_to_queue(self, req: Req, /, is_retracted: bool = False) -> None:
        """Let a request wait for its prefill."""
