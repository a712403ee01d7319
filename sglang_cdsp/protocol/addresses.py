"""Addresses that the controller process leaves for the schedulers it spawns."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

ENV_VAR = "SGLANG_CDSP_POOL"


@dataclass(frozen=True)
class PoolAddresses:
    """Where the pool's processes meet.

    Attributes:
        reports: ZMQ endpoint of the controller's PULL socket.
        progress: path of the ranks' ``ProgressBoard``.
        words: where a scheduler that ends leaves its reason, see ``last_words``.
    """

    reports: str
    progress: str
    words: str


def publish_addresses(addresses: PoolAddresses) -> None:
    """Leave the addresses in the environment of processes spawned from here."""
    os.environ[ENV_VAR] = json.dumps(asdict(addresses))


def pool_addresses() -> PoolAddresses:
    """Read what :func:`publish_addresses` left.

    Raises:
        RuntimeError: outside a process that the pool controller spawned.
    """
    return PoolAddresses(**json.loads(left_in(ENV_VAR)))


def left_in(variable: str) -> str:
    """What the pool controller left in the environment under a name.

    Raises:
        RuntimeError: outside a process that it spawned.
    """
    text = os.environ.get(variable)
    if text is None:
        raise RuntimeError(
            "this scheduler was not started by the CDSP pool controller; start the server with "
            "--cdsp --dp-size 2 or more"
        )
    return text
