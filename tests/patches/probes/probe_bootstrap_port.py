"""What becomes of a bootstrap server whose port another one has."""

import contextlib
import socket
from typing import Any

import requests
from sglang.srt.disaggregation.common.conn import CommonKVBootstrapServer

from tests.patches.probes.peers import HOST, await_true, bootstrap_server


def run() -> dict[str, Any]:
    """What the second server says, whether the first one goes on, and whether the port is free."""
    with bootstrap_server() as port:
        said = _second(port)
        goes_on = requests.get(f"http://{HOST}:{port}/health", timeout=5).status_code == 200
    return {"said": said, "names port": str(port) in said, "first goes on": goes_on, **_freed(port)}


def _second(port: int) -> str:
    """Its error; "" if it says nothing."""
    try:
        server = CommonKVBootstrapServer(HOST, port)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    server.thread.join(timeout=30)
    return ""


def _freed(port: int) -> dict[str, bool]:
    def can_listen() -> bool:
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            return True
        return False

    return {"free afterwards": await_true(can_listen)}
