"""What routers are told of a pool's publisher of KV events."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sglang_cdsp.control.publisher import describe_pool_publisher

STOCK = {"publisher": "zmq", "endpoint_port_base": 5557, "dp_size": 4}


def described(mode: str, stock: dict[str, Any] | None) -> dict[str, Any] | None:
    return describe_pool_publisher(lambda args: stock, SimpleNamespace(disaggregation_mode=mode))


def test_one_server_has_one_rank() -> None:
    assert described("null", STOCK) == {**STOCK, "dp_size": 1}


@pytest.mark.parametrize(("mode", "stock"), [("prefill", STOCK), ("null", None)])
def test_all_else_is_stocks(mode: str, stock: dict[str, Any] | None) -> None:
    assert described(mode, stock) is stock
