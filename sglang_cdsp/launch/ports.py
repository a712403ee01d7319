"""The ports that a server will listen on, as far as the command line names them.

SGLang finds out late that a port is taken: its bootstrap server logs an error and the server goes
on without it, its HTTP server fails after the weights are loaded.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sglang_cdsp.form import Form
from sglang_cdsp.launch import kv_events

LAST_PORT = 65535


@dataclass(frozen=True)
class Listener:
    """A port that the server will listen on.

    Attributes:
        flag: what changes it.
        host: as the listener binds it.
    """

    flag: str
    host: str
    port: int


def listeners(server_args: Any) -> tuple[Listener, ...]:
    """The ports of a pool's server, those that ``server_args`` names.

    All others (rendezvous of the instances, the controller's sockets) are picked when they are
    opened.
    """
    host = server_args.host
    prefills = server_args.disaggregation_mode != Form.ONE_SERVER.value
    bootstrap_port = server_args.disaggregation_bootstrap_port if prefills else None
    named = (
        ("--port", server_args.port),
        ("--disaggregation-bootstrap-port", bootstrap_port),
        ("--grpc-port", server_args.grpc_port),
    )
    return (
        *(Listener(flag, host, int(port)) for flag, port in named if port is not None),
        *(Listener(kv_events.FLAG, *address) for address in kv_events.listeners(server_args)),
    )


def problems(server_args: Any) -> list[str]:
    """The ports that cannot be listened on, one line each with the flag that changes them."""
    found = []
    seen: dict[int, str] = {}
    for listener in listeners(server_args):
        flag, port = listener.flag, listener.port
        if not 0 <= port <= LAST_PORT:
            found.append(f"{flag} {port} is no port; give one from 1 to {LAST_PORT}")
        elif port in seen and port:
            found.append(f"{flag} {port} is the port of {seen[port]} too; give another")
        elif reason := fault(listener.host, port):
            found.append(f"{flag} {port}: {reason}")
        seen.setdefault(port, flag)
    return found


def fault(host: str, port: int) -> str:
    """Why nothing can listen at ``host`` and ``port``, with the remedy; "" if something can.

    Tried as the later listener does it, with ``SO_REUSEADDR``, so that a port whose last
    connections are still closing is free, and one that is listened on is not.
    """
    try:
        addresses = list(_addresses(host, port))
    except OSError as error:
        return f"the host {host} is unknown ({error.strerror or error}); change --host"
    for family, address in addresses:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as tried:
                if family == socket.AF_INET6:
                    tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(address)
                tried.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "the port is in use; end what listens on it, or give another"
            if error.errno == errno.EACCES:
                return "only root may listen on this port; give one from 1024"
            if error.errno == errno.EADDRNOTAVAIL:
                return f"{host} is no address of this machine; change --host"
            return f"cannot listen on {host} ({error.strerror or error}); change --host or the port"
    return ""


def _addresses(host: str, port: int) -> Iterator[tuple[socket.AddressFamily, Any]]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, address in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            yield family, address
