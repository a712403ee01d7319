"""Two instances between which running requests move, with SGLang's own rows, tree and batches."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import torch
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_cdsp.engine.joining import Joining, give_row, release
from sglang_cdsp.engine.moving import Moving
from sglang_cdsp.engine.prefixes import match_in
from sglang_cdsp.engine.stock_requests import StockTracker
from sglang_cdsp.engine.tasks import ChunkTask, StockRequest
from sglang_cdsp.parallel.moves import MOVE_TAG
from sglang_cdsp.protocol.messages import (
    MovedIn,
    MovedOrder,
    MovedOut,
    MoveEnded,
    MoveEndOrder,
    MoveInOrder,
    MoveOutOrder,
    MoveReady,
    Report,
)
from tests.engine.fake_stock import FakeReporter
from tests.engine.one_thread import DIM, KV_HEADS, LAYERS, Instance, pool_of
from tests.engine.stock_pools import VOCAB, Scheduler
from tests.engine.wire import Wire

PROMPT = list(range(30))
SERIAL = 7
ROW = LAYERS * 2 * KV_HEADS * DIM * 4
"""Bytes of one token's K and V at all layers, in float32."""


def sent(wire: Wire) -> int:
    """Bytes of KV that went for the move's sake."""
    return wire.of(SERIAL, MOVE_TAG)


class Grammar:
    """Keeps the tokens that it has accepted, and does not say which came last."""

    current_token = None
    finished = False

    def __init__(self, refuses: int = -1) -> None:
        self.accepted: list[int] = []
        self._refuses = refuses

    def accept_token(self, token: int) -> None:
        if token == self._refuses:
            raise ValueError(f"token {token} is not in the grammar")
        self.accepted.append(token)

    def is_terminated(self) -> bool:
        return False


def request(**params: Any) -> Req:
    """SGLang's request as it comes from the client."""
    sampling = SamplingParams(max_new_tokens=20, **params)
    sampling.normalize(None)
    req = Req("r", None, array("q", PROMPT), sampling, eos_token_ids={1}, vocab_size=VOCAB)
    req.tokenizer = SimpleNamespace(eos_token_id=1, additional_stop_token_ids=None)
    req.time_stats = Mock()
    return req


class End:
    """One instance as far as moves concern it."""

    def __init__(self, instance: Instance, core: str | None = None) -> None:
        """``core``: of SGLang's unified tree, None for its plain tree."""
        self.instance = instance
        runner = SimpleNamespace(device="cpu", token_to_kv_pool=instance.pool)
        self.scheduler = cast(Any, Scheduler(core=core))
        self.scheduler.tp_worker = SimpleNamespace(model_runner=runner)
        self.reporter = cast(Any, FakeReporter())
        self.reporter.instance = instance.number
        self.joining = Joining(self.scheduler)
        self.cancelled: list[str] = []
        self.moving = Moving(
            scheduler=self.scheduler,
            reporter=self.reporter,
            joining=self.joining,
            coroutines=instance.coroutines,
            hub=instance.hub,
            layers=tuple(range(LAYERS)),
            match=match_in(self.scheduler.tree_cache),
        )
        self.tracker = StockTracker(
            self.scheduler,
            self.reporter,
            self.cancelled.append,
            lambda: [*self.joining.reqs, *self.moving.reqs],
        )
        self.tasks: dict[int, ChunkTask] = {}
        self.moving.follow(self.tracker, self.tasks)
        self.running: Any = ScheduleBatch(reqs=[])

    def turn(self) -> None:
        """One turn of the loop."""
        self.scheduler.running_batch = self.running
        self.tracker.poll()
        self.instance.coroutines.turn()
        self.moving.step()
        self.moving.take_out(self.running)
        self.running = self.joining.admit(self.running)

    def token(self, req: Req, token: int) -> None:
        """A step of SGLang's: the last token gets its KV, and another one is sampled."""
        (slot,) = self.scheduler.token_to_kv_pool_allocator.alloc(1)
        rows = self.scheduler.req_to_token_pool.req_to_token
        rows[req.kv.req_pool_idx, req.kv.kv_committed_len] = slot
        req.kv.kv_committed_len += 1
        req.kv.kv_allocated_len += 1
        req.output_ids.append(token)

    def said(self, kind: type[Report]) -> dict[str, Any]:
        return next(fields for told, fields in reversed(self.reporter.said) if told is kind)

    def kinds(self) -> list[type[Report]]:
        return [kind for kind, _ in self.reporter.said]

    def decodes(self, seq: int, req: Req, output: list[int]) -> None:
        """A request runs here that has so much output; its KV is drawn."""
        req.output_ids.append(output[0])
        slots = self.scheduler.token_to_kv_pool_allocator.alloc(len(PROMPT))
        assert slots is not None
        self.joining.add(req, slots)
        self.tracker.join(StockRequest(seq, req.rid, req=req, end_s=1.0, joined=True))
        self.running = self.joining.admit(self.running)
        for token in output[1:]:
            self.token(req, token)
        self.instance.pool.kv[:, :, self.rows(req)] = torch.randn(
            LAYERS, 2, req.kv.kv_committed_len, *self.instance.pool.kv.shape[3:]
        )

    def caches(self, req: Req, tokens: int) -> None:
        """A request has ended here that had so many of another one's tokens; its KV is drawn."""
        one = request()
        one.origin_input_ids = req.origin_input_ids[:tokens]
        one.extra_key, one.cache_salt = req.extra_key, req.cache_salt
        slots = self.scheduler.token_to_kv_pool_allocator.alloc(tokens)
        assert slots is not None
        self.instance.pool.kv[:, :, slots] = torch.randn(LAYERS, 2, tokens, KV_HEADS, DIM)
        give_row(self.scheduler, one, slots, None)
        one.finished_reason = Mock()
        release(one, self.scheduler.tree_cache)

    def rows(self, req: Req) -> torch.Tensor:
        table = self.scheduler.req_to_token_pool.req_to_token
        return table[req.kv.req_pool_idx, : req.kv.kv_committed_len].to(torch.int64)

    def kv(self, req: Req) -> torch.Tensor:
        return self.instance.pool.kv[:, :, self.rows(req)].clone()


def ends_meet(source: End, target: End, *, moved: bool) -> None:
    """The controller tells both that the move is over, the target first."""
    if not moved:
        target.moving.on_move_end(MoveEndOrder(seq=5, moved=False))
        until(MoveEnded, target, source)
    source.moving.on_move_end(MoveEndOrder(seq=5, moved=moved))
    until(MoveEnded, source, target)


def two_ends(seed: int = 1, core: str | None = None) -> tuple[End, End]:
    source, target, *_ = (End(instance, core) for instance in pool_of(1, seed))
    return source, target


def ask(source: End, target: End, req: Req, ahead: int = 0, held: int = 0) -> None:
    """The controller asks the target, which has ``held`` rows cached, and then the source."""
    at, to = source.instance.number, target.instance.number
    order = MoveInOrder(rid="r", seq=5, source=at, lane=1, serial=SERIAL, ahead=ahead)
    target.moving.on_move_in(order)
    assert target.moving.adopt(req)
    target.turn()
    assert target.said(MoveReady) == {"seq": 5, "held": held}
    source.moving.on_move_out(
        MoveOutOrder(seq=5, target=to, lane=1, serial=SERIAL, ahead=ahead, held=held)
    )
    source.turn()


def pass_on(source: End, target: End) -> None:
    """The controller passes on what has left."""
    left = source.said(MovedOut)
    order = MovedOrder(seq=5, rows=left["rows"], output=left["output"], ahead=left["ahead"])
    target.moving.on_moved(order)


def until(kind: type[Report], end: End, *others: End) -> None:
    for _ in range(300):
        if kind in end.kinds():
            return
        for one in (end, *others):
            one.turn()
    raise AssertionError(f"no {kind.__name__}")


def move(source: End, target: End, req: Req) -> None:
    ask(source, target, req)
    pass_on(source, target)
    until(MovedIn, target, source)
    ends_meet(source, target, moved=True)
