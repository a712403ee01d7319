"""Output on its way to the detokenizer, by way of the controller.

The controller passes it on and keeps the token ids. So it knows what clients have seen when an
instance dies, whatever of its messages was lost with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.managers.io_struct import BatchTokenIDOutput
from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper

from sglang_cdsp.engine.answers import captured
from sglang_cdsp.protocol.messages import StreamedPart

Tell = Callable[[bytes, list[StreamedPart]], None]
"""``tell(payload, parts)``: SGLang's message as SGLang sends it, and what it says by request."""


class OutputSender:
    """In place of SGLang's sender to the detokenizer; all but generated tokens goes as ever."""

    def __init__(self, stock: SenderWrapper) -> None:
        self._stock = stock
        self.tell: Tell | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    def send_output(self, output: Any, recv_obj: object | None = None) -> None:
        """Send an output; ranks that do not lead have nobody to send to."""
        generated = isinstance(output, BatchTokenIDOutput)
        if not generated or self.tell is None or self._stock.socket is None:
            self._stock.send_output(output, recv_obj)
            return
        self.tell(captured(output, recv_obj), parts_of(output))


def parts_of(output: BatchTokenIDOutput) -> list[StreamedPart]:
    """What an output message of SGLang's says, by request."""
    cached, retractions = output.cached_tokens, output.retraction_counts
    return [
        StreamedPart(
            rid=rid,
            tokens=list(output.output_ids[i]),
            ended=output.finished_reasons[i] is not None,
            cached_tokens=int(cached[i]),
            retractions=int(retractions[i]),
        )
        for i, rid in enumerate(output.rids)
    ]
