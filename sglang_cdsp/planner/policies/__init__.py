"""All policies by name. `make_policy` is the only way the rest of the package creates one."""

from __future__ import annotations

from collections.abc import Callable

from sglang_cdsp.planner.errors import OptionError
from sglang_cdsp.planner.policies.base import Policy
from sglang_cdsp.planner.policies.chunkwise import Cdsp, CdspPaper, SingleChunk
from sglang_cdsp.planner.policies.late import CdspLate
from sglang_cdsp.planner.policies.options import PolicyOptions
from sglang_cdsp.planner.policies.rivals import (
    DataParallel,
    FixedSP,
    LoongServe,
    Threshold,
    positive,
)

POLICY_NAMES = (
    "cdsp",
    "cdsp-paper",
    "cdsp-late",
    "single-chunk",
    "fixed-sp:K",
    "loongserve",
    "threshold:N",
    "data-parallel",
)
"""What `--cdsp-policy` accepts; K and N stand for positive integers."""

__all__ = ["POLICY_NAMES", "Policy", "PolicyOptions", "make_policy"]


def make_policy(name: str, options: PolicyOptions) -> Policy:
    """The policy of that name; OptionError lists the names if there is none."""
    kind, colon, argument = name.partition(":")
    if kind == "fixed-sp" and colon:
        return FixedSP(options, positive(argument, name))
    if kind == "threshold" and colon:
        return Threshold(options, positive(argument, name))
    plain: dict[str, Callable[[PolicyOptions], Policy]] = {
        "cdsp": Cdsp,
        "cdsp-paper": CdspPaper,
        "cdsp-late": CdspLate,
        "single-chunk": SingleChunk,
        "loongserve": LoongServe,
        "data-parallel": DataParallel,
    }
    if name not in plain:
        raise OptionError(f"unknown policy {name!r}; choose one of {', '.join(POLICY_NAMES)}")
    return plain[name](options)
