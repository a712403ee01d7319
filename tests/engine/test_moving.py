"""A running request goes on at another instance: its KV, its output, its place in the stream."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_cdsp.engine.joining import Joining
from sglang_cdsp.engine.moving import Moving
from sglang_cdsp.engine.stock_requests import StockTracker
from sglang_cdsp.engine.tasks import StockRequest
from sglang_cdsp.protocol.messages import (
    DecodeEnded,
    MovedIn,
    MovedOrder,
    MovedOut,
    MoveEnded,
    MoveEndOrder,
    MoveFailed,
    MoveInOrder,
    MoveOutOrder,
    MoveReady,
    Report,
)
from tests.engine.fake_stock import FakeReporter
from tests.engine.one_thread import LAYERS, Instance, pool_of
from tests.engine.test_joining import ROWS, SLOTS, VOCAB, Scheduler, options

assert options, "SGLang's options, as far as they are read here"

PROMPT = list(range(30))


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

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        runner = SimpleNamespace(device="cpu", token_to_kv_pool=instance.pool)
        self.scheduler = Scheduler()
        self.scheduler.tp_worker = SimpleNamespace(model_runner=runner)
        self.reporter: Any = FakeReporter()
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
        )
        self.tracker = StockTracker(
            self.scheduler,
            self.reporter,
            self.cancelled.append,
            lambda: [*self.joining.reqs, *self.moving.reqs],
        )
        self.moving.follow(self.tracker)
        self.running: Any = ScheduleBatch(reqs=[])

    def turn(self) -> None:
        """One turn of the loop."""
        self.scheduler.running_batch = self.running
        self.tracker.poll()
        self.instance.coroutines.turn()
        self.moving.step()
        self.moving.take_out(self.running)
        self.running = self.joining.admit(self.running)

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
            (slot,) = self.scheduler.token_to_kv_pool_allocator.alloc(1)
            self.scheduler.req_to_token_pool.req_to_token[
                req.kv.req_pool_idx, req.kv.kv_committed_len
            ] = slot
            req.kv.kv_committed_len += 1
            req.kv.kv_allocated_len += 1
            req.output_ids.append(token)
        self.instance.pool.kv[:, :, self.rows(req)] = torch.randn(
            LAYERS, 2, req.kv.kv_committed_len, *self.instance.pool.kv.shape[3:]
        )

    def rows(self, req: Req) -> torch.Tensor:
        table = self.scheduler.req_to_token_pool.req_to_token
        return table[req.kv.req_pool_idx, : req.kv.kv_committed_len].to(torch.int64)

    def kv(self, req: Req) -> torch.Tensor:
        return self.instance.pool.kv[:, :, self.rows(req)].clone()


def two_ends(seed: int = 1) -> tuple[End, End]:
    source, target, *_ = (End(instance) for instance in pool_of(1, seed))
    return source, target


def ask(source: End, target: End, req: Req) -> None:
    """The controller asks the target, and then the source."""
    target.moving.on_move_in(MoveInOrder(rid="r", seq=5, source=0, lane=1, serial=7))
    assert target.moving.adopt(req)
    target.turn()
    assert target.said(MoveReady) == {"seq": 5}
    source.moving.on_move_out(MoveOutOrder(seq=5, target=1, lane=1, serial=7))
    source.turn()


def pass_on(source: End, target: End) -> None:
    """The controller passes on what has left."""
    left = source.said(MovedOut)
    order = MovedOrder(seq=5, rows=left["rows"], output=left["output"])
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
    source.moving.on_move_end(MoveEndOrder(seq=5, moved=True))
    until(MoveEnded, source)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(output=st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_kv_output_and_row_go_along_and_nothing_stays(output: list[int], seed: int) -> None:
    source, target = two_ends(seed)
    before, after = request(), request()
    source.decodes(5, before, output)
    kv = source.kv(before)
    move(source, target, after)
    target.turn()
    assert target.running.reqs == [after]
    assert source.running.reqs == []
    assert list(after.output_ids) == output
    assert target.running.seq_lens.tolist() == [len(PROMPT) + len(output) - 1]
    assert torch.equal(target.kv(after), kv)
    assert source.scheduler.free() == SLOTS, "what stays is cached, for nobody"
    assert source.scheduler.req_to_token_pool.available_size() == ROWS
    assert DecodeEnded not in source.kinds()
    assert not source.tracker
    assert not source.moving
    assert not target.moving


def test_the_next_step_gets_the_last_token() -> None:
    source, target = two_ends()
    source.decodes(5, request(), [7, 8, 9])
    move(source, target, request())
    ((_, payload), _) = target.scheduler.future_map.stash.call_args
    assert payload.bonus_tokens.tolist() == [9]
    assert target.scheduler.streamed == [], "its client has had all of it"


def test_penalties_are_those_of_the_whole_output() -> None:
    source, target = two_ends()
    penalties = {"frequency_penalty": 0.5, "presence_penalty": 0.25, "repetition_penalty": 1.5}
    source.decodes(5, request(**penalties), [7, 8, 7, 9])
    move(source, target, request(**penalties))
    target.turn()
    logits = torch.ones(1, VOCAB)
    target.running.sampling_info.penalizer_orchestrator.apply(logits)
    changed = {token: value for token, value in enumerate(logits[0].tolist()) if value != 1.0}
    # The last token counts at the next step, as always.
    assert set(changed) == {7, 8}
    additive = {7: -2 * 0.5 - 0.25, 8: -0.5 - 0.25}
    for token, value in changed.items():
        one = 1.0 + additive[token]
        expected = {one / 1.5, one * 1.5, 1.0 / 1.5 + additive[token]}
        assert any(value == pytest.approx(e) for e in expected)


def test_a_move_that_is_called_off_leaves_it_in_its_batch() -> None:
    source, target = two_ends()
    req = request()
    source.decodes(5, req, [7, 8, 9])
    kv = source.kv(req)
    ask(source, target, request())
    assert source.running.reqs == []
    assert source.tracker, "it is no request that has ended"
    target.moving.on_move_end(MoveEndOrder(seq=5, moved=False))
    source.moving.on_move_end(MoveEndOrder(seq=5, moved=False))
    until(MoveEnded, source, target)
    until(MoveEnded, target, source)
    source.turn()
    assert source.running.reqs == [req]
    assert list(req.output_ids) == [7, 8, 9]
    assert torch.equal(source.kv(req), kv)
    assert target.scheduler.free() == SLOTS
    assert DecodeEnded not in source.kinds()
    again = request()
    source.reporter.said.clear()
    target.reporter.said.clear()
    target.moving.on_move_in(MoveInOrder(rid="r", seq=5, source=0, lane=1, serial=8))
    target.moving.adopt(again)
    target.turn()
    source.moving.on_move_out(MoveOutOrder(seq=5, target=1, lane=1, serial=8))
    source.turn()
    pass_on(source, target)
    until(MovedIn, target, source)
    assert list(again.output_ids) == [7, 8, 9]


def test_a_target_without_room_says_so() -> None:
    source, target = two_ends()
    source.decodes(5, request(), [7, 8])
    held = target.scheduler.token_to_kv_pool_allocator.alloc(SLOTS - 5)
    assert held is not None
    ask(source, target, request())
    pass_on(source, target)
    until(MoveFailed, target)
    assert "not free" in target.said(MoveFailed)["error"]
    assert target.scheduler.token_to_kv_pool_allocator.available_size() == 5


def test_who_has_ended_meanwhile_does_not_leave() -> None:
    source, _ = two_ends()
    req = request()
    source.decodes(5, req, [7, 8])
    source.running.reqs = []
    source.turn()
    assert DecodeEnded in source.kinds()
    source.moving.on_move_out(MoveOutOrder(seq=5, target=1, lane=1, serial=7))
    source.turn()
    assert source.said(MoveFailed) == {"seq": 5, "error": "it has ended", "stays": False}


def test_a_custom_logit_processor_stays() -> None:
    source, target = two_ends()
    req = request()
    req.custom_logit_processor = "some code"
    source.decodes(5, req, [7, 8])
    ask(source, target, request())
    failed = source.said(MoveFailed)
    assert failed["stays"]
    assert "logit processor" in failed["error"]
    assert source.running.reqs == [req]
