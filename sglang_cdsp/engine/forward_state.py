"""What a forward sets for the whole process, taken and put back at each switch of coroutines.

SGLang keeps this state in module globals because its forwards never overlap. Here several are
suspended at once, each at a layer, so each has a copy of its own. ContextVars need nothing: a
greenlet has a context of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.model_executor.forward_context import ForwardContext, set_forward_context
from sglang.srt.runtime_context import get_forward

if TYPE_CHECKING:
    from sglang_cdsp.engine.stock import StockScheduler


@dataclass(frozen=True)
class ForwardState:
    """The state at one moment.

    Attributes:
        context: SGLang's forward context, with the attention backend that layers call.
        flags: SGLang's plain per-forward flags, by name.
        stream: the current CUDA stream, None without CUDA.
    """

    context: ForwardContext | None
    flags: dict[str, Any]
    stream: Any


class ForwardSurroundings:
    """Implements ``coroutines.Surroundings`` for forwards of SGLang's models."""

    def __init__(self, device: str) -> None:
        """``device`` is the model's."""
        self._cuda = torch.device(device).type == "cuda"

    def take(self) -> ForwardState:
        """Return the state as it is now."""
        context = set_forward_context(None)
        set_forward_context(context)
        flags = {name: getattr(get_forward(), name) for name in _plain_flags()}
        return ForwardState(context, flags, torch.cuda.current_stream() if self._cuda else None)

    def put(self, state: ForwardState) -> None:
        """Make ``state`` the present one."""
        set_forward_context(state.context)
        forward = get_forward()
        for name, value in state.flags.items():
            forward.set(name, value)
        if self._cuda:
            torch.cuda.set_stream(state.stream)


def enter_forward_stream(scheduler: StockScheduler, device: str) -> None:
    """Go on on the stream of SGLang's own forwards, behind all that the loop has launched.

    On one stream, tensor-parallel communicators, the buffer of the custom all-reduce and the
    workspaces of kernels are never used by two forwards at once. SGLang's overlap loop runs its
    forwards on ``forward_stream``, its normal loop on the loop's own ``schedule_stream``. The
    coroutine that calls this keeps the stream over its switches (``ForwardState.stream``).
    """
    if torch.device(device).type != "cuda":
        return
    before = torch.cuda.current_stream()
    stream = scheduler.forward_stream if scheduler.enable_overlap else scheduler.schedule_stream
    if stream != before:
        stream.wait_stream(before)
        torch.cuda.set_stream(stream)


def _plain_flags() -> frozenset[str]:
    """The flags that live in one place for the whole process."""
    return frozenset(type(get_forward())._GRAPH_VISIBLE)
