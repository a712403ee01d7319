"""Runs SGLang's latent models with several ranks an instance, and holds them against transformers'.

    python -m tests.engine.real_ranks FOLDER RANK SIZE FAMILY...

One process for each of SIZE ranks, which meet by a file in FOLDER: SGLang's tensor parallelism and
what ranks gather are as in a server. Each runs its rank of all instances in one thread, as in
``one_thread``, in the order of one seed. Ranks carry unlike shares, so one may be ready before the
other: they agree at each switch, as in a server. Prints for each family the largest
gap of a log-probability to transformers', over all tokens at all positions of all plans, as JSON.
"""

from __future__ import annotations

import json
import random
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.distributed import get_tp_group
from sglang.srt.layers.moe.utils import initialize_moe_config
from sglang.srt.models.registry import ModelRegistry

from sglang_cdsp.attention.families.latent import latent_layers
from sglang_cdsp.engine.agreement import Agreement
from sglang_cdsp.engine.ranks import ranks_of
from sglang_cdsp.parallel.ranks import Ranks
from sglang_cdsp.protocol.messages import GoOrder
from sglang_cdsp.testing.family_checkpoints import RECIPES, write_family_checkpoint
from tests.engine.built_models import become_rank
from tests.engine.family_models import Kind
from tests.engine.one_thread import pool_of, task_on
from tests.engine.plans import Chunks
from tests.engine.real_models import PAGE, TOKENS, configured, expected, weights_of

LATE = timedelta(minutes=5)
PLANS: tuple[Chunks, ...] = (
    [(TOKENS, [1])],
    [(TOKENS, [2, 0, 1])],
    [(64, [1]), (136, [1, 2]), (TOKENS - 200, [1, 2, 0])],
    [(288, [0, 2]), (TOKENS - 288, [0, 2, 1])],
)
"""One instance alone, a ring, growth, and a chunk so short that queries travel."""


class LatentRows:
    """Latent rows of one instance on one rank; what was never written is not a number."""

    dtype = torch.float32

    def __init__(self, slots: int, model: torch.nn.Module) -> None:
        self._sizes = {number: layer.sizes for number, layer in latent_layers(model).items()}
        self._rows = {
            number: torch.full((slots, 1, sizes.row), float("nan"))
            for number, sizes in self._sizes.items()
        }

    def get_key_buffer(self, layer_id: int, /) -> torch.Tensor:
        return self._rows[layer_id]

    def get_value_buffer(self, layer_id: int, /) -> torch.Tensor:
        return self._rows[layer_id][..., : self._sizes[layer_id].rank]

    def set_kv_buffer(self, layer: Any, where: Any, k: torch.Tensor, v: torch.Tensor) -> None:
        rows = self._rows[layer.layer_id]
        rows[getattr(where, "loc", where)] = k.reshape(-1, *rows.shape[1:])

    def set_mla_kv_buffer(
        self, layer: Any, where: Any, latents: torch.Tensor, rotated: torch.Tensor
    ) -> None:
        both = [x.reshape(-1, 1, x.shape[-1]) for x in (latents, rotated)]
        self.set_kv_buffer(layer, where, torch.cat(both, dim=-1), latents)


def loaded(folder: Path, family: str) -> torch.nn.Module:
    """This rank's part of SGLang's model; it answers all rows' log-probabilities."""
    config = configured(folder, RECIPES[family])
    kind, _ = ModelRegistry.resolve_model_cls(config.architectures)
    torch.set_default_dtype(torch.float32)
    model: Any = kind(config)
    model.load_weights(weights_of(folder))
    del model._modules["logits_processor"]
    object.__setattr__(model, "logits_processor", all_rows)
    evaluated: torch.nn.Module = model.eval()
    return evaluated


def all_rows(
    input_ids: Any, hidden: torch.Tensor, head: Any, forward_batch: Any, *_: Any, **__: Any
) -> Any:
    """In place of SGLang's logits processor, which takes the last row alone."""
    logits = get_tp_group().all_gather((hidden @ head.weight.T).contiguous(), dim=-1)
    return SimpleNamespace(hidden=logits.log_softmax(dim=-1))


def through_a_pool(
    model: torch.nn.Module, tokens: torch.Tensor, chunks: Chunks, ranks: Ranks, seed: int
) -> torch.Tensor:
    """Log-probabilities by a plan, ``[TOKENS, vocabulary]``."""
    kind = Kind(lambda: model, lambda slots: LatentRows(slots, model), lambda tokens: tokens)  # type: ignore[arg-type,return-value]
    draw, found = random.Random(seed), dict[int, torch.Tensor]()
    agreement = Agreement(get_tp_group().cpu_group, ranks.size, LATE)
    instances = pool_of(PAGE, seed, kind=kind, ranks=lambda instance: ranks, agreement=agreement)
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


def written(folder: Path, family: str, rank: int) -> Path:
    """A rank's own copy of a checkpoint."""
    return write_family_checkpoint(folder / f"{family}-{rank}", family)


def gap_of(folder: Path, family: str, ranks: Ranks, seed: int = 0) -> float:
    """The largest gap of a family to transformers, or where it has none to one instance alone."""
    recipe, checkpoint = RECIPES[family], written(folder, family, ranks.rank)
    tokens = torch.randint(8, 2048, (TOKENS,), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():  # SGLang loads in threads, which no inference mode reaches
        model = loaded(checkpoint, family)
    with torch.inference_mode():
        ways = [through_a_pool(model, tokens, chunks, ranks, seed) for chunks in PLANS]
        known = expected(checkpoint, recipe, tokens) if recipe.loaded_by else ways[0]
    return max(float((way - known).abs().max()) for way in ways)


def main(folder: Path, rank: int, size: int, families: list[str]) -> None:
    for family in families:  # transformers writes no configuration as a rank above 0
        written(folder, family, rank)
    become_rank(folder, rank, size)
    initialize_moe_config()
    torch.set_num_threads(1)
    ranks = ranks_of(rank, size)
    print(json.dumps({family: gap_of(folder, family, ranks) for family in families}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
