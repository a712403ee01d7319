"""How a pool comes up, or ends with a reason: its schedulers greet, decode is told."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import psutil
import zmq
from sglang.srt.environ import envs
from sglang.srt.runtime_context import get_disagg, get_schedule, get_serving
from sglang.srt.utils.network import NetworkAddress

from sglang_cdsp.controller.queue_limits import QueueLimits
from sglang_cdsp.protocol.messages import Hello, LinkOrder, decode_report

logger = logging.getLogger(__name__)

POLL_MS = 100
HELLO_TIMEOUT_S = 60.0


class PoolIncompleteError(RuntimeError):
    """Some schedulers did not join the pool."""


def give_up(reason: str) -> NoReturn:
    """End the server with one line: log it, and have SGLang's launching process end the rest."""
    logger.error("sglang-cdsp: %s", reason)
    parent = psutil.Process().parent()
    if parent is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent.send_signal(signal.SIGQUIT)
    os._exit(1)


def refuse_start(reason: str) -> NoReturn:
    """End a server that is starting, so that the reason is the last line that it prints.

    SGLang's launching process would add lines of its own, and the other schedulers theirs.
    """
    me = psutil.Process()
    server = me.parent()
    others = [] if server is None else server.children(recursive=True)
    for process in others:
        if process.pid != me.pid:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    logger.error("sglang-cdsp: %s", reason)
    if server is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            server.kill()
            # The first process of a container cannot be killed from inside.
            server.send_signal(signal.SIGQUIT)
    os._exit(1)


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


def largest_shard(hellos: Iterable[Hello], stated: int | None) -> int | None:
    """Tokens that a member may have in one forward: as stated, else the least that a rank says.

    Returns:
        None where nothing limits them.
    """
    said = [hello.max_shard_tokens for hello in hellos if hello.max_shard_tokens is not None]
    return stated if stated is not None else min(said, default=None)


def queue_limits() -> QueueLimits:
    """What the server's flags and environment say about SGLang's queue."""
    schedule = get_schedule()
    timeout_s = float(envs.SGLANG_REQ_WAITING_TIMEOUT.get())
    return QueueLimits(
        by_priority=bool(schedule.enable_priority_scheduling),
        low_first=bool(schedule.schedule_low_priority_values_first),
        refuses_priority=bool(schedule.abort_on_priority_when_disabled),
        most=schedule.max_queued_requests,
        timeout_s=timeout_s if timeout_s > 0 else None,
    )


def link_orders(hellos: Mapping[tuple[int, int], Hello]) -> Iterator[tuple[int, LinkOrder]]:
    """Tell every rank how it reaches the same rank of each other instance, pair by pair.

    Yields:
        The instance that an order is for, and the order.
    """
    for (seat, tp_rank), hello in sorted(hellos.items()):
        for other, invitation in sorted(hello.invitations.items()):
            yield (
                other,
                LinkOrder(
                    tp_rank=tp_rank,
                    seat=seat,
                    incarnation=hello.incarnation,
                    invitation=invitation,
                ),
            )


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
