"""Requests that end because their decode server has: it died, came back anew, or takes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sglang_cdsp.controller.decode.room_manager import RoomManager
from sglang_cdsp.controller.decode.servers import DecodeRank, DecodeServers
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.request import PoolRequest

# A connection that closes and is not there again after so long belonged to a server that is gone.
# ZMQ tries several times a second.
LOST_AFTER_S = 3.0
# How often it is looked whether decode takes what is computed.
LOOK_EVERY_S = 1.0


class DecodeLosses:
    """Watches the decode ranks, and names the requests that nobody waits for any more.

    A frozen server keeps its connections: what it has asked for goes on, and ends by the time-out.
    """

    def __init__(
        self, rooms: RoomManager, decode: DecodeServers, clock: Callable[[], float]
    ) -> None:
        """``clock``: monotonic seconds."""
        self._rooms = rooms
        self._decode = decode
        self._clock = clock
        self._gone_s: dict[tuple[str, int], float] = {}
        self._lost: list[tuple[PoolRequest, str]] = []
        self._looked_s = clock()

    def registered(self, rank: DecodeRank) -> None:
        """A decode rank made contact; whoever listened at its address before is gone."""
        self._gone_s.pop((rank.host, rank.port), None)
        former = self._decode.register(rank)
        if former is not None:
            reason = f"the decode server at {rank.host}:{rank.port} was started anew"
            self._lose(rank.host, rank.port, former.agent, reason)

    def link(self, host: str, port: int, *, alive: bool) -> None:
        """A decode rank can be reached no longer, or again."""
        self._decode.connected(host, port, alive=alive)
        if alive:
            self._gone_s.pop((host, port), None)
        else:
            self._gone_s.setdefault((host, port), self._clock())
            self._rooms.rank_gone(host, port)

    def due(self) -> Iterator[tuple[PoolRequest, str]]:
        """Requests that have to end now, and what their clients are told."""
        now_s = self._clock()
        for host, port in [at for at, gone_s in self._gone_s.items() if self._is_lost(gone_s)]:
            del self._gone_s[(host, port)]
            self._lose(host, port, None, f"the decode server at {host}:{port} is gone")
        lost, self._lost = self._lost, []
        yield from lost
        if self._looked_s + LOOK_EVERY_S > now_s:
            return
        self._looked_s, timeout_s = now_s, self._decode.timeout_s
        for room, request in self._rooms.users.items():
            if _waits_for_decode(request) and (request.first_token_s or now_s) + timeout_s <= now_s:
                yield (
                    request,
                    f"decode did not take the KV of bootstrap room {room} in {timeout_s:g} s: see "
                    "whether its server still runs",
                )

    def _is_lost(self, gone_s: float) -> bool:
        return gone_s + LOST_AFTER_S <= self._clock()

    def _lose(self, host: str, port: int, agent: str | None, reason: str) -> None:
        """End the requests whose pages a rank named, if given only those of one transfer agent."""
        for room, request in self._rooms.users.items():
            if any(
                (message.host, message.port) == (host, port) and agent in (None, message.agent)
                for message in self._rooms.messages(room)
            ):
                self._lost.append((request, f"{reason}; send the request again"))


def _waits_for_decode(request: PoolRequest) -> bool:
    """Whether a request is computed, and somebody waits for its KV to arrive."""
    return request.phase in (Phase.DRAINING, Phase.STOCK) and not request.aborted
