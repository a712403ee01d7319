"""A rank that failed goes through the motions of its forward, as wide as it should be."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_cdsp.attention.lockstep import LockstepAttention

ROWS, HEADS, KEY, VALUE = 3, 4, 8, 6


class Attention:
    """Fails from the second layer on."""

    token_to_kv_pool = "kv"
    req_to_token_pool = "requests"

    def __init__(self) -> None:
        self.calls = 0

    def forward(self, q: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("a link broke")
        return torch.ones(ROWS, HEADS * VALUE)


def attend(attention: LockstepAttention, shape: tuple[int, ...]) -> torch.Tensor:
    layer: Any = SimpleNamespace(layer_id=0, tp_q_head_num=HEADS, qk_head_dim=KEY, v_head_dim=VALUE)
    q = torch.randn(shape)
    return attention.forward(q, q, q, layer, SimpleNamespace())


@pytest.mark.parametrize("shape", [(ROWS, HEADS * KEY), (ROWS, HEADS, KEY)])
def test_it_goes_on_with_zeros_and_says_so_once(shape: tuple[int, ...]) -> None:
    inner, warned = Attention(), []
    attention = LockstepAttention(inner, lambda: warned.append(inner.calls))  # type: ignore[arg-type]
    assert attend(attention, shape).eq(1).all()
    assert attention.failure == ""
    for _ in range(3):
        out = attend(attention, shape)
        assert out.shape == (ROWS, HEADS * VALUE)
        assert not out.any()
    assert attention.failure == "a link broke"
    assert (inner.calls, warned) == (2, [2])
    assert attention.token_to_kv_pool == "kv"


def test_a_rank_that_fails_before_its_forward_attends_nothing() -> None:
    inner, warned = Attention(), []
    gone = "decode's pages are unknown here"
    attention = LockstepAttention(inner, lambda: warned.append(1), gone)  # type: ignore[arg-type]
    assert not attend(attention, (ROWS, HEADS * KEY)).any()
    assert (inner.calls, warned, attention.failure) == (0, [1], gone)


def test_what_was_in_flight_is_let_go_at_once() -> None:
    """Links close, and so wake partners, only when nothing holds a transfer any more."""
    inner = Attention()
    inner.calls = 1
    held = weakref.ref(inner)
    gone: list[bool] = []
    attention = LockstepAttention(inner, lambda: gone.append(held() is None))  # type: ignore[arg-type]
    del inner
    attend(attention, (ROWS, HEADS * KEY))
    assert gone == [True]
