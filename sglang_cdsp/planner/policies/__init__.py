"""The policies: the seam (`base`), what stands behind it, and all of it by name (`registry`)."""

from sglang_cdsp.planner.policies.base import Policy
from sglang_cdsp.planner.policies.options import PolicyOptions, default_sp_sizes
from sglang_cdsp.planner.policies.registry import (
    DEFAULT_POLICY,
    POLICY_HELP,
    POLICY_NAMES,
    REGULATED_NAMES,
    make_policy,
)

__all__ = [
    "DEFAULT_POLICY",
    "POLICY_HELP",
    "POLICY_NAMES",
    "REGULATED_NAMES",
    "Policy",
    "PolicyOptions",
    "default_sp_sizes",
    "make_policy",
]
