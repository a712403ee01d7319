"""Profiles that a CPU cannot make are refused: stock would end the server on the way."""

from collections.abc import Callable
from typing import Any

DEVICE_ACTIVITIES = frozenset({"MEM", "CUDA_PROFILER", "RPD"})
"""Activities of ``/start_profile`` that call into CUDA or ROCm at once."""


def refuse_device_activities(stock: Callable[[Any, Any], Any], manager: Any, request: Any) -> Any:
    """AROUND hook on ``SchedulerProfilerManager._profile``: a ``ProfileReq`` to its answer."""
    # Not at the top: hooks are registered while ``import sglang`` is still running.
    from sglang.srt.managers.io_struct import ProfileReqOutput, ProfileReqType

    activities = set(request.activities or ())
    refused = activities & DEVICE_ACTIVITIES
    if "CPU" not in activities:
        # Beside "CPU", as in the default, torch leaves it out; alone it is an assertion's end.
        refused |= activities & {"GPU"}
    if request.req_type == ProfileReqType.START_PROFILE and refused:
        names = ", ".join(sorted(refused))
        message = f'activities {names} need a GPU, and this server has none; ask for ["CPU"]'
        return ProfileReqOutput(success=False, message=message)
    return stock(manager, request)
