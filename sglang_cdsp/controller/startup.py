"""How a pool comes up: its schedulers greet, its latency model is found, decode is told."""

from __future__ import annotations

import time
from typing import Any

import zmq
from sglang.srt.runtime_context import get_disagg, get_serving
from sglang.srt.utils.network import NetworkAddress

from sglang_cdsp.protocol.messages import Hello, decode_report

POLL_MS = 100
HELLO_TIMEOUT_S = 60.0


class PoolIncompleteError(RuntimeError):
    """Some schedulers did not join the pool."""


def await_hellos(
    reports: zmq.Socket[bytes], instances: int, tp_size: int
) -> dict[tuple[int, int], Hello]:
    """Collect the greeting of every rank, by ``(instance, tp_rank)``.

    All schedulers are up when this is called, so a rank that does not greet runs stock SGLang.

    Raises:
        PoolIncompleteError: such a server must not serve.
    """
    hellos: dict[tuple[int, int], Hello] = {}
    deadline = time.monotonic() + HELLO_TIMEOUT_S
    while len(hellos) < instances * tp_size:
        if reports.poll(POLL_MS):
            report = decode_report(reports.recv())
            if isinstance(report, Hello):
                hellos[(report.instance, report.tp_rank)] = report
        elif time.monotonic() > deadline:
            raise PoolIncompleteError(
                f"only {len(hellos)} of {instances * tp_size} schedulers joined the pool: the "
                "others run without the CDSP hooks; install a tested sglang release"
            )
    return hellos


def bootstrap_route() -> str:
    """URL under which SGLang's bootstrap server, in the launching process, takes prefill ranks."""
    listening = get_serving().host
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listening, listening)
    port = get_disagg().disaggregation_bootstrap_port
    return f"{NetworkAddress(host, port).to_url()}/route"


def bootstrap_row(hello: Hello, tp_size: int) -> dict[str, Any]:
    """The pool as one prefill replica, in the form of ``CommonKVManager.register_to_bootstrap``."""
    return {
        "attn_tp_size": tp_size,
        "attn_cp_size": 1,
        "attn_cp_rank": 0,
        "attn_dp_size": 1,
        "attn_dp_rank": 0,
        "pp_size": 1,
        "pp_rank": 0,
        "system_dp_size": 1,
        "system_dp_rank": 0,
        "page_size": hello.page_size,
        "kv_cache_dtype": hello.kv_cache_dtype,
        "load_balance_method": "follow_bootstrap_room",
        "prefill_http_port": get_serving().port,
    }
