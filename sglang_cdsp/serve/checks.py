"""What can be known to be wrong before a process is started: first what takes no time at all."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from sglang_cdsp.args import add_cli_args, from_namespace
from sglang_cdsp.launch import ports
from sglang_cdsp.serve import asked as asking
from sglang_cdsp.serve import memory
from sglang_cdsp.serve.asked import Asked
from sglang_cdsp.serve.devices import Machine
from sglang_cdsp.serve.layout import Layout, Part
from sglang_cdsp.serve.memory import Weights
from sglang_cdsp.stack import listeners


class FlagError(ValueError):
    """A flag that SGLang's parser does not take; one line."""


class _Parser(argparse.ArgumentParser):
    """SGLang's parser without its usage, which is hundreds of flags long."""

    def error(self, message: str) -> NoReturn:
        raise FlagError(" ".join(message.split()))


def quick_problems(asked: Asked) -> list[str]:
    """What is wrong with the port and with flags that `serve` cannot hand on; a line each."""
    words = (*asked.flags, *asked.pool_flags, *asked.decode_flags)
    return [*asking.refused(words), *_port(asked.host, asked.port)]


def memory_problems(layout: Layout, asked: Asked, machine: Machine, weights: Weights) -> list[str]:
    """What does not fit into the memory of this machine's devices; a line, or nothing."""
    return memory.problems(asked, weights, machine, layout.copies)


def _port(host: str, port: int) -> list[str]:
    reason = ports.fault(host, port)
    if not reason:
        return []
    holders = ", ".join(map(str, sorted(listeners.holders(port))))
    return [f"--port {port}: {reason}" + (f" (process {holders} has it)" if holders else "")]


def flag_problems(layout: Layout) -> list[str]:
    """What SGLang and the pool would refuse of the command lines of all servers; a line each.

    SGLang is imported for it, which takes seconds. Equal lines of two servers are told once.
    """
    found = [line for part in layout.parts if part.server_flags for line in _of_server(part)]
    return list(dict.fromkeys(found))


def _of_server(part: Part) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sglang.srt.server_args import ServerArgs

        from sglang_cdsp.checks import forced_settings
        from sglang_cdsp.launch.command_line import problems_of
        from sglang_cdsp.launch.unknown_flags import keep_unknown_flags

        parser = _Parser(prog="serve", add_help=False)
        ServerArgs.add_cli_args(parser)
        add_cli_args(parser)
        keep_unknown_flags(parser)
        try:
            namespace = parser.parse_args(list(part.server_flags))
        except FlagError as error:
            return [str(error)]
        cdsp, problems = from_namespace(namespace)
        if cdsp is None:
            return problems
        for name, value in forced_settings(cdsp).items():
            setattr(namespace, name, value)
        return problems + problems_of(cdsp, ServerArgs.from_cli_args(namespace))


def weights_here(model: Path | str, config: Mapping[str, Any]) -> Weights:
    """The weights of a model, where they lie on this machine."""
    if isinstance(model, Path):
        return memory.weights_of(model if model.is_dir() else None, config)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, "config.json")
    return memory.weights_of(Path(cached).parent if isinstance(cached, str) else None, config)
