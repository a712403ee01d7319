"""Decode's agents come, come back under their names, and fail to come; stock keeps the books."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.disaggregation.utils import DisaggregationMode

from sglang_cdsp.transfer.nixl import TAKE_BACK_EVERY_S, UNUSED_S, NixlPoolManager

ROOM = 7


class Agent:
    """NIXL's agent, as far as peers go.

    Attributes:
        refuses: metadata that it cannot load.
        broken: it has dropped what it knew, since a connection broke.
    """

    def __init__(self) -> None:
        self.peers: list[bytes] = []
        self.removed: list[str] = []
        self.refuses = b""
        self.broken = False

    def add_remote_agent(self, metadata: bytes) -> None:
        if metadata == self.refuses:
            raise RuntimeError("NIXL_ERR_NOT_FOUND")
        self.peers.append(metadata)
        self.broken = False

    def remove_remote_agent(self, name: str) -> None:
        if not self.peers or self.broken:
            raise RuntimeError("NIXL_ERR_NOT_FOUND")
        self.removed.append(name)

    def check_remote_metadata(self, name: str) -> bool:
        return not self.broken


class Manager(NixlPoolManager):
    """Ours over stock's, without sockets and buffers."""

    def __init__(self) -> None:
        self.agent: Any = Agent()
        self.disaggregation_mode = DisaggregationMode.PREFILL
        self.decode_kv_args_table: dict[str, Any] = {}
        self.prep_handles: dict[str, Any] = {"": object()}
        self.prep_handles_slice_dst: dict[str, Any] = {}
        self.transfer_infos: dict[int, dict[str, Any]] = {ROOM: {"decode": None}}
        self.prepared = 0
        self.now_s = 100.0
        self.clock = lambda: self.now_s

    def requires_dcp_relayout(self, *_: Any) -> bool:
        return False

    def check_peer_aux_buffer_count(self, *_: Any) -> None:
        pass

    def _prepare_state_xfer(self, *_: Any) -> None:
        pass

    def _prepare_payload_xfer(self, peer_info: Any) -> None:
        if not peer_info.dst_kv_ptrs:
            raise ValueError("unexpected geometry")
        self.prepared += 1
        self.prep_handles[peer_info.agent_name] = peer_info.dst_kv_ptrs


def registration(metadata: bytes, pointers: list[int] | None = None, name: str = "decode") -> Any:
    pointers = [1] if pointers is None else pointers
    return SimpleNamespace(
        agent_name=name,
        agent_metadata=metadata,
        dst_kv_ptrs=pointers,
        dst_aux_ptrs=[2],
        dst_dcp_size=1,
        dst_dcp_rank=0,
    )


@pytest.fixture
def manager() -> Manager:
    return Manager()


def test_an_agent_that_registers_again_is_kept(manager: Manager) -> None:
    """Writes to it may be under way."""
    first = registration(b"one")
    manager._add_remote_peer(first)
    manager._add_remote_peer(registration(b"one"))
    assert manager.decode_kv_args_table == {"decode": first}
    assert (manager.agent.peers, manager.agent.removed) == ([b"one"], [])


def test_another_agent_of_the_same_name_takes_its_place(manager: Manager) -> None:
    manager._add_remote_peer(registration(b"one"))
    second = registration(b"two", [7])
    manager._add_remote_peer(second)
    assert manager.decode_kv_args_table == {"decode": second}
    assert manager.prep_handles["decode"] == [7]
    assert manager.agent.removed == ["decode"]
    assert manager.agent.peers == [b"one", b"two"]


@pytest.mark.parametrize("dead", [registration(b"dead"), registration(b"ok", [])])
def test_an_agent_that_cannot_be_taken_in_leaves_nothing_behind(
    manager: Manager, dead: Any, caplog: pytest.LogCaptureFixture
) -> None:
    manager.agent.refuses = b"dead"
    manager._add_remote_peer(dead)
    assert manager.decode_kv_args_table == {}
    assert set(manager.prep_handles) == {""}
    assert "decode's agent decode cannot be written to" in caplog.text
    later = registration(b"alive")
    manager._add_remote_peer(later)
    assert manager.decode_kv_args_table == {"decode": later}


def test_an_agent_whose_connection_broke_is_taken_in_again(
    manager: Manager,
) -> None:
    peer = registration(b"one")
    manager._add_remote_peer(peer)
    manager._take_back(ROOM)
    assert manager.prepared == 1, "it is well"
    manager.agent.broken = True
    manager._take_back(ROOM)
    assert (manager.prepared, manager.agent.peers) == (2, [b"one", b"one"])
    manager._take_back(ROOM)
    assert manager.prepared == 2


def test_one_that_is_still_out_of_reach_is_tried_now_and_then(
    manager: Manager,
) -> None:
    peer = registration(b"one")
    manager._add_remote_peer(peer)
    manager.agent.broken, manager.agent.refuses = True, b"one"
    for _ in range(3):
        manager._take_back(ROOM)
        manager.now_s += 0.3 * TAKE_BACK_EVERY_S
    assert manager.decode_kv_args_table == {"decode": peer}, "its rooms are still known"
    assert "decode" not in manager.prep_handles, "a write to it fails, and says so"
    manager.agent.refuses = b""
    manager._take_back(ROOM)
    assert manager.prepared == 1, "tried a moment ago"
    manager.now_s += TAKE_BACK_EVERY_S
    manager._take_back(ROOM)
    assert manager.prepared == 2


def test_lists_of_servers_that_are_gone_do_not_pile_up(manager: Manager) -> None:
    """Each start of a decode server is another agent; the one that has a room keeps its lists."""
    manager._add_remote_peer(registration(b"busy"))
    for start in range(10):
        name = f"start-{start}"
        manager.now_s += 2 * UNUSED_S
        manager._add_remote_peer(registration(b"one", name=name))
        assert set(manager.prep_handles) == {"", "decode", name}
    assert manager.agent.removed == [f"start-{start}" for start in range(9)]


def test_an_unused_server_is_taken_in_again_for_its_next_room(manager: Manager) -> None:
    manager.transfer_infos = {}
    peer = registration(b"one")
    manager._add_remote_peer(peer)
    manager.now_s += 2 * UNUSED_S
    manager._add_remote_peer(registration(b"two", name="other"))
    assert "decode" not in manager.prep_handles
    assert manager.decode_kv_args_table["decode"] is peer, "its rooms are known at once"
    manager.agent.broken = True  # what NIXL says of an agent that was removed
    manager.transfer_infos = {ROOM: {"decode": None}}
    manager._take_back(ROOM)
    assert "decode" in manager.prep_handles
    assert manager.decode_kv_args_table["decode"] is peer
