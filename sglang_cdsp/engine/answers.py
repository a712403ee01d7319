"""This rank's answers to SGLang's questions to all instances, on their way through the controller.

The tokenizer manager counts answers and cannot tell whose they are. The controller knows whose it
has passed on, so it can answer for an instance that is lost.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper

from sglang_cdsp.protocol.answers import ANSWER_NAMES

Tell = Callable[[str, bytes, str], None]
"""``tell(kind, payload, failure)``: an answer's type, itself as SGLang sends it, and "" or what it
says has failed."""


class _Capture:
    """A socket that keeps what is sent."""

    def __init__(self) -> None:
        self.data = b""

    def send(self, data: bytes, flags: int = 0) -> None:
        self.data = data

    def send_pyobj(self, thing: Any, flags: int = 0, protocol: int = -1) -> None:
        self.data = pickle.dumps(thing, protocol)


def captured(output: Any, recv_obj: object | None) -> bytes:
    """An output as SGLang sends it to who asked with ``recv_obj``, if anybody did."""
    capture = _Capture()
    SenderWrapper(capture).send_output(output, recv_obj)
    return capture.data


class AnswerSender:
    """In place of SGLang's sender to the tokenizer manager; all but such answers go as ever."""

    def __init__(self, stock: SenderWrapper) -> None:
        self._stock = stock
        self.tell: Tell | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    def send_output(self, output: Any, recv_obj: object | None = None) -> None:
        """Send an output to who asked with ``recv_obj``, if anybody did."""
        kind = type(output).__name__
        if kind not in ANSWER_NAMES or self.tell is None or self._stock.socket is None:
            self._stock.send_output(output, recv_obj)
            return
        self.tell(kind, captured(output, recv_obj), _failure(output))


def _failure(output: Any) -> str:
    worked = getattr(output, "success", getattr(output, "updated", True))
    return "" if worked else (getattr(output, "message", "") or "it did not work")
