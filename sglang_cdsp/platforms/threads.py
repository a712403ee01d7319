"""Which cores a rank of a CPU server uses.

SGLang gives each rank a NUMA node and refuses more ranks than nodes; it also leaves the binding
itself to ``sgl_kernel``. A torch-only machine needs both done here.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

logger = logging.getLogger(__name__)

BIND_VARIABLE = "SGLANG_CPU_OMP_THREADS_BIND"

RANK_NICE = 5
"""How far a rank gives way to its own server's processes that talk to clients.

They need milliseconds, and SGLang's routers hold decode's tokens back until prefill has answered.
"""


@dataclass(frozen=True)
class ThreadBinding:
    """Cores for one rank: it computes with ``len(cpus)`` threads, kept on ``cpus`` if pinned."""

    cpus: tuple[int, ...]
    pinned: bool


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Parse one rank's part of ``SGLANG_CPU_OMP_THREADS_BIND``, as in ``0-3,8``.

    Raises:
        ValueError: the text is not a list of cores and ranges.
    """
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        try:
            cpus.extend(range(int(first), int(last or first) + 1))
        except ValueError:
            raise ValueError(
                f"{BIND_VARIABLE} has the part {text!r}; write cores and ranges per rank, "
                "ranks separated by '|', for example 0-1|2,3"
            ) from None
    return tuple(cpus)


def choose_binding(
    rank: int, world_size: int, available: Sequence[int], bind: str = ""
) -> ThreadBinding:
    """Choose the cores of ``rank`` among ``world_size`` ranks of one server.

    With ``bind`` (the value of ``SGLANG_CPU_OMP_THREADS_BIND``) the user's list is followed and
    pinned. Without, ranks share the available cores evenly and are pinned to their share; where
    there are more ranks than cores each computes with one thread on any core, because groups of
    ranks that work together change and pinning two of a group to one core would halve it.

    Raises:
        ValueError: ``bind`` is malformed or has no entry for ``rank``.
    """
    if bind and bind != "all":
        parts = bind.split("|")
        if rank >= len(parts):
            raise ValueError(
                f"{BIND_VARIABLE}={bind!r} has {len(parts)} entries, rank {rank} needs one; "
                f"give {world_size} entries separated by '|', or unset it"
            )
        return ThreadBinding(parse_cpu_list(parts[rank]), pinned=True)
    cpus = tuple(available)
    if world_size == 1:
        return ThreadBinding(cpus, pinned=False)
    share = len(cpus) // world_size
    if share == 0:
        return ThreadBinding((cpus[rank % len(cpus)],), pinned=False)
    return ThreadBinding(cpus[rank * share : (rank + 1) * share], pinned=True)


def skip_sgl_kernel_threads(**kwargs: Any) -> None:
    """Take the place of the thread set-up that calls into ``sgl_kernel``; binds nothing."""


def bind_rank_threads(*, numa_index: int, world_size: int) -> str:
    """Bind this process; takes the place of SGLang's ``init_threads_binding``.

    Args:
        numa_index: this rank's number on the machine (SGLang's gpu_id).
        world_size: ranks of this server.

    Returns:
        The cores, comma-separated, as SGLang's function does.
    """
    binding = choose_binding(
        numa_index,
        world_size,
        sorted(os.sched_getaffinity(0)),
        os.environ.get(BIND_VARIABLE, ""),
    )
    for thread in map(int, os.listdir("/proc/self/task")):
        nice = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(nice + RANK_NICE, 19))
        if binding.pinned:
            os.sched_setaffinity(thread, binding.cpus)
    torch.set_num_threads(len(binding.cpus))
    cpus = ",".join(map(str, binding.cpus))
    logger.info(
        "rank %d of %d computes with %d thread(s), %s",
        numa_index,
        world_size,
        len(binding.cpus),
        f"pinned to core(s) {cpus}" if binding.pinned else "not pinned",
    )
    return cpus
