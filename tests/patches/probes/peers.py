"""What several probes need of SGLang's transfer managers: their surroundings on one machine."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import requests
from sglang.srt.disaggregation.common import conn

HOST = "127.0.0.1"
PATIENCE_S = 30.0


def parallel(**changes: Any) -> SimpleNamespace:
    """One rank that is everything; ``changes`` to that."""
    ranks: dict[str, Any] = {
        "dist_init_addr": None,
        "nnodes": 1,
        "tp_size": 1,
        "attn_tp_size": 1,
        "attn_tp_rank": 0,
        "attn_cp_size": 1,
        "attn_cp_rank": 0,
        "attn_dcp_size": 1,
        "attn_dcp_rank": 0,
        "attn_dp_size": 1,
        "attn_dp_rank": 0,
        "enable_dp_attention": False,
        "enable_dsa_cache_layer_split": False,
        "dp_size": 1,
        "pp_size": 1,
        "pp_group": None,
        "load_balance_method": "follow_bootstrap_room",
    }
    return SimpleNamespace(**{**ranks, **changes})


def kv_args(system_rank: int = 0) -> SimpleNamespace:
    """Arguments of a manager that owns no buffers."""
    return SimpleNamespace(
        engine_rank=0,
        system_dp_rank=system_rank,
        pp_rank=0,
        page_size=1,
        kv_cache_dtype_str="float32",
        kv_item_lens=[16],
        state_item_lens=[],
        mla_compression_ratios=None,
    )


@contextlib.contextmanager
def surroundings(port: int, get_parallel: Callable[[], Any]) -> Iterator[None]:
    """Managers made inside find a bootstrap server at ``port``."""
    with mock.patch.multiple(
        conn,
        get_serving=lambda: SimpleNamespace(host=HOST, port=1),
        get_disagg=lambda: SimpleNamespace(disaggregation_bootstrap_port=port),
        get_parallel=get_parallel,
        get_local_ip_auto=lambda: HOST,
    ):
        yield


@contextlib.contextmanager
def bootstrap_server() -> Iterator[int]:
    """A real bootstrap server; yields its port."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    server = conn.CommonKVBootstrapServer(HOST, port)
    answers = await_true(lambda: _answers(port))
    try:
        if not answers:
            raise RuntimeError("the bootstrap server does not answer")
        yield port
    finally:
        server.close()


def _answers(port: int) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        requests.get(f"http://{HOST}:{port}/health", timeout=5)
        return True
    return False


def await_true(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> bool:
    """Whether ``condition`` comes true in time."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True
