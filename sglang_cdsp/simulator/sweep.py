"""Policies by name, and the highest arrival rate that one of them holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sglang_cdsp.planner.policies.registry import find
from sglang_cdsp.simulator.errors import SetupError
from sglang_cdsp.simulator.metrics import Summary, within
from sglang_cdsp.simulator.setup import DecodeModel, Setup

UNIFIED = "loongserve-unified"
"""LoongServe as published: prefill and decode share the instances."""

DECODE_WIDTH = 8
"""Prefill instances that one decode instance's GPUs make: TP1 against TP8 in the paper."""

UNIFIED_DECODE = DecodeModel(a=14e-3, b=1e-4, c=8.7e-8)
"""Decode on one TP1 instance, reckoned like DecodeModel's defaults: 16 GB of weights and 128 KiB a
KV token at 1.5 TB/s, plus some 3 ms of launches."""


def variant(base: Setup, name: str) -> Setup:
    """The set-up with the policy of that name: any of the planner's, or UNIFIED.

    UNIFIED gets the decode instances' GPUs as further prefill instances: the same hardware.
    """
    if name != UNIFIED:
        return replace(base, policy=name, unified=False)
    return replace(
        base,
        policy="loongserve",
        unified=True,
        one_server=None,
        instances=base.instances + DECODE_WIDTH * base.decode_instances,
        decode=UNIFIED_DECODE,
    )


def is_regulated(name: str) -> bool:
    """Whether the policy of that name, any of the planner's or UNIFIED, has an improvement rate.

    Raises:
        OptionError: there is no such policy.
    """
    return name != UNIFIED and find(name)[0].regulated


def max_speed(
    run: Callable[[float], Summary], light: Summary, factor: float, *, first: float = 1.0
) -> tuple[float, Summary | None]:
    """The highest speed whose run holds (metrics.within), and that run; (0.0, None) if none does.

    `run(speed)` simulates the requests at a speed; `light` are their figures at light load.
    """
    seen: dict[float, Summary] = {}

    def holds(speed: float) -> bool:
        seen[speed] = run(speed)
        return within(seen[speed], light, factor)

    best = highest(holds, first=first)
    return best, seen.get(best)


def highest(
    holds: Callable[[float], bool], *, first: float = 1.0, precision: float = 0.01
) -> float:
    """The highest rate that holds, to `precision` of itself, by doubling and bisection.

    What holds at one rate is taken to hold at all lower ones. 0.0 if not even `first` / 1024 holds.

    Raises:
        SetupError: everything up to `first` * 1024 holds, so the run is too short to tell.
    """
    low, high = first, 2 * first
    if holds(first):
        while holds(high):
            low, high = high, 2 * high
            if high > 1024 * first:
                raise SetupError(
                    f"every rate up to {low:g} requests/s holds; simulate more requests"
                )
    else:
        low, high = first / 2, first
        while not holds(low):
            low, high = low / 2, low
            if low < first / 1024:
                return 0.0
    while high - low > precision * low:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
