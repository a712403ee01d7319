"""What the schedulers report, passed on to the life cycle."""

from __future__ import annotations

import logging

import zmq

from sglang_cdsp.controller.lifecycle import Lifecycle
from sglang_cdsp.protocol import messages

logger = logging.getLogger(__name__)


def read_reports(socket: zmq.Socket[bytes], pool: Lifecycle) -> None:
    """Pass on every report that is there."""
    while socket.poll(0):
        deliver(messages.decode_report(socket.recv()), pool)


def deliver(report: messages.AnyReport, pool: Lifecycle) -> None:
    """Pass one report on; one that means nothing now is logged."""
    match report:
        case messages.Ready():
            pool.ready(report.seq, report.chunk, report.instance)
        case messages.ChunkDone():
            pool.chunk_done(report.seq, report.chunk, report.instance, report.start_s, report.at_s)
        case messages.FirstToken():
            pool.first_token(report.seq, report.at_s)
        case messages.PromptLogprobs():
            pool.logprobs(report.part)
        case messages.Drained():
            pool.drained(report.seq, report.instance, report.tp_rank, report.error)
        case messages.Failed():
            pool.failed(
                report.seq,
                report.instance,
                report.error,
                bad_request=report.bad_request,
                links_broken=report.links_broken,
            )
        case messages.WriteLost():
            pool.write_lost(report.seq, report.error)
        case messages.Released():
            pool.released(report.seq, report.instance)
        case messages.StockEnded():
            pool.stock_ended(report.seq, report.start_s, report.end_s, report.error)
        case messages.GrammarRefused():
            pool.arrivals.refuse(report.rid, report.error)
        case _:
            logger.warning("unexpected report %r", report)
