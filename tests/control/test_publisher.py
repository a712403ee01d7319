"""What routers are told of a pool's publisher of KV events."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sglang_cdsp.control.publisher import describe_pool_publisher

STOCK = {"publisher": "zmq", "endpoint_port_base": 5557, "dp_size": 4}


def described(
    mode: str, stock: dict[str, Any] | None, *, cached: bool = False
) -> dict[str, Any] | None:
    args = SimpleNamespace(disaggregation_mode=mode, disable_radix_cache=not cached)
    return describe_pool_publisher(lambda args: stock, args)


@pytest.mark.parametrize(("mode", "cached"), [("null", True), ("null", False), ("prefill", True)])
def test_a_pool_that_tells_of_its_caches_has_one_rank(mode: str, cached: bool) -> None:
    assert described(mode, STOCK, cached=cached) == {**STOCK, "dp_size": 1}


@pytest.mark.parametrize(("mode", "stock"), [("prefill", STOCK), ("null", None)])
def test_all_else_is_stocks(mode: str, stock: dict[str, Any] | None) -> None:
    assert described(mode, stock) is stock
