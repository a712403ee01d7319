"""What the life cycle decides, put on the wire."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any

import zmq
from sglang.srt.managers.io_struct import (
    TokenizedGenerateReqInput,
    sock_send,
    unwrap_from_pickle,
    wrap_as_pickle,
)
from sglang.srt.observability.req_time_stats import DPControllerReqTimeStats

from sglang_cdsp.pool.contact import DecodeContact
from sglang_cdsp.pool.decode_servers import DecodeServers
from sglang_cdsp.pool.entry import AbortTarget, Entry
from sglang_cdsp.pool.messages import (
    CancelOrder,
    GoOrder,
    LogprobOrder,
    LogprobPart,
    LogprobWish,
    MeshOrder,
    PlanOrder,
    ReleaseOrder,
    RoomOrder,
    TurnOrder,
)
from sglang_cdsp.pool.rooms import Rooms

# Probes run on any token: id 1 exists in every vocabulary.
PROBE_TOKEN = 1


class PoolOutbox:
    """Sends orders over SGLang's scheduler sockets; implements ``lifecycle.Outbox``."""

    def __init__(
        self,
        *,
        workers: Sequence[zmq.Socket[bytes] | None],
        contact: DecodeContact,
        decode: DecodeServers,
        rooms: Rooms,
        answer: Callable[[Entry, HTTPStatus, str], None],
        ended: Callable[[Entry], None],
    ) -> None:
        """``workers`` are the schedulers' sockets by instance."""
        self._workers = workers
        self._contact = contact
        self._decode = decode
        self._rooms = rooms
        self.answer = answer
        self.ended = ended

    def _send(self, instances: Iterable[int], order: Any) -> None:
        for instance in instances:
            worker = self._workers[instance]
            assert worker is not None
            sock_send(worker, order)

    def bind(self, entry: Entry) -> None:
        """Send a bound request's pages, plan and, to its home, the request itself."""
        assert entry.plan is not None
        members = entry.plan.instances
        if entry.room is not None:
            for message in self._rooms.messages(entry.room):
                order = RoomOrder(tp_rank=message.tp_rank, frames=message.frames)
                self._send(members, order)
        if entry.one_instance:
            self._send(members, TurnOrder(rid=entry.rid, seq=entry.seq))
        else:
            self._send(members, _plan_order(entry))
        if not entry.probe:
            self._send([entry.plan.home], _stamped(entry.request))

    def go(self, entry: Entry, instances: Iterable[int], *, go: bool) -> None:
        """Start the next chunk, or drop the task."""
        self._send(instances, GoOrder(seq=entry.seq, chunk=entry.next_chunk, go=go))

    def logprobs(self, entry: Entry, part: LogprobPart) -> None:
        """Pass prompt log-probabilities on to home."""
        assert entry.plan is not None
        self._send([entry.plan.home], LogprobOrder(part=part))

    def relink(self, epoch: int) -> None:
        """Order every instance to make new links."""
        self._send(range(len(self._workers)), MeshOrder(epoch=epoch))

    def release(self, entry: Entry) -> None:
        """Free the slots; home answers its client unless that was done."""
        assert entry.plan is not None
        order = ReleaseOrder(seq=entry.seq, error=entry.error, silent=entry.answered)
        self._send(entry.plan.instances, order)

    def cancel_turn(self, entry: Entry) -> None:
        """Abort a one-instance request where it is."""
        assert entry.plan is not None
        self._send(entry.plan.instances, CancelOrder(seq=entry.seq))

    def forward_abort(self, entry: Entry, tp_rank: int, frames: list[bytes]) -> None:
        """Pass decode's abort to the instance whose stock sender will acknowledge it."""
        assert entry.plan is not None
        self._send(entry.plan.instances, RoomOrder(tp_rank=tp_rank, frames=frames))

    def fail_room(self, room: int, reason: str) -> None:
        """Tell every decode rank of a room that it failed."""
        for message in self._rooms.messages(room):
            self._contact.fail_room(room, message, reason)

    def announce_failure(self, room: int, reason: str) -> None:
        """Tell every decode rank that a room failed; who does not have it takes no notice."""
        for rank in self._decode.ranks:
            self._contact.fail_room(room, rank, reason)

    def finish_room(self, room: int) -> None:
        """Tell every decode rank of a room that its KV has arrived, if it waits to hear that."""
        for message in self._rooms.messages(room):
            self._contact.finish_room(room, message)

    def ack_abort(self, room: int, target: AbortTarget) -> None:
        """Tell decode that a room's pages are safe."""
        self._contact.ack_abort(room, target.tp_rank, target.host, target.port)


def _plan_order(entry: Entry) -> PlanOrder:
    assert entry.plan is not None
    tokens = array("q", [PROBE_TOKEN] * entry.tokens if entry.probe else entry.request.input_ids)
    return PlanOrder(
        rid=entry.rid,
        seq=entry.seq,
        tokens=tokens.tobytes(),
        chunks=[(chunk.tokens, list(chunk.instances)) for chunk in entry.plan.chunks],
        room=entry.room,
        probe=entry.probe,
        logprobs=None if entry.probe else logprob_wish(entry.request),
    )


def logprob_wish(request: TokenizedGenerateReqInput) -> LogprobWish | None:
    """The prompt log-probabilities that a request asks for, by SGLang's rules."""
    if not request.return_logprob or request.logprob_start_len < 0:
        return None
    if request.logprob_start_len >= len(request.input_ids or ()):
        return None
    return LogprobWish(
        start=request.logprob_start_len,
        top=request.top_logprobs_num or 0,
        token_ids=request.token_ids_logprob,
    )


def _stamped(request: TokenizedGenerateReqInput) -> TokenizedGenerateReqInput:
    """The request with the controller's time stamps, as SGLang's controller leaves it.

    Decode finds its prefill rank through the pool's contact, so the sender must not announce a
    rank of its own: naming one tells it so.
    """
    stats = DPControllerReqTimeStats.new_from_obj(unwrap_from_pickle(request.time_stats))
    stats.set_dp_dispatch_time()
    request.time_stats = wrap_as_pickle(stats)
    request.disagg_prefill_dp_rank = 0
    return request
