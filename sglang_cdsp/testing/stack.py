"""Starts real servers for a demonstration, a test or a benchmark, and ends them for sure.

::

    with running(disaggregated(checkpoint), Path("build/logs")) as stack:
        requests.post(f"{stack.url}/generate", json=...)
"""

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import FrameType

from sglang_cdsp.protocol.ports import free_ports
from sglang_cdsp.testing import directory_lock
from sglang_cdsp.testing.commands import as_prefill, decode_command, router_command, server_command
from sglang_cdsp.testing.processes import (
    Command,
    ServerFailedError,
    ServerGroup,
    ServerProcess,
    check_ports,
    wait_until_healthy,
)
from sglang_cdsp.testing.shares import Shares, bound, decode_first

START_TIMEOUT_S = 600.0
_MOST_PORTS = 16
"""Ports that a plan, or one side of it, may need; drawn together so that none comes twice."""

_STAGES = (
    ("fired up and ready", "ready"),
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
    """

    commands: tuple[Command, ...]
    url: str
    urls: Mapping[str, str]
    notes: tuple[str, ...] = ()


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


@dataclass(frozen=True)
class Side:
    """One way to prefill, to be compared with others before the same decode server.

    Attributes:
        name: of the side; its servers are named after it.
        prefill: flags of each of its prefill servers; a router spreads requests over them.
        cores: for each server, the cores of its ranks as in ``SGLANG_CPU_OMP_THREADS_BIND``.
    """

    name: str
    prefill: tuple[tuple[str, ...], ...]
    cores: tuple[str, ...]


def disaggregated(
    checkpoint: Path,
    *,
    prefill_flags: Sequence[str] = (),
    decode_flags: Sequence[str] = (),
    flags: Sequence[str] = (),
    prefill_cpus: Sequence[int] | None = None,
    decode_cpus: Sequence[int] | None = None,
    router_port: int | None = None,
) -> Deployment:
    """Plan a prefill server, a decode server and SGLang's router in front of them.

    Args:
        checkpoint: model directory.
        prefill_flags: for the prefill server, for example ``("--cdsp", "--dp-size", "4")``.
        decode_flags: for the decode server.
        flags: for both.
        prefill_cpus: cores that the prefill server may use, all if not given.
        decode_cpus: the same for the decode server.
        router_port: where the router listens; a free port if not given.

    Prefill never keeps decode from its cores, see ``decode_first``.
    """
    shares = decode_first()
    if prefill_cpus is not None or decode_cpus is not None:
        shares = Shares(prefill_cpus, decode_cpus, 0, ())
    ports = iter(free_ports(_MOST_PORTS))
    bootstrap_port = next(ports)
    both = as_prefill(bootstrap_port, (*flags, *prefill_flags))
    prefill, prefill_url = server_command(
        "prefill", checkpoint, ports, both, shares.prefill_cpus, nice=shares.prefill_nice
    )
    decode, decode_url = decode_command(
        checkpoint, ports, (*flags, *decode_flags), shares.decode_cpus
    )
    behind = ((prefill_url, bootstrap_port),)
    port = router_port or next(ports)
    router, url = router_command("router", port, behind, decode_url, ("--mini-lb",))
    return Deployment(
        (prefill, decode, router),
        url,
        {"prefill": prefill_url, "decode": decode_url, "router": url},
        shares.notes,
    )


def side_by_side(
    checkpoint: Path,
    sides: Sequence[Side],
    *,
    decode_flags: Sequence[str] = (),
    router_flags: Sequence[str] = ("--mini-lb",),
) -> Deployment:
    """Plan one decode server and, for each side, its prefill servers behind a router of their own.

    Args:
        checkpoint: model directory.
        sides: with different names.
        decode_flags: for the decode server.
        router_flags: for every router.

    Returns:
        The plan; ``urls`` has each side's router by the side's name, and "decode".
    """
    shares = decode_first([core for side in sides for cores in side.cores for core in bound(cores)])
    ports = iter(free_ports(_MOST_PORTS * len(sides)))
    decode, decode_url = decode_command(checkpoint, ports, decode_flags, shares.decode_cpus)
    commands, urls = [decode], {"decode": decode_url}
    for side in sides:
        behind = []
        for number, (flags, cores) in enumerate(zip(side.prefill, side.cores, strict=True)):
            bootstrap_port = next(ports)
            command, url = server_command(
                f"{side.name}-{number}",
                checkpoint,
                ports,
                as_prefill(bootstrap_port, flags),
                environment={"SGLANG_CPU_OMP_THREADS_BIND": cores},
                nice=shares.prefill_nice,
            )
            commands.append(command)
            behind.append((url, bootstrap_port))
        flags = (*router_flags, "--prometheus-port", str(next(ports)))
        router, url = router_command(f"{side.name}-router", next(ports), behind, decode_url, flags)
        commands.append(router)
        urls[side.name] = url
    return Deployment(tuple(commands), urls[sides[0].name], urls, shares.notes)


def single(
    checkpoint: Path,
    *,
    flags: Sequence[str] = (),
    cpus: Sequence[int] | None = None,
    cores: str | None = None,
    port: int | None = None,
) -> Deployment:
    """Plan one stock server that prefills and decodes, see `one_server`."""
    return _alone("single", checkpoint, flags, cpus, cores, port)


def one_server(
    checkpoint: Path | str,
    *,
    flags: Sequence[str] = (),
    cpus: Sequence[int] | None = None,
    cores: str | None = None,
    port: int | None = None,
) -> Deployment:
    """Plan a pool that prefills and decodes.

    Args:
        checkpoint: a folder, or a hub's name.
        flags: beside ``--cdsp`` (``--dp-size``).
        cpus: cores that it may use, all if not given.
        cores: of its ranks as in `Side`.
        port: where it listens; a free one if not given.
    """
    return _alone("pool", checkpoint, ("--cdsp", *flags), cpus, cores, port)


def _alone(
    name: str,
    checkpoint: Path | str,
    flags: Sequence[str],
    cpus: Sequence[int] | None,
    cores: str | None,
    port: int | None,
) -> Deployment:
    environment = None if cores is None else {"SGLANG_CPU_OMP_THREADS_BIND": cores}
    ports = chain(() if port is None else (port,), free_ports(_MOST_PORTS))
    command, url = server_command(name, checkpoint, ports, flags, cpus, environment)
    return Deployment((command,), url, {name: url})


def prefill_only(
    checkpoint: Path | str, *, flags: Sequence[str] = (), cpus: Sequence[int] | None = None
) -> Deployment:
    """Plan a prefill server alone, with the model in a folder or, a string, by its name on a hub.

    Requests of ``testing.first_token`` are answered without any decode server; SGLang warms
    prefill servers up that way.
    """
    ports = iter(free_ports(_MOST_PORTS))
    both = as_prefill(next(ports), flags)
    command, url = server_command("prefill", checkpoint, ports, both, cpus)
    return Deployment((command,), url, {"prefill": url})


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
        ServerGroup(progress, grace_s) as group,
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
        report = _ProgressReport(group.servers, progress)
        try:
            wait_until_healthy(group.servers, timeout_s, report)
            yield RunningStack(plan.url, plan.urls, by_name, report.elapsed_s, again)
        finally:
            progress("ending the servers")


class _ProgressReport:
    """The progress of a start: says a line when a health answer or a log marker changed."""

    def __init__(self, servers: Sequence[ServerProcess], say: Callable[[str], None]):
        self._servers = servers
        self._say = say
        self._last = ""
        self._last_s = 0.0
        self.elapsed_s = 0.0

    def __call__(self, ready: Mapping[str, bool], elapsed_s: float) -> None:
        self.elapsed_s = elapsed_s
        states = [
            f"{server.command.name} {'ready' if ready[server.command.name] else _stage(server)}"
            for server in self._servers
        ]
        line = ", ".join(states)
        if line != self._last or elapsed_s - self._last_s >= 10:
            self._say(f"[{elapsed_s:3.0f} s] {line}")
            self._last, self._last_s = line, elapsed_s


def _stage(server: ServerProcess) -> str:
    text = server.log.read_text(encoding="utf-8", errors="replace")
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
