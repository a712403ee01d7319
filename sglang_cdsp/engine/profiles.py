"""SGLang's profiler, without the power to end the server.

A profile that cannot be made (an assertion of ``SGLANG_PROFILE_V2``, a folder that cannot be
written) raises inside the scheduler's loop, at the request or at whichever forward it should start
or end with. Stock's scheduler ends by that, and the pool with it.
"""

from __future__ import annotations

import logging
from typing import Any

from sglang.srt.managers.io_struct import ProfileReqOutput, ProfileReqType

logger = logging.getLogger(__name__)

REMEDY = (
    "; with SGLANG_PROFILE_V2 a profile takes profile_by_stage and num_steps, and neither "
    "start_step, merge_profiles nor /stop_profile; output_dir must be writable"
)

RECORDING = "a profile is being recorded: call /stop_profile first, or wait for its num_steps"


class SafeProfiles:
    """Stands in front of a ``SchedulerProfilerManager``; all but two of its methods are stock's."""

    def __init__(self, stock: Any) -> None:
        self._stock = stock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    @property
    def _recording(self) -> bool:
        manager = getattr(self._stock, "_profile_manager", None)
        if manager is not None:
            return manager.stage_based_trigger.running_state is not None
        return bool(self._stock.profile_in_progress)

    def _profile(self, request: Any) -> Any:
        """A ``ProfileReq`` to its answer, which says what is wrong if anything is."""
        if request.req_type == ProfileReqType.START_PROFILE and self._recording:
            # Stock would start a second one on top, and lose what the first has recorded.
            return ProfileReqOutput(success=False, message=RECORDING)
        try:
            return self._stock._profile(request)
        except Exception as error:
            logger.exception("a profile could not be started or stopped")
            self._give_up()
            reason = str(error) or type(error).__name__
            return ProfileReqOutput(success=False, message=f"no profile: {reason}{REMEDY}")

    def _profile_batch_predicate(self, batch: Any) -> None:
        """Before a forward: stock starts or ends a profile that counts forwards."""
        try:
            self._stock._profile_batch_predicate(batch)
        except Exception:
            # It would fail at every forward from now on.
            logger.exception("a profile failed and is given up%s", REMEDY)
            self._give_up()

    def _give_up(self) -> None:
        """Forget what stock counts, and stop recording."""
        stock = self._stock
        profiler = getattr(stock, "torch_profiler", None)
        manager = getattr(stock, "_profile_manager", None)
        if profiler is not None:
            try:
                profiler.stop()
            except Exception:
                logger.debug("a profiler that failed cannot be stopped", exc_info=True)
            stock.torch_profiler = None
        if manager is not None:
            manager.stage_based_trigger.stage_configs = {}
            manager.stage_based_trigger.running_state = None
            manager.profiler = None
        stock.profile_in_progress = False
        stock.profile_by_stage = False
        stock.profiler_start_forward_ct = None
        stock.profiler_target_forward_ct = None
