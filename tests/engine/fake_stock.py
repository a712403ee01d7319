"""SGLang's scheduler, and the way to the controller, as far as the engine's tests need them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

from sglang_cdsp.engine import stock
from sglang_cdsp.protocol.messages import Report


@dataclass
class Prefill:
    """What a batch computes."""

    extends: bool = False

    def is_extend(self) -> bool:
        return self.extends


@dataclass
class FakeBatch:
    """A batch, or a queue that keeps its requests in ``reqs``."""

    reqs: list[Any] = field(default_factory=list)
    forward_mode: stock.ForwardMode = field(default_factory=Prefill)
    prefix_lens: list[int] = field(default_factory=list)
    extend_lens: list[int] = field(default_factory=list)


@dataclass
class FakeGrammarManager:
    """Requests whose grammars are being compiled, and who compiles."""

    grammar_queue: list[Any] = field(default_factory=list)
    grammar_backend: stock.GrammarBackend | None = None


@dataclass
class FakeBootstrapQueue:
    """Requests that wait for decode; buffers are free."""

    queue: list[Any] = field(default_factory=list)
    kv_manager: Any = None

    def ensure_metadata_buffer(self, req: Any, /) -> bool:
        return True


@dataclass
class FakeScheduler:
    """SGLang's scheduler: its queues are empty, its parts are the test's, or take any call."""

    waiting_queue: list[Any] = field(default_factory=list)
    grammar_manager: stock.GrammarManager = field(default_factory=FakeGrammarManager)
    disagg_prefill_bootstrap_queue: stock.BootstrapQueue = field(default_factory=FakeBootstrapQueue)
    disagg_prefill_inflight_queue: list[Any] = field(default_factory=list)
    running_batch: stock.Batch = field(default_factory=FakeBatch)
    last_batch: stock.Batch | None = None
    chunked_req: Any = None

    tp_worker: Any = field(default_factory=Mock)
    model_config: Any = field(default_factory=Mock)
    is_hybrid_swa: bool = False

    token_to_kv_pool_allocator: Any = None
    disagg_metadata_buffers: Any = field(default_factory=Mock)
    req_to_metadata_buffer_idx_allocator: Any = field(default_factory=Mock)

    metrics_reporter: stock.MetricsReporter = field(default_factory=Mock)
    metrics_collector: Any = field(default_factory=Mock)
    pool_stats_observer: Any = field(default_factory=Mock)
    load_inquirer: Any = field(default_factory=Mock)

    batch_result_processor: Any = field(default_factory=Mock)
    output_streamer: Any = field(default_factory=Mock)

    req_to_token_pool: Any = None
    tree_cache: Any = None
    enable_overlap: bool = False
    spec_algorithm: Any = None

    schedule_stream: Any = None
    forward_stream: Any = None

    def publish_load_snapshot(self, force: bool = False) -> Any:
        """Nobody balances load here."""

    def retire_unadmitted_request(self, req: Any, /) -> None:
        """Nobody is answered here."""


if TYPE_CHECKING:
    CHECKED: type[stock.StockScheduler] = FakeScheduler


class FakeReporter:
    """Keeps what a rank reports.

    Attributes:
        said: its reports, in order.
        leads: whether the rank speaks for its instance.
    """

    def __init__(self, *, leads: bool = True) -> None:
        self.said: list[tuple[type[Report], dict[str, Any]]] = []
        self.leads = leads

    def send_from_leader(self, kind: type[Report], **fields: Any) -> None:
        if self.leads:
            self.said.append((kind, fields))
