"""KV goes ahead of a request that moves: while its last chunk runs, or while it decodes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_cdsp.engine import kv_transfer
from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.moves import start_moves
from sglang_cdsp.parallel.spans import Span
from sglang_cdsp.protocol.messages import (
    MovedIn,
    MovedOut,
    MoveEnded,
    MoveEndOrder,
    MoveFailed,
    MoveInOrder,
    MoveReady,
)
from tests.engine.family_models import LATENT, WINDOWS, Kind
from tests.engine.move_ends import (
    PROMPT,
    ROW,
    End,
    ask,
    ends_meet,
    pass_on,
    request,
    sent,
    two_ends,
    until,
)
from tests.engine.moving_prompts import PLANS, Prefill
from tests.engine.one_thread import DIM, KV_HEADS, LAYERS
from tests.engine.plans import Chunks
from tests.engine.stock_pools import SLOTS, VOCAB, options
from tests.engine.wire import counted

assert options, "SGLang's options, as far as they are read here"


def gone_ahead(source: End, *others: End) -> None:
    """Nothing of what is to go ahead is left at the source."""
    for _ in range(300):
        if all(not end.instance.coroutines for end in (source, *others)):
            return
        for end in (source, *others):
            end.turn()
    raise AssertionError("it does not come to an end")


def release_of(source: End) -> None:
    source.tasks.clear()


# -- while it decodes -------------------------------------------------------------------------


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    output=st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=6),
    ahead=st.integers(0, len(PROMPT)),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_it_decodes_on_meanwhile_and_each_row_goes_once(
    output: list[int], ahead: int, seed: int, data: st.DataObject
) -> None:
    source, target = two_ends(seed)
    before, after = request(), request()
    source.decodes(5, before, output)
    tokens = list(output)
    with counted() as wire:
        ask(source, target, after, ahead)
        for _ in range(200):
            if MovedOut in source.kinds():
                break
            if before in source.running.reqs and data.draw(st.booleans()) and len(tokens) < 15:
                tokens.append(data.draw(st.integers(2, VOCAB - 1)))
                source.token(before, tokens[-1])
                (slot,) = source.rows(before)[-1:]
                source.instance.pool.kv[:, :, slot] = torch.randn(LAYERS, 2, KV_HEADS, DIM)
            data.draw(st.sampled_from([source, target])).turn()
        kv, left = source.kv(before), source.said(MovedOut)
        assert left["ahead"] == ahead
        pass_on(source, target)
        until(MovedIn, target, source)
    ends_meet(source, target, moved=True)
    target.turn()
    assert list(after.output_ids) == tokens
    assert torch.equal(target.kv(after), kv)
    assert sent(wire) == ROW * kv.shape[2], "each row once"
    assert source.scheduler.free() == SLOTS
    assert not source.moving
    assert not target.moving


def test_only_the_rest_follows_when_it_has_left() -> None:
    source, target = two_ends()
    before, after = request(), request()
    source.decodes(5, before, [7, 8, 9])
    with counted() as wire:
        ask(source, target, after, len(PROMPT))
        assert source.running.reqs == [before], "it decodes on"
        until(MovedOut, source, target)
        assert sent(wire) == ROW * len(PROMPT)
        pass_on(source, target)
        until(MovedIn, target, source)
        assert sent(wire) == ROW * (len(PROMPT) + 2)


def test_what_was_retracted_meanwhile_is_sent_anew() -> None:
    """Its slots were somebody else's for a while, though it may have got the same ones again."""
    source, target = two_ends()
    before, after = request(), request()
    source.decodes(5, before, [7, 8, 9])
    with counted() as wire:
        ask(source, target, after, len(PROMPT))
        before.retraction_count += 1
        kv = source.kv(before)
        kv += 1.0
        source.instance.pool.kv[:, :, source.rows(before)] = kv
        until(MovedOut, source, target)
        assert source.said(MovedOut)["ahead"] == 0
        pass_on(source, target)
        until(MovedIn, target, source)
    assert sent(wire) == ROW * (2 * len(PROMPT) + 2)
    target.turn()
    assert torch.equal(target.kv(after), kv)


def test_a_link_that_breaks_meanwhile_costs_the_request_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, target = two_ends()
    before = request()
    source.decodes(5, before, [7, 8])

    def broken(*_: object) -> None:
        raise LinkError("the link broke")

    monkeypatch.setattr(source.instance.hub, "open", broken)
    ask(source, target, request(), len(PROMPT))
    until(MoveFailed, source, target)
    assert source.said(MoveFailed) == {"seq": 5, "error": "the link broke", "stays": False}
    assert source.running.reqs == [before]
    assert not source.moving
    target.moving.on_move_end(MoveEndOrder(seq=5, moved=False))
    until(MoveEnded, target)
    assert target.scheduler.free() == SLOTS


@pytest.mark.parametrize("turns", [0, 2, 20], ids=["at once", "on the way", "when all is there"])
def test_what_is_called_off_leaves_nothing(turns: int) -> None:
    """Between what goes ahead and the rest the lane is open, and nothing runs on it."""
    source, target = two_ends()
    before = request()
    source.decodes(5, before, [7, 8])
    source.joining.admit = lambda running: running  # type: ignore[method-assign]
    source.moving._out.take_out = lambda running: None  # type: ignore[method-assign]
    target.moving._out.take_out = lambda running: None  # type: ignore[method-assign]
    ask(source, target, request(), len(PROMPT))
    source.moving._out._all_ahead(source.moving._out._leaving[5], before, source.running)
    for _ in range(turns):
        source.turn()
        target.turn()
    ends_meet(source, target, moved=False)
    assert source.running.reqs == [before]
    assert target.scheduler.free() == SLOTS
    assert not source.moving
    assert not target.moving
    assert source.instance.hub.snapshot()["open"] == target.instance.hub.snapshot()["open"] == {}


def test_a_target_without_room_for_it_says_so_before_anything_is_sent() -> None:
    _, target = two_ends()
    held = target.scheduler.token_to_kv_pool_allocator.alloc(SLOTS - 5)
    assert held is not None
    order = MoveInOrder(rid="r", seq=5, source=0, lane=1, serial=7, ahead=len(PROMPT))
    target.moving.on_move_in(order)
    assert target.moving.adopt(request())
    until(MoveFailed, target)
    assert MoveReady not in target.kinds()
    assert "not free" in target.said(MoveFailed)["error"]
    assert target.scheduler.token_to_kv_pool_allocator.available_size() == 5


def test_a_layer_goes_in_messages_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends hold a copy of each message beside the pool."""
    monkeypatch.setattr(kv_transfer, "MESSAGE_BYTES", 7 * ROW // LAYERS)
    sizes: list[int] = []
    start = start_moves

    def noted(buffers: Any, moves: Any, *more: Any, **note: Any) -> Any:
        sizes.extend(move.span.tokens for move in moves)
        return start(buffers, moves, *more, **note)

    monkeypatch.setattr(kv_transfer, "start_moves", noted)
    source, target = two_ends()
    before, after = request(), request()
    source.decodes(5, before, [7, 8, 9])
    kv = source.kv(before)
    ask(source, target, after, len(PROMPT))
    until(MovedOut, source, target)
    pass_on(source, target)
    until(MovedIn, target, source)
    target.turn()
    assert torch.equal(target.kv(after), kv)
    assert sorted(sizes) == sorted([7, 7, 7, 7, 2, 2] * 2 * LAYERS), "at both ends, layer by layer"


# -- while its last chunk runs ----------------------------------------------------------------


@pytest.mark.parametrize("chunks", PLANS, ids=str)
def test_layers_leave_home_while_later_ones_are_computed(chunks: Chunks) -> None:
    early = set()
    for seed in range(12):
        with counted() as wire:
            prompt = Prefill(chunks, seed)
            prompt.before_last()
            ask(prompt.home, prompt.target, prompt.after, len(PROMPT))
            prompt.last()
            early.add(sent(wire))
            whole = prompt.task.slot_table.slots([Span(0, len(PROMPT))])
            kv = prompt.home.instance.pool.kv[:, :, whole].clone()
            prompt.joins()
            for _ in range(50):
                prompt.draw.choice(prompt.ends).turn()
            assert MovedOut not in prompt.home.kinds(), "other members are not done with it"
            release_of(prompt.home)
            until(MovedOut, prompt.home, prompt.target)
            left = prompt.home.said(MovedOut)
            assert (left["rows"], left["ahead"]) == (len(PROMPT), len(PROMPT)), seed
            assert left["output"].tokens == [7], "its home has decoded nothing"
            pass_on(prompt.home, prompt.target)
            until(MovedIn, prompt.target, prompt.home)
        assert sent(wire) == ROW * len(PROMPT), "what went ahead is all there is"
        ends_meet(prompt.home, prompt.target, moved=True)
        prompt.target.turn()
        assert torch.equal(prompt.target.kv(prompt.after), kv), seed
        assert not torch.isnan(kv).any()
        assert prompt.home.scheduler.free() == SLOTS
    assert max(early) > 0, "in some order of events the first layer leaves before the chunk ends"


@pytest.mark.parametrize("kind", [WINDOWS, LATENT], ids=["windows and sinks", "latent"])
@pytest.mark.parametrize("chunks", PLANS, ids=str)
def test_so_they_do_in_every_family(chunks: Chunks, kind: Kind) -> None:
    """What a window layer gathers may still be on its way when a later layer is whole."""
    for seed in range(8):
        prompt = Prefill(chunks, seed, kind)
        prompt.before_last()
        ask(prompt.home, prompt.target, prompt.after, len(PROMPT))
        prompt.last()
        prompt.joins()
        release_of(prompt.home)
        until(MovedOut, prompt.home, prompt.target)
        assert prompt.home.said(MovedOut)["ahead"] == len(PROMPT)
        pass_on(prompt.home, prompt.target)
        until(MovedIn, prompt.target, prompt.home)
        prompt.target.turn()
        there, here = prompt.home.rows(prompt.req), prompt.target.rows(prompt.after)
        for layer in range(LAYERS):
            buffers = (end.instance.pool.buffers[layer] for end in (prompt.home, prompt.target))
            for sent_from, sent_to in zip(*buffers, strict=True):
                assert torch.equal(sent_to[here], sent_from[there]), seed


def test_what_the_prefix_tree_had_already_is_sent_anew() -> None:
    """Joining, a prompt gives back the slots of what is cached: others may have written there."""
    prompt = Prefill([(30, [0])], 3)
    first = request()
    prompt.home.decodes(9, first, [7])
    prompt.before_last()
    with counted() as wire:
        ask(prompt.home, prompt.target, prompt.after, len(PROMPT))
        prompt.last()
        prompt.joins()
        gone_ahead(prompt.home, prompt.target)
        release_of(prompt.home)
        until(MovedOut, prompt.home, prompt.target)
        kv = prompt.home.kv(prompt.req)
        shared = torch.equal(prompt.home.rows(prompt.req), prompt.home.rows(first)[: len(PROMPT)])
        assert shared, "the tree's slots"
        assert prompt.home.said(MovedOut)["ahead"] == 0
        pass_on(prompt.home, prompt.target)
        until(MovedIn, prompt.target, prompt.home)
    assert sent(wire) == 2 * ROW * len(PROMPT)
    prompt.target.turn()
    assert torch.equal(prompt.target.kv(prompt.after), kv)


def test_a_chunk_that_is_ended_takes_what_goes_ahead_with_it() -> None:
    prompt = Prefill([(30, [0, 1])], 4)
    prompt.before_last()
    ask(prompt.home, prompt.target, prompt.after, len(PROMPT))
    for end, task in zip(prompt.ends, prompt.tasks, strict=True):
        task.over = True
        if task.running is not None:
            end.instance.coroutines.stop(task.running, "its client has gone")
    prompt.task.slot_table.clear()
    until(MoveFailed, prompt.home, prompt.target)
    assert "ended" in prompt.home.said(MoveFailed)["error"]
    prompt.target.moving.on_move_end(MoveEndOrder(seq=5, moved=False))
    until(MoveEnded, prompt.target, prompt.home)
    assert prompt.target.scheduler.free() == SLOTS
    assert not prompt.home.moving
    assert not prompt.target.moving
