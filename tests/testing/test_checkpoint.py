"""The checkpoint: deterministic, loadable by others, and dependent on all of a long prompt."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sglang  # noqa: F401 - must come before transformers, see platforms/schemas.py
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from sglang_cdsp.testing.checkpoint import LlamaShape, draw_weights, llama_config, write_checkpoint
from sglang_cdsp.testing.prompts import cut_prompts
from sglang_cdsp.testing.tokenizer import BOS_ID, SPECIAL_TOKENS

SMALL = replace(LlamaShape(), vocab_size=1024, hidden_size=64, num_hidden_layers=1)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    """The checkpoint in Hugging Face's implementation."""
    return LlamaForCausalLM.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    """The checkpoint's tokenizer."""
    return Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


@pytest.fixture(scope="module")
def long_prompt(checkpoint: Path, tokenizer: Tokenizer) -> torch.Tensor:
    """int64 [1, 4000]: the ids of real text."""
    (text,) = cut_prompts(checkpoint, [4000])
    ids = tokenizer.encode(text).ids
    assert abs(len(ids) - 4000) <= 5
    return torch.tensor([ids])


def last_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """float32 [vocabulary]: logits after the last token of ``ids``, int64 [1, tokens]."""
    with torch.inference_mode():
        return model(ids, logits_to_keep=1).logits[0, -1]


@pytest.mark.parametrize("position", [0, 4, 9])
def test_an_early_token_moves_the_last_logits(
    model: Any, long_prompt: torch.Tensor, position: int
) -> None:
    changed = long_prompt.clone()
    changed[0, position] = (changed[0, position] + 1234) % LlamaShape().vocab_size
    moved = (last_logits(model, changed) - last_logits(model, long_prompt)).abs().max()
    assert moved > 0.2


def test_rounding_moves_the_last_logits_by_far_less(
    checkpoint: Path, model: Any, long_prompt: torch.Tensor
) -> None:
    exact = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).eval()
    rounded = last_logits(model, long_prompt).double()
    assert (last_logits(exact, long_prompt) - rounded).abs().max() < 2e-4


def test_greedy_text_is_decided_and_does_not_collapse(
    model: Any, long_prompt: torch.Tensor
) -> None:
    start = long_prompt[:, :300]
    with torch.inference_mode():
        answer = model.generate(
            start, max_new_tokens=48, output_logits=True, return_dict_in_generate=True
        )
    generated = answer.sequences[0, 300:].tolist()
    best = torch.stack(answer.logits)[:, 0].topk(2).values
    assert len(generated) == 48  # no special token ended it
    assert len(set(generated)) > 24
    assert (best[:, 0] - best[:, 1]).median() > 0.1


def test_special_tokens_are_never_the_best(checkpoint: Path, model: Any) -> None:
    head = model.lm_head.weight
    assert torch.count_nonzero(head[: len(SPECIAL_TOKENS)]) == 0
    assert torch.count_nonzero(head[len(SPECIAL_TOKENS) :]) > 0


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path / "first", seed=3, shape=SMALL)
    again = write_checkpoint(tmp_path / "again", seed=3, shape=SMALL)
    other = write_checkpoint(tmp_path / "other", seed=4, shape=SMALL)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    weights = "model.safetensors"
    assert (first / weights).read_bytes() != (other / weights).read_bytes()


def test_a_complete_checkpoint_is_left_alone_and_another_is_replaced(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, seed=1, shape=SMALL)
    weights = directory / "model.safetensors"
    written = weights.stat().st_mtime_ns
    write_checkpoint(tmp_path, seed=1, shape=SMALL)
    assert weights.stat().st_mtime_ns == written
    write_checkpoint(tmp_path, seed=2, shape=SMALL)
    assert weights.stat().st_mtime_ns != written


def test_weights_fit_the_configuration(checkpoint: Path, model: Any) -> None:
    shape = LlamaShape()
    drawn = dict(draw_weights(shape, seed=0))
    assert set(drawn) == {name for name, _ in model.named_parameters()}
    assert json.loads((checkpoint / "config.json").read_text()) == llama_config(shape)
    assert shape.num_key_value_heads < shape.num_attention_heads
    assert shape.max_position_embeddings >= 32_768
    assert all(np.isfinite(weight).all() for weight in drawn.values())


@settings(print_blob=True, deadline=None, max_examples=50)
@given(text=st.text())
def test_every_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert ids[0] == BOS_ID
    assert tokenizer.decode(ids) == text or any(token in text for token in SPECIAL_TOKENS)


def test_the_chat_template_marks_turns(checkpoint: Path) -> None:
    chat = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|bos|><|turn|>user\nHello<|end|>\n<|turn|>assistant\n"


@settings(print_blob=True, deadline=None, max_examples=8)
@given(lengths=st.lists(st.integers(2, 8000), min_size=1, max_size=6))
def test_prompts_have_the_length_asked_for(
    checkpoint: Path, tokenizer: Tokenizer, lengths: list[int]
) -> None:
    prompts = cut_prompts(checkpoint, lengths)
    assert len(prompts) == len(lengths)
    for prompt, length in zip(prompts, lengths, strict=True):
        assert abs(len(tokenizer.encode(prompt).ids) - length) <= 5
