"""Nothing of ours listens wider than it must, on a machine that others can reach."""

from __future__ import annotations

import psutil

from sglang_cdsp.stack.processes import ServerProcess
from tests.serving.client import Client

WILDCARDS = {"0.0.0.0", "::"}


def listening_everywhere(server: ServerProcess) -> dict[int, int]:
    """Sockets that listen on all interfaces, by process."""
    counts: dict[int, int] = {}
    for pid in server.members():
        connections = psutil.Process(pid).net_connections("tcp")
        wide = [c for c in connections if c.status == psutil.CONN_LISTEN]
        counts[pid] = sum(c.laddr.ip in WILDCARDS for c in wide)
    return counts


def test_the_pool_opens_nothing_to_all_interfaces(client: Client) -> None:
    """Stock's ranks meet at a store that does, one a scheduler; the pool adds none to that."""
    stock = listening_everywhere(client.servers.servers["single"])
    pool = listening_everywhere(client.servers.servers["prefill"])
    assert max(pool.values()) <= max(stock.values())
    controllers = [
        pid for pid in pool if "controller" in " ".join(psutil.Process(pid).cmdline()).lower()
    ]
    assert len(controllers) == 1, "the controller's process bears its name"
    assert pool[controllers[0]] == 0
