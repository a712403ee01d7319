"""How prefill and decode share the cores of one machine, so that decode does not wait."""

import os
from collections.abc import Collection, Sequence
from typing import NamedTuple

PREFILL_NICE = 10
"""How far prefill gives way to decode where they share cores: about a tenth of decode's share.

With devices of their own neither would notice the other. Without this, a decode step of
milliseconds waits for seconds until it gets hold of a core.
"""


class Shares(NamedTuple):
    """What each side gets.

    Attributes:
        prefill_cpus: cores of the prefill server; None for all.
        decode_cpus: the same for decode.
        prefill_nice: how far prefill's processes give way to others.
        notes: what whoever reads the figures should know, a line each.
    """

    prefill_cpus: Sequence[int] | None
    decode_cpus: Sequence[int] | None
    prefill_nice: int
    notes: tuple[str, ...]


def decode_first(taken: Collection[int] = ()) -> Shares:
    """Share the machine so that decode does not wait for prefill.

    Args:
        taken: cores that prefill is bound to by itself; all but one of them if empty.

    Returns:
        Cores of decode's own where prefill keeps two or more; else all cores for both, and prefill
        gives way.
    """
    cores = sorted(os.sched_getaffinity(0))
    own = [core for core in cores if core not in taken] if taken else cores[-1:]
    if own and len(cores) - len(own) >= 2:
        rest = tuple(core for core in cores if core not in own)
        note = f"decode has core(s) {', '.join(map(str, own))} to itself"
        return Shares(rest, tuple(own), 0, (note,))
    note = f"decode goes before prefill on the cores that they share (prefill: nice {PREFILL_NICE})"
    return Shares(None, None, PREFILL_NICE, (note,))


def bound(cores: str) -> list[int]:
    """The cores that ``SGLANG_CPU_OMP_THREADS_BIND`` names for all ranks, as in ``0|1-2,3``."""
    found: list[int] = []
    for part in cores.replace("|", ",").split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
