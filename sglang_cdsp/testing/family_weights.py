"""How a small random checkpoint is made: its configuration, its weights and their names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_cdsp.testing.step_checkpoint import Shape
from sglang_cdsp.testing.tokenizer import SPECIAL_TOKENS
from sglang_cdsp.testing.weight_names import rename_weights

PEAKED = ("q_proj.weight", "k_proj.weight", "q_b_proj.weight", "kv_a_proj_with_mqa.weight")
"""Weights whose gain makes attention peaked."""


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is made.

    Attributes:
        config_class: of transformers; "" where it does not have the model.
        fields: of the configuration, beside those that all have. Of a model that takes images they
            are its language model's.
        extra: what the real ``config.json`` says and transformers does not write.
        flags: that servers of the model need.
        around: the configuration around the language model's; None for a model of text.
        shapes: of a model that transformers does not have: names and shapes of the weights, by its
            configuration.
        published: a beginning of weights' names, and what it is in published checkpoints.
        renamed: a weight's name in the real checkpoint, by transformers' name of it; None for
            models whose names are the same. Transformers cannot load what is renamed.
    """

    config_class: str
    fields: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    around: Mapping[str, Any] | None = None
    shapes: Callable[[Mapping[str, Any]], Iterator[tuple[str, Shape]]] | None = None
    published: tuple[str, str] | None = None
    renamed: Callable[[str], str] | None = None

    @property
    def auto_class(self) -> str:
        """The class of transformers that makes the model; "" for none."""
        if not self.config_class:
            return ""
        return "AutoModelForCausalLM" if self.around is None else "AutoModelForImageTextToText"

    @property
    def loaded_by(self) -> str:
        """The class of transformers that loads the checkpoint; "" for none."""
        return "" if self.renamed else self.auto_class


def write_model(directory: Path, recipe: Recipe, common: Mapping[str, Any], seed: int) -> None:
    """Write configuration and weights.

    Args:
        directory: where; it exists.
        common: fields of the configuration that all checkpoints have.
        seed: of the weights.
    """
    # Imported here: they take seconds, and most tests need none.
    import torch

    fields = {**common, **recipe.fields}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        if recipe.shapes is None:
            _write_by_transformers(directory, recipe, fields)
        else:
            _write_weights(directory, recipe.shapes, fields)
    path = directory / "config.json"
    written = {**json.loads(path.read_text()), "torch_dtype": "float32", **recipe.extra}
    path.write_text(json.dumps(written, indent=2) + "\n")


def _write_by_transformers(directory: Path, recipe: Recipe, fields: Mapping[str, Any]) -> None:
    import sglang  # noqa: F401 - declares torchvision's operators first
    import torch
    import transformers

    if recipe.around is not None:
        fields = {**recipe.around, "text_config": fields}
    config = getattr(transformers, recipe.config_class)(**fields)
    model = getattr(transformers, recipe.auto_class).from_config(config, dtype=torch.float32)
    for key, weight in model.named_parameters():
        _draw(key, weight)
    model.save_pretrained(directory)
    if recipe.published is not None:
        begins, published = recipe.published
        rename_weights(
            directory,
            lambda key: published + key.removeprefix(begins) if key.startswith(begins) else key,
        )
    if recipe.renamed is not None:
        rename_weights(directory, recipe.renamed)


def _write_weights(
    directory: Path,
    shapes: Callable[[Mapping[str, Any]], Iterator[tuple[str, Shape]]],
    fields: Mapping[str, Any],
) -> None:
    import torch
    from safetensors.torch import save_file

    config = {name: value for name, value in fields.items() if value is not None}
    weights = {key: torch.zeros(shape) for key, shape in shapes(config)}
    for key, weight in weights.items():
        _draw(key, weight)
    save_file(weights, str(directory / "model.safetensors"), metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))


def _draw(key: str, weight: Any) -> None:
    """Draw a weight with a gain that keeps activations in scale; norms and biases stay."""
    if key.endswith("sinks"):
        # As large as the logits together; SGLang keeps them in bfloat16.
        weight.copy_(weight.normal_(6.0, 1.5).bfloat16())
    if weight.dim() < 2:
        return
    gain = 1.6 if key.endswith(PEAKED) else 1.0
    weight.normal_(0.0, gain / weight.shape[-1] ** 0.5)
    if key.endswith("lm_head.weight"):
        # Special tokens never win, so no text ends early.
        weight[: len(SPECIAL_TOKENS)] = 0.0
