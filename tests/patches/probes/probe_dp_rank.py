"""Under which rank a prefill sender runs and registers, against a real bootstrap server."""

import contextlib
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import requests
from sglang.srt.disaggregation.base.conn import KVPoll
from sglang.srt.disaggregation.common import conn
from sglang.srt.disaggregation.utils import DisaggregationMode

HOST = "127.0.0.1"
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
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    server = conn.CommonKVBootstrapServer(HOST, port)
    _wait_for(server, port)
    serving = SimpleNamespace(host=HOST, port=1)
    disagg = SimpleNamespace(disaggregation_bootstrap_port=port)
    now: dict[str, Any] = {}
    with mock.patch.multiple(
        conn,
        get_serving=lambda: serving,
        get_disagg=lambda: disagg,
        get_parallel=lambda: now["parallel"],
        get_local_ip_auto=lambda: HOST,
    ):
        managers = []
        for attn_rank, system_rank in ranks:
            now["parallel"] = _parallel(attn_rank, len(ranks), dp_attention, balance)
            managers.append(Manager(_kv_args(system_rank), DisaggregationMode.PREFILL, None))
        try:
            yield managers, f"{HOST}:{port}"
        finally:
            server.close()
            for manager in managers:
                manager.server_socket.close(linger=0)


def _parallel(attn_rank: int, size: int, dp_attention: bool, balance: str) -> SimpleNamespace:
    return SimpleNamespace(
        dist_init_addr=None,
        nnodes=1,
        attn_tp_size=1,
        attn_tp_rank=0,
        attn_cp_size=1,
        attn_cp_rank=0,
        attn_dcp_size=1,
        attn_dcp_rank=0,
        attn_dp_size=size if dp_attention else 1,
        attn_dp_rank=attn_rank,
        enable_dp_attention=dp_attention,
        enable_dsa_cache_layer_split=False,
        dp_size=size,
        pp_size=1,
        pp_group=None,
        load_balance_method=balance,
    )


def _kv_args(system_rank: int) -> SimpleNamespace:
    return SimpleNamespace(
        system_dp_rank=system_rank,
        pp_rank=0,
        page_size=1,
        kv_cache_dtype_str="float32",
        kv_item_lens=[16],
        state_item_lens=[],
        mla_compression_ratios=None,
    )


def _wait_for(server: Any, port: int) -> None:
    for _ in range(1000):
        with contextlib.suppress(requests.ConnectionError):
            requests.get(f"http://{HOST}:{port}/health", timeout=5)
            return
        time.sleep(0.01)
    raise RuntimeError("the bootstrap server does not answer")
