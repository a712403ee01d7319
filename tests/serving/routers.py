"""Further routers before the servers of the serving tests."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from sglang_cdsp.protocol.ports import free_ports
from sglang_cdsp.stack.commands import router_command
from sglang_cdsp.testing.stack import Deployment, RunningStack, running
from tests.patches.tree import PACKAGES, copy_packages, patch_files, patch_tree, touched

WITHIN_S = 60.0


def router_patches() -> list[Path]:
    """The patches that are for the router's package, in their order."""
    return [
        patch
        for patch in patch_files()
        if any(name.is_relative_to(PACKAGES["sglang_router"]) for name in touched(patch))
    ]


def patched_router(tree: Path) -> dict[str, str]:
    """Lay a patched copy of the router's package into ``tree``; the environment that finds it."""
    copy_packages(tree, router_patches(), ("sglang_router",))
    patch_tree(tree, router_patches())
    paths = (str(tree / PACKAGES["sglang_router"]), os.environ.get("PYTHONPATH"))
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def bootstrap_port(servers: RunningStack) -> int:
    """Where decode finds the prefill server."""
    said = servers.servers["prefill"].command.arguments
    return int(said[said.index("--disaggregation-bootstrap-port") + 1])


@contextmanager
def router_before(
    servers: RunningStack,
    logs: Path,
    flags: tuple[str, ...],
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run one more router before the prefill and the decode server; yields its URL.

    Args:
        servers: of the session.
        logs: a folder of its own.
        flags: of the router; without ``--mini-lb`` it is the one in Rust.
        environment: variables for it.
    """
    port, metrics = free_ports(2)
    if "--mini-lb" not in flags:
        flags = (*flags, "--prometheus-port", str(metrics))
    behind = ((servers.urls["prefill"], bootstrap_port(servers)),)
    command, url = router_command("further", port, behind, servers.urls["decode"], flags)
    command = dataclasses.replace(command, environment=environment or {})
    with running(Deployment((command,), url, {"further": url}), logs):
        yield url


def workers(url: str) -> list[dict[str, Any]]:
    """The servers that the Rust router knows."""
    found: list[dict[str, Any]] = requests.get(f"{url}/workers", timeout=10).json()["workers"]
    return found


@contextmanager
def rust_router_before(servers: RunningStack, logs: Path) -> Iterator[str]:
    """The Rust router, once it knows both servers; it tries a request once. Yields its URL."""
    with router_before(servers, logs, ("--disable-retries",)) as url:
        deadline = time.monotonic() + WITHIN_S
        while len(workers(url)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        yield url
