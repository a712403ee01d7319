"""One-instance requests while SGLang's own scheduler has them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sglang.srt.disaggregation.utils import is_aborted

from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.engine.tasks import Turn
from sglang_cdsp.pool.messages import FirstToken, TurnEnded

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


class Turns:
    """Requests handed to the stock queues, followed until they have left them all."""

    def __init__(self, scheduler: Any, reporter: Reporter) -> None:
        """Follow requests of ``scheduler`` and report their ends through ``reporter``."""
        self._scheduler = scheduler
        self._reporter = reporter
        self._active: dict[str, Turn] = {}
        self._reqs: dict[str, Req] = {}

    def __bool__(self) -> bool:
        return bool(self._active)

    def begin(self, turn: Turn) -> None:
        """Start to follow a request; call it right before the request is handed over."""
        self._active[turn.rid] = turn

    def adopt(self, req: Req) -> None:
        """Remember SGLang's object of a followed request."""
        if req.rid in self._active:
            self._reqs[req.rid] = req

    def prefilling(self) -> bool:
        """Whether any followed request has yet to get its first token."""
        return any(turn.end_s is None for turn in self._active.values())

    def stamp_start(self, reqs: list[Req]) -> None:
        """Note the start of the first batch of each followed request."""
        now = time.monotonic()
        for req in reqs:
            turn = self._active.get(req.rid)
            if turn is not None and turn.start_s is None:
                turn.start_s = now

    def stamp_end(self, reqs: list[Req]) -> None:
        """Note the first token of each followed request."""
        now = time.monotonic()
        for req in reqs:
            turn = self._active.get(req.rid)
            if turn is not None and turn.end_s is None and len(req.output_ids):
                turn.end_s = now
                self._reporter.lead(FirstToken, seq=turn.seq, at_s=now)

    def poll(self) -> None:
        """Report the requests that have left SGLang's queues."""
        if not self._active:
            return
        live = self._live_rids()
        for rid in [rid for rid in self._active if rid not in live]:
            turn = self._active.pop(rid)
            req = self._reqs.pop(rid, None)
            failed = req is None or is_aborted(req) or turn.end_s is None
            self._reporter.lead(
                TurnEnded,
                seq=turn.seq,
                start_s=turn.start_s,
                end_s=turn.end_s,
                error=_reason(req) if failed else "",
            )

    def _live_rids(self) -> set[str]:
        scheduler = self._scheduler
        reqs = [
            *scheduler.waiting_queue,
            *scheduler.grammar_manager.grammar_queue,
            *scheduler.disagg_prefill_bootstrap_queue.queue,
            *scheduler.disagg_prefill_inflight_queue,
            *scheduler.running_batch.reqs,
        ]
        if scheduler.last_batch is not None:
            reqs += scheduler.last_batch.reqs
        if scheduler.chunked_req is not None:
            reqs.append(scheduler.chunked_req)
        return {req.rid for req in reqs}


def _reason(req: Req | None) -> str:
    if req is None:
        return "rejected on arrival at its instance"
    finish = req.finished_reason or req.to_finish
    return str(getattr(finish, "message", None) or "aborted")
