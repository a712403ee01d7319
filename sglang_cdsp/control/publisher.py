"""What ``/server_info`` tells routers of the publisher of KV events: a pool has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_cdsp.form import tells_caches


def describe_pool_publisher(
    original: Callable[[Any], dict[str, Any] | None], server_args: Any
) -> dict[str, Any] | None:
    """AROUND hook on ``describe_kv_events_publisher``: one rank, that of the controller.

    A router opens a socket for each data-parallel rank that is told, and takes each for a replica.
    """
    described = original(server_args)
    off = bool(server_args.disable_radix_cache)
    told = tells_caches(server_args.disaggregation_mode, radix_cache_off=off)
    if described is None or not told:
        return described
    return {**described, "dp_size": 1}
