"""Moves that go wrong, or cross with something else: one instance at most has the next token."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT

from sglang_cdsp.engine import moving_in
from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.protocol.messages import (
    DecodeEnded,
    MovedIn,
    MovedOut,
    MoveEnded,
    MoveEndOrder,
    MoveFailed,
    MoveInOrder,
    MoveOutOrder,
    MoveReady,
)
from tests.engine.move_ends import (
    End,
    Grammar,
    ask,
    ends_meet,
    pass_on,
    request,
    two_ends,
    until,
)
from tests.engine.stock_pools import ROWS, SLOTS, VOCAB, options

assert options, "SGLang's options, as far as they are read here"


def breaks(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    """The links of an instance break as soon as it uses them."""

    def broken(*_: Any) -> None:
        raise LinkError("the link broke")

    monkeypatch.setattr(end.instance.hub, "open", broken)


def test_a_source_that_cannot_send_keeps_the_request_until_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = two_ends()
    req = request()
    source.decodes(5, req, [7, 8, 9])
    kv = source.kv(req)
    breaks(source, monkeypatch)
    ask(source, target, request())
    until(MoveFailed, source)
    assert source.said(MoveFailed) == {"seq": 5, "error": "the link broke"}
    for _ in range(3):
        source.turn()
    assert source.running.reqs == [], "the target may have all of it"
    assert source.moving.reqs == [req]
    assert source.kinds().count(MoveFailed) == 1
    pass_on(source, target)
    ends_meet(source, target, moved=False)
    source.turn()
    assert source.running.reqs == [req]
    assert torch.equal(source.kv(req), kv)
    assert target.scheduler.free() == SLOTS
    assert DecodeEnded not in source.kinds()
    assert not source.moving
    assert not target.moving


def test_who_goes_on_takes_no_notice_of_a_late_end() -> None:
    """The source said that it failed, when the target had all of it."""
    source, target = two_ends()
    after = request()
    source.decodes(5, request(), [7, 8])
    ask(source, target, after)
    pass_on(source, target)
    until(MovedIn, target, source)
    target.moving.on_move_end(MoveEndOrder(seq=5, moved=False))
    target.turn()
    assert target.running.reqs == [after]
    assert target.cancelled == []
    assert not {MoveEnded, MoveFailed} & set(target.kinds())


def test_a_target_whose_link_breaks_has_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = two_ends()
    source.decodes(5, request(), [7, 8])
    ask(source, target, request())
    breaks(target, monkeypatch)
    pass_on(source, target)
    until(MoveFailed, target)
    assert target.scheduler.free() == SLOTS
    assert not target.moving
    assert not target.tracker


def test_a_grammar_that_refuses_the_output_there_leaves_it_where_it_was() -> None:
    source, target = two_ends()
    before, after = request(), request()
    before.grammar, after.grammar = Grammar(), Grammar(refuses=8)
    source.decodes(5, before, [7, 8])
    ask(source, target, after)
    pass_on(source, target)
    until(MoveFailed, target, source)
    assert "not in the grammar" in target.said(MoveFailed)["error"]
    assert target.scheduler.free() == SLOTS
    source.moving.on_move_end(MoveEndOrder(seq=5, moved=False))
    until(MoveEnded, source)
    source.turn()
    assert source.running.reqs == [before]
    assert before.grammar.accepted == [], "its own has them all already"


def test_penalties_are_made_up_for_where_it_is_put_back() -> None:
    source, target = two_ends()
    req = request(frequency_penalty=0.5)
    source.decodes(5, req, [7, 8, 7, 9])
    ask(source, target, request(frequency_penalty=0.5))
    ends_meet(source, target, moved=False)
    source.turn()
    logits = torch.ones(1, VOCAB)
    source.running.sampling_info.penalizer_orchestrator.apply(logits)
    changed = {token: value for token, value in enumerate(logits[0].tolist()) if value != 1.0}
    assert changed == {7: 0.0, 8: 0.5}


def test_who_is_put_back_needs_no_other_row() -> None:
    """All rows are taken, some of them by who waits to be put back."""
    source, target = two_ends()
    req = request()
    source.decodes(5, req, [7, 8])
    others = [request() for _ in range(ROWS - 1)]
    for seq, other in enumerate(others):
        source.decodes(10 + seq, other, [7])
    assert source.scheduler.req_to_token_pool.available_size() == 0
    waiting = request()
    waiting.output_ids.append(7)
    slots = source.scheduler.token_to_kv_pool_allocator.alloc(len(waiting.origin_input_ids))
    assert slots is not None
    source.joining.add(waiting, slots)
    ask(source, target, request())
    ends_meet(source, target, moved=False)
    source.turn()
    assert set(source.running.reqs) == {*others, req}
    assert source.joining.reqs == [waiting]


def test_an_abort_on_the_way_reaches_who_has_it_in_the_end() -> None:
    """Out of its batch, nobody can abort it; the controller asks again when it is back."""
    source, target = two_ends()
    req = request()
    source.decodes(5, req, [7, 8])
    ask(source, target, request())
    source.tracker.cancel(5)
    assert req.to_finish is None
    target.moving.on_move_end(MoveEndOrder(seq=5, moved=False))
    until(MoveEnded, target, source)
    source.moving.on_move_end(MoveEndOrder(seq=5, moved=False))
    source.moving.step()
    while not source.joining.reqs:
        source.instance.coroutines.turn()
        source.moving.step()
    source.joining.abort("r", everything=False)
    source.turn()
    assert source.running.reqs == [req]
    assert isinstance(req.to_finish, FINISH_ABORT)
    req.update_finish_state()
    assert req.finished(), "the next step ends it"


def test_who_is_aborted_first_does_not_leave() -> None:
    source, target = two_ends()
    req = request()
    source.decodes(5, req, [7, 8])
    req.to_finish = FINISH_ABORT()
    target.moving.on_move_in(MoveInOrder(rid="r", seq=5, source=0, lane=1, serial=7))
    target.moving.adopt(request())
    source.moving.on_move_out(MoveOutOrder(seq=5, target=1, lane=1, serial=7))
    source.turn()
    assert source.running.reqs == [req]
    assert MovedOut not in source.kinds()
    source.running.reqs = []  # SGLang has ended it
    source.turn()
    source.turn()
    assert DecodeEnded in source.kinds()
    assert source.said(MoveFailed)["error"] == "it has ended"
    assert not source.moving


def test_what_comes_next_under_an_id_is_another_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A move was called off while its request's grammar compiled here."""
    _, target = two_ends()
    taken: list[str] = []
    monkeypatch.setattr(moving_in, "take_compiling", lambda scheduler, rid: taken.append(rid))
    target.moving.on_move_in(MoveInOrder(rid="r", seq=5, source=0, lane=1, serial=7))
    target.moving.on_move_end(MoveEndOrder(seq=5, moved=False))
    assert taken == ["r"], "at once, as its next plan may follow"
    assert not target.moving.adopt(request())
    target.turn()
    assert taken == ["r"]
    assert target.kinds() == [MoveEnded]


def test_a_request_that_sglang_refuses_does_not_come() -> None:
    source, target = two_ends()
    del source
    target.moving.on_move_in(MoveInOrder(rid="r", seq=5, source=0, lane=1, serial=7))
    target.moving.intake_over("r")
    target.turn()
    assert target.said(MoveFailed) == {"seq": 5, "error": "SGLang refused the request here"}
    assert MoveReady not in target.kinds()
    assert not target.moving


def step_under_way(source: End) -> Any:
    """With overlap a step of the running batch was started, and its results are not in."""
    scheduler: Any = source.scheduler
    scheduler.enable_overlap = True
    scheduler.schedule_stream, scheduler.forward_stream = Mock(), Mock()
    batch = SimpleNamespace(reqs=list(source.running.reqs))
    scheduler.result_queue = deque([(batch, None)])
    return scheduler.result_queue


def leaves(source: End, target: End, after: Any) -> None:
    """The target is ready, and the source hears that."""
    target.moving.on_move_in(MoveInOrder(rid="r", seq=5, source=0, lane=1, serial=7))
    assert target.moving.adopt(after)
    target.turn()
    source.moving.on_move_out(MoveOutOrder(seq=5, target=1, lane=1, serial=7))
    source.turn()


def test_with_overlap_the_step_that_is_under_way_counts() -> None:
    """It is in no further step, and leaves with that one's token."""
    source, target = two_ends()
    before, after = request(), request()
    source.decodes(5, before, [7, 8])
    steps = step_under_way(source)
    leaves(source, target, after)
    assert source.running.reqs == []
    assert MovedOut not in source.kinds()
    assert source.tracker
    source.token(before, 9)
    steps.clear()
    source.turn()
    assert source.said(MovedOut)["output"].tokens == [7, 8, 9]
    pass_on(source, target)
    until(MovedIn, target, source)
    ends_meet(source, target, moved=True)
    assert list(after.output_ids) == [7, 8, 9]
    assert source.scheduler.free() == SLOTS


def test_with_overlap_that_step_may_be_its_last() -> None:
    source, target = two_ends()
    req = request()
    source.decodes(5, req, [7, 8])
    steps = step_under_way(source)
    leaves(source, target, request())
    source.token(req, 1)
    req.to_finish = FINISH_ABORT()
    req.update_finish_state()
    steps.clear()
    source.turn()
    source.turn()
    assert DecodeEnded in source.kinds()
    assert source.said(MoveFailed)["error"] == "it has ended"
    assert not source.moving


def test_with_overlap_it_is_put_back_when_no_step_is_under_way() -> None:
    source, target = two_ends()
    req = request()
    source.decodes(5, req, [7, 8])
    steps = step_under_way(source)
    leaves(source, target, request())
    source.moving.on_move_end(MoveEndOrder(seq=5, moved=False))
    source.turn()
    assert source.running.reqs == []
    assert MoveEnded not in source.kinds()
    source.token(req, 9)
    steps.clear()
    source.turn()
    assert source.running.reqs == [req]
    assert MoveEnded in source.kinds()


def test_with_overlap_an_abort_after_that_step_ends_it_where_it_is() -> None:
    source, target = two_ends()
    req = request()
    source.decodes(5, req, [7, 8])
    steps = step_under_way(source)
    leaves(source, target, request())
    source.token(req, 9)
    req.to_finish = FINISH_ABORT()
    steps.clear()
    source.turn()
    assert source.running.reqs == [req]
    assert source.said(MoveFailed)["error"] == "it has been aborted"
    assert not source.moving
