"""Home samples the first token with everything that the request asked of SGLang's sampler."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.managers import schedule_batch
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.sampling import sampling_batch_info
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from sglang_cdsp.engine.forward import ShardInput, build_forward_batch
from sglang_cdsp.engine.sampling import sample_first_token, sampling_batch
from tests.engine.fake_stock import FakeScheduler

VOCAB = 32


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ``--enable-deterministic-inference``, without which SGLang ignores seeds."""
    exec_options = SimpleNamespace(
        deterministic=SimpleNamespace(enable_deterministic_inference=True),
        features=SimpleNamespace(enable_custom_logit_processor=False, enable_watermark=False),
    )
    monkeypatch.setattr(sampling_batch_info, "get_exec", lambda: exec_options)
    spec = SimpleNamespace(speculative_algorithm=None)
    monkeypatch.setattr(schedule_batch, "get_spec", lambda: spec)
    return


class Runner:
    """The model runner; keeps what it was given and samples ``token``."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.seen: Any = None

    def sample(self, logits: Any, forward: Any) -> torch.Tensor:
        self.seen = forward
        return torch.tensor([self.token])


def scheduler(runner: Runner) -> FakeScheduler:
    return FakeScheduler(
        req_to_token_pool=SimpleNamespace(device="cpu"),
        model_config=SimpleNamespace(vocab_size=VOCAB, is_encoder_decoder=False),
        spec_algorithm=SpeculativeAlgorithm.NONE,
        tp_worker=SimpleNamespace(model_runner=runner),
    )


def request(length: int, **options: Any) -> Req:
    params = SamplingParams(max_new_tokens=1, **options)
    params.normalize(None)
    return Req("r", None, array("q", range(length)), params, eos_token_ids={1}, vocab_size=VOCAB)


def sampled(runner: Runner, req: Req, positions: list[int]) -> Any:
    """Home's part of the last chunk; ``positions`` are those of its shard."""
    home = scheduler(runner)
    batch = sampling_batch(home, req)
    rows = torch.tensor(positions)
    forward = build_forward_batch(ShardInput(rows, rows, rows + 1), "cpu", batch)
    logits = SimpleNamespace(next_token_logits=torch.zeros(1, VOCAB))
    sample_first_token(home, batch, forward, logits)
    return runner.seen


@settings(max_examples=30, deadline=None, print_blob=True)
@given(length=st.integers(1, 60), seed=st.integers(0, 2**31), data=st.data())
def test_seed_and_position_are_stocks(length: int, seed: int, data: st.DataObject) -> None:
    """Stock draws with the request's seed at the position of the prompt's last token."""
    others = data.draw(st.sets(st.integers(0, max(0, length - 2)), max_size=length - 1))
    positions = sorted({*others, length - 1})
    req = request(length, temperature=0.7, sampling_seed=seed)
    forward = sampled(Runner(4), req, positions)
    assert forward.sampling_info.sampling_seed.tolist() == [seed]
    assert (forward.seq_lens - 1).tolist() == [length - 1]
    assert not forward.forward_mode.is_decode(), "else the sampler takes other positions"
    assert list(req.output_ids) == [4]


def test_parameters_reach_the_sampler() -> None:
    options = {"temperature": 0.7, "top_p": 0.5, "top_k": 3, "min_p": 0.25}
    info = sampled(Runner(4), request(8, logit_bias={"5": 3.0}, **options), [7]).sampling_info
    found = (info.temperatures, info.top_ps, info.top_ks, info.min_ps)
    assert [t.flatten().tolist() for t in found] == [
        [pytest.approx(0.7)],
        [0.5],
        [3],
        [0.25],
    ]
    assert info.logit_bias[0].nonzero().flatten().tolist() == [5]


class Grammar:
    """Keeps what it is given; refuses token 9."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.finished: bool | None = None

    def accept_token(self, token: int) -> None:
        if token == 9:
            raise ValueError("token 9 is not in the grammar")
        self.accepted.append(token)


def test_a_grammar_follows_the_first_token() -> None:
    req = request(8)
    req.grammar = Grammar()
    forward = sampled(Runner(4), req, [7])
    assert forward.sampling_info.grammars == [req.grammar], "else its mask would not be applied"
    assert req.grammar.accepted == [4]
    assert req.grammar.finished is False


def test_a_token_that_the_grammar_refuses_is_an_error() -> None:
    req = request(8)
    req.grammar = Grammar()
    with pytest.raises(ValueError, match="token 9"):
        sampled(Runner(9), req, [7])
