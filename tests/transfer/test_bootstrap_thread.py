"""The manager's thread over NIXL, which reads decode's messages for as long as there is a process.

Run in a process of its own: a thread that is no daemon would keep this one from ending.
"""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import threading
import zmq
from sglang_cdsp.transfer.nixl import NixlPoolManager

class Manager(NixlPoolManager):
    def __init__(self):
        self.server_socket = zmq.Context().socket(zmq.PULL)
        self.server_socket.bind_to_random_port("tcp://127.0.0.1")
        self._start_bootstrap_thread()

before = set(threading.enumerate())
Manager()
(thread,) = set(threading.enumerate()) - before
print(thread.is_alive(), thread.daemon)
"""


def test_a_scheduler_ends_though_its_manager_reads_on() -> None:
    """Red where SGLang's thread stays as it is: the process waits for it for ever."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["True", "True"]
