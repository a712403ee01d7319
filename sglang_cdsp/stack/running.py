"""Starts servers together, and ends them whatever happens.

::

    with running(deployment, Path("build/logs")) as stack:
        requests.post(f"{stack.url}/generate", json=...)
"""

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from sglang_cdsp.stack import directory_lock
from sglang_cdsp.stack.processes import (
    Command,
    ServerFailedError,
    ServerGroup,
    ServerProcess,
    check_ports,
    wait_until_healthy,
)

START_TIMEOUT_S = 600.0

READY = "ready"

_STAGES = (
    ("fired up and ready", READY),
    ("decode servers of this pool need", "answering its first request"),
    ("measuring SP sizes", "measuring the pool"),
    ("KV Cache is allocated", "warming up"),
    ("Load weight begin", "loading weights"),
    ("server_args=", "starting its processes"),
)


@dataclass(frozen=True)
class Deployment:
    """Servers to start together, and the URL that clients talk to.

    Attributes:
        commands: of the servers.
        url: that clients talk to.
        urls: by name.
        notes: what whoever reads the figures should know of the set-up, a line each.
        first_to_end: names of the servers that end before the others are told to.
    """

    commands: tuple[Command, ...]
    url: str
    urls: Mapping[str, str]
    notes: tuple[str, ...] = ()
    first_to_end: tuple[str, ...] = ()


def _not_ours(name: str) -> ServerProcess:
    """Servers that somebody else started are not started again here."""
    raise ServerFailedError(f"{name} was not started by this program: start it again by hand")


@dataclass(frozen=True)
class RunningStack:
    """Healthy servers.

    Attributes:
        url: where clients send requests: the router, or the only server.
        urls: URL of each server by name ("prefill", "decode", "router", "single").
        servers: the processes by name.
        start_s: seconds from the first process to the last healthy answer.
        again: starts a server that has ended once more, by its name and at its address; returns it
            before it is healthy. ``servers`` has it from then on.
    """

    url: str
    urls: Mapping[str, str]
    servers: Mapping[str, ServerProcess]
    start_s: float
    again: Callable[[str], ServerProcess] = _not_ours


def together(*plans: Deployment) -> Deployment:
    """Plan the servers of several plans, whose names must differ, as one; the first one's URL."""
    commands = tuple(command for plan in plans for command in plan.commands)
    urls = {name: url for plan in plans for name, url in plan.urls.items()}
    if len({command.name for command in commands}) < len(commands):
        raise ValueError("two of the servers have the same name; run such plans one by one")
    notes = tuple(dict.fromkeys(note for plan in plans for note in plan.notes))
    return Deployment(commands, plans[0].url, urls, notes)


@contextlib.contextmanager
def running(
    plan: Deployment,
    log_directory: Path,
    *,
    progress: Callable[[str], None] = lambda line: None,
    watch: Callable[[Mapping[str, str], float], None] | None = None,
    timeout_s: float = START_TIMEOUT_S,
    grace_s: float | None = None,
) -> Iterator[RunningStack]:
    """Start the servers of ``plan`` at once, yield when all are healthy, and end them.

    They are ended whatever leaves the block: its end, an exception, Ctrl-C, SIGTERM; and also when
    this program is killed in it.

    Args:
        plan: from ``disaggregated``, ``single`` or ``prefill_only``.
        log_directory: gets one ``NAME.log`` a server.
        progress: receives a line whenever a server's state changes and every ten seconds.
        watch: takes the place of these lines while servers start: receives about once a second
            how far each has come, by name, and the seconds since the start.
        timeout_s: seconds until all must be healthy.
        grace_s: seconds that they may take to end by themselves before they are killed; None for
            the default of ``ServerGroup``.

    Raises:
        ServerFailedError: a port is in use; or a server ended or was not ready in time.
        DirectoryInUseError: another program's servers write their logs there.
    """
    logs = log_directory.resolve()
    with (
        _sigterm_as_exit(),
        directory_lock.locked(logs),
        ServerGroup(progress, grace_s, plan.first_to_end) as group,
    ):
        check_ports(plan.commands)
        for note in plan.notes:
            progress(note)

        def again(name: str) -> ServerProcess:
            lives[name] += 1
            command = by_name[name].command
            by_name[name] = group.start(command, logs / f"{name}-{lives[name]}.log")
            return by_name[name]

        lives = Counter(command.name for command in plan.commands)
        by_name = {
            command.name: group.start(command, logs / f"{command.name}.log")
            for command in plan.commands
        }
        report = _Stages(group.servers, watch or _ProgressLines(progress))
        try:
            wait_until_healthy(group.servers, timeout_s, report)
            yield RunningStack(plan.url, plan.urls, by_name, report.elapsed_s, again)
        finally:
            progress("ending the servers")


class _Stages:
    """How far the servers of a start have come, from their health and their logs."""

    def __init__(
        self,
        servers: Sequence[ServerProcess],
        tell: Callable[[Mapping[str, str], float], None],
    ):
        self._servers = servers
        self._tell = tell
        self.elapsed_s = 0.0

    def __call__(self, ready: Mapping[str, bool], elapsed_s: float) -> None:
        self.elapsed_s = elapsed_s
        names = {server.command.name: server for server in self._servers}
        self._tell(
            {name: READY if ready[name] else _stage(server) for name, server in names.items()},
            elapsed_s,
        )


class _ProgressLines:
    """The progress of a start as lines: one whenever something has changed."""

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._last = ""
        self._last_s = 0.0

    def __call__(self, stages: Mapping[str, str], elapsed_s: float) -> None:
        line = ", ".join(f"{name} {stage}" for name, stage in stages.items())
        if line != self._last or elapsed_s - self._last_s >= 10:
            self._say(f"[{elapsed_s:3.0f} s] {line}")
            self._last, self._last_s = line, elapsed_s


def _stage(server: ServerProcess) -> str:
    text = server.log_text()
    return next((stage for marker, stage in _STAGES if marker in text), "importing")


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind the stack like Ctrl-C does, so that ``finally`` blocks run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
