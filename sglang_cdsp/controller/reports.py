"""The controller's end of the report socket."""

from __future__ import annotations

import logging
from collections.abc import Callable

import zmq

from sglang_cdsp.controller.lifecycle import Lifecycle
from sglang_cdsp.controller.phases import IllegalEventError
from sglang_cdsp.protocol.messages import Answered, decode_report

logger = logging.getLogger(__name__)


def nobody(answer: Answered) -> None:
    """Hears answers where nothing was asked."""


def read_reports(
    socket: zmq.Socket[bytes],
    lifecycle: Lifecycle,
    answered: Callable[[Answered], None] = nobody,
) -> None:
    """Pass on every report that waits; one that cannot be right is logged and left out.

    A fault in one request's bookkeeping must not take the pool along.

    Args:
        answered: hears the answers to SGLang's questions; all else concerns the requests.
    """
    while socket.poll(0):
        report = decode_report(socket.recv())
        if isinstance(report, Answered):
            answered(report)
            continue
        try:
            lifecycle.on_report(report)
        except IllegalEventError:
            logger.exception("sglang-cdsp: a report does not fit, please file it: %r", report)
