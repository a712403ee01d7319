"""Lines of the log about requests and about what runs."""

from __future__ import annotations

import logging

import pytest

from sglang_cdsp.controller.request import MoveTimes, PoolRequest
from sglang_cdsp.controller.request_log import RequestLog, line, start_line
from sglang_cdsp.protocol.messages import OutputState
from tests.controller.ended import finished


def test_a_finished_request() -> None:
    said = line(finished(), 105.0)
    assert said == "r1: 100 tokens, 64@1 then 36@2, waited 1.50 s, TTFT 4.50 s (planned 4.00)"


def test_what_decodes_here_says_how_much_came_out() -> None:
    one = finished()
    one.decodes, one.output.tokens, one.last_token_s = True, [5] * 32, one.arrival_s + 6.25
    assert line(one, 107.0).endswith("TTFT 4.50 s (planned 4.00), 32 tokens out by 6.25 s")


def test_what_moved_or_was_computed_anew_says_so() -> None:
    one = finished()
    one.resumes = OutputState(tokens=[5] * 12, sent=12)
    one.tokens += 12
    one.moves = [
        MoveTimes(0, 2, 105.0, 106.0, 106.5, 120),
        MoveTimes(2, 1, 107.0, 107.5, 108.0, 130),
    ]
    said = line(one, 109.0)
    assert said.startswith("r1: 100 tokens, ")
    assert said.endswith("TTFT 4.50 s, computed anew after 12 tokens of output, moved 0 -> 2 -> 1")


def test_a_failed_request_says_why() -> None:
    refused = PoolRequest("r", object(), 7, 100.0, error="the prompt\nis too long")
    assert line(refused, 100.25) == "r: 7 tokens, failed after 0.25 s: the prompt is too long"
    broken = finished()
    broken.error, broken.aborted = "aborted by the client", True
    assert line(broken, 104.0).endswith("aborted after 4.00 s: aborted by the client")


def test_a_clients_id_stays_on_its_line() -> None:
    request = PoolRequest("a\nb\x1b[31m" + "c" * 500, object(), 1, 0.0, error="no")
    said = line(request, 1.0)
    assert said.isprintable()
    assert len(said) < 200


def test_probes_and_quiet_levels_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    log = RequestLog(lambda: 105.0)
    with caplog.at_level(logging.INFO):
        log.ended(PoolRequest("probe", None, 5, 0.0))
        assert caplog.messages == []
        log.ended(finished())
        assert len(caplog.messages) == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        log.ended(finished())
    assert caplog.messages == []


def test_what_runs() -> None:
    said = start_line(
        instances=4,
        tp_size=2,
        policy="cdsp-late",
        sp_sizes=(1, 2, 4),
        improvement_rate=0.1,
        latency_model="measured at this start",
        links="nixl",
        transfer="nixl",
        capacity_tokens=4096,
    )
    for part in (
        "4 instances of 2 ranks",
        "cdsp-late",
        "1, 2, 4",
        "latency model measured at this start; ",
        "links nixl",
    ):
        assert part in said
    assert "\n" not in said
    assert "KV to decode over nixl" in said


def test_one_server_moves_no_kv_to_decode() -> None:
    said = start_line(
        instances=2,
        tp_size=1,
        policy="cdsp-late",
        sp_sizes=(1, 2),
        improvement_rate=0.1,
        latency_model="from model.json",
        links="shared-memory",
        transfer=None,
        capacity_tokens=4096,
    )
    assert said.endswith("from model.json; links shared-memory, each decodes")
