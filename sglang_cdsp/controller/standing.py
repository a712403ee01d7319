"""What was asked of the pool for good: a new process on a seat is told it before it takes part.

A process starts with the weights and options of the command line. Without this it would compute
with other weights than the rest of its group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglang.srt.constants import GPU_MEMORY_ALL_TYPES
from sglang.srt.managers.io_struct import (
    ConfigureLoggingReq,
    ContinueGenerationReqInput,
    PauseGenerationReqInput,
    ReleaseMemoryOccupationReqInput,
    ResumeMemoryOccupationReqInput,
    SetInternalStateReq,
    SlowDownReqInput,
    UpdateWeightFromDiskReqInput,
    UpdateWeightVersionReqInput,
)

ALL_MEMORY = frozenset(GPU_MEMORY_ALL_TYPES)
IN_ORDER = (
    UpdateWeightFromDiskReqInput,
    UpdateWeightVersionReqInput,
    ConfigureLoggingReq,
    SetInternalStateReq,
    SlowDownReqInput,
    ReleaseMemoryOccupationReqInput,
    PauseGenerationReqInput,
)
"""What a new process is told, and in which order."""

LASTING = (*IN_ORDER, ResumeMemoryOccupationReqInput)
"""What changes what a new process is told."""

ROUTE = ("rid", "http_worker_ipc")
"""Fields of a message that say who asked."""


class Standing:
    """Remembers what holds for every process of the pool."""

    def __init__(self) -> None:
        self._last: dict[type, Any] = {}

    @property
    def released(self) -> frozenset[str]:
        """Memory regions that are released."""
        message = self._last.get(ReleaseMemoryOccupationReqInput)
        return frozenset() if message is None else frozenset(message.tags)

    def messages(self) -> tuple[Any, ...]:
        """What a new process is told, in order."""
        return tuple(self._last[kind] for kind in IN_ORDER if kind in self._last)

    def note(self, message: Any) -> None:
        """All instances did what a message asks."""
        match message:
            case UpdateWeightFromDiskReqInput():
                self._last[UpdateWeightFromDiskReqInput] = UpdateWeightFromDiskReqInput(
                    model_path=message.model_path,
                    load_format=message.load_format,
                    weight_version=message.weight_version,
                    manifest=message.manifest,
                )
            case UpdateWeightVersionReqInput() | SlowDownReqInput() | PauseGenerationReqInput():
                self._last[type(message)] = message
            case ContinueGenerationReqInput():
                self._last.pop(PauseGenerationReqInput, None)
            case ReleaseMemoryOccupationReqInput():
                self._release(self.released | frozenset(message.tags or ALL_MEMORY))
            case ResumeMemoryOccupationReqInput():
                self._release(self.released - frozenset(message.tags or ALL_MEMORY))
            case ConfigureLoggingReq():
                self._merge(message, _given(message))
            case SetInternalStateReq():
                before = self._last.get(SetInternalStateReq)
                options = {**(before.server_args if before else {}), **message.server_args}
                self._last[SetInternalStateReq] = SetInternalStateReq(server_args=options)

    def _release(self, regions: frozenset[str]) -> None:
        self._last.pop(ReleaseMemoryOccupationReqInput, None)
        if regions:
            message = ReleaseMemoryOccupationReqInput(tags=sorted(regions))
            self._last[ReleaseMemoryOccupationReqInput] = message

    def _merge(self, message: Any, given: Mapping[str, Any]) -> None:
        before = self._last.get(type(message))
        known = _given(before) if before is not None else {}
        self._last[type(message)] = type(message)(**{**known, **given})


def _given(message: Any) -> dict[str, Any]:
    """The fields of a message that say something."""
    names = message.__struct_fields__
    values = {
        name: getattr(message, name) for name in names if name not in ("rid", "http_worker_ipc")
    }
    return {name: value for name, value in values.items() if value is not None}
