"""Every architecture of the installed SGLang is either read and found plain, or refused."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import sglang.srt.models
from sglang.srt.configs.model_config import is_hybrid_swa_model, is_local_attention_model

from sglang_cdsp.architectures import (
    CHUNKED,
    LATENT,
    OWN_POOL,
    PLAIN,
    READ,
    SEEING,
    TEXT_ALONE,
    TOLD,
    TRICKS,
    WINDOWS,
    fault,
)

MODELS = Path(next(iter(sglang.srt.models.__path__)))

# What a plain layer is made of and called with. A window is seen in the built layer and sinks in
# the built model, so a class that has them as options may be on the list.
MADE_WITH = {
    "num_heads",
    "head_dim",
    "scaling",
    "num_kv_heads",
    "layer_id",
    "quant_config",
    "prefix",
    "sliding_window_size",
}
CALLED_WITH = {"q", "k", "v", "forward_batch", "save_kv_cache", "sinks"}
HAVE_WINDOW_OR_SINKS = {"granite", "granitemoe", "olmo2"}


@cache
def registered() -> dict[str, str]:
    """Every architecture that SGLang registers, and the module that does, read from the source.

    SGLang's own registry leaves out modules that cannot be imported on this machine.
    """
    found = {}
    for path in MODELS.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(isinstance(t, ast.Name) and t.id == "EntryClass" for t in targets):
                assert isinstance(node, ast.Assign)
                for name in ast.walk(node.value):
                    if isinstance(name, ast.Name):
                        found[name.id] = path.stem
    return found


def calls(module: str, function: str) -> Iterator[ast.Call]:
    tree = ast.parse((MODELS / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == function:
            yield node


def test_the_registry_is_read() -> None:
    assert len(registered()) > 200
    assert registered()["Llama4ForCausalLM"] == "llama4"


def test_every_architecture_is_served_or_refused() -> None:
    served = {name for name in registered() if not fault([name], {TEXT_ALONE: True})}
    assert served == set(READ)
    for name in set(registered()) - served:
        assert name in fault([name], {})


def test_what_was_read_is_where_it_was_read() -> None:
    assert {name: registered()[name] for name in READ} == READ


@pytest.mark.parametrize("module", sorted(set(PLAIN.values())))
def test_attention_is_made_and_called_as_plain_attention_is(module: str) -> None:
    """So that a new release of SGLang, which may change any of them, is noticed."""
    for call in calls(module, "RadixAttention"):
        assert {word.arg for word in call.keywords} <= MADE_WITH
    for call in calls(module, "self.attn"):
        given = {word.arg for word in call.keywords}
        own_module = {"hidden_states", "positions", "position_ids"} & given
        assert own_module or given <= CALLED_WITH
        assert own_module or len(call.args) <= 4
    source = (MODELS / f"{module}.py").read_text(encoding="utf-8")
    odd = ("sliding_window_size=", "sinks=", "use_irope", "get_attn_backend", "attn_type")
    assert module in HAVE_WINDOW_OR_SINKS or not any(word in source for word in odd)


@pytest.mark.parametrize("module", sorted({*WINDOWS.values(), "llama4"}))
def test_windows_and_sinks_are_given_as_their_family_takes_them(module: str) -> None:
    for call in calls(module, "RadixAttention"):
        given = {word.arg for word in call.keywords}
        chunked = {"use_irope"} if module == "llama4" else set()
        assert given <= MADE_WITH | {"logit_cap", "attn_type"} | chunked
        for word in call.keywords:
            assert word.arg != "logit_cap" or ast.unparse(word.value) == "0.0"
    for call in calls(module, "self.attn"):
        assert {word.arg for word in call.keywords} <= CALLED_WITH


@pytest.mark.parametrize("module", sorted(set(LATENT.values())))
def test_latent_models_have_sglangs_one_latent_attention(module: str) -> None:
    """It asks the backend in force for its form, see ``engine/latent_form.py``."""
    source = (MODELS / f"{module}.py").read_text(encoding="utf-8")
    assert "DeepseekV2AttentionMLA" in source or "(DeepseekV3ForCausalLM)" in source


@pytest.mark.parametrize("module", sorted(SEEING.values()))
def test_models_that_take_images_have_the_language_model_of_one_that_does_not(module: str) -> None:
    source = (MODELS / f"{module}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    inside = {
        "gemma3_mm": ("sglang.srt.models.gemma3_causal", "Gemma3ForCausalLM"),
        "mllama4": ("sglang.srt.models.llama4", "Llama4ForCausalLM"),
        "qwen3_vl": ("sglang.srt.models.qwen3", "Qwen3Model"),
        "qwen3_vl_moe": ("sglang.srt.models.qwen3_moe", "Qwen3MoeModel"),
    }[module]
    imported = {
        (node.module, name.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert inside in imported
    assert not list(calls(module, "RadixAttention"))


@pytest.mark.parametrize("name", sorted(TOLD))
def test_a_model_that_takes_images_is_served_where_it_is_told_not_to(name: str) -> None:
    refused = fault([name], {})
    assert "--json-model-override-args" in refused
    assert TEXT_ALONE in refused
    assert fault([name], {TEXT_ALONE: True}) == ""


def test_what_a_language_model_inside_does_counts() -> None:
    config = {"text_config": {"attn_logit_softcapping": 50.0}}
    assert "a soft cap" in fault(["Gemma3ForConditionalGeneration"], config)


def test_whose_windows_have_a_pool_of_their_own_is_what_sglang_says() -> None:
    assert {name for name in READ if is_hybrid_swa_model([name])} == OWN_POOL


def test_chunked_attention_is_served_where_sglang_computes_it() -> None:
    """SGLang runs the class of text alone, ``Llama4ForCausalLM``, with full attention."""
    assert {name for name in registered() if is_local_attention_model([name])} == set(CHUNKED)
    config = {"text_config": {"attention_chunk_size": 8192}}
    assert fault(["Llama4ForConditionalGeneration"], config) == ""
    assert "chunked attention" in fault(["Gemma3ForConditionalGeneration"], config)


def test_latent_rows_are_served_where_they_were_read() -> None:
    assert fault(["DeepseekV3ForCausalLM"], {"kv_lora_rank": 512}) == ""
    sparse = fault(["DeepseekV3ForCausalLM"], {"kv_lora_rank": 512, "index_topk": 2048})
    assert "the model has sparse attention" in sparse


@pytest.mark.parametrize("key", sorted(TRICKS))
def test_a_configuration_that_says_so_is_refused(key: str) -> None:
    assert TRICKS[key] in fault(["LlamaForCausalLM"], {key: 1})
    assert fault(["LlamaForCausalLM"], {key: None}) == ""


@pytest.mark.parametrize("names", [None, []])
def test_no_name_is_refused(names: list[str] | None) -> None:
    assert "names no architecture" in fault(names, {})


def test_one_unread_name_among_several_is_refused() -> None:
    assert "NewForCausalLM" in fault(["LlamaForCausalLM", "NewForCausalLM"], {})


@pytest.mark.parametrize(
    "name",
    [
        *("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM"),
        *("MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"),
    ],
)
def test_the_common_ones_are_served(name: str) -> None:
    assert fault([name], {"sliding_window": 4096, "architectures": [name]}) == ""
