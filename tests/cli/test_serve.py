"""`python -m sglang_cdsp serve` refuses what cannot work before it starts anything."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sglang_cdsp.cli import serve as command
from sglang_cdsp.protocol.ports import free_ports
from sglang_cdsp.serve import checks, devices
from sglang_cdsp.serve.devices import Gpu, Machine
from sglang_cdsp.serve.layout import Layout
from tests.cli.calls import call

Ask = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    return folder


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What would have been started; SGLang's own reading of flags is tested elsewhere."""
    begun: list[tuple[Any, ...]] = []

    def start(*given: Any) -> int:
        begun.append(given)
        return 0

    monkeypatch.setattr(command, "serve", start)
    monkeypatch.setattr(checks, "flag_problems", lambda layout: [])
    return begun


@pytest.fixture
def ask(
    model: Path,
    tmp_path: Path,
    started: list[tuple[Any, ...]],
    capsys: pytest.CaptureFixture[str],
) -> Ask:
    """Runs the command for the model with further flags: exit status and lines of stderr."""

    def run(*flags: str) -> tuple[int, list[str]]:
        defaults = {
            "--model-path": str(model),
            "--port": str(free_ports(1)[0]),
            "--log-directory": str(tmp_path / "logs"),
        }
        named = {flag.partition("=")[0] for flag in flags}
        given = [f"{flag}={text}" for flag, text in defaults.items() if flag not in named]
        status, _, err = call(capsys, "serve", *given, *flags)
        return status, err.splitlines()

    return run


def refused(ask: Ask, started: list[tuple[Any, ...]], *flags: str) -> str:
    status, lines = ask(*flags)
    assert (status, started) == (2, [])
    [line] = lines
    assert line.startswith("python -m sglang_cdsp serve: ")
    return line


def test_what_is_right_is_started(ask: Ask, started: list[tuple[Any, ...]], tmp_path: Path) -> None:
    status, _ = ask("--dp-size", "3", "--cdsp-policy", "cdsp", "--enable-metrics")
    assert status == 0
    [(layout, logs, timeout_s, tp_size, *_)] = started
    assert isinstance(layout, Layout)
    assert {"--cdsp-policy", "--enable-metrics"} <= set(layout.pool.server_flags)
    assert (logs, timeout_s, tp_size) == (tmp_path / "logs", command.START_TIMEOUT_S, 1)


def test_a_busy_port_is_refused_at_once(
    ask: Ask, started: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it went on")

    monkeypatch.setattr(command, "find_model", never)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: the port is in use" in refused(ask, started, "--port", str(port))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--dp-size", "1"), "--dp-size"),
        (("--tp-size", "0"), "--tp-size"),
        (("--port", "70000"), "--port"),
        (("--host", "192.0.2.1"), "change --host"),
        (("--model-path", "/no/such/folder"), "no such folder"),
        (("--disaggregation-mode", "decode"), "--form scale-out"),
        (("--form", "both"), "--form"),
        (("--form", "scale-out", "--api-key", "secret"), "proxy"),
        (("--decode-flags", "'open"), "--decode-flags"),
        (("--decode-flags", "--log-level info"), "no decode server"),
        (("--start-timeout", "soon"), "--start-timeout"),
    ],
)
def test_each_flag_that_cannot_be(
    flags: tuple[str, ...], words: str, ask: Ask, started: list[tuple[Any, ...]]
) -> None:
    assert words in refused(ask, started, *flags)


NUMBERS = st.one_of(
    st.integers(-3, 9).map(str),
    st.integers(-(10**30), 10**30).map(str),
    st.sampled_from(["x", "", "-", "²", "1_0", "nan", "inf"]),
)
FLAGS = {
    "--dp-size": NUMBERS,
    "--tp-size": NUMBERS,
    "--port": NUMBERS,
    "--start-timeout": NUMBERS,
    "--host": st.sampled_from(["127.0.0.1", "0.0.0.0", "::", "nowhere.invalid", "", "300.1.1.1"]),
    "--decode-flags": st.sampled_from(["--a 1", "'", "", "--disaggregation-mode"]),
    "--max-total-tokens": NUMBERS,
    "--dtype": st.sampled_from(["auto", "float32", "odd"]),
    "--cdsp-policy": st.text(max_size=3),
    "--nnodes": NUMBERS,
    "--form": st.sampled_from(["one-server", "scale-out", "", "stock"]),
}


@pytest.mark.usefixtures("started")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(flags={"--max-total-tokens": "\u00b2"})
@given(flags=st.fixed_dictionaries({}, optional=FLAGS))
def test_any_flags_are_started_or_refused_in_lines(flags: dict[str, str], ask: Ask) -> None:
    status, lines = ask(*(word for flag, text in flags.items() for word in (f"{flag}={text}",)))
    assert status in (0, 2)
    assert not any("Traceback" in line for line in lines)
    told = [line for line in lines if line.startswith(f"{command.PROGRAM}: ")]
    assert bool(told) == (status == 2)


def test_a_folder_of_logs_that_cannot_be(
    ask: Ask, started: list[tuple[Any, ...]], model: Path
) -> None:
    folder = str(model / "config.json" / "logs")
    assert "--log-directory" in refused(ask, started, "--log-directory", folder)


def test_a_model_that_does_not_fit(
    ask: Ask, started: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = (Gpu("some GPU", 100, 100),) * 3
    monkeypatch.setattr(devices, "look", lambda flags: Machine(gpus, 0))
    assert "raise --tp-size" in refused(ask, started)
    assert "needs 4 GPUs" in refused(ask, started, "--dp-size", "4")
    scaled_out = refused(ask, started, "--dp-size", "3", "--form", "scale-out")
    assert "needs 4 GPUs" in scaled_out


def test_a_machine_without_sglang_says_so(
    ask: Ask, started: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "SERVER", ("no_such_module_anywhere",))
    assert "needs no_such_module_anywhere" in refused(ask, started)


def test_all_that_sglang_would_refuse_is_told(
    ask: Ask, started: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "flag_problems", lambda layout: ["one", "two"])
    status, lines = ask()
    assert (status, started) == (2, [])
    assert [line.rpartition(": ")[2] for line in lines[-2:]] == ["one", "two"]


def test_logs_go_to_the_users_folder_by_port(
    started: list[tuple[Any, ...]],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    [port] = free_ports(1)
    assert call(capsys, "serve", "--model-path", str(model), "--port", str(port))[0] == 0
    assert started[0][1] == tmp_path / "state" / "sglang-cdsp" / "log" / f"serve-{port}"
