"""Reports over the controller's real socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.reports import read_reports
from sglang_cdsp.protocol.messages import ChunkDone, Report, WriteLost, encode_report
from tests.controller.cases import TWO_CHUNKS, with_pages
from tests.controller.fake_pool import FakePool

Sockets = tuple[zmq.Socket[bytes], zmq.Socket[bytes]]


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """The controller's end, and a scheduler's."""
    with (
        zmq.Context() as context,
        context.socket(zmq.PULL) as ours,
        context.socket(zmq.PUSH) as theirs,
    ):
        ours.bind("inproc://reports")
        theirs.connect("inproc://reports")
        yield ours, theirs


def test_a_report_that_cannot_be_right_does_not_take_the_pool_along(
    pool: FakePool, sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    request = with_pages(pool, TWO_CHUNKS)
    assert request.phase is Phase.BOUND
    wrong = ChunkDone(instance=0, tp_rank=0, at_s=1.0, seq=request.seq, chunk=0, start_s=0.5)
    right = WriteLost(instance=0, tp_rank=0, at_s=1.0, seq=request.seq, error="lost")
    reports: list[Report] = [wrong, right]
    for report in reports:
        sockets[1].send(encode_report(report))
    read_reports(sockets[0], pool.lifecycle)
    assert "'chunk done' in phase 'bound'" in caplog.text
    assert request.error == "lost", "the report behind it counts"
    pool.settle()
    assert request.outcome == "failed"
