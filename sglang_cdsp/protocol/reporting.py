"""What all reports of schedulers have."""

from __future__ import annotations

import msgspec


class Report(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Base of all reports: which rank of which instance speaks, and when (monotonic seconds).

    ``incarnation`` says which life of its seat the instance is.
    """

    instance: int
    tp_rank: int
    at_s: float
    incarnation: int = 1
