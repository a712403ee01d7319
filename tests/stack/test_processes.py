"""Servers end with the program that started them, however it ends."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sglang_cdsp.protocol.ports import free_ports
from sglang_cdsp.stack import listeners
from sglang_cdsp.stack.directory_lock import DirectoryInUseError
from sglang_cdsp.stack.processes import (
    Command,
    ServerFailedError,
    ServerGroup,
    ServerProcess,
    wait_until_healthy,
)
from sglang_cdsp.stack.reaper import session_members
from sglang_cdsp.testing.stack import Deployment, running, together

STUBBORN_SERVER = """
import http.server, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
handler = http.server.SimpleHTTPRequestHandler
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), handler).serve_forever()
"""
"""Answers every path, ignores SIGTERM, and has a child that does so too."""

OWNER = """
import sys, time
from pathlib import Path
from sglang_cdsp.stack import processes
from sglang_cdsp.testing.stack import Deployment, running
processes.TERMINATE_GRACE_S = processes.ORPHAN_GRACE_S = 0.5
name, port, directory = sys.argv[1:]
arguments = (sys.executable, "-c", {server!r}, port)
url = f"http://127.0.0.1:{{port}}"
plan = Deployment((processes.Command(name, arguments, url),), url, {{name: url}})
with running(plan, Path(directory)) as stack:
    print(stack.servers[name].pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stubborn servers be killed soon."""
    monkeypatch.setattr("sglang_cdsp.stack.processes.TERMINATE_GRACE_S", 0.5)
    monkeypatch.setattr("sglang_cdsp.stack.processes.ORPHAN_GRACE_S", 0.5)


def stubborn_command(name: str = "stubborn") -> Command:
    """A server that SIGTERM does not end."""
    (port,) = free_ports(1)
    arguments = (sys.executable, "-c", STUBBORN_SERVER, str(port))
    return Command(name, arguments, f"http://127.0.0.1:{port}/")


def plan_of(command: Command) -> Deployment:
    """A plan of one server."""
    return Deployment((command,), command.health_url, {command.name: command.health_url})


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait up to half a minute for ``condition``."""
    for _ in range(300):
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.usefixtures("short_grace")
def test_the_block_ends_the_whole_tree(tmp_path: Path) -> None:
    with running(plan_of(stubborn_command()), tmp_path) as stack:
        server = stack.servers["stubborn"]
        assert eventually(lambda: len(server.members()) == 2)
    assert server.members() == []


@pytest.mark.usefixtures("short_grace")
def test_an_exception_ends_the_whole_tree(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyError, match="inside"),
        running(plan_of(stubborn_command()), tmp_path) as stack,
    ):
        raise KeyError("inside")
    assert stack.servers["stubborn"].members() == []


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, None), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -9)],
)
def test_a_signal_to_the_owner_ends_the_whole_tree(
    tmp_path: Path, number: signal.Signals, status: int | None
) -> None:
    (port,) = free_ports(1)
    script = textwrap.dedent(OWNER).format(server=STUBBORN_SERVER)
    owner = subprocess.Popen(
        [sys.executable, "-c", script, "stubborn", str(port), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert owner.stdout is not None
    session = int(owner.stdout.readline())
    assert eventually(lambda: len(session_members({session})) == 2)
    owner.send_signal(number)
    owner.wait(timeout=60)
    assert status is None or owner.returncode == status
    assert eventually(lambda: not session_members({session}))


def test_a_server_that_ends_while_starting_is_reported(tmp_path: Path) -> None:
    arguments = (sys.executable, "-c", "print('the reason'); raise SystemExit(3)")
    command = Command("broken", arguments, "http://127.0.0.1:9/")
    with (
        pytest.raises(ServerFailedError, match=r"(?s)broken ended with status 3.*the reason"),
        running(plan_of(command), tmp_path),
    ):
        pass


def test_a_server_that_answers_half_a_line_is_not_healthy_yet(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    script = (
        "import socket, sys\n"
        "listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n"
        "while True:\n"
        "    peer, _ = listener.accept()\n"
        "    peer.recv(1000)\n"
        "    peer.sendall(b'no status line\\r\\n\\r\\n')\n"
        "    peer.close()\n"
    )
    arguments = (sys.executable, "-c", script, str(port))
    with ServerGroup() as group:
        command = Command("mumbling", arguments, f"http://127.0.0.1:{port}/")
        server = group.start(command, tmp_path / "mumbling.log")
        assert eventually(lambda: listeners.holders(port) == {server.pid})
        assert not server.healthy()


@pytest.mark.usefixtures("short_grace")
def test_anothers_answer_is_not_this_servers_health(tmp_path: Path) -> None:
    with ServerGroup() as group:
        first = group.start(stubborn_command("first"), tmp_path / "first.log")
        assert eventually(first.healthy)
        sleep = (sys.executable, "-c", "import time; time.sleep(600)")
        command = Command("second", sleep, first.command.health_url)
        second = group.start(command, tmp_path / "second.log")
        with pytest.raises(ServerFailedError, match=rf"port \d+, .* by process {first.pid};"):
            second.healthy()
        assert first.healthy()


@pytest.mark.usefixtures("short_grace")
def test_a_port_in_use_ends_the_start_before_it_begins(tmp_path: Path) -> None:
    plan = plan_of(stubborn_command())
    with running(plan, tmp_path / "first") as stack:
        server = stack.servers["stubborn"]
        with (
            pytest.raises(ServerFailedError, match=f"in use by process {server.pid}; end that"),
            running(plan, tmp_path / "second"),
        ):
            pass
        assert server.healthy()
        assert not (tmp_path / "second" / "stubborn.log").exists()


@pytest.mark.usefixtures("short_grace")
def test_two_starts_do_not_share_a_directory_of_logs(tmp_path: Path) -> None:
    with running(plan_of(stubborn_command()), tmp_path) as stack:
        with (
            pytest.raises(DirectoryInUseError, match=f"in use by process {os.getpid()}; end that"),
            running(plan_of(stubborn_command()), tmp_path),
        ):
            pass
        assert stack.servers["stubborn"].healthy()
    with running(plan_of(stubborn_command()), tmp_path):
        pass


@pytest.mark.usefixtures("short_grace")
def test_the_end_says_what_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang_cdsp.stack.processes._SAY_EVERY_S", 0.0)
    lines: list[str] = []
    with running(plan_of(stubborn_command()), tmp_path, progress=lines.append):
        pass
    waiting = [line for line in lines if "waiting for stubborn to end" in line]
    assert waiting
    assert "killing stubborn" in lines[-1]


@pytest.mark.usefixtures("short_grace")
def test_a_server_gives_way_with_all_that_it_starts(tmp_path: Path) -> None:
    command = dataclasses.replace(stubborn_command(), nice=7)
    with ServerGroup() as group:
        server = group.start(command, tmp_path / "stubborn.log")
        assert eventually(lambda: len(server.members()) == 2)
        members = server.members()
        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in members] == [7, 7]
        shared = Path(f"/proc/{server.pid}/autogroup")
        if shared.exists():
            assert shared.read_text().split()[-1] == "7"


def test_a_server_that_is_never_ready_is_reported(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    arguments = (sys.executable, "-c", "import time; print('thinking', flush=True); time.sleep(60)")
    command = Command("slow", arguments, f"http://127.0.0.1:{port}/")
    with ServerGroup() as group:
        server = group.start(command, tmp_path / "slow.log")
        assert eventually(lambda: "thinking" in server.log_tail())
        with pytest.raises(ServerFailedError, match=r"(?s)slow not ready after 0 s.*thinking"):
            wait_until_healthy([server], 0.0, lambda ready, elapsed_s: None)
    assert server.members() == []


def test_progress_names_every_server(tmp_path: Path) -> None:
    lines: list[str] = []
    commands = [stubborn_command(name) for name in ("one", "two")]
    plan = together(*map(plan_of, commands))
    with running(plan, tmp_path, progress=lines.append) as stack:
        assert set(stack.urls) == {"one", "two"}
        for server in stack.servers.values():
            os.killpg(server.pid, signal.SIGKILL)
    assert "one ready, two ready" in lines[-2]


def test_servers_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        together(plan_of(stubborn_command()), plan_of(stubborn_command()))


def test_what_stands_in_front_ends_before_the_others_are_told(tmp_path: Path) -> None:
    """The front takes a moment to end; the server behind it must serve until then."""
    script = (
        "import http.server, signal, sys, time\n"
        "def leave(*_):\n"
        "    time.sleep(float(sys.argv[2])); print('ended', time.monotonic_ns(), flush=True)\n"
        "    raise SystemExit(0)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "handler = http.server.SimpleHTTPRequestHandler\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), handler).serve_forever()\n"
    )
    commands = []
    for name, moment in (("behind", "0"), ("front", "0.7")):
        (port,) = free_ports(1)
        arguments = (sys.executable, "-c", script, str(port), moment)
        commands.append(Command(name, arguments, f"http://127.0.0.1:{port}/"))
    plan = dataclasses.replace(together(*map(plan_of, commands)), first_to_end=("front",))
    with running(plan, tmp_path):
        pass
    ended = {name: (tmp_path / f"{name}.log").read_text().split() for name in ("front", "behind")}
    assert int(ended["front"][-1]) < int(ended["behind"][-1])


@pytest.mark.parametrize("stated", [True, False])
def test_a_server_works_where_it_is_told_to(stated: bool, tmp_path: Path) -> None:
    command = Command(
        *("place", (sys.executable, "-c", "import os; print(os.getcwd())"), "http://127.0.0.1:1/"),
        directory=tmp_path if stated else None,
    )
    server = ServerProcess(command, tmp_path / "logs" / "place.log")
    assert eventually(lambda: not server.running())
    assert server.log_text().strip() == str(tmp_path if stated else tmp_path / "logs")
