"""A whole gpt-oss, with windows and sinks in turn, answers as transformers' own attention has it.

SGLang serves the model on a GPU alone. Here transformers runs it, and in place of its attention a
group's members compute that of each layer, chunk by chunk, each with the rows that it holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import sglang  # noqa: F401 - declares torchvision's operators before transformers
import torch
from sglang.srt.layers.radix_attention import RadixAttention
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.models.gpt_oss import modeling_gpt_oss

from sglang_cdsp.attention.backend import ShardAttention
from sglang_cdsp.attention.families.claims import claim
from sglang_cdsp.attention.ring_layout import RingLayout
from sglang_cdsp.parallel.links.lanes import Lane
from sglang_cdsp.parallel.spans import Span, split_chunk
from tests.engine.family_models import Pool
from tests.parallel.ring_cases import in_threads, rows_of, thread_lanes

INSTANCES, PAGE, TOKENS, VOCABULARY = 3, 4, 150, 256
WINDOW = 24
CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}

Plan = Sequence[tuple[int, tuple[int, ...]]]
PLANS: dict[str, Plan] = {
    "alone": [(TOKENS, (1,))],
    "together": [(TOKENS, (2, 0, 1))],
    "growing": [(64, (1,)), (36, (1, 2)), (50, (1, 2, 0))],
    "short behind long": [(132, (0, 2)), (12, (0, 2)), (6, (0, 2, 1))],
}


@pytest.fixture(scope="module")
def lanes() -> Iterator[list[Lane]]:
    lanes = thread_lanes(INSTANCES)
    yield lanes
    for lane in lanes:
        lane.close()


@pytest.fixture(scope="module")
def model() -> GptOssForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = GptOssForCausalLM._from_config(
            GptOssConfig(**CONFIG), dtype=torch.float32, attn_implementation="eager"
        ).eval()
        with torch.no_grad():
            for name, weight in made.named_parameters():
                if "sinks" in name:
                    weight.normal_(9.0, 1.5)
                elif weight.dim() > 1:
                    weight.normal_(0.0, 1.6 / weight.shape[-1] ** 0.5)
    return made


class Members:
    """The instances of a pool, which compute one layer's attention after the other by a plan."""

    def __init__(self, plan: Plan, lanes: Sequence[Lane]) -> None:
        self._plan, self._lanes = plan, lanes
        self.layers: list[int] = []

    def attention(
        self, module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **more: Any
    ) -> tuple[torch.Tensor, None]:
        """In place of transformers' own: ``[1, H, T, D]`` each to ``[1, T, H, D]``."""
        self.layers.append(module.layer_idx)
        by_row = [x[0].transpose(0, 1) for x in (q, k, v)]
        heads, kv_heads, dim = q.shape[1], k.shape[1], q.shape[3]
        layer = RadixAttention(heads, dim, more["scaling"], kv_heads, layer_id=0)
        if more["sliding_window"] is not None:
            layer.sliding_window_size = more["sliding_window"] - 1
        pools = [Pool(TOKENS, ((kv_heads, dim),) * 2) for _ in range(INSTANCES)]
        held: list[tuple[Span, ...]] = [() for _ in range(INSTANCES)]
        out = torch.empty_like(by_row[0])
        start = 0
        for tokens, group in self._plan:
            pieces = split_chunk(start, tokens, len(group), PAGE)
            history = tuple(held[instance] for instance in group)
            parts = self._chunk(layer, by_row, pools, group, history, pieces, more["s_aux"])
            for instance, own, part in zip(group, pieces, parts, strict=True):
                out[rows_of(own)] = part.view(-1, heads, dim)
                held[instance] += own
            start += tokens
        return out.unsqueeze(0), None

    def _chunk(
        self,
        layer: RadixAttention,
        by_row: Sequence[torch.Tensor],
        pools: Sequence[Pool],
        group: tuple[int, ...],
        history: tuple[tuple[Span, ...], ...],
        pieces: tuple[tuple[Span, ...], ...],
        sinks: torch.Tensor,
    ) -> list[torch.Tensor]:
        families = claim(torch.nn.ModuleList([layer])).families
        rows_held = tuple(len(rows_of(spans)) for spans in history)

        def member(me: int) -> torch.Tensor:
            # A row's slot is its place in the prompt.
            own, past = rows_of(pieces[me]), rows_of(history[me])
            pool = SimpleNamespace(token_to_kv_pool=pools[group[me]], req_to_token_pool=None)
            attention = ShardAttention(
                inner=pool,
                layout=RingLayout(group, me, rows_held, pieces),
                links=self._lanes[group[me]],
                own_slots=own,
                history_slots=past,
                rebalancer=None,
                history=history,
                families=families,
            )
            batch: Any = SimpleNamespace(out_cache_loc=own)
            q, k, v = (rows[own].flatten(1) for rows in by_row)
            with torch.inference_mode():
                return attention.forward(q, k, v, layer, batch, sinks=sinks)

        return list(in_threads(member, range(len(group))))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_answers_as_transformers_does(
    plan: Plan, model: GptOssForCausalLM, lanes: list[Lane], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randint(
        1, VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(TOKENS)
    )
    with torch.inference_mode():
        expected = model(tokens).logits[0].log_softmax(dim=-1)
        members = Members(plan, lanes)
        monkeypatch.setattr(modeling_gpt_oss, "eager_attention_forward", members.attention)
        found = model(tokens).logits[0].log_softmax(dim=-1)
    assert members.layers == list(range(4))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


def test_windows_and_sinks_matter(model: GptOssForCausalLM) -> None:
    """So that a group that forgot either would be seen."""
    tokens = torch.arange(1, TOKENS + 1)[None]
    with torch.inference_mode():
        expected = model(tokens).logits[0]
        for layer in model.model.layers:
            kept = layer.self_attn.sinks.clone()
            layer.self_attn.sinks.fill_(-1e9)
            without = model(tokens).logits[0]
            layer.self_attn.sinks.copy_(kept)
            assert (without - expected).abs().max() > 1e-2
        earlier = tokens.clone()
        earlier[0, : TOKENS - 4 * WINDOW] = 7
        assert (model(earlier).logits[0, -1] - expected[-1]).abs().max() > 1e-2
