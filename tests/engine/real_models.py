"""Runs SGLang's own models with weights, chunk by chunk, and holds them against transformers'.

    python -m tests.engine.real_models FOLDER FAMILY...

Three instances in one thread, as in ``one_thread``, share the model; each has slots, KV, links and
coroutines of its own. Prints for each family the largest gap of a log-probability, over all tokens
at all positions of all plans, as JSON. A program of its own: SGLang keeps the process's place in
its groups in module state.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from sglang.srt.layers.moe.utils import initialize_moe_config
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.utils.hf_transformers.config import get_config

from sglang_cdsp.architectures import fault
from sglang_cdsp.attention.families.claims import claim
from sglang_cdsp.protocol.messages import GoOrder
from sglang_cdsp.testing.family_checkpoints import RECIPES, write_family_checkpoint
from sglang_cdsp.testing.family_weights import Recipe
from tests.engine.built_models import become_the_only_rank
from tests.engine.family_models import Kind, Pool
from tests.engine.one_thread import pool_of, task_on
from tests.engine.plans import Chunks

PAGE, TOKENS = 8, 301
OVERRIDES = "--json-model-override-args"
PLANS: tuple[Chunks, ...] = (
    [(TOKENS, [1])],
    [(TOKENS, [2, 0, 1])],
    [(64, [1]), (136, [1, 2]), (TOKENS - 200, [1, 2, 0])],
    [(200, [0, 2]), (88, [0, 2]), (TOKENS - 288, [0, 2, 1])],
)


class Rows(Pool):
    """KV of one instance, by the layers of a model; what was never written is not a number."""

    def __init__(self, slots: int, model: torch.nn.Module) -> None:
        specs = claim(model).specs
        self.buffers = [
            [torch.full((slots, *width), float("nan")) for width in specs[layer].buffers]
            for layer in range(len(specs))
        ]


def configured(folder: Path, recipe: Recipe) -> Any:
    """SGLang's configuration of a checkpoint, with what its servers' flags override."""
    flags = list(recipe.flags)
    given = flags[flags.index(OVERRIDES) + 1] if OVERRIDES in flags else "{}"
    config = get_config(str(folder), trust_remote_code=False, model_override_args=json.loads(given))
    assert fault(config.architectures, config.to_dict()) == ""
    return config


def loaded(folder: Path, recipe: Recipe) -> torch.nn.Module:
    """SGLang's model with a checkpoint's weights; it answers all rows' log-probabilities."""
    config = configured(folder, recipe)
    kind, _ = ModelRegistry.resolve_model_cls(config.architectures)
    torch.set_default_dtype(torch.float32)
    model: torch.nn.Module = kind(config)
    model.load_weights(weights_of(folder))  # type: ignore[operator]
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if method is not None:
            method.process_weights_after_loading(module)
        if "logits_processor" in module._modules:
            del module._modules["logits_processor"]
            object.__setattr__(module, "logits_processor", all_rows)
    return model.eval()


def weights_of(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(folder.glob("*.safetensors")):
        yield from load_file(path).items()


def all_rows(
    input_ids: Any, hidden: torch.Tensor, head: Any, forward_batch: Any, *_: Any, **__: Any
) -> Any:
    """In place of SGLang's logits processor, which takes the last row alone."""
    return SimpleNamespace(hidden=(hidden @ head.weight.T).log_softmax(dim=-1))


def expected(folder: Path, recipe: Recipe, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities as transformers' own model has them, ``[TOKENS, vocabulary]``."""
    model = getattr(transformers, recipe.loaded_by).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    logits: torch.Tensor = model.eval()(tokens[None]).logits[0]
    return logits.log_softmax(dim=-1)


def through_a_pool(
    model: torch.nn.Module, tokens: torch.Tensor, chunks: Chunks, seed: int
) -> torch.Tensor:
    """The same by a plan, chunk by chunk, instances in a drawn order."""
    kind = Kind(lambda: model, lambda slots: Rows(slots, model), lambda tokens: tokens)
    draw, found = random.Random(seed), dict[int, torch.Tensor]()
    instances = pool_of(PAGE, seed, kind=kind)
    tasks = [task_on(instance, 0, chunks, PAGE) for instance in instances]
    for task in tasks:
        task.tokens = tokens
    for number, (_, group) in enumerate(chunks):
        order = GoOrder(seq=0, chunk=number, lane=0, serial=number + 1)
        for member in group:
            instances[member].begin(tasks[member], order, found)
        while any(len(instance.coroutines) for instance in instances):
            draw.choice(instances).coroutines.turn()
    assert all(instance.stopped == [] for instance in instances)
    return torch.stack([found[position] for position in range(TOKENS)])


def gap_of(folder: Path, family: str, seed: int = 0) -> float:
    """The largest gap of a family."""
    recipe = RECIPES[family]
    checkpoint = write_family_checkpoint(folder / family, family)
    tokens = torch.randint(8, 2048, (TOKENS,), generator=torch.Generator().manual_seed(seed))
    model = loaded(checkpoint, recipe)
    ways = [through_a_pool(model, tokens, chunks, seed) for chunks in PLANS]
    if recipe.loaded_by:
        ways.append(expected(checkpoint, recipe, tokens))
    return max(float((way - ways[0]).abs().max()) for way in ways[1:])


def main(folder: Path, families: list[str]) -> None:
    become_the_only_rank(folder)
    initialize_moe_config()
    with torch.inference_mode():
        print(json.dumps({family: gap_of(folder, family) for family in families}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
