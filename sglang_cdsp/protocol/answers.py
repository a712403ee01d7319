"""SGLang's questions to all instances, and their answers, by the names of their types.

SGLang waits for as many answers as there are instances, without a time-out.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

ANSWERS: Mapping[str, str] = MappingProxyType(
    {
        "FlushCacheReqInput": "FlushCacheReqOutput",
        "UpdateWeightFromDiskReqInput": "UpdateWeightFromDiskReqOutput",
        "UpdateWeightVersionReqInput": "UpdateWeightVersionReqOutput",
        "GetWeightsByNameReqInput": "GetWeightsByNameReqOutput",
        "CheckWeightsReqInput": "CheckWeightsReqOutput",
        "ReleaseMemoryOccupationReqInput": "ReleaseMemoryOccupationReqOutput",
        "ResumeMemoryOccupationReqInput": "ResumeMemoryOccupationReqOutput",
        "SlowDownReqInput": "SlowDownReqOutput",
        "ProfileReq": "ProfileReqOutput",
        "GetInternalStateReq": "GetInternalStateReqOutput",
        "SetInternalStateReq": "SetInternalStateReqOutput",
        "GetHiCacheL3LayoutReq": "GetHiCacheL3LayoutReqOutput",  # SGLang 0.5.23
        "DumperControlReqInput": "DumperControlReqOutput",
    }
)
"""By question, the answer that every instance gives once. What else there is the pool refuses."""

ANSWER_NAMES = frozenset(ANSWERS.values())
