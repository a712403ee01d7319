"""A running request goes on at another instance: its KV, its output, its place in the stream."""

from __future__ import annotations

from functools import reduce
from itertools import permutations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_cdsp.engine.req_state import OUTPUT_LOGPROBS
from sglang_cdsp.protocol.messages import (
    DecodeEnded,
    MovedIn,
    MoveFailed,
    MoveInOrder,
    MoveOutOrder,
)
from tests.engine.move_ends import (
    PROMPT,
    Grammar,
    ask,
    ends_meet,
    move,
    pass_on,
    request,
    two_ends,
    until,
)
from tests.engine.stock_pools import ROWS, SLOTS, VOCAB, options

assert options, "SGLang's options, as far as they are read here"


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
    for token, times in ((7, 2), (8, 1)):
        # SGLang applies them in the order of a set, which is any.
        penalties_of = (
            lambda logit, times=times: logit - 0.5 * times,
            lambda logit: logit - 0.25,
            lambda logit: logit / 1.5 if logit > 0 else logit * 1.5,
        )
        expected = {reduce(lambda x, f: f(x), order, 1.0) for order in permutations(penalties_of)}
        assert any(changed[token] == pytest.approx(value) for value in expected)


def test_a_move_that_is_called_off_leaves_it_in_its_batch() -> None:
    source, target = two_ends()
    req = request()
    source.decodes(5, req, [7, 8, 9])
    kv = source.kv(req)
    ask(source, target, request())
    assert source.running.reqs == []
    assert source.tracker, "it is no request that has ended"
    ends_meet(source, target, moved=False)
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


def test_a_grammar_accepts_each_token_once() -> None:
    source, target = two_ends()
    before, after = request(), request()
    before.grammar, after.grammar = Grammar(), Grammar()
    source.decodes(5, before, [7, 8, 9])
    move(source, target, after)
    target.turn()
    assert after.grammar.accepted == [7, 8, 9]


def test_what_was_not_sent_yet_is_sent_from_there_with_its_log_probabilities() -> None:
    source, target = two_ends()
    before, after = request(), request()
    for req in (before, after):
        req.return_logprob = True
        for name in OUTPUT_LOGPROBS:
            setattr(req.logprob, name, [])
    source.decodes(5, before, [7, 8, 9])
    before.logprob.output_token_logprobs_val = [-0.5, -0.25, -1.0]
    before.logprob.output_token_logprobs_idx = [7, 8, 9]
    before.init_incremental_detokenize()
    before.send_token_offset = before.send_decode_id_offset = 2
    before.send_output_token_logprobs_offset, before.input_logprob_sent = 2, True
    before.cached_tokens, before.retraction_count = 4, 1
    move(source, target, after)
    assert (after.send_token_offset, after.send_output_token_logprobs_offset) == (2, 2)
    assert after.logprob.output_token_logprobs_val == [-0.5, -0.25, -1.0]
    assert after.input_logprob_sent
    assert (after.cached_tokens, after.retraction_count) == (4, 1)
    assert after.init_incremental_detokenize() == before.init_incremental_detokenize()
