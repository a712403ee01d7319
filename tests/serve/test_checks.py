"""What is refused before a process is started, and that all of it is told."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from pathlib import Path

import pytest

from sglang_cdsp.form import Form
from sglang_cdsp.protocol.ports import free_ports
from sglang_cdsp.serve import flags
from sglang_cdsp.serve.asked import Asked
from sglang_cdsp.serve.checks import flag_problems, quick_problems, weights_here
from sglang_cdsp.serve.devices import Machine
from sglang_cdsp.serve.layout import layout_of


@pytest.fixture(params=Form)
def form(request: pytest.FixtureRequest) -> Form:
    """Either of the two."""
    chosen: Form = request.param
    return chosen


def asked(form: Form, *flags: str, pool: tuple[str, ...] = ()) -> Asked:
    [port] = free_ports(1)
    return Asked("org/model", 2, port=port, flags=flags, pool_flags=pool, form=form)


def told(asked: Asked) -> list[str]:
    parts = layout_of(asked, Machine((), 1)).parts
    servers = [part.server_flags for part in parts if part.server_flags]
    lines = [line for words in servers for line in flags.problems(words)]
    assert not any("\n" in line for line in lines)
    return lines


def test_a_busy_port_and_flags_that_serve_decides_are_told_together() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wanted = Asked(
            *("m", 2),
            port=port,
            flags=("--api-key", "k"),
            decode_flags=("--config", "f"),
            form=Form.PREFILL,
        )
        key, config, busy = quick_problems(wanted)
    assert key.startswith("--api-key: ")
    assert config.startswith("--config: ")
    assert busy.startswith(f"--port {port}: the port is in use")
    assert f"process {os.getpid()}" in busy


def test_one_server_has_no_decode_server_to_give_flags_to() -> None:
    [line] = quick_problems(
        dataclasses.replace(asked(Form.ONE_SERVER), decode_flags=("--log-level", "info"))
    )
    assert line.startswith("--decode-flags: ")
    assert "--form scale-out" in line


def test_a_good_request_passes_every_check(form: Form) -> None:
    given = ("--enable-metrics", "--context-length", "4096")
    wanted = asked(form, *given, pool=("--cdsp-policy", "cdsp"))
    assert quick_problems(wanted) == []
    assert told(wanted) == []


def test_one_server_may_ask_for_a_key() -> None:
    wanted = asked(Form.ONE_SERVER, "--api-key", "k")
    assert quick_problems(wanted) == told(wanted) == []


def test_what_the_pool_refuses_is_told_with_all_of_it(form: Form) -> None:
    pool = ("--cdsp-policy", "fastest", "--cdsp-min-chunk", "x", "--cdsp-odd")
    lines = told(asked(form, pool=pool))
    assert len(lines) == 3
    assert all(
        any(name in line for line in lines) for name in ("policy", "min-chunk", "--cdsp-odd")
    )


def test_what_the_pool_cannot_serve_with_is_told(form: Form) -> None:
    [line] = told(asked(form, "--enable-lora"))
    assert "--enable-lora" in line


def test_a_flag_that_sglang_does_not_know_is_told_once_for_both_servers() -> None:
    """By the process that reads them for the command."""
    wanted = asked(Form.PREFILL, "--no-such-flag", "3")
    [line] = flag_problems(layout_of(wanted, Machine((), 1)))
    assert line == "unrecognized arguments: --no-such-flag 3"


def test_a_process_that_cannot_read_flags_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    [line] = flag_problems(layout_of(asked(Form.ONE_SERVER), Machine((), 1)))
    assert "cannot read its flags" in line


def test_a_flag_of_decode_is_checked_too() -> None:
    decode_flags = ("--max-running-requests", "many")
    [line] = told(dataclasses.replace(asked(Form.PREFILL), decode_flags=decode_flags))
    assert "--max-running-requests" in line
    assert "many" in line


def test_the_weights_of_a_folder_and_of_what_is_not_here(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 7)
    assert weights_here(tmp_path, {"a": 1}).stored == 7
    assert weights_here("nobody/nothing", {}).stored == 0
