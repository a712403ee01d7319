"""Step 1: what machine this is, and what it can do at most."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.gpu.record import CheckFailed, Recorder
from bench.gpu.target import Target, copy_bandwidth, milliseconds

PACKAGES = (
    *("torch", "triton", "flashinfer-python", "sglang", "sglang-kernel", "sglang-router"),
    *("nixl", "nixl-cu12", "nixl-cu13", "nvidia-nccl-cu12", "nvidia-nccl-cu13", "transformers"),
)
QUERY = ("name", "driver_version", "memory.total", "compute_mode")


def run(target: Target, recorder: Recorder) -> None:
    """All of the step's checks."""
    recorder.check("device and versions", lambda: described(target))
    recorder.check("copy on the device", lambda: {"GB/s": copy_bandwidth(target) / 1e6})
    recorder.check("copies to and from the host", lambda: host_bandwidth(target))
    recorder.check("matrix product", lambda: product_ceiling(target))


def described(target: Target) -> dict[str, Any]:
    """Device, driver and versions. Nothing here raises: what cannot be found is named so."""
    driver = nvidia_smi()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(target.device) if target.cuda else cpu_name(),
        "driver": driver.get("driver_version", "unknown"),
        "compute_mode": driver.get("compute_mode", "unknown"),
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
    }
    if target.cuda:
        found["memory_GiB"] = torch.cuda.get_device_properties(target.device).total_memory / 2**30
        found["nccl"] = attempt(lambda: ".".join(map(str, torch.cuda.nccl.version())))
    for package in PACKAGES:
        version = attempt(partial(importlib.metadata.version, package), "")
        if version:
            found[package] = version
    found["torch"] = torch.__version__
    return found


def attempt(read: Callable[[], Any], otherwise: str = "unknown") -> Any:
    """What ``read`` returns, or a word if it raises."""
    try:
        return read()
    except Exception:
        return otherwise


def cpu_name() -> str:
    """The processor's name as Linux tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or "unknown"


def nvidia_smi() -> dict[str, str]:
    """The first GPU's row of nvidia-smi; empty where there is no such program."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = done.stdout.strip().splitlines()
    return dict(zip(QUERY, map(str.strip, rows[0].split(",")), strict=False)) if rows else {}


def host_bandwidth(target: Target) -> dict[str, float]:
    """GB/s of a pinned copy either way: what links through host memory can reach."""
    size = (4 if target.small else 256) * 2**20
    host = torch.zeros(size, dtype=torch.uint8, pin_memory=target.cuda)
    device = torch.zeros(size, dtype=torch.uint8, device=target.device)
    down = milliseconds(target, lambda: host.copy_(device, non_blocking=True))
    up = milliseconds(target, lambda: device.copy_(host, non_blocking=True))
    return {"to host GB/s": size / down / 1e6, "from host GB/s": size / up / 1e6}


def product_ceiling(target: Target) -> dict[str, float]:
    """TFLOP/s of a large square product, whose result is checked at some places."""
    size = 256 if target.small else 8192
    left, right = target.randn(size, size, seed=1), target.randn(size, size, seed=2)
    out = torch.empty_like(left)
    took = milliseconds(target, lambda: torch.matmul(left, right, out=out))
    expected = left[:4].double() @ right.double()[:, :64]
    # Sums of `size` products of order 1: their spread is the square root of it.
    worst = float((out[:4, :64].double() - expected).abs().max()) / size**0.5
    if not worst < 2 * target.tolerance:
        raise CheckFailed(f"a matrix product is off by {worst:.3g} of its spread")
    return {"TFLOP/s": 2 * size**3 / took / 1e9, "off by": worst}
