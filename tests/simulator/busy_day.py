"""Simulations that use every part at once; a process of its own runs them by this module's name."""

from __future__ import annotations

from dataclasses import replace

from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.result import Result
from sglang_cdsp.simulator.setup import Setup
from sglang_cdsp.simulator.types import Request


def busy_day() -> list[Result]:
    """Everything at once: noise, waiting, contention, several policies."""
    work = [Request(f"r{n}", n / 5, 4000 + 997 * n % 50_000, 1 + n % 40) for n in range(200)]
    plain = Setup(noise=0.1, seed=3, kv_tokens=60_000, send_bytes_per_s=1e9)
    return [
        simulate(plain, work),
        simulate(replace(plain, policy="loongserve"), work),
        simulate(replace(plain, policy="loongserve", unified=True, kv_tokens=200_000), work),
    ]
