"""The one-server form as options: what each instance does, and how chunks and decode share it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sglang_cdsp.planner.decode_price import priced_share
from sglang_cdsp.planner.stretches import LEAST_SHARE, MOST_SHARE
from sglang_cdsp.simulator.errors import SetupError
from sglang_cdsp.simulator.types import Request


class Role(Enum):
    """What an instance does in one server."""

    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"


_ROLES = re.compile(r"(?:(\d+)p)?(?:(\d+)d)?")


def parse_roles(text: str, instances: int) -> tuple[Role, ...]:
    """The roles of a pool from a form like `6p2d`: first those that prefill, then those that
    decode; all others do both. An empty text: all do both.

    Raises:
        SetupError: it is not of the form, or nobody prefills, or nobody decodes.
    """
    found = _ROLES.fullmatch(text)
    prefill, decode = (int(found[n] or 0) for n in (1, 2)) if found else (0, 0)
    if found is None or prefill + decode > instances:
        raise SetupError(
            f"roles {text!r} of {instances} instances: write how many prefill and how many decode, "
            "like 6p2d; the others do both"
        )
    if instances in (prefill, decode):
        raise SetupError(f"roles {text!r}: all {instances} instances do the same; leave one others")
    both = instances - prefill - decode
    return (Role.PREFILL,) * prefill + (Role.DECODE,) * decode + (Role.BOTH,) * both


@dataclass(frozen=True, slots=True)
class OneServer:
    """One server whose instances prefill and decode.

    Attributes:
        roles: by instance; empty = all do both.
        decode_share: of an instance's time beside a chunk that goes to decode; None for the share
            by its price (planner/decode_price.py). As the server's.
        stock_tokens: longest one-instance prompt in SGLang's own batches: decode on its instance
            stands still while it runs; the server's option.
        overrun_s: by how much a stretch of a chunk is longer than its decode share says, seconds:
            it ends where the chunk gives way next. The planner does not know of it.
    """

    roles: tuple[Role, ...] = ()
    decode_share: float | None = None
    stock_tokens: int = 1024
    overrun_s: float = 0.0

    def __post_init__(self) -> None:
        share = self.decode_share
        if share is not None and not LEAST_SHARE <= share <= MOST_SHARE:
            raise SetupError(
                f"decode_share is {share}; it must be from {LEAST_SHARE} to {MOST_SHARE}"
            )
        if self.stock_tokens < 1:
            raise SetupError(f"stock_tokens is {self.stock_tokens}; it must be at least 1")
        if not 0.0 <= self.overrun_s < math.inf:
            raise SetupError(
                f"overrun_s is {self.overrun_s}; it must be a number of seconds from 0 on"
            )

    def share(self, running: int, waiting: float, step_s: float) -> float:
        """The decode share of a chunk that starts now; arguments as of `priced_share`."""
        given = self.decode_share
        return priced_share(running, waiting, step_s) if given is None else given

    def is_stock(self, request: Request) -> bool:
        """Whether SGLang's own batches run it where it has one instance."""
        return request.prompt_tokens <= self.stock_tokens

    def to_dict(self) -> dict[str, Any]:
        """In JSON types, for reports."""
        return {
            "roles": [role.value for role in self.roles],
            "decode_share": self.decode_share,
            "stock_tokens": self.stock_tokens,
            "overrun_s": self.overrun_s,
        }

    def of(self, instances: int) -> Sequence[Role]:
        """The role of each instance."""
        return self.roles or (Role.BOTH,) * instances
