"""Two prefill ranks that hold one request's KV send it to decode: real NIXL, host memory."""

import inspect
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from sglang.srt.disaggregation.base.conn import KVPoll
from sglang.srt.disaggregation.nixl import conn
from sglang.srt.disaggregation.utils import DisaggregationMode

from tests.patches.probes.peers import HOST, PATIENCE_S, await_true, parallel, surroundings

BUFFERS, PAGES, PAGE_BYTES = 4, 16, 64
CLOSES = "closes_room" in inspect.signature(conn.NixlKVManager.add_transfer_request).parameters


class Manager(conn.NixlKVManager):
    """The NIXL manager without a bootstrap server."""

    def register_to_bootstrap(self) -> None: ...


@dataclass
class Side:
    """A manager with its KV and metadata buffers: uint8 [buffers, pages, bytes]."""

    manager: Manager
    kv: npt.NDArray[np.uint8]
    aux: npt.NDArray[np.uint8]


def run() -> dict[str, Any]:
    """Answers by way of sending."""
    device = SimpleNamespace(device="cpu")
    with (
        surroundings(1, parallel),
        mock.patch.multiple(conn, get_parallel=parallel, get_device=lambda: device),
    ):
        home, holder = (_side(DisaggregationMode.PREFILL, seed) for seed in (1, 2))
        decode = _side(DisaggregationMode.DECODE, 0)
        for side in (home, holder):
            side.manager._add_remote_peer(_registration(decode))
        return {
            "holders": _two_holders(home, holder, decode),
            "one": _one_sender(home, decode),
            "refused": _refused(home, decode),
        }


def _two_holders(home: Side, holder: Side, decode: Side) -> dict[str, Any]:
    """Positions 0, 3, 4, 7 of a prompt lie at home, the others at the holder; home goes first."""
    room, pages = 11, np.array([9, 2, 13, 4, 5, 14, 7, 1], np.int32)
    _open(room, pages, decode, home, holder)
    places = [np.array(at) for at in ([0, 3, 4, 7], [1, 2], [5, 6])]
    sources = [np.array(at, np.int32) for at in ([3, 8, 5, 2], [1, 15], [6, 4])]
    for side, place, source, number, last, closes in (
        (home, places[0], sources[0], 2, True, True),
        (holder, places[1], sources[1], 0, False, False),
        (holder, places[2], sources[2], 1, False, True),
    ):
        side.manager.add_transfer_request(
            room,
            source,
            place,
            last,
            number,
            aux_index=0 if last else None,
            **({"closes_room": closes} if CLOSES else {}),
        )
    arrived = await_true(lambda: _done(decode, room))
    ended = await_true(
        lambda: all(_status(side, room) == KVPoll.Success for side in (home, holder)),
        PATIENCE_S if CLOSES else 1.0,
    )
    right = all(
        np.array_equal(decode.kv[:, pages[place]], side.kv[:, source])
        for side, place, source in zip((home, holder, holder), places, sources, strict=True)
    )
    return {
        "decode counts it as done": arrived,
        "bytes are right": right and np.array_equal(decode.aux, home.aux),
        "both see success": ended,
        "both drop the room": ended and await_true(lambda: _dropped(room, home, holder)),
    }


def _one_sender(home: Side, decode: Side) -> dict[str, Any]:
    """Consecutive slices from one rank, as stock senders enqueue them."""
    room, pages = 12, np.array([3, 1, 8, 6], np.int32)
    _open(room, pages, decode, home)
    source = np.array([10, 11, 12, 13], np.int32)
    home.manager.add_transfer_request(room, source[:2], slice(0, 2), False, 0)
    home.manager.add_transfer_request(room, source[2:], slice(2, 4), True, 1, aux_index=0)
    arrived = await_true(lambda: _done(decode, room))
    return {
        "decode counts it as done": arrived,
        "bytes are right": np.array_equal(decode.kv[:, pages], home.kv[:, source]),
        "sees success": await_true(lambda: _status(home, room) == KVPoll.Success),
        "drops the room": await_true(lambda: _dropped(room, home)),
    }


def _refused(home: Side, decode: Side) -> str:
    """What decode is told when pages for a DCP relayout are not consecutive."""
    room = 13
    _open(room, np.array([1, 2], np.int32), decode, home)
    peer = home.manager.decode_kv_args_table[decode.manager.agent.name]
    peer.requires_dcp_relayout = True
    decode.manager.update_status(room, KVPoll.WaitingForInput)
    home.manager.add_transfer_request(
        room, np.array([1, 2], np.int32), np.array([1, 0]), True, 0, aux_index=0
    )
    await_true(lambda: decode.manager.request_status[room] == KVPoll.Failed)
    return decode.manager.failure_records.get(room, "")


def _open(room: int, pages: npt.NDArray[np.int32], decode: Side, *senders: Side) -> None:
    """Decode's page list arrives at the senders."""
    for side in senders:
        info = conn.TransferInfo(
            room=room,
            endpoint=HOST,
            dst_port=decode.manager.rank_port,
            agent_name=decode.manager.agent.name,
            dst_kv_indices=pages,
            dst_aux_index=0,
            required_dst_info_num=1,
            dst_state_indices=[],
        )
        side.manager.transfer_infos[room] = {info.agent_name: info}
        side.manager.update_status(room, KVPoll.WaitingForInput)
    decode.manager.transfer_statuses[room].num_pp_ranks_expected = 1


def _status(side: Side, room: int) -> int | None:
    return side.manager.request_status.get(room)


def _dropped(room: int, *sides: Side) -> bool:
    return not any(room in side.manager.transfer_infos for side in sides)


def _done(decode: Side, room: int) -> bool:
    decode.manager.update_transfer_status()
    return decode.manager.transfer_statuses[room].is_done()


def _side(mode: DisaggregationMode, seed: int) -> Side:
    random = np.random.default_rng(seed)
    kv = random.integers(0, 256, (BUFFERS, PAGES, PAGE_BYTES), np.uint8)
    aux = random.integers(0, 256, (1, 8), np.uint8)
    args = SimpleNamespace(
        engine_rank=0,
        gpu_id=0,
        pp_rank=0,
        system_dp_rank=0,
        page_size=1,
        kv_cache_dtype_str="float32",
        kv_head_num=1,
        total_kv_head_num=1,
        num_draft_entries=0,
        kv_layer_ids=[],
        mla_compression_ratios=None,
        kv_data_mem_kinds=["DRAM"] * BUFFERS,
        kv_data_ptrs=[buffer.ctypes.data for buffer in kv],
        kv_data_lens=[buffer.nbytes for buffer in kv],
        kv_item_lens=[PAGE_BYTES] * BUFFERS,
        aux_data_ptrs=[aux.ctypes.data],
        aux_data_lens=[aux.nbytes],
        aux_item_lens=[aux.nbytes],
        state_types=[],
        state_data_ptrs=[],
        state_data_lens=[],
        state_item_lens=[],
    )
    return Side(Manager(args, mode, None), kv, aux)


def _registration(decode: Side) -> Any:
    args = decode.manager.kv_args
    return conn.KVArgsRegisterInfo(
        room="None",
        endpoint=HOST,
        dst_port=decode.manager.rank_port,
        agent_name=decode.manager.agent.name,
        agent_metadata=decode.manager.agent.get_agent_metadata(),
        dst_kv_ptrs=args.kv_data_ptrs,
        dst_kv_mem_kinds=args.kv_data_mem_kinds,
        dst_aux_ptrs=args.aux_data_ptrs,
        dst_state_data_ptrs=[],
        gpu_id=0,
        decode_tp_size=1,
        decode_tp_rank=0,
        dst_kv_item_len=PAGE_BYTES,
        dst_kv_item_lens=args.kv_item_lens,
    )
