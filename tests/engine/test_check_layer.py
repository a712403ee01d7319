"""Attention layers that a chunk task cannot run exactly are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

from sglang_cdsp.attention.layer_check import UnsupportedLayer, check_layer, odd_features

KV = torch.zeros(1, 2, 8)


def plain() -> RadixAttention:
    return RadixAttention(4, 8, 0.5, 2, layer_id=3)


def refusal(layer: Any, unknown: dict[str, Any], k: Any = KV, v: Any = KV) -> str:
    with pytest.raises(UnsupportedLayer) as caught:
        check_layer(layer, unknown, k, v)
    return str(caught.value)


def test_sglangs_plain_attention_layer_passes() -> None:
    check_layer(plain(), {}, KV, KV)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"logit_cap": 30.0}, "a logit soft cap"),
        ({"sliding_window_size": 128}, "a sliding window"),
        ({"sliding_window_size": 0}, "a sliding window"),
        ({"use_irope": True}, "chunked attention"),
        ({"xai_temperature_len": 1024}, "scores that depend on the length"),
        ({"pos_encoding_mode": "ALIBI"}, "positions in its scores"),
        ({"is_cross_attention": True}, "cross attention"),
        ({"attn_type": AttentionType.ENCODER_ONLY}, "bidirectional attention"),
        ({"attn_type": AttentionType.DECODER_BIDIRECTIONAL}, "bidirectional attention"),
        ({"lower_bound": 0.5}, "attributes ['lower_bound'] of its own"),
    ],
)
def test_what_would_change_the_result_is_named(changed: dict[str, Any], says: str) -> None:
    layer = plain()
    for name, value in changed.items():
        setattr(layer, name, value)
    message = refusal(layer, {})
    assert f"layer 3 has {says}" in message
    assert "without --cdsp" in message


def test_what_sglangs_constructor_makes_of_its_options_is_named() -> None:
    layer = RadixAttention(
        4, 8, 0.5, 2, layer_id=3, logit_cap=1.0, sliding_window_size=4, use_irope=True
    )
    assert len(odd_features(layer)) == 3


def test_arguments_of_the_call_are_named() -> None:
    message = refusal(plain(), {"sinks": 1, "k_rope": 2})
    assert "layer 3 has attention arguments ['k_rope', 'sinks']" in message


@pytest.mark.parametrize(("k", "v"), [(None, None), (KV, None)])
def test_a_layer_that_uses_the_keys_of_another(k: Any, v: Any) -> None:
    assert "no keys and values of its own" in refusal(plain(), {}, k, v)


def test_a_class_of_its_own() -> None:
    class Biased(RadixAttention):
        """Could add anything to its scores."""

    message = refusal(Biased(4, 8, 0.5, 2, layer_id=3), {})
    assert "a class of its own (Biased)" in message


def test_several_are_told_together() -> None:
    layer = plain()
    layer.logit_cap, layer.use_irope = 30.0, True
    message = refusal(layer, {"sinks": 1})
    assert "a logit soft cap and chunked attention and attention arguments" in message


def test_no_window_at_all_passes() -> None:
    layer = plain()
    layer.sliding_window_size = None
    check_layer(layer, {}, KV, KV)


def test_scales_of_a_quantised_checkpoint_pass() -> None:
    """They are for KV of another type than the model's, which is refused by itself."""
    layer = plain()
    layer.k_scale = torch.nn.Parameter(torch.tensor(1.0), requires_grad=False)
    layer.v_scale_float = 1.0
    check_layer(layer, {}, KV, KV)
