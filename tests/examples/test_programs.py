"""The examples can be started; ``tests/serving/test_examples.py`` runs them against servers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
LAUNCH = EXAMPLES / "launch_pool.sh"


def test_every_example_is_in_the_table() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert len(PROGRAMS) >= 3
    for example in (*PROGRAMS, LAUNCH):
        assert f"[{example.name}]({example.name})" in page


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_program_tells_its_flags(program: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(program), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--url" in done.stdout


def test_programs_need_only_what_sglang_brings() -> None:
    allowed = {"sglang", "openai", "requests", *sys.stdlib_module_names}
    for program in PROGRAMS:
        tree = ast.parse(program.read_text(encoding="utf-8"))
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert {name.partition(".")[0] for name in names} <= allowed, program.name


def test_the_launch_script_is_whole_and_tells_its_usage() -> None:
    subprocess.run(["sh", "-n", str(LAUNCH)], check=True)
    done = subprocess.run([str(LAUNCH), "--help"], capture_output=True, text=True, check=True)
    assert "usage: launch_pool.sh MODEL" in done.stdout
    assert subprocess.run([str(LAUNCH)], capture_output=True, check=False).returncode == 2


def test_the_launch_script_starts_prefill_decode_and_router(tmp_path: Path) -> None:
    """A stand-in for python writes down what it is asked to run."""
    log = tmp_path / "log"
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    stand_in.chmod(0o755)
    subprocess.run(
        [str(LAUNCH), "a/model", "--cdsp-policy", "cdsp"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "INSTANCES": "3", "TP_SIZE": "2"},
        start_new_session=True,
        capture_output=True,
        check=False,
    )
    decode, prefill, router = sorted(log.read_text().splitlines(), key=kind)
    assert "--cdsp --dp-size 3 --tp-size 2" in prefill
    assert prefill.endswith("--cdsp-policy cdsp")
    assert "--base-gpu-id 6" in decode
    assert "--cdsp" not in decode
    port = prefill.split("--disaggregation-bootstrap-port ")[1].split()[0]
    assert f"--prefill http://127.0.0.1:30001 {port} " in router


def kind(command: str) -> str:
    """ "decode", "prefill" or "router"."""
    words = command.split()
    if "sglang_router.launch_router" in words:
        return "router"
    return words[words.index("--disaggregation-mode") + 1]
