"""Instances' answers to SGLang's questions, and answers in the names of absent ones.

SGLang waits for one answer from each instance and cannot tell whose an answer is. So the answers
come through the controller, which knows by seat what is still to come.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.managers import io_struct

from sglang_cdsp.protocol.answers import ANSWERS
from sglang_cdsp.protocol.messages import Answered

ABSENT = "instance {seat} is absent"


@dataclass
class _Asked:
    """A question that is not answered by all.

    Attributes:
        waiting: seats whose answers are still to come.
        absent: seats in whose names the pool answers, once the others have.
        failures: what answers say that tell of no success.
        alone: the one seat that was told it, whose answer nobody else waits for; else None.
    """

    question: Any
    waiting: set[int]
    absent: list[int]
    failures: list[str] = field(default_factory=list)
    alone: int | None = None

    @property
    def answer(self) -> str:
        """The name of the type of its answers."""
        return ANSWERS[type(self.question).__name__]


class Answers:
    """Questions under way. Pure bookkeeping."""

    def __init__(
        self,
        *,
        seats: int,
        pass_on: Callable[[bytes], None],
        answer: Callable[[Any], None],
        done: Callable[[Any, int | None, str], None],
    ) -> None:
        """Know of none.

        Args:
            seats: of the pool.
            pass_on: sends an instance's answer to who asked, as it came.
            answer: sends an answer in an absent instance's name.
            done: hears of a question that everybody has answered, of the seat that was told it
                alone, None for all, and of what went wrong, "" for nothing.
        """
        self._seats = seats
        self._pass_on = pass_on
        self._answer = answer
        self._done = done
        self._asked: list[_Asked] = []

    def asked(self, question: Any, seats: Collection[int]) -> None:
        """A question has gone to ``seats``; the pool answers for the others."""
        if type(question).__name__ in ANSWERS:
            absent = [seat for seat in range(self._seats) if seat not in seats]
            self._asked.append(_Asked(question, set(seats), absent))
            self._close()
        else:
            self._done(question, None, "")  # nobody answers it

    def under_way(self, kinds: tuple[type, ...]) -> bool:
        """Whether a question of some kinds to all instances is not answered yet."""
        return any(a.alone is None and isinstance(a.question, kinds) for a in self._asked)

    def told(self, question: Any, seat: int) -> bool:
        """One seat alone was told, and nobody else hears its answer; whether it gives one."""
        if type(question).__name__ not in ANSWERS:
            return False
        self._asked.append(_Asked(question, {seat}, [], alone=seat))
        return True

    def answered(self, report: Answered) -> None:
        """An instance's answer; of one that was not asked it goes nowhere."""
        for asked in self._asked:
            if asked.answer == report.kind and report.instance in asked.waiting:
                asked.waiting.discard(report.instance)
                if report.failure:
                    asked.failures.append(f"instance {report.instance}: {report.failure}")
                if asked.alone is None:
                    self._pass_on(report.payload)
                break
        self._close()

    def gone(self, seat: int) -> None:
        """A seat's process was given up: the pool gives the answers that it owes."""
        for asked in self._asked:
            if seat in asked.waiting:
                asked.waiting.discard(seat)
                if asked.alone is None:
                    asked.absent.append(seat)
                else:
                    asked.failures.append(ABSENT.format(seat=seat))
        self._close()

    def _close(self) -> None:
        """Answer for the absent, after all others: some callers read the first answer only."""
        over = [asked for asked in self._asked if not asked.waiting]
        self._asked = [asked for asked in self._asked if asked.waiting]
        for asked in over:
            for seat in asked.absent:
                self._answer(stand_in(asked.question, seat))
            self._done(asked.question, asked.alone, "; ".join(asked.failures))


def stand_in(question: Any, seat: int) -> Any:
    """The answer that lets those of the other instances decide."""
    kind = ANSWERS[type(question).__name__]
    answer = getattr(io_struct, kind)(**_fields(kind, ABSENT.format(seat=seat), seat))
    answer.http_worker_ipc = question.http_worker_ipc
    return answer


def _fields(kind: str, message: str, seat: int) -> dict[str, Any]:
    match kind:
        case "FlushCacheReqOutput" | "ProfileReqOutput":
            return {"success": True, "message": message}
        case "UpdateWeightFromDiskReqOutput" | "CheckWeightsReqOutput":
            return {"success": True, "message": message}
        case "SetInternalStateReqOutput":
            return {"updated": True}
        case "GetWeightsByNameReqOutput":
            return {"parameter": None}
        case "GetInternalStateReqOutput":
            return {"internal_state": {"cdsp": {"instance": seat, "absent": True}}}
        case "GetHiCacheL3LayoutReqOutput":
            return {"layout": {}}
        case "DumperControlReqOutput":
            return {"success": True, "response": []}
    return {}
