"""Where instances publish their loads: an absent one has none."""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.load_snapshot import ShmLoadSnapshotWriter, shm_path_for, should_use_zmq


def clear(port_args: Any, seats: int, seat: int) -> None:
    """Take back what a seat's last process has published; its next one publishes anew.

    Args:
        port_args: SGLang's, which names the place.
        seats: of the pool.
    """
    if not should_use_zmq():
        # Made anew, a writer publishes an empty load.
        ShmLoadSnapshotWriter(shm_path_for(port_args.instance_id), seats, seat).close()
