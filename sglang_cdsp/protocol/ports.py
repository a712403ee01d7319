"""Free TCP ports for processes that are about to start. Standard library only."""

from __future__ import annotations

import random
import socket

RANGE = range(21_000, 32_000)
"""Below Linux's default ephemeral range (32768 and up), above the ports that services like."""


def free_ports(count: int) -> list[int]:
    """So many different ports that nobody listens on, in random order.

    A port that the system hands out by itself could be taken by an outgoing connection before its
    server listens there; these cannot. They are drawn from the system's randomness, so that two
    programs with the same seed draw different ones.

    Raises:
        OSError: fewer are free.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(RANGE, len(RANGE)):
        if len(found) == count:
            break
        if is_free(port):
            found.append(port)
    if len(found) < count:
        raise OSError(
            f"only {len(found)} of {count} ports are free from {RANGE.start} to {RANGE.stop - 1}; "
            "end what listens there"
        )
    return found


def is_free(port: int) -> bool:
    """Whether a server could listen on the port, on every address of IPv4 and of IPv6."""
    families = [(socket.AF_INET, "0.0.0.0")]
    if socket.has_dualstack_ipv6():
        families.append((socket.AF_INET6, "::"))
    for family, address in families:
        with socket.socket(family) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True
