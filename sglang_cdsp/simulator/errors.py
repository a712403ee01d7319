"""What can go wrong in a simulation."""

from __future__ import annotations


class SimulationError(ValueError):
    """Base of all errors that the simulator raises on purpose."""


class SetupError(SimulationError):
    """A set-up or workload contradicts itself; the message names the remedy."""


class InvariantError(SimulationError):
    """The simulated pool did what no pool can do: a policy's mistake, or the simulator's."""

    def __init__(self, now_s: float, rid: str, what: str) -> None:
        super().__init__(
            f"at {now_s:.6f} s, request {rid}: {what}; run the same seed with this policy alone "
            "and compare the plans around that time"
        )
        self.now_s = now_s
        self.rid = rid
