"""The planner: which instances prefill which part of a prompt, and when.

Pure Python and numbers, no torch and no SGLang, so that server, simulator and command line share
it. Start at `policies.make_policy`; `types` holds the plain data. Importing this
package loads neither numpy nor compiled code: `make_policy` does for the policies that need them,
and `fit` for those who fit.
"""

from sglang_cdsp.planner.correction import CorrectionOptions, OnlineCorrection
from sglang_cdsp.planner.errors import (
    LatencyModelError,
    OptionError,
    PlannerError,
    PoolViewError,
    PromptTooLongError,
    UpdateError,
)
from sglang_cdsp.planner.latency import Coefficients, LatencyModel, builtin_model
from sglang_cdsp.planner.memory import kv_demand
from sglang_cdsp.planner.policies import (
    POLICY_NAMES,
    Policy,
    PolicyOptions,
    default_sp_sizes,
    make_policy,
)
from sglang_cdsp.planner.regulator import Regulation, Regulator, parse_regulation
from sglang_cdsp.planner.types import Considered, Plan, PlannedChunk, PoolView, PromptView

__all__ = [
    "POLICY_NAMES",
    "Coefficients",
    "Considered",
    "CorrectionOptions",
    "LatencyModel",
    "LatencyModelError",
    "OnlineCorrection",
    "OptionError",
    "Plan",
    "PlannedChunk",
    "PlannerError",
    "Policy",
    "PolicyOptions",
    "PoolView",
    "PoolViewError",
    "PromptTooLongError",
    "PromptView",
    "Regulation",
    "Regulator",
    "UpdateError",
    "builtin_model",
    "default_sp_sizes",
    "kv_demand",
    "make_policy",
    "parse_regulation",
]
