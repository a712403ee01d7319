"""The pool's load as that of one replica, where SGLang's front end reads the instances' loads.

Routers and autoscalers read ``/v1/loads`` rank by rank. An instance is no replica: it can run no
request of the pool's alone, and no client can choose one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sglang.srt.managers.load_snapshot import LoadSnapshot, create_load_snapshot_reader
from sglang.srt.runtime_context import get_parallel

# Sums for all numbers but these. The busy time is among the means, so that tokens per busy second
# are the pool's and not those of one instance.
MEANS = frozenset(
    (
        "token_usage",
        "cache_hit_rate",
        "utilization",
        "total_prefill_busy_us",
        "accept_length",
        "accept_rate",
    )
)
LARGEST = frozenset(("timestamp", "kv_transfer_latency_ms"))


def one_replica(loads: Sequence[LoadSnapshot]) -> LoadSnapshot | None:
    """The loads of a pool's instances as that of rank 0 of one replica; None for no loads.

    Tokens, requests, bytes and rates are sums; shares are means, times the largest. An instance
    that has published nothing, for it is absent or starts, counts in none of them.
    """
    published = [load for load in loads if load.timestamp] or loads
    return msgspec.structs.replace(_merged(published), dp_rank=0) if loads else None


def _merged(records: Sequence[Any]) -> Any:
    """Records of one type as one."""
    first = records[0]
    fields = {
        name: _value(name, [getattr(record, name) for record in records])
        for name in first.__struct_fields__
    }
    return msgspec.structs.replace(first, **fields)


def _value(name: str, values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known:
        return None
    first = known[0]
    if isinstance(first, msgspec.Struct):
        return _merged(known)
    if isinstance(first, list):
        return [_value(name, column) for column in zip(*known, strict=False)]
    if not isinstance(first, int | float):
        return first
    if name in LARGEST:
        return max(known)
    total = sum(known)
    if name not in MEANS:
        return total
    return total // len(known) if isinstance(total, int) else total / len(known)


class PoolLoadReader:
    """SGLang's reader of load snapshots; what it reads is one replica's."""

    def __init__(self, stock: Any) -> None:
        self._stock = stock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    def read(self, dp_rank: int) -> LoadSnapshot | None:
        """The load of the replica's only rank, 0; None for other ranks."""
        return one_replica(self._stock.read_all()) if dp_rank == 0 else None

    def read_all(self) -> list[LoadSnapshot]:
        """The load of the replica, if any instance has published one."""
        load = one_replica(self._stock.read_all())
        return [] if load is None else [load]


def create_pool_load_reader(port_args: Any, caller: str) -> PoolLoadReader:
    """In place of ``create_load_snapshot_reader`` where the front end asks for its reader."""
    return PoolLoadReader(create_load_snapshot_reader(port_args, caller))


def pool_accelerators() -> int:
    """In place of ``_num_accelerators_per_dp_rank``: the replica has those of all instances."""
    parallel = get_parallel()
    return int(parallel.dp_size) * int(parallel.tp_size)
