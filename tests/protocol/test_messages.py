"""Orders and reports survive the wire, in both of SGLang's formats."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest
from sglang.srt.managers.io_struct import BaseReq, msgpack_decode, msgpack_encode

from sglang_cdsp.protocol import messages
from sglang_cdsp.protocol.messages import (
    ORDER_TYPES,
    Answered,
    CacheChange,
    CacheChanged,
    CancelOrder,
    ChunkDone,
    CopyEnded,
    CopyEndOrder,
    CopyInOrder,
    CopyOutOrder,
    CopyReady,
    DecodeEnded,
    Drained,
    Failed,
    FirstToken,
    ForgetOrder,
    GoOrder,
    GrammarOrder,
    GrammarRefused,
    Hello,
    Invitation,
    InviteOrder,
    LeaveOrder,
    LinkOrder,
    LoadOrder,
    LogprobOrder,
    LogprobPart,
    LogprobSpec,
    MovedIn,
    MovedOrder,
    MovedOut,
    MoveEnded,
    MoveEndOrder,
    MoveFailed,
    MoveInOrder,
    MoveOutOrder,
    MoveReady,
    OutputState,
    PeerOrder,
    PlanOrder,
    PromptLogprobs,
    Ready,
    Released,
    ReleaseOrder,
    Report,
    RestOrder,
    ResumeOrder,
    Retracted,
    RoomOrder,
    SlotsTaken,
    StatusOrder,
    StockBatch,
    StockEnded,
    StockOrder,
    StopOrder,
    Streamed,
    StreamedPart,
    WriteLost,
    decode_report,
    encode_report,
    register_orders,
)

PART = LogprobPart(3, [4, 5], [-0.5, -1.5], [[-0.1], [-0.2]], [[7], [8]], [[], []], [[], []])
OUTPUT = OutputState(tokens=[7, 8], sent=1, cached_tokens=3, retractions=2, logprobs=b"\x80")
FRAMES = [b"", b"\x00\xff", b"room"]

ORDERS: list[BaseReq] = [
    PeerOrder(tp_rank=1, frames=FRAMES),
    RoomOrder(tp_rank=0, frames=FRAMES),
    PlanOrder(
        rid="r",
        seq=3,
        tokens=b"\x01" * 16,
        chunks=[(64, [0]), (36, [0, 2])],
        room=(1 << 63) - 1,
        arrival_s=7.25,
        logprobs=LogprobSpec(start=2, top=3, token_ids=[4, 5]),
        urgency=1.5,
        passes=True,
    ),
    PlanOrder(seq=3, tokens=b"", chunks=[(1, [0])], revision=2, probe=True),
    PlanOrder(seq=3, tokens=b"", chunks=[(1, [0])], reused=16, copy=-2),
    RestOrder(seq=3, revision=2, chunk=1, chunks=[(1, [0]), (2, [0, 1])], urgency=1.0, passes=True),
    ForgetOrder(seq=3),
    LogprobOrder(part=PART),
    StockOrder(rid="r", seq=4, arrival_s=7.5, passes=True),
    ResumeOrder(rid="r", seq=4, output=OUTPUT),
    MoveInOrder(rid="r", seq=4, source=1, lane=2, serial=9, ahead=16),
    MoveOutOrder(seq=4, target=0, lane=2, serial=9, ahead=16, held=8),
    MovedOrder(seq=4, rows=30, output=OUTPUT, ahead=16),
    MoveEndOrder(seq=4, moved=True),
    CopyInOrder(seq=-2, tokens=b"\x01\0\0\0", salt="a", source=1, lane=2, serial=9),
    CopyOutOrder(seq=-2, tokens=b"\x01\0\0\0", salt=None, target=0, first=0, lane=2, serial=9),
    CopyEndOrder(seq=-2),
    LoadOrder(requests=3, tokens=4000),
    CancelOrder(seq=4),
    GoOrder(seq=5, chunk=1, revision=3, lane=2, serial=1 << 40),
    StopOrder(seq=5, resumes=True),
    ReleaseOrder(seq=6, error="no slots: 3 Ω", silent=True),
    LinkOrder(tp_rank=1, seat=2, incarnation=3, invitation=b"\x00\xff"),
    LeaveOrder(seat=2, incarnation=3),
    InviteOrder(seat=2, incarnation=4),
    GrammarOrder(rid="r", kind="regex", text="a|b", reasoning=True),
    StatusOrder(status="{}"),
]
BY: dict[str, Any] = {"instance": 3, "tp_rank": 1, "at_s": 12.5}
REPORTS: list[Report] = [
    CacheChanged(
        **BY,
        changes=[
            CacheChange("stored", b"\0" * 8),
            CacheChange("stored", b"\1" * 8, "CPU_PINNED", b"\2" * 8, -1, "salt", "session"),
            CacheChange("cleared"),
        ],
    ),
    Hello(
        **BY,
        incarnation=1,
        invitations={0: b"here", 2: b"\x00"},
        kv_capacity=4096,
        page_size=16,
        max_input_tokens=9,
        vocab_size=32,
        layers=4,
        kv_cache_dtype="f",
        max_shard_tokens=5000,
        device="some GPU, 80 GB",
        dtype="bfloat16",
        kv_token_bytes=512,
    ),
    Invitation(**BY, seat=2, life=4, invitation=b"\x00\xff", error="no room"),
    Answered(**BY, kind="FlushCacheReqOutput", payload=b"\x01", failure="busy"),
    Ready(**BY, seq=1, chunk=0, revision=2),
    ChunkDone(**BY, seq=1, chunk=2, start_s=11.25, passed_s=0.5),
    FirstToken(**BY, seq=1),
    PromptLogprobs(**BY, part=PART),
    Drained(**BY, seq=1, error="lost"),
    Failed(**BY, seq=1, error="no", bad_request=True, revision=2),
    WriteLost(**BY, seq=1, error="gone"),
    Released(**BY, seq=1, joined=True),
    DecodeEnded(**BY, seq=1, error="aborted"),
    Streamed(
        **BY,
        payload=b"\x00\xff",
        parts=[StreamedPart(rid="r", tokens=[7, 8], ended=True, cached_tokens=3, retractions=1)],
    ),
    Retracted(**BY, seq=1, output=OUTPUT),
    MoveReady(**BY, seq=1, held=8),
    MovedOut(**BY, seq=1, rows=30, output=OUTPUT, ahead=16, start_s=1.0, end_s=2.0),
    MovedIn(**BY, seq=1),
    MoveFailed(**BY, seq=1, error="no", stays=True),
    MoveEnded(**BY, seq=1),
    CopyReady(**BY, seq=-2, held=16),
    CopyEnded(**BY, seq=-2, error="no", found=16),
    SlotsTaken(**BY, tokens=900, step_s=0.02),
    StockEnded(**BY, seq=1, start_s=None, end_s=2.0, error=""),
    StockBatch(**BY, start_s=1.0, parts=[(0, 30), (256, 100)]),
    GrammarRefused(**BY, rid="r", error="no"),
]


@pytest.fixture(autouse=True)
def registered() -> None:
    register_orders()


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)
def test_orders_survive_sglangs_sockets(order: BaseReq) -> None:
    for heard in (msgpack_decode(msgpack_encode(order)), pickle.loads(pickle.dumps(order))):
        assert type(heard) is type(order)
        assert heard == order


def test_every_order_type_is_tried_and_known() -> None:
    assert {type(order) for order in ORDERS} == set(ORDER_TYPES)
    defined = {
        found
        for found in vars(messages).values()
        if isinstance(found, type) and issubclass(found, BaseReq) and found is not BaseReq
    }
    assert defined == set(ORDER_TYPES), "an order that is not registered cannot be decoded"


def test_registering_twice_is_harmless_and_keeps_sglangs_types() -> None:
    from sglang.srt.managers.io_struct import AbortReq

    register_orders()
    assert msgpack_decode(msgpack_encode(AbortReq(rid="x", abort_all=True))).abort_all
    assert msgpack_decode(msgpack_encode(StopOrder(seq=1))) == StopOrder(seq=1)


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_reports_survive_the_socket(report: Report) -> None:
    assert decode_report(encode_report(report)) == report


def test_every_report_type_is_tried() -> None:
    assert {type(report) for report in REPORTS} == set(Report.__subclasses__())


@pytest.mark.parametrize("data", [b"", b"\xc1", msgspec.msgpack.encode({"type": "Other"})])
def test_foreign_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_report(data)
