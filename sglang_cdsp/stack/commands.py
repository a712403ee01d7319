"""The command lines of SGLang's servers and of its router."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sglang_cdsp.stack.processes import Command

HOST = "127.0.0.1"


def server_command(
    name: str,
    checkpoint: Path | str,
    ports: Iterator[int],
    flags: Sequence[str],
    cpus: Sequence[int] | None = None,
    environment: Mapping[str, str] | None = None,
    nice: int = 0,
    host: str = HOST,
) -> tuple[Command, str]:
    """A server on the next of ``ports``, and its URL.

    ``checkpoint``: a folder, or a hub's name; ``host``: where it listens; the URL is one that this
    machine reaches.
    """
    port = next(ports)
    url = f"http://{reached(host)}:{port}"
    if isinstance(checkpoint, Path):
        model, offline = str(checkpoint.resolve()), {"HF_HUB_OFFLINE": "1"}
    else:
        model, offline = checkpoint, {}
    if "--dp-size" not in flags:
        # SGLang would pick an ephemeral port long before it listens there.
        flags = ("--nccl-port", str(next(ports)), *flags)
    arguments = (
        *(sys.executable, "-m", "sglang.launch_server", "--model-path", model),
        *("--host", host, "--port", str(port), *flags),
    )
    command = Command(
        name,
        arguments,
        f"{url}/health",
        cpus=tuple(cpus) if cpus is not None else None,
        environment={**offline, **(environment or {})},
        nice=nice,
    )
    return command, url


def as_prefill(bootstrap_port: int, flags: Sequence[str]) -> tuple[str, ...]:
    """The flags of a prefill server that decode finds at ``bootstrap_port``."""
    mode = ("--disaggregation-mode", "prefill")
    return (*mode, "--disaggregation-bootstrap-port", str(bootstrap_port), *flags)


def decode_command(
    checkpoint: Path | str,
    ports: Iterator[int],
    flags: Sequence[str],
    cpus: Sequence[int] | None = None,
) -> tuple[Command, str]:
    """The decode server "decode", and its URL."""
    mode = ("--disaggregation-mode", "decode")
    return server_command("decode", checkpoint, ports, (*mode, *flags), cpus)


def router_command(
    name: str,
    port: int,
    prefill: Sequence[tuple[str, int]],
    decode_url: str,
    flags: Sequence[str],
    host: str = HOST,
) -> tuple[Command, str]:
    """SGLang's router before ``prefill`` servers (URL, bootstrap port); and the router's URL.

    ``host``: where it listens; the URL is one that this machine reaches.
    """
    url = f"http://{reached(host)}:{port}"
    behind = [part for address in prefill for part in ("--prefill", address[0], str(address[1]))]
    arguments = (
        *(sys.executable, "-m", "sglang_router.launch_router"),
        *("--pd-disaggregation", *flags, "--host", host, "--port", str(port)),
        *(*behind, "--decode", decode_url),
    )
    return Command(name, arguments, f"{url}/health"), url


def reached(host: str) -> str:
    """How this machine reaches what listens on ``host``, as a URL names it."""
    own = {"0.0.0.0": HOST, "": HOST, "::": "::1"}.get(host, host)
    return f"[{own}]" if ":" in own else own
