"""Whether the weights, and what SGLang keeps beside them, fit into the memory that is free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_cdsp.serve.asked import Asked, value_of
from sglang_cdsp.serve.devices import Machine

WIDTHS = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
"""Bytes of a number, by what SGLang's ``--dtype`` and a model's configuration call it."""

SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")
"""Files of weights; where there are some of the first kind, the others are not read."""

RANK_BYTES = 1 << 30
"""Host memory of a rank without weights and KV, and of the processes that answer HTTP."""

CPU_TOKENS = 65_536
"""Least KV tokens of a rank where ``--max-total-tokens`` is not given, on CPUs."""

GPU_SHARE = 0.95
"""Of a GPU's memory that weights can have at most: the driver and torch keep some."""


@dataclass(frozen=True)
class Weights:
    """What of the model takes memory.

    Attributes:
        stored: bytes of the files; 0 if unknown.
        config: the model's ``config.json``, {} if unknown.
    """

    stored: int
    config: Mapping[str, Any]

    def loaded(self, dtype: str | None, *, on_cpus: bool) -> int:
        """Bytes of one copy in memory.

        Args:
            dtype: ``--dtype``; None for what SGLang takes by itself: float32 on CPUs.
        """
        if "quantization_config" in self.config:
            return self.stored
        stored = WIDTHS.get(str(self.config.get("torch_dtype") or self.config.get("dtype")))
        own = "float32" if on_cpus else None
        served = own if dtype in (None, "auto") else dtype
        width = stored if served is None else WIDTHS.get(served)
        if stored is None or width is None:
            return self.stored
        return self.stored * width // stored

    def kv_bytes(self, width: int, ranks: int = 1) -> int:
        """Bytes of a token's KV on all ranks of an instance; 0 if the configuration does not say.

        Heads are shared out among ranks. A latent row is for all heads, so each rank holds it.

        Args:
            width: bytes of a number.
            ranks: of an instance.
        """
        config = self.config
        latent, rotated = config.get("kv_lora_rank"), config.get("qk_rope_head_dim")
        heads = config.get("num_attention_heads")
        layers = config.get("num_hidden_layers")
        hidden = config.get("hidden_size")
        kv_heads = config.get("num_key_value_heads") or heads
        try:
            if latent:
                return int(layers * (latent + rotated) * width * ranks)
            dim = config.get("head_dim") or hidden // heads  # type: ignore[operator]
            return int(2 * layers * kv_heads * dim * width)  # type: ignore[operator]
        except (TypeError, ValueError, ZeroDivisionError):
            return 0


def weights_of(folder: Path | None, config: Mapping[str, Any]) -> Weights:
    """The weights in a folder; None: not on this machine."""
    files = sorted(folder.iterdir()) if folder is not None else []
    for suffix in SUFFIXES:
        sizes = [file.stat().st_size for file in files if file.suffix == suffix]
        if sizes:
            return Weights(sum(sizes), config)
    return Weights(0, config)


def problems(asked: Asked, weights: Weights, machine: Machine, copies: int) -> list[str]:
    """What does not fit, in one line with the remedy; nothing if all fits, or nobody knows.

    Args:
        copies: of the weights: the pool's instances, and a decode server if there is one.
    """
    words = (*asked.flags, *asked.pool_flags)
    dtype = value_of(words, "--dtype")
    if machine.gpus:
        return _on_gpus(asked, weights.loaded(dtype, on_cpus=False), machine, copies)
    if not weights.stored:
        return []
    loaded = weights.loaded(dtype, on_cpus=True)
    return _on_cpus(asked, weights, loaded, machine, copies)


def _on_gpus(asked: Asked, loaded: int, machine: Machine, copies: int) -> list[str]:
    needed, there = copies * asked.tp_size, len(machine.gpus)
    if needed > there:
        others = copies - asked.instances
        most = there // asked.tp_size - others
        remedy = f"give --dp-size {most}" if most >= 2 else "serve on a machine with more"
        decode = f" and {asked.tp_size} for decode" if others else ""
        return [
            f"--dp-size {asked.instances} --tp-size {asked.tp_size} needs {needed} GPUs, "
            f"{asked.tp_size} an instance{decode}; there are {there}: {remedy}"
        ]
    share = loaded // asked.tp_size
    small = [
        (number, gpu)
        for number, gpu in enumerate(machine.gpus[:needed])
        if share > GPU_SHARE * gpu.free
    ]
    if not small:
        return []
    number, gpu = small[0]
    busy = gpu.total * GPU_SHARE >= share
    remedy = "end what uses it" if busy else "raise --tp-size, or take a smaller model"
    return [
        f"the weights need {gigabytes(share)} on each GPU, and GPU {number} ({gpu.name}) has "
        f"{gigabytes(gpu.free)} free of {gigabytes(gpu.total)}: {remedy}"
    ]


def _on_cpus(
    asked: Asked, weights: Weights, loaded: int, machine: Machine, copies: int
) -> list[str]:
    words = (*asked.flags, *asked.pool_flags)
    given = _number(words, "--max-total-tokens")
    tokens = max(CPU_TOKENS, _number(words, "--context-length") or 0) if given is None else given
    width = WIDTHS.get(value_of(words, "--dtype") or "float32", 4)
    kv, rest = tokens * weights.kv_bytes(width, asked.tp_size), asked.tp_size * RANK_BYTES
    needed = copies * (loaded + kv + rest)
    if needed <= machine.memory:
        return []
    fewer = machine.memory // (loaded + kv + rest) - (copies - asked.instances)
    remedies = [f"give --dp-size {fewer}"] if fewer >= 2 else []
    if given is None or kv > loaded:
        remedies.append("give --max-total-tokens for less KV")
    remedies.append("take a smaller model")
    return [
        f"{copies} copies of the model need {gigabytes(needed)} of memory ({gigabytes(loaded)} "
        f"weights, {gigabytes(kv)} KV and {gigabytes(rest)} else, each), and "
        f"{gigabytes(machine.memory)} are free: {', or '.join(remedies)}"
    ]


def _number(words: Sequence[str], flag: str) -> int | None:
    """A flag's value; None where it is not given, or none that SGLang takes."""
    given = value_of(words, flag)
    return int(given) if given is not None and given.isdecimal() else None


def gigabytes(count: int) -> str:
    """A number of bytes as people read it."""
    return f"{count / 1e9:.1f} GB"
