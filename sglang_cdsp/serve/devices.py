"""The GPUs that servers started here would use, and the host's memory, without importing torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_cdsp.serve.asked import value_of

QUERY = ("--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
TIMEOUT_S = 20.0
MIB = 1 << 20


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in bytes."""

    name: str
    total: int
    free: int


@dataclass(frozen=True)
class Machine:
    """What there is to compute on.

    Attributes:
        gpus: that the servers may use; empty where they compute on CPUs.
        memory: of the host that is free, in bytes.
    """

    gpus: tuple[Gpu, ...]
    memory: int


def look(flags: Sequence[str], environment: Mapping[str, str] = os.environ) -> Machine:
    """What servers with these flags would compute on."""
    return Machine(() if _on_cpus(flags, environment) else gpus(environment), free_memory())


def _on_cpus(flags: Sequence[str], environment: Mapping[str, str]) -> bool:
    device = value_of(flags, "--device")
    if device is not None:
        return device == "cpu"
    return bool(environment.get("SGLANG_PLATFORM")) or environment.get("SGLANG_USE_CPU_ENGINE") == (
        "1"
    )


def gpus(environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs that ``nvidia-smi`` lists, as far as ``CUDA_VISIBLE_DEVICES`` shows them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = subprocess.run(
            [program, *QUERY], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return visible(read_gpus(done.stdout), environment.get("CUDA_VISIBLE_DEVICES"))


def read_gpus(text: str) -> tuple[Gpu, ...]:
    """What ``nvidia-smi`` prints for ``QUERY``, a line a GPU; lines of another form are left out.

    Args:
        text: the memory is in MiB.
    """
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.rsplit(",", 2)]
        with contextlib.suppress(ValueError):
            name, total, free = parts
            found.append(Gpu(name, int(total) * MIB, int(free) * MIB))
    return tuple(found)


def visible(found: tuple[Gpu, ...], named: str | None) -> tuple[Gpu, ...]:
    """Those of the GPUs that a ``CUDA_VISIBLE_DEVICES`` names, by numbers; all if there is none.

    Names of another form (UUIDs, parts of a GPU) say how many there are, and not which.
    """
    if named is None:
        return found
    wanted = [part.strip() for part in named.split(",") if part.strip()]
    if all(part.isdecimal() and int(part) < len(found) for part in wanted):
        return tuple(found[int(part)] for part in wanted)
    return found[: len(wanted)]


def free_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that processes of this machine, or of this container, can still take."""
    import psutil  # comes with SGLang

    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        limit = int((groups / "memory.max").read_text())
        used = int((groups / "memory.current").read_text()) - _cached_files(groups)
        free = min(free, max(0, limit - used))
    return free


def _cached_files(group: Path) -> int:
    """Bytes of files' contents that count as used, and that the kernel gives up when asked for."""
    try:
        lines = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
    except OSError:
        return 0
    return sum(int(words[1]) for words in lines if words[0] in ("inactive_file", "active_file"))
