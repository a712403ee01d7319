"""`python -m sglang_cdsp serve` as a user meets it: started, asked, and ended by Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from sglang_cdsp.args import CACHE_VAR
from sglang_cdsp.protocol.ports import free_ports
from sglang_cdsp.stack import listeners

END_S = 120


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where the latency model is kept."""
    return tmp_path / "cache"


@pytest.fixture
def port() -> int:
    """Where clients will ask."""
    return free_ports(1)[0]


@pytest.fixture
def command(
    checkpoint: Path, cache: Path, tmp_path: Path, port: int
) -> Iterator[subprocess.Popen[str]]:
    """The command, which has just been given."""
    flags = ("--dp-size", "2", "--max-total-tokens", "8000", "--enable-metrics")
    words = (*("--model-path", str(checkpoint)), *("--port", str(port)), *flags)
    started = subprocess.Popen(
        [sys.executable, "-m", "sglang_cdsp", "serve", *words],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "err").open("w"),
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            CACHE_VAR: str(cache),
            "XDG_STATE_HOME": str(tmp_path),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        # A shell's background jobs ignore it, and who runs the tests may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    yield started
    started.kill()
    started.wait()


def lives(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended and that nobody waits for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_from_the_start_to_the_last_process(
    command: subprocess.Popen[str], port: int, cache: Path, tmp_path: Path
) -> None:
    assert command.stdout is not None
    said = []
    for line in command.stdout:
        said.append(line)
        if "Ctrl-C" in line:
            break
    screen = "".join(said)
    assert "Ctrl-C" in screen, (tmp_path / "err").read_text()

    # The curl line, as it stands there.
    [line] = [line for line in said if "curl " in line]
    words = shlex.split(line.partition("try")[2])
    answer = subprocess.run(
        [*words, "--silent", "--fail"], capture_output=True, text=True, check=True
    )
    assert json.loads(answer.stdout)["choices"][0]["text"]

    # What the panel names is there.
    status_url, *metrics = re.findall(r"http://\S+/(?:cdsp/status|metrics)", screen)
    status = requests.get(status_url, timeout=30).json()
    assert status["policy"] in screen
    assert status["counters"]["requests_ended"]["finished"] >= 1
    assert len(metrics) == 2
    for url in metrics:
        assert "sglang:" in requests.get(url, timeout=30).text
    logs = Path(re.findall(r"(/\S+/sglang-cdsp/log/serve-\d+)", screen)[0])
    assert {path.name for path in logs.glob("*.log")} == {
        f"{name}.log" for name in ("prefill", "decode", "router")
    }

    # What the pool measured is kept, and told.
    [kept] = (cache / "latency").iterdir()
    assert status["latency_model_source"] == f"measured at this start, kept in {kept}"
    assert status["latency_model_source"] in (logs / "prefill.log").read_text()
    measured = json.loads(kept.read_text())["latency_model"]["sp"]
    assert measured.keys() == status["latency_model"]["sp"].keys() == {"1", "2"}

    # The same port again is refused, and costs the first nothing.
    again = subprocess.run(
        (*(sys.executable, "-m", "sglang_cdsp", "serve"), "--model-path=x", f"--port={port}"),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert again.returncode == 2
    assert f"--port {port}: the port is in use" in again.stderr

    # Ctrl-C, and nothing is left.
    children = psutil.Process(command.pid).children(recursive=True)
    assert len(children) >= 7  # three servers, two instances, their controller, decode's scheduler
    command.send_signal(signal.SIGINT)
    assert command.wait(timeout=END_S) == 0
    assert [child for child in children if lives(child)] == []
    assert listeners.holders(port) == set()
    assert "all servers have ended" in (tmp_path / "err").read_text()
