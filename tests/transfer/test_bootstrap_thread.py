"""The thread over NIXL that reads decode's messages for as long as there is a process."""

from __future__ import annotations

import threading

import pytest

from sglang_cdsp.transfer.nixl import NixlPoolManager


class Mailbox:
    """A socket that nobody writes to, until it is closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def recv_multipart(self) -> list[bytes]:
        self.closed.wait()
        raise SystemExit  # ends the thread; SGLang logs all other exceptions


class Manager(NixlPoolManager):
    """The manager without its sockets and agents."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.server_socket = mailbox


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_scheduler_ends_though_its_manager_reads_on() -> None:
    """Red where SGLang's thread stays as it is: Python waits at its end for all but daemons."""
    mailbox = Mailbox()
    before = set(threading.enumerate())
    Manager(mailbox)._start_bootstrap_thread()
    (thread,) = set(threading.enumerate()) - before
    try:
        assert thread.is_alive()
        assert thread.daemon
    finally:
        mailbox.closed.set()
        thread.join()
