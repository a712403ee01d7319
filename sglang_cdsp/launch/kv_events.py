"""SGLang's option ``--kv-events-config``: whether it can be read, and which ports it needs.

Each data-parallel rank of stock SGLang publishes at a port of its own; of a pool one rank does.
"""

from __future__ import annotations

from typing import Any

from sglang_cdsp.form import tells_caches
from sglang_cdsp.protocol.kv_events import read_config

FLAG = "--kv-events-config"
ANY_HOST = {"*": "", "0.0.0.0": "0.0.0.0", "::": "::", "[::]": "::"}
"""Hosts at which SGLang's publisher listens, as a socket names them."""


def problems(server_args: Any) -> list[str]:
    """What is wrong with it, in one line."""
    text = getattr(server_args, "kv_events_config", None)
    try:
        read_config(text)
    except ValueError as error:
        reason = " ".join(str(error).split())
        return [f"{FLAG} cannot be read: {reason}; give for example " + '\'{"publisher": "zmq"}\'']
    return []


def listeners(server_args: Any) -> tuple[tuple[str, int], ...]:
    """Host and port of each socket that it has the pool listen at; "" for all interfaces."""
    text = getattr(server_args, "kv_events_config", None)
    off = bool(server_args.disable_radix_cache)
    if not text or not tells_caches(server_args.disaggregation_mode, radix_cache_off=off):
        return ()
    try:
        config = read_config(text)
    except ValueError:
        return ()
    if config is None:
        return ()
    found = []
    for endpoint, connects in ((config.endpoint, True), (config.replay_endpoint, False)):
        scheme, _, address = (endpoint or "").partition("://")
        host, _, port = address.rpartition(":")
        # At any other host the publisher connects, to a subscriber that listens.
        if scheme == "tcp" and port.isdecimal() and (host in ANY_HOST or not connects):
            found.append((ANY_HOST.get(host, host), int(port)))
    return tuple(found)
