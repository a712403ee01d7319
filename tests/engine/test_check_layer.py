"""Attention layers that a chunk task cannot run exactly are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

from sglang_cdsp.attention.backend import UnsupportedLayer, check_layer


def test_sglangs_plain_attention_layer_passes() -> None:
    check_layer(RadixAttention(4, 8, 0.5, 2, layer_id=3), {})


@pytest.mark.parametrize(
    ("changed", "unknown", "says"),
    [
        ({"logit_cap": 30.0}, {}, "a logit soft cap"),
        ({"sliding_window_size": 128}, {}, "a sliding window"),
        ({"sliding_window_size": 0}, {}, "a sliding window"),
        ({"is_cross_attention": True}, {}, "cross attention"),
        ({"attn_type": AttentionType.ENCODER_ONLY}, {}, "bidirectional attention"),
        ({}, {"sinks": 1, "k_rope": 2}, "attention arguments ['k_rope', 'sinks']"),
    ],
)
def test_what_would_change_the_result_is_named(
    changed: dict[str, Any], unknown: dict[str, Any], says: str
) -> None:
    plain = {
        "layer_id": 3,
        "logit_cap": 0.0,
        "sliding_window_size": -1,
        "is_cross_attention": False,
        "attn_type": AttentionType.DECODER,
    }
    with pytest.raises(UnsupportedLayer) as caught:
        check_layer(SimpleNamespace(**{**plain, **changed}), unknown)
    assert f"layer 3 has {says}" in str(caught.value)
    assert "without --cdsp" in str(caught.value)


def test_no_window_at_all_passes() -> None:
    layer = RadixAttention(4, 8, 0.5, 2, layer_id=3)
    layer.sliding_window_size = None
    check_layer(layer, {})
