"""The scheduler's end of the report socket."""

from __future__ import annotations

import time
from typing import Any

import zmq

from sglang_cdsp.protocol.messages import Report, encode_report


class Reporter:
    """This rank's way to the pool controller: reports arrive in order, sending never blocks."""

    def __init__(self, endpoint: str, instance: int, tp_rank: int, incarnation: int = 1) -> None:
        """Connect to the controller's PULL socket at ``endpoint`` (a ZMQ address).

        ``incarnation`` says which life of its seat the instance is.
        """
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.connect(endpoint)
        self.instance = instance
        self.tp_rank = tp_rank
        self.incarnation = incarnation

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for its instance."""
        return self.tp_rank == 0

    def send(self, kind: type[Report], /, **fields: Any) -> None:
        """Report ``kind`` with ``fields``, stamped with instance, life, rank and time."""
        fields.setdefault("at_s", time.monotonic())
        report = kind(
            instance=self.instance,
            tp_rank=self.tp_rank,
            incarnation=self.incarnation,
            **fields,
        )
        self._socket.send(encode_report(report))

    def send_from_leader(self, kind: type[Report], /, **fields: Any) -> None:
        """Report once per instance: only the leading rank speaks."""
        if self.leads:
            self.send(kind, **fields)
