"""What there is to compute on, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.serve.devices import MIB, Gpu, free_memory, look, read_gpus, visible

TWO = "NVIDIA H100 80GB HBM3, 81559, 81000\nOdd, name, 24576, 100\n"
GPUS = (
    Gpu("NVIDIA H100 80GB HBM3", 81559 * MIB, 81000 * MIB),
    Gpu("Odd, name", 24576 * MIB, 100 * MIB),
)


def test_gpus_are_read_from_nvidia_smi() -> None:
    assert read_gpus(TWO) == GPUS


@given(st.text())
def test_any_other_text_has_no_gpu_or_a_whole_one(text: str) -> None:
    assert all(isinstance(gpu.total, int) for gpu in read_gpus(text))


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        (None, (0, 1)),
        ("1,0", (1, 0)),
        ("1", (1,)),
        ("", ()),
        ("GPU-8932f937", (0,)),
        ("7", (0,)),
    ],
)
def test_only_visible_gpus_count(named: str | None, wanted: tuple[int, ...]) -> None:
    assert visible(GPUS, named) == tuple(GPUS[number] for number in wanted)


@pytest.fixture
def with_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose nvidia-smi lists two GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{TWO}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


@pytest.mark.usefixtures("with_gpus")
def test_gpus_are_used_unless_the_flags_or_the_environment_say_otherwise() -> None:
    assert look((), {}).gpus == GPUS
    assert look((), {"CUDA_VISIBLE_DEVICES": "1"}).gpus == GPUS[1:]
    assert look(("--device", "cuda"), {}).gpus == GPUS
    assert look(("--device", "cpu"), {}).gpus == ()
    assert look((), {"SGLANG_USE_CPU_ENGINE": "1"}).gpus == ()
    assert look((), {"SGLANG_PLATFORM": "cdsp_cpu"}).gpus == ()


def test_an_nvidia_smi_that_fails_is_a_machine_without_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert look((), {}).gpus == ()


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert free_memory(tmp_path) == 3000
    (tmp_path / "memory.stat").write_text("anon 900\ninactive_file 800\nactive_file 200\nshmem 9\n")
    assert free_memory(tmp_path) == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert 3000 < free_memory(tmp_path) <= psutil.virtual_memory().total


def test_nothing_slow_is_imported_to_look() -> None:
    script = (
        "import sys; from sglang_cdsp.serve import devices, memory, layout; devices.look(());"
        "sys.exit(bool({'torch', 'sglang'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
