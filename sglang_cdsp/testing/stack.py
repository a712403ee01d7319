"""The servers that demonstrations, tests and benchmarks start.

::

    with running(disaggregated(checkpoint), Path("build/logs")) as stack:
        requests.post(f"{stack.url}/generate", json=...)
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from sglang_cdsp.args import CACHE_VAR
from sglang_cdsp.protocol.ports import free_ports
from sglang_cdsp.stack import running as starting
from sglang_cdsp.stack.commands import as_prefill, decode_command, router_command, server_command
from sglang_cdsp.stack.running import START_TIMEOUT_S, Deployment, RunningStack, together
from sglang_cdsp.stack.shares import Shares, bound, decode_first

__all__ = [
    "Deployment",
    "RunningStack",
    "Side",
    "disaggregated",
    "prefill_only",
    "running",
    "side_by_side",
    "single",
    "together",
]

_MOST_PORTS = 16
"""Ports that a plan, or one side of it, may need; drawn together so that none comes twice."""


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


def running(
    plan: Deployment,
    log_directory: Path,
    *,
    progress: Callable[[str], None] = lambda line: None,
    watch: Callable[[Mapping[str, str], float], None] | None = None,
    timeout_s: float = START_TIMEOUT_S,
    grace_s: float | None = None,
) -> AbstractContextManager[RunningStack]:
    """As `stack.running.running`, but latency models are kept beside the logs.

    What demonstrations, tests and benchmarks measure is nobody else's, and what lies in the user's
    cache does not count for them. ``SGLANG_CDSP_CACHE`` names another folder.
    """
    own = {} if os.environ.get(CACHE_VAR) else {CACHE_VAR: str(log_directory.resolve() / "cache")}
    commands = tuple(
        replace(command, environment={**own, **command.environment}) for command in plan.commands
    )
    return starting.running(
        replace(plan, commands=commands),
        log_directory,
        progress=progress,
        watch=watch,
        timeout_s=timeout_s,
        grace_s=grace_s,
    )


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
    environment: Mapping[str, str] | None = None,
) -> Deployment:
    """Plan a pool that prefills and decodes.

    Args:
        checkpoint: a folder, or a hub's name.
        flags: beside ``--cdsp`` (``--dp-size``).
        cpus: cores that it may use, all if not given.
        cores: of its ranks as in `Side`.
        port: where it listens; a free one if not given.
        environment: variables beside this program's own.
    """
    return _alone("pool", checkpoint, ("--cdsp", *flags), cpus, cores, port, environment)


def _alone(
    name: str,
    checkpoint: Path | str,
    flags: Sequence[str],
    cpus: Sequence[int] | None,
    cores: str | None,
    port: int | None,
    environment: Mapping[str, str] | None = None,
) -> Deployment:
    bound_to = {} if cores is None else {"SGLANG_CPU_OMP_THREADS_BIND": cores}
    ports = chain(() if port is None else (port,), free_ports(_MOST_PORTS))
    variables = {**bound_to, **(environment or {})} or None
    command, url = server_command(name, checkpoint, ports, flags, cpus, variables)
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
