"""`python -m sglang_cdsp serve` as a user meets it: started, asked, and ended by Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import requests

from sglang_cdsp.args import CACHE_VAR
from sglang_cdsp.protocol.ports import free_ports
from sglang_cdsp.stack import listeners

END_S = 120

Give = Callable[..., "Given"]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where the latency model is kept."""
    return tmp_path / "cache"


@pytest.fixture
def port() -> int:
    """Where clients will ask."""
    return free_ports(1)[0]


class Given:
    """The command, which has just been given; its processes end with it."""

    def __init__(self, words: Sequence[str], folder: Path, cache: Path) -> None:
        self.err = folder / "err"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sglang_cdsp", "serve", *words],
            stdout=subprocess.PIPE,
            stderr=self.err.open("w"),
            text=True,
            cwd=folder,
            env={
                **os.environ,
                CACHE_VAR: str(cache),
                "XDG_STATE_HOME": str(folder),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            # A shell's background jobs ignore it, and who runs the tests may be one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def panel(self) -> list[str]:
        """The lines of the panel, once it stands there."""
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if "Ctrl-C" in line:
                return said
        raise AssertionError(self.err.read_text())

    def end(self) -> None:
        """Ctrl-C, and nothing is left."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        assert len(children) >= 5  # HTTP, detokenizer, controller, two instances
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(timeout=END_S) == 0
        assert [child for child in children if lives(child)] == []
        assert "all servers have ended" in self.err.read_text()


@pytest.fixture
def give(checkpoint: Path, cache: Path, tmp_path: Path, port: int) -> Iterator[Give]:
    """Gives the command for the small checkpoint, with further flags."""
    given: list[Given] = []

    def begin(*flags: str) -> Given:
        folder = tmp_path / str(len(given))
        folder.mkdir()
        sizes = ("--dp-size", "2", "--max-total-tokens", "8000")
        words = ("--model-path", str(checkpoint), "--port", str(port), *sizes, *flags)
        given.append(Given(words, folder, cache))
        return given[-1]

    yield begin
    for each in given:
        each.process.kill()
        each.process.wait()


def lives(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended and that nobody waits for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ask(panel: Sequence[str], **environment: str) -> str:
    """What the panel's curl line answers, as it stands there, in a shell."""
    [line] = [line for line in panel if "curl " in line]
    words = line.partition("try")[2].strip()
    answer = subprocess.run(
        ["sh", "-c", f"{words} --silent --fail"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return str(json.loads(answer.stdout)["choices"][0]["text"])


def test_two_starts_from_the_command_to_the_last_process(
    give: Give, port: int, cache: Path, tmp_path: Path
) -> None:
    first = give("--enable-metrics", "--cdsp-plan-log", "plans.jsonl")
    panel = first.panel()
    screen = "".join(panel)
    assert ask(panel)

    # What the panel names is there.
    status_url, metrics_url = re.findall(r"http://\S+/(?:cdsp/status|metrics)", screen)
    status = requests.get(status_url, timeout=30).json()
    assert status["policy"] in screen
    assert status["counters"]["requests_ended"]["finished"] >= 1
    assert "sglang_cdsp:" in requests.get(metrics_url, timeout=30).text
    logs = Path(re.findall(r"(/\S+/sglang-cdsp/log/serve-\d+)", screen)[0])
    assert {path.name for path in logs.glob("*.log")} == {"pool.log"}
    assert (tmp_path / "0" / "plans.jsonl").exists(), "a flag's file is where the user is"

    # What the pool measured is kept, and told.
    [kept] = (cache / "latency").iterdir()
    assert status["latency_model_source"] == f"measured at this start, kept in {kept}"
    assert f"latency model {status['latency_model_source']}; " in (logs / "pool.log").read_text()
    measured = json.loads(kept.read_text())["latency_model"]["sp"]
    assert measured.keys() == status["latency_model"]["sp"].keys() == {"1", "2"}

    # The same port again is refused, and costs the first nothing.
    again = give()
    assert again.process.wait(timeout=END_S) == 2
    assert f"--port {port}: the port is in use" in again.err.read_text()

    first.end()
    assert listeners.holders(port) == set()

    # The next start plans with the same model, and its panel shows it though a key is asked for.
    second = give("--api-key", "a key")
    panel = second.panel()
    assert re.search(f"measured [0-9: -]+, kept in {re.escape(str(kept))}", "".join(panel))
    assert ask(panel, API_KEY="a key")
    with pytest.raises(subprocess.CalledProcessError):
        ask(panel, API_KEY="another")
    headers = {"Authorization": "Bearer a key"}
    status = requests.get(status_url, headers=headers, timeout=30).json()
    assert status["latency_model"]["sp"].keys() == measured.keys()
    assert json.loads(kept.read_text())["latency_model"]["sp"] == measured
    second.end()
