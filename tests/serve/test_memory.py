"""What does not fit is refused, with the figures and a remedy that helps."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.platforms.defaults import DEFAULT_MAX_TOTAL_TOKENS
from sglang_cdsp.serve.asked import Asked
from sglang_cdsp.serve.devices import Gpu, Machine
from sglang_cdsp.serve.memory import CPU_TOKENS, RANK_BYTES, Weights, problems, weights_of

GB = 10**9
LLAMA = {
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
}
EIGHT_B = Weights(16 * GB, LLAMA)
DEEPSEEK_V3 = {
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "hidden_size": 7168,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
}


def asked(instances: int = 2, *flags: str, tp_size: int = 1) -> Asked:
    return Asked(Path("m"), instances, tp_size=tp_size, flags=flags)


def on_gpus(count: int, total: int = 80 * GB, free: int | None = None) -> Machine:
    gpu = Gpu("some GPU", total, total if free is None else free)
    return Machine((gpu,) * count, 1000 * GB)


def refused(asked: Asked, weights: Weights, machine: Machine, others: int = 1) -> str:
    """The line, or nothing; ``others``: copies of the weights beside the pool's."""
    found = problems(asked, weights, machine, asked.instances + others)
    assert len(found) <= 1
    assert "\n" not in "".join(found)
    return "".join(found)


# -- GPUs -----------------------------------------------------------------------------------


def test_enough_gpus_pass() -> None:
    assert refused(asked(3), EIGHT_B, on_gpus(4)) == ""
    assert refused(asked(3, tp_size=2), EIGHT_B, on_gpus(8, 12 * GB)) == ""


def test_too_few_gpus_name_the_most_instances() -> None:
    line = refused(asked(8), EIGHT_B, on_gpus(8))
    assert "needs 9 GPUs" in line
    assert "there are 8: give --dp-size 7" in line
    assert refused(asked(7), EIGHT_B, on_gpus(8)) == ""
    assert "a machine with more" in refused(asked(2), EIGHT_B, on_gpus(2))


def test_one_server_leaves_no_gpu_to_decode() -> None:
    assert refused(asked(8), EIGHT_B, on_gpus(8), others=0) == ""
    line = refused(asked(9), EIGHT_B, on_gpus(8), others=0)
    assert "needs 9 GPUs, 1 an instance; there are 8: give --dp-size 8" in line


def test_weights_that_fit_on_no_gpu() -> None:
    line = refused(asked(2), EIGHT_B, on_gpus(3, 12 * GB))
    assert "need 16.0 GB on each GPU" in line
    assert "raise --tp-size" in line


def test_a_gpu_that_somebody_uses_is_named() -> None:
    gpus = (*on_gpus(2).gpus, Gpu("busy one", 80 * GB, 3 * GB))
    line = refused(asked(2), EIGHT_B, Machine(gpus, 0))
    assert "GPU 2 (busy one) has 3.0 GB free of 80.0 GB: end what uses it" in line


# -- CPUs -----------------------------------------------------------------------------------


def test_weights_grow_with_the_dtype_that_is_served() -> None:
    assert EIGHT_B.loaded(None, on_cpus=True) == 32 * GB
    assert EIGHT_B.loaded("auto", on_cpus=True) == 32 * GB
    assert EIGHT_B.loaded("bfloat16", on_cpus=True) == 16 * GB
    assert EIGHT_B.loaded(None, on_cpus=False) == 16 * GB
    assert EIGHT_B.loaded("float32", on_cpus=False) == 32 * GB
    assert Weights(5, {**LLAMA, "quantization_config": {}}).loaded(None, on_cpus=True) == 5
    assert Weights(5, {}).loaded(None, on_cpus=True) == 5


def test_kv_of_a_token() -> None:
    assert EIGHT_B.kv_bytes(2) == 131_072  # Llama 3 8B: 128 KiB
    latent = Weights(0, DEEPSEEK_V3)
    assert latent.kv_bytes(2) == 61 * 1152, "one row for all heads"
    assert latent.kv_bytes(2, ranks=8) == 8 * 61 * 1152, "on every rank"
    assert EIGHT_B.kv_bytes(2, ranks=8) == 131_072, "heads are shared out"
    assert Weights(0, {}).kv_bytes(2) == 0
    assert Weights(0, {"kv_lora_rank": 512}).kv_bytes(2) == 0
    assert Weights(0, {**LLAMA, "num_attention_heads": 0, "head_dim": None}).kv_bytes(2) == 0


def test_a_host_that_is_too_small_says_what_would_fit() -> None:
    line = refused(asked(3, "--max-total-tokens", "1000"), EIGHT_B, Machine((), 110 * GB))
    assert re.search(r"4 copies .* need 13\d\.\d GB", line)
    assert "110.0 GB are free: give --dp-size 2" in line


def test_the_kv_of_a_rank_is_what_a_pool_on_cpus_takes() -> None:
    assert CPU_TOKENS == DEFAULT_MAX_TOTAL_TOKENS
    for flags, tokens in (
        ((), CPU_TOKENS),
        (("--context-length", "100"), CPU_TOKENS),
        (("--context-length=100000",), 100_000),
        (("--context-length", "100000", "--max-total-tokens", "9"), 9),
    ):
        needed = 2 * (32 * GB + tokens * EIGHT_B.kv_bytes(4) + RANK_BYTES)
        assert refused(asked(2, *flags), EIGHT_B, Machine((), needed), others=0) == ""
        assert refused(asked(2, *flags), EIGHT_B, Machine((), needed - 1), others=0)


@given(
    st.integers(2, 20),
    st.integers(1, 200 * GB),
    st.integers(0, 2000 * GB),
    st.integers(0, 200_000),
    st.integers(1, 4),
    st.integers(0, 1),
)
def test_a_remedy_of_fewer_instances_helps(
    instances: int, stored: int, memory: int, tokens: int, tp_size: int, others: int
) -> None:
    wanted = asked(instances, "--max-total-tokens", str(tokens), tp_size=tp_size)
    weights = Weights(stored, LLAMA)
    line = refused(wanted, weights, Machine((), memory), others)
    loaded, kv = weights.loaded(None, on_cpus=True), tokens * weights.kv_bytes(4)
    fits = (instances + others) * (loaded + kv + tp_size * RANK_BYTES) <= memory
    assert fits == (line == "")
    if named := re.search(r"give --dp-size (\d+)", line):
        fewer = dataclasses.replace(wanted, instances=int(named[1]))
        assert fewer.instances < instances
        assert refused(fewer, weights, Machine((), memory), others) == ""


def test_a_model_that_is_not_here_is_not_judged() -> None:
    assert refused(asked(), Weights(0, {}), Machine((), 1)) == ""


# -- files ----------------------------------------------------------------------------------


def test_the_files_of_one_kind_count(tmp_path: Path) -> None:
    assert weights_of(None, LLAMA).stored == 0
    assert weights_of(tmp_path, LLAMA).stored == 0
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 9)
    (tmp_path / "config.json").write_bytes(b"{}")
    assert weights_of(tmp_path, LLAMA).stored == 9
    for part in range(3):
        (tmp_path / f"model-{part}.safetensors").write_bytes(b"x" * 5)
    assert weights_of(tmp_path, LLAMA) == Weights(15, LLAMA)


@pytest.mark.parametrize("dtype", ["fp8", "odd"])
def test_an_unknown_dtype_is_taken_as_stored(dtype: str) -> None:
    assert EIGHT_B.loaded(dtype, on_cpus=True) == 16 * GB
