"""The controller's end of the report socket."""

from __future__ import annotations

import logging
from typing import Protocol

import zmq

from sglang_cdsp.controller.phases import IllegalEventError
from sglang_cdsp.protocol.messages import AnyReport, decode_report

logger = logging.getLogger(__name__)


class Reader(Protocol):
    """Who takes reports."""

    def on_report(self, report: AnyReport) -> None:
        """A scheduler reports; ``IllegalEventError`` for what cannot be."""


def read_reports(socket: zmq.Socket[bytes], reader: Reader) -> None:
    """Pass on every report that waits; one that cannot be right is logged and left out.

    A fault in one request's bookkeeping must not take the pool along.
    """
    while socket.poll(0):
        report = decode_report(socket.recv())
        try:
            reader.on_report(report)
        except IllegalEventError:
            logger.exception("sglang-cdsp: a report does not fit, please file it: %r", report)
