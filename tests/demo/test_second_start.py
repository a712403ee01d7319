"""A second demonstration in the same directory, or on the same port, leaves the first alone."""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from sglang_cdsp.demo import __main__ as demo
from sglang_cdsp.protocol.ports import free_ports
from sglang_cdsp.stack.directory_lock import locked


@pytest.fixture
def plan_log(tmp_path: Path) -> Path:
    """The running demonstration's."""
    path = tmp_path / "plans.jsonl"
    path.write_text("a line\n")
    return path


def start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: Sequence[str]
) -> str:
    """Start a demonstration that must refuse; what it said."""

    def start_nothing(*_: object, **__: object) -> None:
        raise AssertionError("it went on")

    monkeypatch.setattr(sys, "argv", ["demo", *flags])
    monkeypatch.setattr(demo, "running", start_nothing)
    assert demo.main() == 1
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    return shown.err


def test_a_directory_in_use_is_refused(
    plan_log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(plan_log.parent):
        said = start(monkeypatch, capsys, ["--directory", str(plan_log.parent)])
    assert f"in use by process {os.getpid()}" in said
    assert plan_log.read_text() == "a line\n"


def test_a_port_in_use_is_refused(
    plan_log: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        said = start(
            monkeypatch, capsys, ["--directory", str(plan_log.parent), "--port", str(port)]
        )
    assert f"port {port}, where pool shall listen, is in use by process {os.getpid()}" in said
    assert plan_log.read_text() == "a line\n"
