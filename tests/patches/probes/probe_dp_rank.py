"""Under which rank a prefill sender runs and registers, against a real bootstrap server."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import requests
from sglang.srt.disaggregation.base.conn import KVPoll
from sglang.srt.disaggregation.common import conn
from sglang.srt.disaggregation.utils import DisaggregationMode

from tests.patches.probes.peers import HOST, bootstrap_server, kv_args, parallel, surroundings

ROOMS = range(4)


class Manager(conn.CommonKVManager):
    """The common manager, without a transfer engine."""


class Sender(conn.CommonKVSender):
    """The common sender, without a transfer engine."""

    def poll(self) -> Any:
        return self.kv_mgr.check_status(self.bootstrap_room)

    def failure_exception(self) -> None: ...


def run() -> dict[str, Any]:
    """Answers by form of parallelism; a room's status by the replica that it is sent to."""
    replicas = [(0, rank) for rank in range(2)]
    attention = [(rank, rank) for rank in range(2)]
    return {
        "replicas": _follow_room(replicas, dp_attention=False),
        "attention": _follow_room(attention, dp_attention=True),
        "registered": _register(replicas, dp_attention=False),
    }


def _follow_room(ranks: list[tuple[int, int]], dp_attention: bool) -> dict[str, list[str]]:
    """Statuses of senders on the rank that the controller picks, and on the other one."""
    with _managers(ranks, dp_attention, "follow_bootstrap_room") as (managers, address):
        chosen = [_status(managers[room % 2], address, room) for room in ROOMS]
        other = [_status(managers[1 - room % 2], address, room) for room in ROOMS]
    return {"chosen": chosen, "other": other}


def _register(ranks: list[tuple[int, int]], dp_attention: bool) -> list[bool]:
    """Whether decode, asking for a sender's room, is led to that sender's port."""
    led = []
    with _managers(ranks, dp_attention, "round_robin") as (managers, address):
        for room, manager in enumerate(managers):
            _status(manager, address, room)
            found = conn.CommonKVReceiver.query_prefill_dp_ranks(address, [room])
            query = f"prefill_dp_rank={found[str(room)]}&prefill_cp_rank=0"
            url = f"http://{address}/route?{query}&target_tp_rank=0&target_pp_rank=0"
            led.append(requests.get(url, timeout=5).json()["rank_port"] == manager.rank_port)
    return led


def _status(manager: Manager, address: str, room: int) -> str:
    sender = Sender(manager, address, room, [0], 0)
    status = sender.poll()
    manager.request_status.pop(room)
    return {KVPoll.Failed: "failed", KVPoll.Bootstrapping: "bootstraps"}[status]


@contextlib.contextmanager
def _managers(
    ranks: list[tuple[int, int]], dp_attention: bool, balance: str
) -> Iterator[tuple[list[Manager], str]]:
    now: dict[str, Any] = {}
    with bootstrap_server() as port, surroundings(port, lambda: now["parallel"]):
        managers = []
        for attn_rank, system_rank in ranks:
            now["parallel"] = _parallel(attn_rank, len(ranks), dp_attention, balance)
            managers.append(Manager(kv_args(system_rank), DisaggregationMode.PREFILL, None))
        try:
            yield managers, f"{HOST}:{port}"
        finally:
            for manager in managers:
                manager.server_socket.close(linger=0)


def _parallel(attn_rank: int, size: int, dp_attention: bool, balance: str) -> SimpleNamespace:
    return parallel(
        attn_dp_size=size if dp_attention else 1,
        attn_dp_rank=attn_rank,
        enable_dp_attention=dp_attention,
        dp_size=size,
        load_balance_method=balance,
    )
