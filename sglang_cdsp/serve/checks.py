"""What can be known to be wrong before a process is started: first what takes no time at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang_cdsp.form import Form
from sglang_cdsp.launch import ports
from sglang_cdsp.serve import asked as asking
from sglang_cdsp.serve import flags, memory
from sglang_cdsp.serve.asked import Asked
from sglang_cdsp.serve.devices import Machine
from sglang_cdsp.serve.layout import Layout
from sglang_cdsp.serve.memory import Weights
from sglang_cdsp.stack import listeners


def quick_problems(asked: Asked) -> list[str]:
    """What is wrong with the port and with flags that `serve` cannot hand on; a line each."""
    words = (*asked.flags, *asked.pool_flags, *asked.decode_flags)
    return [
        *asking.refused(words, asked.form),
        *_decode_flags(asked),
        *_port(asked.host, asked.port),
    ]


def memory_problems(layout: Layout, asked: Asked, machine: Machine, weights: Weights) -> list[str]:
    """What does not fit into the memory of this machine's devices; a line, or nothing."""
    return memory.problems(asked, weights, machine, layout.copies)


def _decode_flags(asked: Asked) -> list[str]:
    if asked.form is not Form.ONE_SERVER or not asked.decode_flags:
        return []
    return [
        "--decode-flags: one server has no decode server; give the flags themselves, or --form "
        "scale-out"
    ]


def _port(host: str, port: int) -> list[str]:
    reason = ports.fault(host, port)
    if not reason:
        return []
    holders = ", ".join(map(str, sorted(listeners.holders(port))))
    return [f"--port {port}: {reason}" + (f" (process {holders} has it)" if holders else "")]


def flag_problems(layout: Layout) -> list[str]:
    """What SGLang and the pool would refuse of the command lines of all servers; a line each.

    A process of its own reads them, see `serve.flags`: it imports SGLang, which takes seconds, and
    some 400 MB for as long as it lives. Equal lines of two servers are told once.
    """
    given = [part.server_flags for part in layout.parts if part.server_flags]
    done = subprocess.run(
        [sys.executable, "-m", flags.__name__],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        return [f"SGLang cannot read its flags here: {words[-1].strip()}"]
    return list(dict.fromkeys(json.loads(done.stdout)))


def weights_here(model: Path | str, config: Mapping[str, Any]) -> Weights:
    """The weights of a model, where they lie on this machine."""
    if isinstance(model, Path):
        return memory.weights_of(model if model.is_dir() else None, config)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, "config.json")
    return memory.weights_of(Path(cached).parent if isinstance(cached, str) else None, config)
