"""Which links a pool uses, and what is said where they cannot be had."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links import nixl_process
from sglang_cdsp.parallel.links.choose import LINKS_VAR, make_links, pool_links
from sglang_cdsp.parallel.links.nixl_process import prepare_environment, writes_need_polls
from sglang_cdsp.parallel.links.shared_memory import SharedMemoryLinks
from sglang_cdsp.parallel.links.types import Header, LinkShape

SHAPE = LinkShape(1, 1, 64)


def test_the_device_decides_unless_a_variable_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LINKS_VAR, raising=False)
    assert (pool_links("cpu"), pool_links("cuda")) == ("shared-memory", "nixl")
    monkeypatch.setenv(LINKS_VAR, "nixl")
    assert pool_links("cpu") == "nixl"
    monkeypatch.setenv(LINKS_VAR, "gloo")
    with pytest.raises(LinkError, match=r"SGLANG_CDSP_LINKS='gloo'.*shared-memory"):
        pool_links("cpu")


def test_a_missing_nixl_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LINKS_VAR, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LinkError, match="pip install nixl"):
        pool_links("cuda")
    assert pool_links("cpu") == "shared-memory"


def test_host_memory_is_shared() -> None:
    links = make_links("shared-memory", 3, 1, SHAPE, torch.device("cpu"))
    assert isinstance(links, SharedMemoryLinks)
    assert (links.seat, links.incarnation) == (3, 1)


def test_ucx_that_cannot_start_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_TLS", "nothing")
    with pytest.raises(LinkError, match="UCX_TLS"):
        make_links("nixl", 0, 0, SHAPE, torch.device("cpu"))


def test_what_the_user_set_for_ucx_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in nixl_process.UCX_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UCX_DEBUG_SIGNO", "10")
    assert set(prepare_environment()) == {"UCX_POSIX_ERROR_HANDLING", "UCX_SYSV_ERROR_HANDLING"}
    assert os.environ["UCX_DEBUG_SIGNO"] == "10"
    assert os.environ["UCX_POSIX_ERROR_HANDLING"] == "y"


@pytest.mark.parametrize(
    ("tls", "reason"), [("tcp", True), ("^cma", True), ("^tcp", False), ("all", False)]
)
def test_transports_without_cma_are_noticed(
    monkeypatch: pytest.MonkeyPatch, tls: str, reason: bool
) -> None:
    monkeypatch.delenv("UCX_TLS", raising=False)
    if writes_need_polls():
        pytest.skip("this machine refuses process_vm_writev")
    monkeypatch.setenv("UCX_TLS", tls)
    assert bool(writes_need_polls()) == reason


def test_a_header_survives_its_packing() -> None:
    header = Header(1 << 60, 2, 3, -4, 1 << 50, 6, -7)
    assert Header.unpacked(header.packed()) == header
