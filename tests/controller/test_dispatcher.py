"""What the life cycle decides, as it reaches schedulers and decode."""

from __future__ import annotations

import pickle
from array import array
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import pytest
from sglang.srt.managers import io_struct
from sglang.srt.managers.io_struct import (
    TokenizedGenerateReqInput,
    msgpack_decode,
)

from sglang_cdsp.controller.decode.rooms import RoomMessage, Rooms
from sglang_cdsp.controller.decode.servers import DecodeRank, DecodeServers
from sglang_cdsp.controller.dispatcher import Dispatcher, logprob_spec
from sglang_cdsp.controller.effects import Observer
from sglang_cdsp.controller.metrics import PoolMetrics
from sglang_cdsp.controller.request import AbortTarget, ChunkTimes, PoolRequest, Replan
from sglang_cdsp.planner.types import Plan, PlannedChunk
from sglang_cdsp.protocol.messages import (
    CancelOrder,
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
    register_orders,
)
from tests.controller.fake_requests import request

ROOM = 7


class FakeSocket:
    """Keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, data: bytes, flags: int = 0) -> None:
        self.sent.append(msgpack_decode(data))

    def send_pyobj(self, thing: Any, flags: int = 0, protocol: int = -1) -> None:
        self.sent.append(pickle.loads(pickle.dumps(thing, protocol)))


class FakeContact:
    """Keeps what decode was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def fail_room(
        self, room: int, rank: RoomMessage | DecodeRank, reason: str, status: HTTPStatus
    ) -> None:
        self.told.append(("failed", room, rank.tp_rank, rank.port, reason, status))

    def ack_abort(self, room: int, target: AbortTarget) -> None:
        self.told.append(("safe", room, target))


class Wire:
    """A pool of three instances behind fake sockets."""

    def __init__(self) -> None:
        register_orders()
        self.workers = [FakeSocket() for _ in range(3)]
        self.contact = FakeContact()
        self.tokenizer = FakeSocket()
        self.metrics = PoolMetrics()
        self.rooms = Rooms(1)
        self.decode = DecodeServers(page_size=1, reserved_tokens=8, timeout_s=9.0)
        self.effects = self.dispatcher(self.metrics)

    def dispatcher(self, *observers: Observer) -> Dispatcher:
        return Dispatcher(
            workers=self.workers,  # type: ignore[arg-type]
            endpoint=self.contact,  # type: ignore[arg-type]
            decode=self.decode,
            rooms=self.rooms,
            tokenizer=self.tokenizer,  # type: ignore[arg-type]
            observers=observers,
        )

    def sent(self, instance: int) -> list[Any]:
        return self.workers[instance].sent


@pytest.fixture(params=["pickle", "msgpack"])
def wire(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Wire:
    """SGLang has two formats for its sockets on one machine."""
    monkeypatch.setattr(io_struct, "_USE_PICKLE_IPC", request.param == "pickle")
    return Wire()


def bound(
    *chunks: tuple[int, tuple[int, ...]], asked: Any = None, probe: bool = False
) -> PoolRequest:
    planned = tuple(PlannedChunk(tokens, group, 0.0, 1.0) for tokens, group in chunks)
    tokens = sum(tokens for tokens, _ in chunks)
    made = PoolRequest("r", None if probe else asked or request(tokens), tokens, 0.0)
    made.seq, made.plan = 5, Plan(planned, 1.0, "test")
    made.times = [ChunkTimes() for _ in planned]
    return made


def test_a_plan_goes_to_its_last_group_and_the_request_to_its_home(wire: Wire) -> None:
    request = bound((3, (1,)), (1, (1, 2)))
    request.room = ROOM
    wire.rooms.add(ROOM, RoomMessage(0, "a", 1, "h", 1, [b"pages"]))
    wire.effects.bind(request)
    pages, plan, asked = wire.sent(1)
    assert pages == RoomOrder(tp_rank=0, frames=[b"pages"])
    assert isinstance(plan, PlanOrder)
    assert (plan.rid, plan.seq, plan.room, plan.probe) == ("r", 5, ROOM, False)
    assert array("q", plan.tokens).tolist() == [10, 11, 12, 13]
    assert [tuple(chunk) for chunk in plan.chunks] == [(3, [1]), (1, [1, 2])]
    assert isinstance(asked, TokenizedGenerateReqInput)
    assert asked.disagg_prefill_dp_rank == 0, "the sender must not announce a rank of its own"
    assert wire.sent(2) == [pages, plan]
    assert wire.sent(0) == []


def test_a_one_instance_plan_is_a_stock_request(wire: Wire) -> None:
    request = bound((4, (2,)))
    request.room, request.one_instance = 7, True
    wire.effects.bind(request)
    stock, asked = wire.sent(2)
    assert stock == StockOrder(rid="r", seq=5)
    assert asked.rid == "r"
    assert wire.sent(0) == wire.sent(1) == []


def test_a_probe_has_tokens_but_no_request(wire: Wire) -> None:
    wire.effects.bind(bound((4, (0,)), probe=True))
    (plan,) = wire.sent(0)
    assert (plan.probe, plan.room, len(plan.tokens)) == (True, None, 32)


def test_go_stop_and_release(wire: Wire) -> None:
    request = bound((3, (1,)), (1, (1, 2)))
    request.next_chunk, request.revision = 1, 2
    request.lane, request.serial = 3, 17
    request.times[1].decode_share = 0.05
    wire.effects.go(request, (1, 2))
    wire.effects.stop(request, request.reachable)
    request.error, request.answered = "no", True
    wire.effects.release(request)
    orders = [
        GoOrder(seq=5, chunk=1, revision=2, lane=3, serial=17, decode_share=0.05),
        StopOrder(seq=5),
        ReleaseOrder(seq=5, error="no", silent=True),
    ]
    assert wire.sent(1) == wire.sent(2) == orders
    assert wire.sent(0) == []


def test_a_request_goes_on_from_prompt_and_output(wire: Wire) -> None:
    asked = request(4, return_logprob=True, logprob_start_len=0)
    going_on = bound((5, (1,)), (1, (1, 2)), asked=asked)
    going_on.resumes = OutputState(tokens=[7, 8], sent=2)
    wire.effects.bind(going_on)
    plan, order, again = wire.sent(1)
    assert array("q", plan.tokens).tolist() == [10, 11, 12, 13, 7, 8]
    assert plan.logprobs is None, "the client has the prompt's log-probabilities"
    assert order == ResumeOrder(rid="r", seq=5, output=going_on.resumes)
    assert list(again.input_ids) == [10, 11, 12, 13]
    assert wire.sent(2) == [plan]


def test_a_plan_that_is_recalled_is_stopped_without_an_answer(wire: Wire) -> None:
    recalled = bound((3, (1,)), (1, (1, 2)))
    recalled.recalled = True
    wire.effects.stop(recalled, recalled.reachable)
    assert wire.sent(1) == wire.sent(2) == [StopOrder(seq=5, resumes=True)]


def test_a_running_request_moves(wire: Wire) -> None:
    """The target gets the request behind its order; the source is told by number."""
    moving = bound((3, (1,)), (1, (1, 2)))
    output = OutputState(tokens=[7, 8], sent=1, logprobs=b"record")
    wire.effects.move_in(moving, 2, 3, 17, 4)
    wire.effects.move_out(moving, 2, 3, 17, 4, 2)
    wire.effects.moved(moving, 2, 5, output, 4)
    wire.effects.move_end(5, 1, moved=True)
    asked, again, comes = wire.sent(2)
    assert asked == MoveInOrder(rid="r", seq=5, source=1, lane=3, serial=17, ahead=4)
    assert isinstance(again, TokenizedGenerateReqInput)
    assert comes == MovedOrder(seq=5, rows=5, output=output, ahead=4)
    leaves, ended = wire.sent(1)
    assert leaves == MoveOutOrder(seq=5, target=2, lane=3, serial=17, ahead=4, held=2)
    assert ended == MoveEndOrder(seq=5, moved=True)
    assert wire.sent(0) == []


def test_another_rest_goes_to_those_who_leave_stay_and_come(wire: Wire) -> None:
    request = bound((3, (1,)), (1, (1, 2)))
    before = request.plan
    assert before is not None
    request.room, request.next_chunk, request.revision = ROOM, 1, 2
    wire.rooms.add(ROOM, RoomMessage(0, "a", 1, "h", 1, [b"pages"]))
    request.plan = replace(before, chunks=(before.chunks[0], PlannedChunk(1, (1, 0), 0.0, 0.5)))
    request.replans = [
        Replan(7.0, 1, "told to", before.chunks[1:], request.plan.chunks[1:], (2, 1))
    ]
    wire.effects.replan(request, before)
    assert wire.sent(2) == [ForgetOrder(seq=5)]
    (rest,) = wire.sent(1)
    assert isinstance(rest, RestOrder)
    assert (rest.seq, rest.revision, rest.chunk) == (5, 2, 1)
    chunks = [(3, [1]), (1, [1, 0])]
    assert [tuple(chunk) for chunk in rest.chunks] == chunks
    pages, plan = wire.sent(0)
    assert pages == RoomOrder(tp_rank=0, frames=[b"pages"])
    assert isinstance(plan, PlanOrder)
    assert (plan.revision, [tuple(chunk) for chunk in plan.chunks]) == (2, chunks)
    assert wire.metrics.snapshot()["rests_replanned"] == 1


def test_a_home_that_is_another_before_the_first_chunk_gets_the_request(wire: Wire) -> None:
    request = bound((3, (1,)), (1, (1, 2)))
    before = request.plan
    assert before is not None
    request.plan = replace(before, chunks=(PlannedChunk(4, (2, 0), 0.0, 0.5),))
    request.replans = [Replan(7.0, 0, "without 1", before.chunks, request.plan.chunks, (2, 1))]
    wire.effects.replan(request, before)
    assert [type(order) for order in wire.sent(1)] == [ForgetOrder]
    assert [type(order) for order in wire.sent(2)] == [RestOrder, TokenizedGenerateReqInput]
    assert [type(order) for order in wire.sent(0)] == [PlanOrder]


def test_aborts_of_a_stock_request(wire: Wire) -> None:
    request = bound((4, (2,)))
    wire.effects.cancel_stock(request)
    wire.effects.forward_abort(request, 1, [b"ABORT", b"7"])
    cancel, abort = wire.sent(2)
    assert cancel == CancelOrder(seq=request.seq)
    assert abort == RoomOrder(tp_rank=1, frames=[b"ABORT", b"7"])


def test_prompt_logprobs_go_home(wire: Wire) -> None:
    part = LogprobPart(5, [1], [-0.5], [], [], [], [])
    wire.effects.logprobs(bound((3, (1,)), (1, (1, 2))), part)
    assert wire.sent(1) == [LogprobOrder(part=part)]
    assert wire.sent(2) == []


def test_every_decode_rank_hears_of_a_failed_room(wire: Wire) -> None:
    for rank in (0, 1):
        wire.rooms.add(ROOM, RoomMessage(rank, "a", 1, "h", 1, []))
    wire.effects.fail_room(ROOM, "no")
    wire.effects.ack_abort(ROOM, AbortTarget(1, "host", 9))
    assert wire.contact.told == [
        ("failed", ROOM, 0, 1, "no", 500),
        ("failed", ROOM, 1, 1, "no", 500),
        ("safe", ROOM, AbortTarget(1, "host", 9)),
    ]


def test_every_decode_server_hears_of_a_failed_room_that_none_has_named(wire: Wire) -> None:
    for rank, port in ((0, 11), (1, 12), (0, 13)):
        wire.decode.register(DecodeRank(rank, "h", port, None))
    wire.decode.connected("h", 12, alive=False)
    wire.effects.announce_failure(ROOM, "no")
    assert wire.contact.told == [
        ("failed", ROOM, 0, 11, "no", 500),
        ("failed", ROOM, 0, 13, "no", 500),
    ]


def test_decode_hears_the_status_that_the_requests_own_client_gets(wire: Wire) -> None:
    wire.rooms.add(ROOM, RoomMessage(0, "a", 1, "h", 1, []))
    wire.decode.register(DecodeRank(0, "h", 11, None))
    wire.rooms.reject(ROOM, "no", HTTPStatus.BAD_REQUEST)
    wire.effects.fail_room(ROOM, "no")
    wire.effects.announce_failure(ROOM, "no")
    assert [told[3:] for told in wire.contact.told] == [(1, "no", 400), (11, "no", 400)]


@pytest.mark.parametrize(
    ("asked", "spec"),
    [
        ({}, None),
        ({"return_logprob": True}, None),
        ({"return_logprob": True, "logprob_start_len": 4}, None),
        ({"return_logprob": False, "logprob_start_len": 0}, None),
        ({"return_logprob": True, "logprob_start_len": 0}, LogprobSpec(0, 0, None)),
        (
            {
                "return_logprob": True,
                "logprob_start_len": 3,
                "top_logprobs_num": 2,
                "token_ids_logprob": [8],
            },
            LogprobSpec(3, 2, [8]),
        ),
    ],
)
def test_which_prompt_logprobs_a_request_asks_for(
    asked: dict[str, Any], spec: LogprobSpec | None
) -> None:
    assert logprob_spec(request(4, **asked)) == spec


def test_a_client_is_answered_through_the_tokenizer(wire: Wire) -> None:
    wire.effects.answer(bound((4, (0,))), HTTPStatus.BAD_REQUEST, "too long")
    (answer,) = wire.tokenizer.sent
    assert answer.rid == "r"
    assert answer.finished_reason == {"type": "abort", "message": "too long", "status_code": 400}
    if io_struct._USE_PICKLE_IPC:  # msgpack makes a number of it, as of stock's own answers
        status = answer.finished_reason["status_code"]
        assert isinstance(status, HTTPStatus), "OpenAI's streams ask"


def test_observers_hear_of_effects(wire: Wire) -> None:
    request = bound((3, (1,)), (1, (1, 2)))
    wire.effects.bind(request)
    wire.effects.go(request, (1,))
    wire.effects.stop(request, request.reachable)
    wire.effects.ended(request)
    seen = {name: value for name, value in wire.metrics.snapshot().items() if value}
    assert seen == {
        "requests_planned": 1,
        "prompt_tokens_planned": 4,
        "chunks_by_sp_size": {"1": 1},
        "requests_ended": {"finished": 1},
        "tasks_stopped": 1,
    }


class Broken(Observer):
    """Cannot take anything in."""

    def bound(self, request: PoolRequest) -> None:
        raise OSError("no space left")

    ended = chunk_started = bound


def test_an_observer_that_fails_costs_nobody_else_anything(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    effects = wire.dispatcher(Broken(), wire.metrics)
    request = bound((4, (0,)))
    effects.bind(request)
    effects.go(request, (0,))
    effects.ended(request)
    assert wire.metrics.snapshot()["requests_ended"] == {"finished": 1}
    assert caplog.text.count("Broken missed an event") == 3
