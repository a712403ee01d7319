"""Every trick that a model can play on plain attention is seen in the built model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sglang.srt.layers.radix_attention import RadixAttention
from torch import nn

from sglang_cdsp.engine.plain_model import odd_parts

LAYERS = 3


class Layer(nn.Module):
    def __init__(self, layer_id: int) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(4, 12)
        self.attn = RadixAttention(2, 2, 0.5, 2, layer_id=layer_id)
        self.mlp = nn.Linear(4, 4)


def model() -> nn.Module:
    whole = nn.Module()
    whole.embed_tokens = nn.Embedding(8, 4)
    whole.layers = nn.ModuleList(Layer(i) for i in range(LAYERS))
    whole.norm = nn.LayerNorm(4)
    return whole


def layer(built: nn.Module, number: int) -> Layer:
    found = built.get_submodule(f"layers.{number}")
    assert isinstance(found, Layer)
    return found


def window(built: nn.Module) -> None:
    layer(built, 1).attn.sliding_window_size = 4096


def chunked(built: nn.Module) -> None:
    for number in range(LAYERS):
        layer(built, number).attn.use_irope = True


def cap(built: nn.Module) -> None:
    layer(built, 2).attn.logit_cap = 50.0


def sinks(built: nn.Module) -> None:
    layer(built, 0).sinks = nn.Parameter(torch.zeros(2))


def sink_buffer(built: nn.Module) -> None:
    layer(built, 0).register_buffer("attention_sink_bias", torch.zeros(2))


def twice(built: nn.Module) -> None:
    layer(built, 1).cross = RadixAttention(2, 2, 0.5, 2, layer_id=1)


def absent(built: nn.Module) -> None:
    del layer(built, 1).attn


def shared(built: nn.Module) -> None:
    """One layer's attention used by the next: one pool entry for two layers."""
    layer(built, 2).attn = layer(built, 1).attn


def beyond(built: nn.Module) -> None:
    built.draft = Layer(LAYERS)


def convolution(built: nn.Module) -> None:
    layer(built, 0).conv = nn.Conv1d(4, 4, 2)


def short_convolution(built: nn.Module) -> None:
    class ShortConv1d(nn.Module):
        """Looks at the tokens before."""

    layer(built, 0).shift = ShortConv1d()


def state_space(built: nn.Module) -> None:
    class MambaMixer2(nn.Module):
        """Keeps a state over the sequence."""

    layer(built, 0).mixer = MambaMixer2()


def linear(built: nn.Module) -> None:
    class RadixLinearAttention(nn.Module):
        """Attention without a softmax."""

    layer(built, 0).linear = RadixLinearAttention()


def indexer(built: nn.Module) -> None:
    class Indexer(nn.Module):
        """Chooses the keys that a query sees."""

    layer(built, 0).indexer = Indexer()


class Sinks(nn.Module):
    """Hands its sinks to attention, as gpt-oss does."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = RadixAttention(2, 2, 0.5, 2, layer_id=0)
        self.sinks = nn.Parameter(torch.zeros(2))

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: object) -> object:
        return self.attn(q, k, v, batch, sinks=self.sinks, save_kv_cache=True)


class Scores(nn.Module):
    """Hands to attention what no family knows."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = RadixAttention(2, 2, 0.5, 2, layer_id=0)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: object) -> object:
        return self.attn(q, k, v, batch, topk_indices=None)


def test_sinks_that_are_handed_over_have_a_family() -> None:
    assert odd_parts(Sinks(), 1) == []


def test_an_argument_that_no_family_knows_is_seen_before_the_first_chunk() -> None:
    [found] = odd_parts(Scores(), 1)
    assert found == "layer 0 calls attention with topk_indices, which chunk tasks do not know"


def test_a_plain_model_has_none() -> None:
    assert odd_parts(model(), LAYERS) == []


@pytest.mark.parametrize(
    ("trick", "says"),
    [
        (chunked, "3 layers have chunked attention"),
        (cap, "layer 2 has a logit soft cap"),
        (sinks, "attention sinks (layers.0.sinks)"),
        (sink_buffer, "attention sinks (layers.0.attention_sink_bias)"),
        (twice, "layers 1 have several attention modules"),
        (absent, "layers 1 have no keys and values of their own"),
        (shared, "layers 2 have no keys and values of their own"),
        (beyond, "attention in layers 3, beyond its 3"),
        (convolution, "Conv1d, which look at other tokens"),
        (short_convolution, "ShortConv1d, which look at other tokens"),
        (state_space, "MambaMixer2, which look at other tokens"),
        (linear, "RadixLinearAttention, which look at other tokens"),
        (indexer, "Indexer, which look at other tokens"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_trick_is_seen(trick: Callable[[nn.Module], None], says: str) -> None:
    built = model()
    trick(built)
    [found] = odd_parts(built, LAYERS)
    assert says in found


def test_windows_have_a_family() -> None:
    built = model()
    window(built)
    assert odd_parts(built, LAYERS) == []


def test_all_tricks_are_told() -> None:
    built = model()
    for trick in (window, cap, sinks, absent_last, convolution):
        trick(built)
    assert len(odd_parts(built, LAYERS)) == 4


def absent_last(built: nn.Module) -> None:
    built.layers = nn.ModuleList([*built.get_submodule("layers").children()])
    layer(built, 0).attn = nn.Identity()


def test_long_lists_are_short() -> None:
    [found] = odd_parts(nn.Module(), 80)
    assert found == "layers 0, 1, 2, 3, ... (80 of them) have no keys and values of their own"
