"""Where the checks run, and how time is taken there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

REPEATS = 30
WARM_UP = 5


@dataclass(frozen=True)
class Target:
    """The device under test.

    Attributes:
        device: CUDA's first, or the CPU in a dry run.
        dtype: of activations and KV there.
        small: whether shapes are to be small: a dry run.
    """

    device: torch.device
    dtype: torch.dtype
    small: bool

    @property
    def cuda(self) -> bool:
        """Whether this is a GPU."""
        return self.device.type == "cuda"

    @property
    def tolerance(self) -> float:
        """Of attention outputs against float64, over their size plus their spread."""
        return {torch.float32: 1e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}[self.dtype]

    def synchronize(self) -> None:
        """Wait until the device has done everything."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def generator(self, seed: int) -> torch.Generator:
        """A seeded source of random numbers on the device."""
        return torch.Generator(device=self.device).manual_seed(seed)

    def randn(self, *shape: int, seed: int = 0) -> torch.Tensor:
        """Normal numbers in the target's dtype."""
        draw = torch.randn(*shape, generator=self.generator(seed), device=self.device)
        return draw.to(self.dtype)


def target_for(dry_run: bool) -> Target:
    """The CPU in float32 for a dry run, else the first GPU in bfloat16.

    Raises:
        RuntimeError: there is no GPU.
    """
    if dry_run:
        return Target(torch.device("cpu"), torch.float32, small=True)
    if not torch.cuda.is_available():
        raise RuntimeError(
            "torch sees no CUDA device: run with --dry-run, or on a machine with one"
        )
    torch.cuda.set_device(0)
    return Target(torch.device("cuda", 0), torch.bfloat16, small=False)


def milliseconds(target: Target, work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median time of ``work`` on the device's current stream."""
    repeats = 3 if target.small else repeats
    for _ in range(1 if target.small else WARM_UP):
        work()
    times = []
    for _ in range(repeats):
        if target.cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def host_milliseconds(target: Target, work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median time for which ``work`` keeps the host; the device is idle before each call."""
    repeats = 3 if target.small else repeats
    times = []
    for _ in range(repeats + 1):
        target.synchronize()
        began = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - began))
    target.synchronize()
    return statistics.median(times[1:])


def copy_bandwidth(target: Target) -> float:
    """Bytes a millisecond, read plus written, of a large copy on the device."""
    size = (8 if target.small else 1024) * 2**20
    source = torch.zeros(size, dtype=torch.uint8, device=target.device)
    goal = torch.empty_like(source)
    return 2 * size / milliseconds(target, lambda: goal.copy_(source))
