"""What the life cycle decides, put on the wire."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any

import zmq
from sglang.srt.managers.io_struct import (
    AbortReq,
    TokenizedGenerateReqInput,
    sock_send,
    unwrap_from_pickle,
    wrap_as_pickle,
)
from sglang.srt.observability.req_time_stats import DPControllerReqTimeStats

from sglang_cdsp.controller.decode.destination import Destination
from sglang_cdsp.controller.decode.rooms import Rooms
from sglang_cdsp.controller.decode.servers import DecodeServers
from sglang_cdsp.controller.effects import Observer
from sglang_cdsp.controller.prefixes.copy import Copy
from sglang_cdsp.controller.request import AbortTarget, PoolRequest
from sglang_cdsp.planner.roles import Roles
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.protocol.messages import (
    CancelOrder,
    CopyEndOrder,
    CopyInOrder,
    CopyOutOrder,
    ForgetOrder,
    GoOrder,
    LogprobOrder,
    LogprobPart,
    LogprobSpec,
    MovedOrder,
    MoveEndOrder,
    MoveInOrder,
    MoveOutOrder,
    OutputState,
    PlanOrder,
    ReleaseOrder,
    RestOrder,
    ResumeOrder,
    RoomOrder,
    StockOrder,
    StopOrder,
)

logger = logging.getLogger(__name__)

# Probes run on any token: id 1 exists in every vocabulary.
PROBE_TOKEN = 1


class Dispatcher:
    """Implements ``Effects``: orders over SGLang's scheduler sockets, words to decode, answers.

    Observers hear of an effect after it was sent.
    """

    def __init__(
        self,
        *,
        workers: Sequence[zmq.Socket[bytes] | None],
        endpoint: Destination,
        decode: DecodeServers,
        rooms: Rooms,
        tokenizer: zmq.Socket[bytes],
        observers: Sequence[Observer] = (),
    ) -> None:
        """Send through these sockets.

        Args:
            workers: the schedulers' by instance.
            tokenizer: the tokenizer's.
        """
        self._workers = workers
        self._endpoint = endpoint
        self._decode = decode
        self._rooms = rooms
        self._tokenizer = tokenizer
        self._observers = observers

    def _send(self, instances: Iterable[int], order: Any) -> None:
        for instance in instances:
            worker = self._workers[instance]
            assert worker is not None
            sock_send(worker, order)

    def _tell(self, what: Callable[[Observer], None]) -> None:
        """Tell the observers; what one of them cannot do with it is no concern of the pool."""
        for observer in self._observers:
            try:
                what(observer)
            except Exception:
                logger.exception("%s missed an event", type(observer).__name__)

    def bind(self, request: PoolRequest) -> None:
        """Send a bound request's pages, plan and, to its home, the request itself."""
        assert request.plan is not None
        self._introduce(request, request.plan.instances)
        if not request.probe:
            self._send_request(request)
        self._tell(lambda observer: observer.bound(request))

    def _send_request(self, request: PoolRequest) -> None:
        """Send the request itself to its home, behind its plan."""
        assert request.plan is not None
        if request.resumes is not None:
            order = ResumeOrder(rid=request.rid, seq=request.seq, output=request.resumes)
            self._send([request.plan.home], order)
        self._send([request.plan.home], _stamped(request.tokenized))

    def _introduce(self, request: PoolRequest, instances: Sequence[int]) -> None:
        """Send a request's pages and plan to instances that know nothing of it."""
        if request.room is not None and instances:
            for message in self._rooms.messages(request.room):
                order = RoomOrder(tp_rank=message.tp_rank, frames=message.frames)
                self._send(instances, order)
        if request.one_instance:
            self._send(instances, _stock_order(request))
        elif instances:
            self._send(instances, _plan_order(request))

    def replan(self, request: PoolRequest, before: Plan) -> None:
        """Tell those that leave, those that stay, and those that come.

        The request itself goes to its home only, which changes before the first chunk at most.
        """
        assert request.plan is not None
        members = request.plan.instances
        gone = set(before.instances) - set(members) - request.lost
        self._send(gone, ForgetOrder(seq=request.seq))
        self._send([i for i in members if i in before.instances], _rest_order(request))
        self._introduce(request, [i for i in members if i not in before.instances])
        if request.plan.home != before.home:
            self._send_request(request)
        self._tell(lambda observer: observer.replanned(request))

    def go(self, request: PoolRequest, instances: Iterable[int]) -> None:
        """Start the next chunk."""
        order = GoOrder(
            seq=request.seq,
            chunk=request.next_chunk,
            revision=request.revision,
            lane=request.lane,
            serial=request.serial,
            decode_share=request.times[request.next_chunk].decode_share,
        )
        self._send(instances, order)
        self._tell(lambda observer: observer.chunk_started(request))

    def stop(self, request: PoolRequest, instances: Iterable[int]) -> None:
        """End the task at the next layer."""
        self._send(instances, StopOrder(seq=request.seq, resumes=request.recalled))
        self._tell(lambda observer: observer.stopped(request))

    def logprobs(self, request: PoolRequest, part: LogprobPart) -> None:
        """Pass prompt log-probabilities on to home."""
        assert request.plan is not None
        self._send([request.plan.home], LogprobOrder(part=part))

    def release(self, request: PoolRequest) -> None:
        """Free the slots; home answers its client unless that was done."""
        silent = request.answered or request.recalled
        order = ReleaseOrder(seq=request.seq, error=request.error, silent=silent)
        self._send(request.reachable, order)

    def cancel_stock(self, request: PoolRequest) -> None:
        """Abort a one-instance request where it is."""
        self._send(request.reachable, CancelOrder(seq=request.seq))

    def move_in(
        self, request: PoolRequest, target: int, lane: int, serial: int, ahead: int
    ) -> None:
        """Ask an instance to get ready, and give it the request itself."""
        order = MoveInOrder(
            rid=request.rid,
            seq=request.seq,
            source=request.home,
            lane=lane,
            serial=serial,
            ahead=ahead,
        )
        self._send([target], order)
        self._send([target], _stamped(request.tokenized))

    def move_out(
        self, request: PoolRequest, target: int, lane: int, serial: int, ahead: int, held: int
    ) -> None:
        """Let a request's home send it."""
        order = MoveOutOrder(
            seq=request.seq, target=target, lane=lane, serial=serial, ahead=ahead, held=held
        )
        self._send([request.home], order)

    def moved(
        self, request: PoolRequest, target: int, rows: int, output: OutputState, ahead: int
    ) -> None:
        """Tell the target what comes."""
        self._send([target], MovedOrder(seq=request.seq, rows=rows, output=output, ahead=ahead))

    def move_end(self, seq: int, instance: int, *, moved: bool) -> None:
        """Tell source or target that the move of a task is over for it."""
        self._send([instance], MoveEndOrder(seq=seq, moved=moved))

    def move_over(self, request: PoolRequest) -> None:
        """Nothing to send: the observers hear of it."""
        self._tell(lambda observer: observer.moved(request))

    def copy_in(self, copy: Copy) -> None:
        """Ask a copy's target to get ready."""
        order = CopyInOrder(
            seq=copy.number,
            tokens=copy.pages.token_bytes,
            salt=copy.pages.salt,
            source=copy.source,
            lane=copy.lane,
            serial=copy.serial,
        )
        self._send([copy.target], order)

    def copy_out(self, copy: Copy) -> None:
        """Let a copy's source send what the target lacks."""
        order = CopyOutOrder(
            seq=copy.number,
            tokens=copy.pages.token_bytes,
            salt=copy.pages.salt,
            target=copy.target,
            first=copy.held,
            lane=copy.lane,
            serial=copy.serial,
        )
        self._send([copy.source], order)

    def copy_end(self, number: int, instance: int) -> None:
        """Let an instance end its part of a copy."""
        self._send([instance], CopyEndOrder(seq=number))

    def copy_over(self, copy: Copy) -> None:
        """Nothing to send: the observers hear of it."""
        self._tell(lambda observer: observer.copied(copy))

    def roles_changed(self, roles: Roles, why: str) -> None:
        """Nothing to send: an instance does what it is asked, whatever its role."""
        self._tell(lambda observer: observer.roles_changed(roles, why))

    def answer(self, request: PoolRequest, status: HTTPStatus, message: str) -> None:
        """Answer a client through the tokenizer."""
        # SGLang's OpenAI streams take an abort for an error if this is no plain number.
        reason = {"type": "abort", "message": message, "status_code": status}
        worker = getattr(request.tokenized, "http_worker_ipc", None)
        answer = AbortReq(rid=request.rid, finished_reason=reason, http_worker_ipc=worker)
        sock_send(self._tokenizer, answer)

    def forward_abort(self, request: PoolRequest, tp_rank: int, frames: list[bytes]) -> None:
        """Pass decode's abort to the instance whose stock sender will acknowledge it."""
        self._send(request.reachable, RoomOrder(tp_rank=tp_rank, frames=frames))

    def fail_room(self, room: int, reason: str) -> None:
        """Tell every decode rank of a room that it failed."""
        for message in self._rooms.messages(room):
            self._endpoint.fail_room(room, message, reason, self._rooms.rejection_status(room))

    def announce_failure(self, room: int, reason: str) -> None:
        """Tell every decode rank that a room failed; who does not have it takes no notice."""
        for rank in self._decode.ranks:
            self._endpoint.fail_room(room, rank, reason, self._rooms.rejection_status(room))

    def finish_room(self, room: int) -> None:
        """Tell every decode rank of a room that its KV has arrived, if it waits to hear that."""
        for message in self._rooms.messages(room):
            self._endpoint.finish_room(room, message)

    def ack_abort(self, room: int, target: AbortTarget) -> None:
        """Tell decode that a room's pages are safe."""
        self._endpoint.ack_abort(room, target)

    def lost(self, request: PoolRequest) -> None:
        """Nothing to send: the observers hear of it."""
        self._tell(lambda observer: observer.lost(request))

    def recalled(self, request: PoolRequest) -> None:
        """Nothing to send: the observers hear of it."""
        self._tell(lambda observer: observer.recalled(request))

    def ended(self, request: PoolRequest) -> None:
        """Nothing to send: the observers hear of it."""
        self._tell(lambda observer: observer.ended(request))


def _stock_order(request: PoolRequest) -> StockOrder:
    assert request.plan is not None
    return StockOrder(
        rid=request.rid,
        seq=request.seq,
        arrival_s=request.arrival_s,
        passes=request.plan.passes,
    )


def _plan_order(request: PoolRequest) -> PlanOrder:
    assert request.plan is not None
    tokens = array(
        "q", [PROBE_TOKEN] * request.tokens if request.probe else request.tokenized.input_ids
    )
    resumes = request.resumes
    if resumes is not None:
        tokens.extend(resumes.tokens)
    asked = not request.probe and resumes is None
    return PlanOrder(
        rid=request.rid,
        seq=request.seq,
        tokens=tokens.tobytes(),
        chunks=_chunks(request.plan),
        revision=request.revision,
        room=request.room,
        arrival_s=request.arrival_s,
        probe=request.probe,
        logprobs=logprob_spec(request.tokenized) if asked else None,
        urgency=float(request.plan.passes),
        passes=request.plan.passes,
        reused=request.plan.reused,
        copy=request.copy,
        gathers=request.keeps,
    )


def _rest_order(request: PoolRequest) -> RestOrder:
    assert request.plan is not None
    return RestOrder(
        seq=request.seq,
        revision=request.revision,
        chunk=request.next_chunk,
        chunks=_chunks(request.plan),
        urgency=float(request.plan.passes),
        passes=request.plan.passes,
        gathers=request.keeps,
    )


def _chunks(plan: Plan) -> list[tuple[int, list[int]]]:
    return [(chunk.tokens, list(chunk.instances)) for chunk in plan.chunks]


def logprob_spec(request: TokenizedGenerateReqInput) -> LogprobSpec | None:
    """The prompt log-probabilities that a request asks for, by SGLang's rules."""
    if not request.return_logprob or request.logprob_start_len < 0:
        return None
    if request.logprob_start_len >= len(request.input_ids or ()):
        return None
    return LogprobSpec(
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
