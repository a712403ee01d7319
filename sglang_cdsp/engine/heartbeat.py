"""A thread that shows that its process runs, whatever the scheduler's loop is doing."""

from __future__ import annotations

import threading
import time

from sglang_cdsp.protocol.progress import ProgressBoard

BEAT_EVERY_S = 0.25


def keep_beating(board: ProgressBoard, rank: int, every_s: float = BEAT_EVERY_S) -> None:
    """Raise the rank's counter of beats from now on, as long as this process runs."""

    def beat() -> None:
        while True:
            board.beat(rank)
            time.sleep(every_s)

    threading.Thread(target=beat, daemon=True, name="cdsp-beats").start()
