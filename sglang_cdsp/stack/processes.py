"""Server processes that never outlive the program that started them."""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from sglang_cdsp.protocol.ports import is_free
from sglang_cdsp.stack import listeners, reaper

TERMINATE_GRACE_S = 60.0
"""How long a server may take to end after SIGTERM before its whole session is killed.

SGLang looks for the signal every 5 s, waits for its requests, and ends its processes one by one:
some 22 s in all on two busy cores.
"""

_SAY_EVERY_S = 5.0

ORPHAN_GRACE_S = 1.0
"""How long a server's children may outlive it: they end with it, or not at all by themselves."""

_LOG_TAIL_LINES = 40


class ServerFailedError(RuntimeError):
    """A server ended or did not become healthy; the message ends with its last log lines."""


class ServerEndedError(ServerFailedError):
    """A server has ended by itself.

    Attributes:
        server: which.
        status: as ``subprocess.Popen.returncode``: negative for a signal.
    """

    def __init__(self, server: "ServerProcess", status: int) -> None:
        super().__init__(
            f"{server.command.name} ended with status {status}; "
            f"see {server.log}\n{server.log_tail()}"
        )
        self.server = server
        self.status = status


@dataclass(frozen=True)
class Command:
    """The command of one server, and how to see that it is healthy.

    Attributes:
        name: of the server.
        arguments: its command line.
        health_url: answers 200 once it serves.
        cpus: cores that it may use; None for all.
        environment: variables beside this program's own.
        nice: how far its processes give way to others: 0 not at all, 19 to everything.
        directory: that it works in; None for that of its log.
    """

    name: str
    arguments: tuple[str, ...]
    health_url: str
    cpus: tuple[int, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    nice: int = 0
    directory: Path | None = None

    @property
    def port(self) -> int:
        """Where it serves."""
        port = urllib.parse.urlsplit(self.health_url).port
        assert port is not None
        return port


class ServerProcess:
    """One running server in a session of its own, its output in a file."""

    def __init__(self, command: Command, log: Path):
        """Start ``command``."""
        self.command = command
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                command.arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=command.directory or log.parent,
                env={**os.environ, **command.environment},
                start_new_session=True,
            )
        if command.cpus is not None:
            os.sched_setaffinity(self._popen.pid, command.cpus)
        if command.nice:
            _give_way(self._popen.pid, command.nice)

    @property
    def pid(self) -> int:
        """Process id, which is also the id of the session that all its children are in."""
        return self._popen.pid

    def members(self) -> list[int]:
        """Return the ids of this server's living processes, orphans of a dead parent included."""
        self._popen.poll()
        return reaper.session_members({self.pid})

    def running(self) -> bool:
        """Say whether the server's first process is alive."""
        return self._popen.poll() is None

    def check_alive(self) -> None:
        """Raise ``ServerEndedError`` if the server's first process has ended."""
        if not self.running():
            raise ServerEndedError(self, self._popen.returncode)

    def healthy(self) -> bool:
        """Say whether this server, and no other, answers 200 at the health URL.

        Raises:
            ServerFailedError: the process has ended, or its port is another program's.
        """
        self.check_alive()
        holders = listeners.holders(self.command.port)
        if not holders.intersection(self.members()):
            if holders:
                raise ServerFailedError(taken(self.command, holders))
            return False
        try:
            with urllib.request.urlopen(self.command.health_url, timeout=5) as answer:
                return bool(answer.status == 200)
        # A server that is coming up may also close the connection or answer half a line.
        except (OSError, http.client.HTTPException):
            return False

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log_text().splitlines()[-_LOG_TAIL_LINES:])

    def log_text(self) -> str:
        """Return all that the server has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


class ServerGroup:
    """Servers that end with the ``with`` block, and also when this program is killed in it."""

    def __init__(
        self,
        progress: Callable[[str], None] = lambda line: None,
        grace_s: float | None = None,
        first: Collection[str] = (),
    ) -> None:
        """Nothing runs yet.

        Args:
            progress: is told at the end what is still waited for.
            grace_s: how long servers may take to end by themselves; None: ``TERMINATE_GRACE_S``.
            first: names of the servers that end before the others are told to: what stands in
                front of them ends what it has begun.
        """
        self._first = first
        self.servers: list[ServerProcess] = []
        self._progress = progress
        self._grace_s = TERMINATE_GRACE_S if grace_s is None else grace_s
        self._reaper = subprocess.Popen(
            [sys.executable, "-S", "-E", reaper.__file__],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> "ServerGroup":
        return self

    def start(self, command: Command, log: Path) -> ServerProcess:
        """Start one more server; see ``ServerProcess``."""
        server = ServerProcess(command, log)
        self.servers.append(server)
        self._tell_reaper(str(server.pid))
        return server

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every process: SIGTERM to each server, SIGKILL to what is left.

        Returns when none is alive. SIGINT and SIGTERM to this program meanwhile are held back, so
        that a second Ctrl-C cannot leave half of it undone; one that was held back kills at once.
        """
        held = {signal.SIGINT, signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
        try:
            self._end_servers()
            self._tell_reaper(reaper.RELEASE)
            self._reaper.wait()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _end_servers(self) -> None:
        front = [server for server in self.servers if server.command.name in self._first]
        for together in (front, self.servers):
            for server in together:
                if server.running():
                    os.kill(server.pid, signal.SIGTERM)
            self._await_ends(together)
        _wait_while(lambda: any(server.members() for server in self.servers), ORPHAN_GRACE_S)
        reaper.kill_sessions({server.pid for server in self.servers})
        for server in self.servers:
            server.members()  # reaps the first process

    def _await_ends(self, servers: Sequence[ServerProcess]) -> None:
        start = time.monotonic()
        said = 0.0
        while left := [server.command.name for server in servers if server.running()]:
            elapsed = time.monotonic() - start
            if elapsed > self._grace_s or _asked_again():
                self._progress(
                    f"killing {', '.join(left)}: not ended {elapsed:.0f} s after SIGTERM"
                )
                return
            if elapsed - said >= _SAY_EVERY_S:
                said = elapsed
                self._progress(
                    f"[{elapsed:3.0f} s] waiting for {', '.join(left)} to end; SGLang takes some "
                    f"20 s, killed after {self._grace_s:.0f} s"
                )
            time.sleep(0.1)

    def _tell_reaper(self, line: str) -> None:
        assert self._reaper.stdin is not None
        self._reaper.stdin.write(f"{line}\n")
        self._reaper.stdin.flush()


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


def check_ports(commands: Sequence[Command]) -> None:
    """Check that nobody serves yet where servers are about to.

    Raises:
        ServerFailedError: somebody does; names the port and, if they can be seen, the processes.
    """
    for command in commands:
        if not is_free(command.port):
            raise ServerFailedError(taken(command, listeners.holders(command.port)))


def taken(command: Command, holders: Collection[int]) -> str:
    """What to say of a port that others hold."""
    pids = ", ".join(map(str, sorted(holders)))
    who = f"process {pids}" if holders else "another program"
    return (
        f"port {command.port}, where {command.name} shall listen, is in use by {who}; "
        "end that, or choose another port"
    )


def _give_way(pid: int, nice: int) -> None:
    """Lower the priority of a session that has just begun; all that it starts inherits it."""
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    # Where Linux shares cores out by session, a process's own value counts within its session only.
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def _asked_again() -> bool:
    """Whether SIGINT or SIGTERM has come while both are held back."""
    return bool({signal.SIGINT, signal.SIGTERM} & signal.sigpending())


def _wait_while(condition: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and condition():
        time.sleep(0.1)
