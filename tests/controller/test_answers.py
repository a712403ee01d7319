"""Answers to SGLang's questions to all instances, some of which are absent or get lost."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sglang.srt.managers import io_struct
from sglang.srt.managers.io_struct import (
    BaseReq,
    ConfigureLoggingReq,
    ContinueGenerationReqInput,
    FlushCacheReqInput,
    GetInternalStateReq,
    GetWeightsByNameReqInput,
    PauseGenerationReqInput,
    ReleaseMemoryOccupationReqInput,
    ResumeMemoryOccupationReqInput,
    SetInternalStateReq,
    SlowDownReqInput,
    UpdateWeightFromDiskReqInput,
    msgpack_decode,
)
from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper
from sglang.srt.managers.tokenizer_control_mixin import _COMMUNICATOR_SPECS

from sglang_cdsp.controller.answers import Answers, stand_in
from sglang_cdsp.controller.control_messages import ControlMessages
from sglang_cdsp.controller.standing import Standing
from sglang_cdsp.engine.answers import AnswerSender
from sglang_cdsp.protocol.answers import ANSWER_NAMES, ANSWERS
from sglang_cdsp.protocol.messages import Answered

SEATS = 3


def answered(seat: int, question: BaseReq, failure: str = "") -> Answered:
    """An answer as it comes from an instance."""
    kind = ANSWERS[type(question).__name__]
    payload = f"{seat}: {kind}".encode()
    return Answered(instance=seat, tp_rank=0, at_s=0.0, kind=kind, payload=payload, failure=failure)


class Desk:
    """What the bookkeeping makes happen, in order."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.over: list[tuple[Any, int | None, str]] = []
        self.answers = Answers(
            seats=SEATS,
            pass_on=self.heard.append,
            answer=self.heard.append,
            done=lambda *over: self.over.append(over),
        )


STATE, WEIGHT = GetInternalStateReq(), GetWeightsByNameReqInput(name="w")


def test_every_instance_answers_once() -> None:
    desk = Desk()
    desk.answers.asked(STATE, (0, 1, 2))
    for seat in (2, 0, 1):
        assert desk.over == []
        desk.answers.answered(answered(seat, STATE))
    assert desk.heard == [answered(seat, STATE).payload for seat in (2, 0, 1)]
    assert desk.over == [(STATE, None, "")]
    desk.answers.answered(answered(1, STATE))
    assert len(desk.heard) == SEATS, "an answer that nobody waits for goes nowhere"


def test_the_absent_are_answered_for_after_the_others() -> None:
    desk = Desk()
    desk.answers.asked(STATE, (1,))
    assert desk.heard == []
    desk.answers.answered(answered(1, STATE))
    first, *others = desk.heard
    assert first == answered(1, STATE).payload
    assert [other.internal_state["cdsp"] for other in others] == [
        {"instance": 0, "absent": True},
        {"instance": 2, "absent": True},
    ]


def test_one_that_is_lost_owes_nothing_more() -> None:
    desk = Desk()
    desk.answers.asked(STATE, (0, 1, 2))
    desk.answers.asked(WEIGHT, (0, 1, 2))
    desk.answers.answered(answered(1, STATE))
    desk.answers.gone(1)
    assert desk.heard == [answered(1, STATE).payload], "the others have not answered yet"
    for question in (STATE, WEIGHT):
        for seat in (0, 2):
            desk.answers.answered(answered(seat, question))
    assert len(desk.heard) == 2 * SEATS
    assert desk.heard[-1].parameter is None
    assert [over[0] for over in desk.over] == [STATE, WEIGHT]
    desk.answers.answered(answered(1, WEIGHT))
    assert len(desk.heard) == 2 * SEATS, "its own answer comes too late"


def test_without_anybody_the_pool_answers_at_once() -> None:
    desk = Desk()
    desk.answers.asked(STATE, ())
    assert len(desk.heard) == SEATS
    assert desk.over == [(STATE, None, "")]


def test_what_nobody_answers_is_over_at_once() -> None:
    desk = Desk()
    pause = PauseGenerationReqInput(mode="in_place")
    desk.answers.asked(pause, (0, 1, 2))
    assert (desk.heard, desk.over) == ([], [(pause, None, "")])


def test_failures_are_told_with_whose_they_are() -> None:
    desk = Desk()
    desk.answers.asked(STATE, (0, 1, 2))
    desk.answers.answered(answered(2, STATE, "no such file"))
    desk.answers.gone(0)
    desk.answers.answered(answered(1, STATE))
    assert desk.over == [(STATE, None, "instance 2: no such file")]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_as_many_answers_as_instances_whatever_happens(data: st.DataObject) -> None:
    desk = Desk()
    present = set(range(SEATS))
    owed: list[tuple[int, BaseReq]] = []
    asked = 0
    for step in data.draw(st.lists(st.sampled_from(["ask", "answer", "lose", "fill"]))):
        if step == "ask":
            question = data.draw(st.sampled_from([STATE, WEIGHT]))
            owed += [(seat, question) for seat in sorted(present)]
            desk.answers.asked(question, present)
            asked += 1
        elif step == "answer" and owed:
            seat = data.draw(st.sampled_from(sorted({seat for seat, _ in owed})))
            place = next(i for i, (other, _) in enumerate(owed) if other == seat)
            desk.answers.answered(answered(*owed.pop(place)))
        elif step == "lose" and present:
            seat = data.draw(st.sampled_from(sorted(present)))
            present.discard(seat)
            owed = [(other, question) for other, question in owed if other != seat]
            desk.answers.gone(seat)
        elif step == "fill" and len(present) < SEATS:
            present.add(min(set(range(SEATS)) - present))
        assert len(desk.heard) <= SEATS * asked
    for seat, question in list(owed):
        desk.answers.answered(answered(seat, question))
    assert len(desk.heard) == SEATS * asked
    assert len(desk.over) == asked


# -- the table --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_every_question_of_the_table_has_an_answer_in_an_absent_ones_name(name: str) -> None:
    if not hasattr(io_struct, name):
        assert name == "GetHiCacheL3LayoutReq", "SGLang 0.5.23 has it"
        return
    fields: dict[str, dict[str, Any]] = {
        "GetWeightsByNameReqInput": {"name": "w"},
        "UpdateWeightFromDiskReqInput": {"model_path": "m"},
        "UpdateWeightVersionReqInput": {"new_version": "2"},
        "CheckWeightsReqInput": {"action": "checksum"},
        "SlowDownReqInput": {"forward_sleep_time": None},
        "SetInternalStateReq": {"server_args": {}},
        "DumperControlReqInput": {"method": "get", "body": {}},
    }
    question = getattr(io_struct, name)(**fields.get(name, {}))
    question.http_worker_ipc = "ipc://worker"
    answer = stand_in(question, 2)
    assert type(answer).__name__ == ANSWERS[name]
    assert answer.http_worker_ipc == "ipc://worker"
    assert getattr(answer, "success", True)
    assert getattr(answer, "updated", True)
    sent = io_struct.msgpack_encode(answer)
    assert msgpack_decode(sent) == answer


REFUSED = {
    *("InitWeightsUpdateGroupReqOutput", "DestroyWeightsUpdateGroupReqOutput"),
    *("UpdateWeightsFromDistributedReqOutput", "UpdateWeightsFromTensorReqOutput"),
    *("UpdateWeightsFromIPCReqOutput", "InitWeightsSendGroupForRemoteInstanceReqOutput"),
    *("SendWeightsToRemoteInstanceReqOutput", "BeginWeightUpdateReqOutput"),
    *("EndWeightUpdateReqOutput", "PdRoleSwitchReqOutput", "AddExternalCorpusReqOutput"),
    *("RemoveExternalCorpusReqOutput", "ListExternalCorporaReqOutput", "ClearHiCacheReqOutput"),
    *("AttachHiCacheStorageReqOutput", "DetachHiCacheStorageReqOutput"),
    *("ExpertDistributionReqOutput", "LoRAUpdateOutput", "ScaleElasticEPReqOutput"),
}
"""Answers to what the pool refuses (``control/table.py``), or stock without an option."""


def test_every_communicator_of_sglang_is_accounted_for() -> None:
    kinds = {spec[1].__name__ for spec in _COMMUNICATOR_SPECS}
    assert kinds - REFUSED <= ANSWER_NAMES
    assert kinds.isdisjoint(REFUSED & ANSWER_NAMES)


# -- what a new process is told ---------------------------------------------------------------


def test_a_new_process_is_told_what_stands_in_order() -> None:
    standing = Standing()
    for message in (
        PauseGenerationReqInput(mode="in_place"),
        SlowDownReqInput(forward_sleep_time=0.5),
        SetInternalStateReq(server_args={"a": 1, "b": 2}),
        SetInternalStateReq(server_args={"b": 3}),
        ConfigureLoggingReq(log_requests=True, log_level="debug"),
        ConfigureLoggingReq(log_level="info"),
        UpdateWeightFromDiskReqInput(model_path="old"),
        UpdateWeightFromDiskReqInput(model_path="new", abort_all_requests=True, flush_cache=False),
        ReleaseMemoryOccupationReqInput(tags=["kv_cache", "weights"]),
        ResumeMemoryOccupationReqInput(tags=["weights"]),
        FlushCacheReqInput(),
    ):
        standing.note(message)
    told = standing.messages()
    assert told == (
        UpdateWeightFromDiskReqInput(model_path="new"),
        ConfigureLoggingReq(log_requests=True, log_level="info"),
        SetInternalStateReq(server_args={"a": 1, "b": 3}),
        SlowDownReqInput(forward_sleep_time=0.5),
        ReleaseMemoryOccupationReqInput(tags=["kv_cache"]),
        PauseGenerationReqInput(mode="in_place"),
    )
    standing.note(ContinueGenerationReqInput())
    standing.note(ResumeMemoryOccupationReqInput())
    assert standing.messages() == told[:4]


class Instances:
    """Three instances that hear messages."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, tuple[int, ...]]] = []
        self.control = ControlMessages(
            forward=lambda message, seats: self.sent.append((message, tuple(seats))),
            answer=lambda answer: None,
            stand_in=lambda answer: None,
            pass_on=lambda payload: None,
            clock=lambda: 0.0,
            seats=SEATS,
        )

    requests = ()
    chunk_running = holding = needs_start = False

    def send(self, message: Any) -> None:
        self.control.on(message, self)


NEW = UpdateWeightFromDiskReqInput(model_path="new")


def test_a_new_process_gets_the_weights_that_the_others_have() -> None:
    pool = Instances()
    pool.control.seat_lost(1)
    pool.send(NEW)
    assert pool.sent == [(NEW, (0, 2))]
    for seat in (0, 2):
        pool.control.on_answer(answered(seat, NEW))
    pool.control.seat_started(1)
    assert pool.sent[1:] == [(NEW, (1,))]
    assert pool.control.seat_told(1) is None
    pool.control.on_answer(answered(1, NEW))
    assert pool.control.seat_told(1) == ""
    pool.send(STATE)
    assert pool.sent[-1] == (STATE, (0, 1, 2))


def test_a_new_process_that_cannot_load_them_says_why() -> None:
    pool = Instances()
    pool.send(NEW)
    for seat in range(SEATS):
        pool.control.on_answer(answered(seat, NEW))
    pool.control.seat_lost(0)
    pool.control.seat_started(0)
    pool.control.on_answer(answered(0, NEW, "no such folder"))
    assert pool.control.seat_told(0) == "instance 0: no such folder"
    pool.control.seat_lost(0)
    pool.control.seat_started(0)
    assert pool.control.seat_told(0) is None, "the next process tries again"


def test_a_new_process_waits_for_an_update_that_is_under_way() -> None:
    pool = Instances()
    pool.control.seat_lost(1)
    pool.send(NEW)
    pool.control.on_answer(answered(0, NEW))
    pool.control.seat_started(1)
    assert pool.control.seat_told(1) is None
    assert pool.sent == [(NEW, (0, 2))]
    pool.control.seat_lost(2)
    assert pool.sent == [(NEW, (0, 2)), (NEW, (1,))]
    pool.control.on_answer(answered(1, NEW))
    assert pool.control.seat_told(1) == ""


def test_weights_that_an_instance_could_not_load_are_nobodys() -> None:
    pool = Instances()
    pool.send(NEW)
    pool.control.on_answer(answered(0, NEW, "no such folder"))
    for seat in (1, 2):
        pool.control.on_answer(answered(seat, NEW, "no such folder"))
    pool.control.seat_lost(0)
    pool.control.seat_started(0)
    assert pool.control.seat_told(0) == ""
    assert pool.sent == [(NEW, (0, 1, 2))]


def test_nothing_is_told_where_nothing_stands() -> None:
    pool = Instances()
    pool.control.seat_lost(0)
    pool.control.seat_started(0)
    assert (pool.control.seat_told(0), pool.sent) == ("", [])


def test_a_profile_is_stopped_where_it_was_started() -> None:
    """A new process would say that it makes none, and the whole request would fail."""
    kinds = io_struct.ProfileReqType
    start = io_struct.ProfileReq(req_type=kinds.START_PROFILE)
    stop = io_struct.ProfileReq(req_type=kinds.STOP_PROFILE)
    pool = Instances()
    pool.send(start)
    pool.control.seat_lost(1)
    pool.control.seat_started(1)
    pool.send(stop)
    assert pool.sent == [(start, (0, 1, 2)), (stop, (0, 2))]
    pool.send(stop)
    assert pool.sent[-1] == (stop, (0, 1, 2)), "who has started none is told so"


# -- on the instance --------------------------------------------------------------------------


class Wire:
    """A socket that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, data: bytes, flags: int = 0) -> None:
        self.sent.append(msgpack_decode(data))

    def send_pyobj(self, thing: Any, flags: int = 0, protocol: int = -1) -> None:
        self.sent.append(thing)


def read(payload: bytes) -> Any:
    """An answer as the tokenizer manager reads it."""
    return pickle.loads(payload) if io_struct._USE_PICKLE_IPC else msgpack_decode(payload)


def test_answers_go_through_the_controller_and_all_else_goes_as_ever() -> None:
    wire, told = Wire(), []
    sender = AnswerSender(SenderWrapper(wire))
    early = io_struct.FlushCacheReqOutput(success=True)
    sender.send_output(early)
    sender.tell = lambda *answer: told.append(answer)
    question = FlushCacheReqInput(http_worker_ipc="ipc://worker")
    sender.send_output(io_struct.FlushCacheReqOutput(success=False, message="busy"), question)
    sender.send_output(io_struct.SetInternalStateReqOutput(updated=False))
    sender.send_output(io_struct.ReleaseMemoryOccupationReqOutput())
    other = io_struct.HealthCheckOutput()
    sender.send_output(other)
    assert wire.sent == [early, other]
    assert [(kind, failure) for kind, _, failure in told] == [
        ("FlushCacheReqOutput", "busy"),
        ("SetInternalStateReqOutput", "it did not work"),
        ("ReleaseMemoryOccupationReqOutput", ""),
    ]
    flush = read(told[0][1])
    assert (flush.success, flush.message, flush.http_worker_ipc) == (False, "busy", "ipc://worker")


def test_a_rank_without_a_way_to_the_tokenizer_says_nothing() -> None:
    told: list[Any] = []
    sender = AnswerSender(SenderWrapper(None))
    sender.tell = lambda *answer: told.append(answer)
    sender.send_output(io_struct.FlushCacheReqOutput(success=True))
    assert told == []
