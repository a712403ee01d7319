"""`python -m sglang_cdsp`: the commands that it offers."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from sglang_cdsp.__main__ import commands
from tests.cli.calls import call


def test_the_dispatcher_offers_the_commands_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands()["plan"] == "plan one prompt at a given pool state and say why."
    assert "parser" not in commands()
    status, out, _ = call(capsys, "--help")
    assert status == 0
    assert "plan one prompt" in out
    status, _, err = call(capsys, "dance")
    assert status == 2
    assert err.count("\n") == 1
    assert "'dance'" in err


def test_ctrl_c_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(options: object) -> int:
        raise KeyboardInterrupt

    module = SimpleNamespace(add_arguments=lambda parser: None, run=stop)
    monkeypatch.setattr("importlib.import_module", lambda name: module)
    assert call(capsys, "plan") == (130, "", "stopped\n")


def test_a_reader_that_leaves_is_no_fault() -> None:
    command = [sys.executable, "-m", "sglang_cdsp", "plan", "--tokens", "9000"]
    command += ["--queue", "0*2000", "--policy", "data-parallel"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as plan:  # type: ignore[call-overload]
        plan.stdout.close()
        err = plan.stderr.read()
    assert err == ""
    assert plan.returncode == 141
