"""Free ports."""

from __future__ import annotations

import socket

import pytest

from sglang_cdsp.protocol import ports
from sglang_cdsp.protocol.ports import RANGE, free_ports, is_free


def test_ports_are_free_and_distinct() -> None:
    found = free_ports(50)
    assert len(set(found)) == 50
    assert all(port in RANGE and is_free(port) for port in found)


def test_they_stay_below_what_the_system_hands_out() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        assert probe.getsockname()[1] not in RANGE


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_port_that_somebody_listens_on_is_not_free(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    (port,) = free_ports(1)
    try:
        listener = socket.socket(family)
        listener.bind((address, port))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener:
        listener.listen()
        assert not is_free(port)
    assert is_free(port)


def test_no_free_port_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_free", lambda port: False)
    with pytest.raises(OSError, match="only 0 of 2 ports are free"):
        free_ports(2)
