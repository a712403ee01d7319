"""The steps of the check, in order, each with its limit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""


class StepsError(ValueError):
    """``--steps`` names something that is no step."""


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        number: by which ``--steps`` chooses it.
        title: what it is about.
        module: its module, whose ``run(target, recorder)`` is called in a process of its own.
        limit_s: seconds after which that process and all that it started are ended.
        dry_limit_s: the same for a dry run, on a slow CPU.
        may_skip: whether it may say that this machine cannot run it.
        ahead: work of ``bench.gpu.ahead`` that it needs, done beside the steps before it.
        ahead_ends_first: whether that has to be done before the step begins.
        asked_for: whether it runs only where ``--steps`` names it.
    """

    number: int
    title: str
    module: str
    limit_s: float
    dry_limit_s: float
    may_skip: bool = False
    ahead: str = ""
    ahead_ends_first: bool = False
    asked_for: bool = False


STEPS = (
    Step(1, "environment and ceilings", "bench.gpu.environment", 30, 60),
    Step(2, "partial attention and merges", "bench.gpu.attention", 100, 120, ahead="attention"),
    Step(3, "rings among threads", "bench.gpu.rings", 35, 120),
    Step(4, "speed of the parts", "bench.gpu.speed", 35, 120),
    Step(5, "links between two processes", "bench.gpu.links", 40, 120, may_skip=True),
    Step(6, "rows read in the KV pool", "bench.gpu.paged", 60, 120, ahead="paged"),
    Step(
        7,
        "servers",
        "bench.gpu.serving",
        180,
        480,
        ahead="checkpoint",
        ahead_ends_first=True,
    ),
    Step(8, "one server", "bench.gpu.one_server", 180, 480, asked_for=True),
)
"""On a GPU 480 s for those that run unless ``--steps`` says otherwise."""


def chosen(text: str) -> tuple[Step, ...]:
    """The steps that ``--steps`` names, "1,3-5"; those that nobody has to ask for, for "".

    Raises:
        StepsError: a number that no step has, or not a number.
    """
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        try:
            numbers |= set(range(int(first), int(last if dash else first) + 1))
        except ValueError:
            raise StepsError(f"--steps {text!r}: write numbers such as 1,3 or 1-5") from None
    known = {step.number for step in STEPS}
    if numbers - known:
        raise StepsError(f"--steps {text!r}: the steps are {min(known)} to {max(known)}")
    return tuple(s for s in STEPS if (s.number in numbers if numbers else not s.asked_for))
