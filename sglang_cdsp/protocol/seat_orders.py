"""Orders about an instance and those that it speaks to: links, decode agents, what it shows."""

from __future__ import annotations

from sglang.srt.managers.io_struct import BaseReq


class PeerOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """A decode agent's registration, as it came from decode's rank ``tp_rank``."""

    tp_rank: int
    frames: list[bytes]


class RoomOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Destination pages of one request (or its abort) from decode's rank ``tp_rank``."""

    tp_rank: int
    frames: list[bytes]


class LinkOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """How rank ``tp_rank`` of an instance reaches the same rank of another one.

    Attributes:
        seat: the other instance.
        incarnation: which life of that seat it is.
        invitation: what that process said of its inbound area for this instance.
    """

    tp_rank: int
    seat: int
    incarnation: int
    invitation: bytes


class LeaveOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Life ``incarnation`` of instance ``seat`` is gone or will be: drop the link to it."""

    seat: int
    incarnation: int


class InviteOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Get ready for life ``incarnation`` of instance ``seat``; answered by ``Invitation``.

    Every process of the seat's former life has ended.
    """

    seat: int
    incarnation: int


class GrammarOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Compile the grammar of a request that waits for decode, and say if that cannot be done.

    ``kind`` and ``text`` are the key of SGLang's grammar backends.
    """

    kind: str
    text: str
    reasoning: bool = False


class LoadOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """What waits at the controller, to be counted by one instance into SGLang's own numbers."""

    requests: int
    tokens: int


class StatusOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """What the controller wants shown in ``/server_info``, as JSON."""

    status: str
