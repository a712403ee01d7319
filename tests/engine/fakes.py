"""SGLang's scheduler and its requests, and the way to the controller, as far as tests need them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sglang_cdsp.protocol.messages import Report


class FakeReporter:
    """Keeps what the leading rank reports."""

    def __init__(self) -> None:
        self.said: list[tuple[type[Report], dict[str, Any]]] = []

    def send_from_leader(self, kind: type[Report], **fields: Any) -> None:
        self.said.append((kind, fields))


class FakeReq:
    """SGLang's request, as far as tracker look at it."""

    def __init__(self, rid: str) -> None:
        self.rid = rid
        self.output_ids: list[int] = []
        self.to_finish: Any = None
        self.finished_reason: Any = None


def fake_scheduler() -> Any:
    """SGLang's queues, all empty."""
    return SimpleNamespace(
        waiting_queue=[],
        grammar_manager=SimpleNamespace(grammar_queue=[]),
        disagg_prefill_bootstrap_queue=SimpleNamespace(queue=[]),
        disagg_prefill_inflight_queue=[],
        running_batch=SimpleNamespace(reqs=[]),
        last_batch=None,
        chunked_req=None,
    )
