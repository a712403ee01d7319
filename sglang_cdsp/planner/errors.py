"""What can go wrong in the planner. Every message names what is wrong and the remedy."""

from __future__ import annotations


class PlannerError(ValueError):
    """Base of all errors that the planner raises on purpose."""


class LatencyModelError(PlannerError):
    """A latency model is malformed, or has no coefficients for an SP size that is needed."""


class ForcedPlanError(PlannerError):
    """A plan that came with a request cannot be run; says why."""


class OptionError(PlannerError):
    """A policy name or option is unknown or out of its range."""


class PoolViewError(PlannerError):
    """A pool view contradicts itself (lengths, negative queue times, unknown instances)."""


class PromptTooLongError(PlannerError):
    """The prompt's KV could not fit the pool even if every instance were empty."""


class UpdateError(PlannerError):
    """A run-time update of the regulation is invalid; nothing was changed."""
