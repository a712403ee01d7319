"""Server processes that never outlive the program that started them."""

import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

TERMINATE_GRACE_S = 10.0
"""How long a server may take to end after SIGTERM before its whole session is killed."""

_PORTS = range(20_000, 32_000)  # below the range that the kernel gives to outgoing connections
_LOG_TAIL_LINES = 40


class ServerFailedError(RuntimeError):
    """A server ended or did not become healthy; the message ends with its last log lines."""


@dataclass(frozen=True)
class Command:
    """What to run as one server."""

    name: str
    arguments: tuple[str, ...]
    health_url: str
    cpus: tuple[int, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


class ServerProcess:
    """One running server in a session of its own, its output in a file."""

    def __init__(self, command: Command, log: Path):
        """Start ``command``; its working directory is that of ``log``."""
        self.command = command
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                [*_end_with_parent(), *command.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env={**os.environ, **command.environment},
                start_new_session=True,
            )
        if command.cpus is not None:
            os.sched_setaffinity(self._popen.pid, command.cpus)

    @property
    def pid(self) -> int:
        """Process id, which is also the id of the session that all its children are in."""
        return self._popen.pid

    def members(self) -> list[psutil.Process]:
        """Return every living process of this server, orphans of a dead parent included."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.pid and process.status() != "zombie":
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def check_alive(self) -> None:
        """Raise ``ServerFailedError`` if the server's first process has ended."""
        if self._popen.poll() is not None:
            raise ServerFailedError(
                f"{self.command.name} ended with status {self._popen.returncode}; "
                f"see {self.log}\n{self.log_tail()}"
            )

    def healthy(self) -> bool:
        """Say whether the health URL answers 200.

        Raises:
            ServerFailedError: the process has ended.
        """
        self.check_alive()
        try:
            with urllib.request.urlopen(self.command.health_url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])


def stop_all(servers: Sequence[ServerProcess], grace_s: float = TERMINATE_GRACE_S) -> None:
    """End every process of ``servers``: SIGTERM to each server, SIGKILL to what is left.

    Returns when none is alive. Signals to this program meanwhile are held back until then.
    """
    held = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        for server in servers:
            for process in server.members():
                if process.pid == server.pid:
                    _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and any(server.members() for server in servers):
            time.sleep(0.1)
            _reap(servers)
        while remaining := [p for server in servers for p in server.members()]:
            for process in remaining:
                _signal(process, signal.SIGKILL)
            psutil.wait_procs(remaining, timeout=5)
            _reap(servers)
        _reap(servers)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)


def wait_until_healthy(
    servers: Sequence[ServerProcess],
    timeout_s: float,
    progress: Callable[[Mapping[str, bool], float], None],
) -> None:
    """Wait until every server answers its health URL.

    Args:
        servers: to wait for, all at once.
        timeout_s: seconds for all together.
        progress: called about once a second with each server's name and whether it is ready, and
            the seconds since the start.

    Raises:
        ServerFailedError: one ended, or not all were ready in time.
    """
    start = time.monotonic()
    ready = {server.command.name: False for server in servers}
    while True:
        for server in servers:
            if not ready[server.command.name]:
                ready[server.command.name] = server.healthy()
        elapsed = time.monotonic() - start
        progress(dict(ready), elapsed)
        if all(ready.values()):
            return
        if elapsed > timeout_s:
            late = [server for server in servers if not ready[server.command.name]]
            tails = "\n".join(f"--- {server.log}\n{server.log_tail()}" for server in late)
            names = ", ".join(server.command.name for server in late)
            raise ServerFailedError(
                f"{names} not ready after {timeout_s:.0f} s; give more time or look into the "
                f"logs\n{tails}"
            )
        time.sleep(1.0)


def free_ports(count: int) -> list[int]:
    """Return ``count`` different TCP ports that nobody on this machine listens on."""
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
        found.append(port)
    return found


def _end_with_parent() -> list[str]:
    # So that servers end even when this program is killed without a chance to clean up.
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM"] if setpriv else []


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _reap(servers: Sequence[ServerProcess]) -> None:
    for server in servers:
        server._popen.poll()
