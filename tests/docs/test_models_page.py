"""The page of models names what is served and refused, with the figures that tests count."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.servers.families.asking import FEATURES
from bench.servers.families.results import Results
from sglang_cdsp.architectures import LATENT, SEEING, TEXT_ALONE, TRICKS, WINDOWS, fault
from sglang_cdsp.attention.latent_rows import EXPANDED_AT_ONCE
from tests.serving_families.tried import TRIED as ON_SERVERS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
NAMED = {
    "DeepseekV2ForCausalLM": "DeepSeek-V2",
    "DeepseekV3ForCausalLM": "V3, R1",
    "Glm4MoeLiteForCausalLM": "GLM-4.7-Flash",
    "MistralLarge3ForCausalLM": "Mistral Large 3",
    "Exaone4ForCausalLM": "EXAONE 4",
    "Gemma3ForCausalLM": "Gemma 3",
    "Gemma4ForCausalLM": "Gemma 4",
    "GptOssForCausalLM": "gpt-oss",
    "Step3p5ForCausalLM": "Step-3.5",
    "Llama4ForConditionalGeneration": "`Llama4ForConditionalGeneration`",
    "Gemma3ForConditionalGeneration": "`Gemma3ForConditionalGeneration`",
    "Qwen3VLForConditionalGeneration": "Qwen3-VL",
    "Qwen3VLMoeForConditionalGeneration": "Qwen3-VL",
}


TRIED = {
    "deepseek-v3": "DeepSeek-V2, V3",
    "glm-4.7-flash": "GLM-4.7-Flash",
    "mistral-large": "Mistral Large 3",
    "qwen3-moe": "Qwen 3, also MoE",
    "gemma-3": "Gemma 3 (`Gemma3ForCausalLM`)",
    "gemma-3-vision": "Gemma 3 with images",
    "gemma-4": "Gemma 4",
    "exaone-4": "EXAONE 4",
    "gpt-oss": "gpt-oss",
    "step-3.5": "Step-3.5",
    "qwen3-vl": "Qwen3-VL",
}
"""Small checkpoints of these shapes are tried on servers, and how their lines begin."""


@pytest.mark.parametrize("family", TRIED)
def test_yes_is_said_of_what_runs_on_servers(family: str) -> None:
    """In the tests, or where the whole program has run."""
    results = Results.load(ROOT / "bench" / "results" / "families.json")
    [line] = [line for line in PAGE.splitlines() if line.startswith(f"| {TRIED[family]}")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    for form, cell in (("prefill", cells[2]), ("one", cells[3])):
        ran = results.row(f"{family}/{form}").holds(FEATURES)
        tested = any((family, form) == tried[:2] for tried in ON_SERVERS)
        assert cell.startswith("yes") == (ran or tested), form


def test_every_model_of_the_families_has_its_line() -> None:
    assert set(NAMED) == {*LATENT, *WINDOWS, *SEEING}
    for name in NAMED.values():
        assert any(name in line and line.startswith("|") for line in PAGE.splitlines()), name


@pytest.mark.parametrize(
    "architecture",
    [
        *("DeepseekV32ForCausalLM", "DeepseekV4ForCausalLM", "Qwen3NextForCausalLM"),
        *("MiMoV2FlashForCausalLM", "Gemma2ForCausalLM", "Llama4ForCausalLM"),
        "KimiK25ForConditionalGeneration",
        *("Gemma4ForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),
    ],
)
def test_what_the_page_calls_refused_is_refused(architecture: str) -> None:
    assert architecture in fault([architecture], {})
    assert "sparse attention" in TRICKS["index_topk"]


def test_the_flag_of_models_that_take_images_is_named() -> None:
    flag = f"""--json-model-override-args '{{"{TEXT_ALONE}": true}}'"""
    assert flag in PAGE
    assert flag in fault(["Qwen3VLForConditionalGeneration"], {})


def test_the_figures_are_those_of_the_code() -> None:
    assert f"History is expanded {EXPANDED_AT_ONCE:,} rows at a time" in PAGE
