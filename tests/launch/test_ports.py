"""Ports that a server will need are tried before it starts."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_cdsp.launch.ports import fault, listeners, problems

HOST = "127.0.0.1"


def free_port() -> int:
    with socket.create_server((HOST, 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something listens on."""
    with socket.create_server((HOST, 0)) as server:
        yield int(server.getsockname()[1])


def server_args(**changed: Any) -> Any:
    ports = {"port": free_port(), "disaggregation_bootstrap_port": free_port(), "grpc_port": None}
    mode = {"disaggregation_mode": "prefill", "disable_radix_cache": True}
    return SimpleNamespace(**{"host": HOST, **mode, **ports, **changed})


def test_free_ports_pass() -> None:
    assert problems(server_args()) == []


@pytest.mark.parametrize(
    ("field", "flag"),
    [
        ("port", "--port"),
        ("disaggregation_bootstrap_port", "--disaggregation-bootstrap-port"),
        ("grpc_port", "--grpc-port"),
    ],
)
def test_a_port_in_use_is_named_with_its_flag(taken: int, field: str, flag: str) -> None:
    [line] = problems(server_args(**{field: taken}))
    assert line.startswith(f"{flag} {taken}: the port is in use")
    assert "give another" in line


def test_all_of_them_are_told(taken: int) -> None:
    with socket.create_server((HOST, 0)) as other:
        second = other.getsockname()[1]
        lines = problems(server_args(port=taken, disaggregation_bootstrap_port=second))
    assert len(lines) == 2


@pytest.mark.parametrize("host", ["0.0.0.0", HOST])
def test_a_listener_on_all_interfaces_counts(host: str) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert "in use" in fault(host, server.getsockname()[1])


def test_a_port_whose_last_connection_is_still_closing_is_free() -> None:
    """The server that ended first leaves its end of a connection in TIME_WAIT."""
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection((HOST, port))
        accepted, _ = server.accept()
        accepted.close()
        client.recv(1)
        client.close()
    plain = socket.socket()
    with plain, pytest.raises(OSError, match="in use"):
        plain.bind((HOST, port))
    assert fault(HOST, port) == ""


def test_trying_leaves_the_port_free(taken: int) -> None:
    port = free_port()
    assert fault(HOST, port) == ""
    with socket.create_server((HOST, port)):
        pass


def test_one_port_for_two() -> None:
    port = free_port()
    [line] = problems(server_args(port=port, disaggregation_bootstrap_port=port))
    assert line.startswith(f"--disaggregation-bootstrap-port {port} is the port of --port too")


@pytest.mark.parametrize("port", [-1, 65536])
def test_no_port(port: int) -> None:
    [line] = problems(server_args(port=port))
    assert line == f"--port {port} is no port; give one from 1 to 65535"


def test_a_host_of_somebody_else() -> None:
    assert "change --host" in fault("192.0.2.1", free_port())  # reserved for documentation


def test_a_host_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "the host nowhere is unknown" in fault("nowhere", 1)


def test_what_a_real_command_line_names() -> None:
    """The names are fields of SGLang's arguments, and these are all it listens on by number."""
    from sglang.srt.server_args import ServerArgs

    for mode, bootstrap in (
        ("prefill", [("--disaggregation-bootstrap-port", 2)]),
        ("null", []),
    ):
        args = ServerArgs(
            model_path="m",
            port=1,
            disaggregation_bootstrap_port=2,
            grpc_port=3,
            disaggregation_mode=mode,
        )
        assert [(found.flag, found.port) for found in listeners(args)] == [
            ("--port", 1),
            *bootstrap,
            ("--grpc-port", 3),
        ]
