"""Partial attention against the float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.attention.errors import AttentionError, AttentionUnsupported
from sglang_cdsp.attention.partial import (
    IMPLEMENTATIONS,
    Implementation,
    partial_attention,
    reference_attention,
    select,
)

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def drawn(
    queries: int, keys: int, heads: tuple[int, int], dims: tuple[int, int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(queries * 1009 + keys)
    shapes = ((queries, heads[0], dims[0]), (keys, heads[1], dims[0]), (keys, heads[1], dims[1]))
    q, k, v = (torch.randn(shape, generator=draw).to(dtype) for shape in shapes)
    return q, k, v


@settings(print_blob=True, deadline=None, max_examples=80)
@given(
    queries=st.integers(1, 200),
    keys=st.one_of(st.none(), st.integers(1, 300)),
    kv_heads=st.integers(1, 4),
    ratio=st.sampled_from([1, 2, 3, 8]),
    dims=st.tuples(st.sampled_from([8, 16, 33, 80]), st.sampled_from([8, 16, 33, 80])),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_matches_the_reference(
    queries: int,
    keys: int | None,
    kv_heads: int,
    ratio: int,
    dims: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    causal = keys is None
    tensors = drawn(queries, keys or queries, (kv_heads * ratio, kv_heads), dims, dtype)
    scale = dims[0] ** -0.5
    out, lse = partial_attention(*tensors, causal=causal, scale=scale)
    expected_out, expected_lse = reference_attention(*tensors, causal=causal, scale=scale)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert out.shape == expected_out.shape
    assert lse.shape == expected_lse.shape
    torch.testing.assert_close(out.double(), expected_out, atol=TOLERANCE[dtype], rtol=1e-2)
    torch.testing.assert_close(lse.double(), expected_lse, atol=2e-4, rtol=1e-4)


def _kinds() -> list[tuple[Implementation, torch.device, torch.dtype]]:
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    dtypes = (torch.float32, torch.bfloat16)
    return [
        (implementation, device, dtype)
        for implementation in IMPLEMENTATIONS
        for device in devices
        for dtype in dtypes
        if implementation.usable(device, dtype, 64)
    ]


@pytest.mark.parametrize(
    ("implementation", "device", "dtype"), _kinds(), ids=lambda x: getattr(x, "name", str(x))
)
@pytest.mark.parametrize("causal", [True, False])
def test_the_base_of_every_implementation_that_runs(
    implementation: Implementation, device: torch.device, dtype: torch.dtype, causal: bool
) -> None:
    q, k, v = (x.to(device) for x in drawn(65, 65, (8, 2), (64, 64), dtype))
    _, raw = implementation.run(q, k, v, causal, 0.125)
    _, expected = reference_attention(q, k, v, causal=causal, scale=0.125)
    natural = raw.double() * implementation.lse_unit
    torch.testing.assert_close(natural, expected, atol=1e-3, rtol=1e-3)
    # Any other base in use would be off by a factor of ln 2, far outside the tolerance.
    assert float((expected.abs() * (1 - math.log(2.0))).median()) > 0.1


def test_flashinfer_is_taken_as_base_2() -> None:
    units = {implementation.name: implementation.lse_unit for implementation in IMPLEMENTATIONS}
    assert units == {
        "flashinfer": math.log(2.0),
        "torch-cuda-flash": 1.0,
        "torch-cpu-flash": 1.0,
    }


def test_no_queries_or_no_keys() -> None:
    q, k, v = drawn(3, 4, (4, 2), (8, 8), torch.float32)
    out, lse = partial_attention(q, k[:0], v[:0], causal=False, scale=1.0)
    assert out.shape == (3, 4, 8)
    assert not out.any()
    assert bool((lse == -math.inf).all())
    out, lse = partial_attention(q[:0], k, v, causal=False, scale=1.0)
    assert out.shape == (0, 4, 8)
    assert lse.shape == (0, 4)


def test_inputs_may_be_strided_views_and_stay_as_they_are() -> None:
    wide = torch.randn(20, 8, 48, generator=torch.Generator().manual_seed(3))
    q, k, v = wide[::2, :, :16], wide[1::2, ::4, 16:32], wide[1::2, ::4, 32:]
    before = wide.clone()
    out, _ = partial_attention(q, k, v, causal=True, scale=0.25)
    expected, _ = reference_attention(q, k, v, causal=True, scale=0.25)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(wide, before)


def test_what_is_refused() -> None:
    q, k, v = drawn(3, 4, (4, 2), (8, 8), torch.float32)
    with pytest.raises(AttentionError, match="as many queries as keys"):
        partial_attention(q, k, v, causal=True, scale=1.0)
    with pytest.raises(AttentionError, match="multiple of KV heads"):
        partial_attention(q[:, :3], k, v, causal=False, scale=1.0)
    with pytest.raises(AttentionError, match="one dtype"):
        partial_attention(q, k.half(), v, causal=False, scale=1.0)
    with pytest.raises(AttentionError, match="one head dimension"):
        partial_attention(q, k[..., :4], v, causal=False, scale=1.0)
    with pytest.raises(AttentionError, match=r"\[tokens, heads, head_dim\]"):
        partial_attention(q[0], k, v, causal=False, scale=1.0)
    with pytest.raises(AttentionUnsupported, match="--dtype bfloat16"):
        select(torch.device("cuda"), torch.float32, 64)
