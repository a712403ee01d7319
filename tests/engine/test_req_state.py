"""A request that goes on from output that it got elsewhere is what it was there, but for its KV."""

from __future__ import annotations

import inspect
from array import array
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.scheduler_components.output_streamer import _GenerationStreamAccumulator
from sglang.srt.sampling.penaltylib import (
    BatchedFrequencyPenalizer,
    BatchedMinNewTokensPenalizer,
    BatchedPenalizerOrchestrator,
    BatchedPresencePenalizer,
    BatchedRepetitionPenalizer,
)
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_cdsp.engine.req_state import (
    STAYS,
    StaysError,
    recall_penalties,
    restore,
    state_of,
)
from sglang_cdsp.protocol.messages import OutputState
from tests.engine.fake_stock import FakeScheduler

VOCAB = 32
PROMPT = list(range(3, 20))


class Grammar:
    """Accepts tokens below ``VOCAB``, and keeps them."""

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def accept_token(self, token: int) -> None:
        if token >= VOCAB:
            raise ValueError(f"token {token} is not in the grammar")
        self.accepted.append(token)


def new_request(*, stream: bool = True, logprobs: bool = False, **options: Any) -> Req:
    """A request as SGLang's intake makes it."""
    least = options.pop("min_new_tokens", 0)
    params = SamplingParams(max_new_tokens=64, **options)
    params.normalize(None)
    params.min_new_tokens = least  # its check asks for a tokenizer
    req = Req(
        "r",
        None,
        array("q", PROMPT),
        params,
        return_logprob=logprobs,
        top_logprobs_num=2 if logprobs else 0,
        stream=stream,
        eos_token_ids={1},
        vocab_size=VOCAB,
    )
    tokenizer = SimpleNamespace(eos_token_id=1, additional_stop_token_ids=None)
    req.tokenizer = tokenizer
    return req


def generate(req: Req, tokens: list[int]) -> None:
    """Tokens are sampled, as SGLang keeps them."""
    for token in tokens:
        req.output_ids.append(token)
        if req.return_logprob:
            record = req.logprob
            record.output_token_logprobs_val.append(-0.5 * token)
            record.output_token_logprobs_idx.append(token)
            record.output_top_logprobs_val.append([-0.5 * token, -9.0])
            record.output_top_logprobs_idx.append([token, 0])


def streamed(req: Req) -> Any:
    """What SGLang's own streamer sends of a request now."""
    known = inspect.signature(_GenerationStreamAccumulator).parameters
    name = "is_request_level_customized_info_key"  # since 0.5.23
    accumulator = _GenerationStreamAccumulator(
        **({name: lambda key: False} if name in known else {}),
        return_logprob=req.return_logprob,
        return_hidden_states=False,
        return_routed_experts=False,
        return_indexer_topk=False,
        spec_algorithm=SimpleNamespace(is_none=lambda: True),
        disaggregation_mode=None,
        default_stream_interval=1,
        default_force_stream_interval=1,
        get_cached_tokens_details=lambda req: None,
        current_weight_version=None,
    )
    accumulator.accept(req=req)
    return accumulator


def said(accumulator: Any) -> tuple[Any, ...]:
    """The parts of a message that a client sees, or that its text is made from."""
    return (
        accumulator.output_ids,
        accumulator.decode_ids_list,
        accumulator.read_offsets,
        accumulator.completion_tokens,
        accumulator.cached_tokens,
        accumulator.output_token_logprobs_val,
        accumulator.output_token_logprobs_idx,
        accumulator.output_top_logprobs_val,
        accumulator.output_top_logprobs_idx,
        accumulator.input_token_logprobs_val,
    )


def scheduler() -> Any:
    return FakeScheduler()


@given(
    st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=20),
    st.lists(st.integers(2, VOCAB - 1), max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_the_next_message_is_what_it_would_have_been(
    seen: list[int], unseen: list[int], logprobs: bool, dies: bool
) -> None:
    """Whether its instance died, so that only what was sent is known, or gave it back."""
    before = new_request(logprobs=logprobs)
    before.cached_tokens = 5
    generate(before, seen)
    streamed(before)
    if dies:
        state = OutputState(tokens=seen, sent=len(seen), cached_tokens=5, retractions=1)
    else:
        generate(before, unseen)
        before.retraction_count = 1
        state = state_of(before)
    after = new_request(logprobs=logprobs)
    restore(scheduler(), after, state)
    assert list(after.output_ids) == state.tokens
    generate(before, [9])
    generate(after, [9])
    assert said(streamed(after)) == said(streamed(before))
    assert (after.retraction_count, after.retracted_stain) == (1, True)
    generate(before, [8, 7])
    generate(after, [8, 7])
    assert said(streamed(after)) == said(streamed(before))


def test_what_nobody_has_seen_is_sent_from_the_first_token_on() -> None:
    before = new_request(logprobs=True)
    before.logprob.input_token_logprobs_val = [None, -1.0]
    before.logprob.input_token_logprobs_idx = PROMPT[:2]
    generate(before, [4, 5])
    after = new_request(logprobs=True)
    restore(scheduler(), after, state_of(before))
    message = streamed(after)
    assert [list(ids) for ids in message.output_ids] == [[4, 5]]
    assert message.input_token_logprobs_val == [[None, -1.0]]
    assert message.output_token_logprobs_val == [[-2.0, -2.5]]
    assert said(message) == said(streamed(before))


def test_a_grammar_and_reasoning_are_where_they_were() -> None:
    req, at = new_request(), scheduler()
    req.grammar = grammar = Grammar()
    restore(at, req, OutputState(tokens=[4, 5, 6], sent=3))
    assert grammar.accepted == [4, 5, 6]
    counted = at.batch_result_processor._maybe_update_reasoning_tokens.call_args_list
    assert [call.args[1] for call in counted] == [4, 5, 6]


def test_a_grammar_that_does_not_accept_the_output_says_so() -> None:
    req = new_request()
    req.grammar = Grammar()
    with pytest.raises(ValueError, match="not in the grammar"):
        restore(scheduler(), req, OutputState(tokens=[VOCAB], sent=1))


def test_length_and_stop_tokens_count_from_the_first_token() -> None:
    req = new_request()
    restore(scheduler(), req, OutputState(tokens=[5] * 62, sent=62))
    for token, ended in ((5, False), (5, True)):
        generate(req, [token])
        req.update_finish_state()
        assert req.finished() == ended


@pytest.mark.parametrize("field", STAYS)
def test_who_has_state_of_other_kinds_does_not_leave(field: str) -> None:
    req = new_request()
    state_of(req)
    setattr(req, field, "something")
    with pytest.raises(StaysError, match=STAYS[field]):
        state_of(req)


def test_log_probabilities_that_are_tensors_stay() -> None:
    req = new_request(logprobs=True)
    generate(req, [7])
    req.logprob.output_token_ids_logprobs_val = [torch.zeros(2)]
    with pytest.raises(StaysError, match="log-probabilities that are tensors"):
        state_of(req)


@settings(deadline=None)  # PyTorch compiles the first of them
@given(st.lists(st.integers(2, VOCAB - 1), max_size=12), st.data())
def test_penalties_are_as_if_it_had_never_left(tokens: list[int], data: st.DataObject) -> None:
    options: dict[str, Any] = {
        "frequency_penalty": data.draw(st.sampled_from([0.0, 0.5])),
        "presence_penalty": data.draw(st.sampled_from([0.0, 0.25])),
        "repetition_penalty": data.draw(st.sampled_from([1.0, 1.5])),
        "min_new_tokens": data.draw(st.sampled_from([0, 4])),
    }

    def batch() -> Any:
        batch = Mock(reqs=[new_request(**options)], device="cpu")
        batch.sampling_info.penalizer_orchestrator = BatchedPenalizerOrchestrator(
            VOCAB,
            batch,
            {
                BatchedFrequencyPenalizer,
                BatchedMinNewTokensPenalizer,
                BatchedPresencePenalizer,
                BatchedRepetitionPenalizer,
            },
        )
        return batch

    stayed, left = batch(), batch()
    for token in tokens:
        stayed.sampling_info.penalizer_orchestrator.cumulate_output_tokens(torch.tensor([token]))
    recall_penalties(left, tokens)
    logits = [torch.ones(1, VOCAB), torch.ones(1, VOCAB)]
    stayed.sampling_info.penalizer_orchestrator.apply(logits[0])
    left.sampling_info.penalizer_orchestrator.apply(logits[1])
    assert torch.equal(*logits)
