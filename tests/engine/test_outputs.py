"""Output takes its way through the controller; everything else goes as ever."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

from sglang.srt.managers.io_struct import BatchTokenIDOutput, FreezeGCReq
from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper

from sglang_cdsp.engine import outputs
from sglang_cdsp.engine.outputs import OutputSender
from sglang_cdsp.protocol.messages import StreamedPart


class Output(SimpleNamespace):
    """SGLang's output message, as far as it is read."""


def two_requests() -> Any:
    return Output(
        rids=["a", "b"],
        output_ids=[[3, 4], []],
        finished_reasons=[None, {"type": "stop"}],
        cached_tokens=[7, 0],
        retraction_counts=[0, 2],
    )


def test_a_message_says_what_is_new_of_each_request() -> None:
    assert outputs.parts_of(two_requests()) == [
        StreamedPart(rid="a", tokens=[3, 4], cached_tokens=7),
        StreamedPart(rid="b", tokens=[], ended=True, retractions=2),
    ]


def test_generated_tokens_are_told_and_not_sent(monkeypatch: Any) -> None:
    monkeypatch.setattr(outputs, "BatchTokenIDOutput", Output)
    monkeypatch.setattr(outputs, "captured", lambda output, asker: pickle.dumps(output.rids))
    socket = Mock()
    sender = OutputSender(SenderWrapper(socket))
    told: list[Any] = []
    sender.tell = lambda payload, parts: told.append((pickle.loads(payload), len(parts)))
    sender.send_output(two_requests())
    assert told == [(["a", "b"], 2)]
    assert socket.mock_calls == []


def test_all_else_goes_to_the_detokenizer() -> None:
    sent: list[Any] = []
    stock: Any = SimpleNamespace(socket=Mock(), send_output=lambda *sends: sent.append(sends))
    sender = OutputSender(stock)
    sender.tell = Mock()
    order = FreezeGCReq()
    sender.send_output(order, order)
    assert sent == [(order, order)]
    sender.tell.assert_not_called()


def test_a_rank_that_does_not_lead_has_nobody_to_tell(monkeypatch: Any) -> None:
    monkeypatch.setattr(outputs, "BatchTokenIDOutput", Output)
    sender = OutputSender(SenderWrapper(None))
    sender.tell = Mock()
    sender.send_output(two_requests())
    sender.tell.assert_not_called()


def test_what_is_captured_is_sglangs_own_message() -> None:
    assert vars(outputs)["BatchTokenIDOutput"] is BatchTokenIDOutput
