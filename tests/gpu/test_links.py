"""Two linked processes: what their answers are taken for."""

from __future__ import annotations

from typing import Any

import pytest

from bench.gpu import links
from bench.gpu.links import CRASHED, SILENT, Pair, both
from bench.gpu.record import CheckFailed, Recorder, Skipped
from bench.gpu.target import Target, target_for

DRY = target_for(dry_run=True)


def test_both_ends_must_come_through() -> None:
    assert both([(True, {}), (True, {"GB/s": 2.0})]) == {"GB/s": 2.0}
    for words in ("broken", SILENT, CRASHED):
        with pytest.raises(CheckFailed, match=f"end 1: {words}"):
            both([(True, {}), (False, words)])


def test_two_processes_share_memory_and_a_wrong_end_is_named() -> None:
    assert both(Pair("shared memory (CUDA IPC)", DRY).run(60))["GB/s"] > 0
    answers = Pair("no such link", DRY).run(60)
    assert [done for done, _ in answers] == [False, False]
    assert "KeyError: 'no such link'" in answers[0][1]


def test_a_gpu_for_one_process_only_is_the_reason_to_skip(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "nvidia_smi", lambda: {"compute_mode": "Exclusive_Process"})
    monkeypatch.setattr(Target, "cuda", property(lambda target: True))
    with pytest.raises(Skipped, match="Exclusive_Process"):
        links.run(DRY, Recorder(tmp_path / "step5.jsonl"))
