"""A thread counts while its process does something else."""

from __future__ import annotations

import time

from sglang_cdsp.engine.heartbeat import keep_beating
from sglang_cdsp.protocol.progress import ProgressBoard

LIMIT_S = 60.0


def test_beats_come_without_the_loop() -> None:
    board = ProgressBoard.create(3)
    keep_beating(board, 1, every_s=0.001)
    deadline = time.monotonic() + LIMIT_S
    while board.beats()[1] < 5:
        assert time.monotonic() < deadline
    assert board.beats()[::2] == (0, 0)
    assert board.read() == (0, 0, 0)
