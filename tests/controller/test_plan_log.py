"""The plan log's records."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from sglang_cdsp.controller import plan_log
from sglang_cdsp.controller.plan_log import PlanLog, record
from sglang_cdsp.controller.request import ChunkTimes, PoolRequest, Replan
from sglang_cdsp.planner.types import PlannedChunk
from tests.controller.ended import finished
from tests.controller.fake_tasks import Client


def test_times_count_from_the_arrival() -> None:
    assert record(finished(), unix_offset_s=1e9) == {
        "rid": "r1",
        "prompt_tokens": 100,
        "policy": "cdsp",
        "arrival_s": 100.0,
        "arrival_unix_s": 1_000_000_100.0,
        "bound_s": 1.0,
        "passes": False,
        "ttft_s": {"predicted": 4.0, "measured": 4.5},
        "output_tokens": None,
        "end_s": None,
        "kv_drained_s": 4.75,
        "chunks": [
            {
                "tokens": 64,
                "instances": [1],
                "planned_start_s": 1.5,
                "planned_end_s": 2.0,
                "start_s": 1.5,
                "end_s": 2.25,
                "passed_s": 0.0,
                "decode_share": 0.0,
            },
            {
                "tokens": 36,
                "instances": [1, 0],
                "planned_start_s": 2.0,
                "planned_end_s": 4.0,
                "start_s": 2.5,
                "end_s": 4.0,
                "passed_s": 0.0,
                "decode_share": 0.0,
            },
        ],
        "prefix": {
            "cached_tokens": 0,
            "reused_tokens": 0,
            "choice": "",
            "missed": False,
            "copy": None,
        },
        "recalls": 0,
        "resumed_tokens": 0,
        "lost_instances": [],
        "replans": [],
        "moves": [],
        "outcome": "finished",
        "error": "",
    }


def test_the_share_that_decode_was_to_get_is_told_of_each_chunk() -> None:
    request = finished()
    request.times[1].decode_share = 0.05
    chunks = record(request, unix_offset_s=0.0)["chunks"]
    assert [chunk["decode_share"] for chunk in chunks] == [0.0, 0.05]


def test_changes_of_the_plan_are_told() -> None:
    request = finished()
    assert request.plan is not None
    before = (PlannedChunk(36, (1,), 1.0, 3.5),)
    change = Replan(102.25, 1, "joins 0", before, request.plan.chunks[1:], (104.5, 104.0))
    request.replans.append(change)
    assert record(request, unix_offset_s=0.0)["replans"] == [
        {
            "at_s": 2.25,
            "chunk": 1,
            "reason": "joins 0",
            "from": {"chunks": [[36, [1]]], "ttft_s": 4.5},
            "to": {"chunks": [[36, [1, 0]]], "ttft_s": 4.0},
        }
    ]


def test_what_never_ran_has_no_times() -> None:
    request = PoolRequest("r2", Client(2), 7, 100.0)
    request.error = "too long"
    said = record(request, unix_offset_s=1e9)
    assert said["ttft_s"] == {"predicted": None, "measured": None}
    assert (said["chunks"], said["outcome"], said["error"]) == ([], "failed", "too long")
    assert said["bound_s"] is None
    assert said["kv_drained_s"] is None


def test_an_abort_before_the_first_chunk_keeps_the_plan() -> None:
    request = finished()
    request.times = [ChunkTimes(), ChunkTimes()]
    request.aborted, request.error, request.first_token_s = True, "gone", None
    said = record(request, unix_offset_s=1e9)
    assert said["outcome"] == "aborted"
    assert [chunk["start_s"] for chunk in said["chunks"]] == [None, None]
    assert said["ttft_s"] == {"predicted": 4.0, "measured": None}


def test_a_line_per_request_and_none_for_probes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plans.jsonl"
    log = PlanLog(str(path))
    assert path.read_text() == "", "readable before the first request"
    log.ended(finished())
    log.ended(PoolRequest("probe", None, 10, 0.0))
    log.ended(PoolRequest("r2", Client(2), 7, 0.0))
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["rid"] for line in lines] == ["r1", "r2"]
    said = record(finished(), unix_offset_s=0.0)
    assert {**lines[0], "arrival_unix_s": 100.0} == said
    now_s = time.time() - (time.monotonic() - 100.0)
    assert lines[0]["arrival_unix_s"] == pytest.approx(now_s, abs=60.0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_full_disk_costs_lines_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    log = PlanLog("/dev/full")
    for _ in range(50):
        log.ended(finished())
    log.close()
    assert caplog.text.count("lines are dropped") == 1
    log.ended(finished())


def test_a_log_that_cannot_be_opened_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    PlanLog(str(tmp_path / "file" / "plans.jsonl")).ended(finished())
    assert "no plan log" in caplog.text


def test_a_disk_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer waits for ever; lines beyond the queue are dropped and the caller goes on."""
    released = threading.Event()
    monkeypatch.setattr(plan_log, "MAX_WAITING_LINES", 5)
    monkeypatch.setattr(plan_log._LineWriter, "emit", lambda self, line: released.wait())
    log = PlanLog(str(tmp_path / "plans.jsonl"))
    for _ in range(100):
        log.ended(finished())
    log.close()
    released.set()


def test_the_log_rotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_log, "MAX_BYTES", 3000)
    log = PlanLog(str(tmp_path / "plans.jsonl"))
    for _ in range(100):
        log.ended(finished())
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["plans.jsonl", "plans.jsonl.1", "plans.jsonl.2", "plans.jsonl.3"]
    assert all(path.stat().st_size <= 3000 for path in tmp_path.iterdir())
    for path in tmp_path.iterdir():
        assert all(json.loads(line)["rid"] == "r1" for line in path.read_text().splitlines())


def test_no_path_no_log() -> None:
    PlanLog(None).ended(finished())
