"""What the pool controller and the schedulers say to each other.

Orders travel on SGLang's own scheduler sockets, in order, and reach every tensor-parallel rank
of an instance through SGLang's broadcast: all ranks see the same orders in the same loop
iteration. Their format is SGLang's (``SGLANG_USE_PICKLE_IPC``). Reports travel back over one PULL
socket of the controller's, as msgpack.
"""

from __future__ import annotations

import msgspec
from sglang.srt.managers.io_struct import BaseReq, hook_custom_types

from sglang_cdsp.protocol.copying import (
    CopyEnded,
    CopyEndOrder,
    CopyInOrder,
    CopyOutOrder,
    CopyReady,
)
from sglang_cdsp.protocol.moving import (
    MovedIn,
    MovedOrder,
    MovedOut,
    MoveEnded,
    MoveEndOrder,
    MoveFailed,
    MoveInOrder,
    MoveOutOrder,
    MoveReady,
)
from sglang_cdsp.protocol.reporting import (
    Report,
)
from sglang_cdsp.protocol.seat_orders import (
    GrammarOrder,
    InviteOrder,
    LeaveOrder,
    LinkOrder,
    LoadOrder,
    PeerOrder,
    RoomOrder,
    StatusOrder,
)
from sglang_cdsp.protocol.seat_reports import (
    Answered,
    CacheChanged,
    GrammarRefused,
    Hello,
    Invitation,
    SlotsTaken,
)
from sglang_cdsp.protocol.task_orders import (
    CancelOrder,
    ForgetOrder,
    GoOrder,
    LogprobOrder,
    PlanOrder,
    ReleaseOrder,
    RestOrder,
    ResumeOrder,
    StockOrder,
    StopOrder,
)
from sglang_cdsp.protocol.task_reports import (
    ChunkDone,
    DecodeEnded,
    Drained,
    Failed,
    FirstToken,
    PromptLogprobs,
    Ready,
    Released,
    Retracted,
    StockBatch,
    StockEnded,
    Streamed,
    WriteLost,
)
from sglang_cdsp.protocol.values import (
    CacheChange,
    LogprobPart,
    LogprobSpec,
    OutputState,
    StreamedPart,
)

__all__ = [
    "ORDER_TYPES",
    "Answered",
    "AnyReport",
    "CacheChange",
    "CacheChanged",
    "CancelOrder",
    "ChunkDone",
    "CopyEndOrder",
    "CopyEnded",
    "CopyInOrder",
    "CopyOutOrder",
    "CopyReady",
    "DecodeEnded",
    "Drained",
    "Failed",
    "FirstToken",
    "ForgetOrder",
    "GoOrder",
    "GrammarOrder",
    "GrammarRefused",
    "Hello",
    "Invitation",
    "InviteOrder",
    "LeaveOrder",
    "LinkOrder",
    "LoadOrder",
    "LogprobOrder",
    "LogprobPart",
    "LogprobSpec",
    "MoveEndOrder",
    "MoveEnded",
    "MoveFailed",
    "MoveInOrder",
    "MoveOutOrder",
    "MoveReady",
    "MovedIn",
    "MovedOrder",
    "MovedOut",
    "OutputState",
    "PeerOrder",
    "PlanOrder",
    "PromptLogprobs",
    "Ready",
    "ReleaseOrder",
    "Released",
    "Report",
    "RestOrder",
    "ResumeOrder",
    "Retracted",
    "RoomOrder",
    "SlotsTaken",
    "StatusOrder",
    "StockBatch",
    "StockEnded",
    "StockOrder",
    "StopOrder",
    "Streamed",
    "StreamedPart",
    "WriteLost",
    "decode_report",
    "encode_report",
    "register_orders",
]

ORDER_TYPES: tuple[type[BaseReq], ...] = (
    PeerOrder,
    RoomOrder,
    PlanOrder,
    RestOrder,
    ForgetOrder,
    LogprobOrder,
    StockOrder,
    ResumeOrder,
    LoadOrder,
    CancelOrder,
    GoOrder,
    StopOrder,
    ReleaseOrder,
    MoveInOrder,
    MoveOutOrder,
    MovedOrder,
    MoveEndOrder,
    CopyInOrder,
    CopyOutOrder,
    CopyEndOrder,
    LinkOrder,
    LeaveOrder,
    InviteOrder,
    GrammarOrder,
    StatusOrder,
)


def register_orders() -> None:
    """Teach this process's SGLang message decoder the order types; safe to call twice."""
    hook_custom_types(*ORDER_TYPES)


AnyReport = (
    Hello
    | Invitation
    | Ready
    | ChunkDone
    | FirstToken
    | PromptLogprobs
    | Drained
    | Failed
    | WriteLost
    | Released
    | StockEnded
    | StockBatch
    | DecodeEnded
    | MoveReady
    | MovedOut
    | MovedIn
    | MoveFailed
    | MoveEnded
    | CopyReady
    | CopyEnded
    | Streamed
    | Retracted
    | SlotsTaken
    | CacheChanged
    | GrammarRefused
    | Answered
)


def encode_report(report: Report) -> bytes:
    """Serialise a report."""
    return msgspec.msgpack.encode(report)


def decode_report(data: bytes) -> AnyReport:
    """Inverse of :func:`encode_report`; raises ``msgspec.DecodeError`` on foreign bytes."""
    return msgspec.msgpack.decode(data, type=AnyReport)
