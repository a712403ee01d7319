"""The chart of a burst."""

import json
from pathlib import Path

import pytest

from sglang_cdsp.demo.chart import show_chart
from tests.timeline.logs import request, write


def test_only_the_burst_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = [
        request("first-0", 0.0, (100, [0], 0.0, 1.0), ttft_s=1.0),
        request("burst-0", 50.0, (500, [0], 0.0, 1.0), (1500, [0, 1], 1.0, 2.0), ttft_s=2.0),
        request("burst-1", 50.5, (100, [1], 0.0, 0.5), ttft_s=0.5),
    ]
    log = write(tmp_path / "plans.jsonl", lines)
    shown = "\n".join(show_chart(log, tmp_path, "burst-"))
    assert "first-0" not in shown
    assert "burst-0" in shown
    assert "burst-1" in shown
    assert json.loads((tmp_path / "timeline.json").read_text(encoding="utf-8"))["traceEvents"]
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
