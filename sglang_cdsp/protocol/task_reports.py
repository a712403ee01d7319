"""Reports about requests: chunks, writes to decode, output, and how it all ends."""

from __future__ import annotations

from sglang_cdsp.protocol.reporting import (
    Report,
)
from sglang_cdsp.protocol.values import (
    LogprobPart,
    OutputState,
    StreamedPart,
)


class Ready(Report, frozen=True, kw_only=True):
    """The instance can start chunk ``chunk`` of ``seq`` at once.

    ``revision`` is that of the plan by which it got ready. ``found``: tokens of the cached prefix
    that home found and locked, None elsewhere; with fewer than the plan reuses it cannot start, and
    holds nothing.
    """

    seq: int
    chunk: int
    revision: int = 0
    found: int | None = None


class ChunkDone(Report, frozen=True, kw_only=True):
    """The instance ran its shard of a chunk.

    Attributes:
        start_s: its start; ``at_s`` is its end.
        passed_s: seconds between the two in which this instance ran something else.
        gave_way: how often the chunk stood aside for that.
        sent_bytes: what this rank has sent over its links since its last report of this kind.
        waited_s: seconds since then in which it waited for the links.
        moved_tokens: tokens of history that this instance gave to others during the chunk.
    """

    seq: int
    chunk: int
    start_s: float
    passed_s: float = 0.0
    gave_way: int = 0
    sent_bytes: int = 0
    waited_s: float = 0.0
    moved_tokens: int = 0


class FirstToken(Report, frozen=True, kw_only=True):
    """Home sampled the first token."""

    seq: int


class PromptLogprobs(Report, frozen=True, kw_only=True):
    """Prompt log-probabilities of this instance's shard, on their way to home."""

    part: LogprobPart


class Drained(Report, frozen=True, kw_only=True):
    """This rank writes nothing more to decode for ``seq``; ``error`` is "" when all went well.

    ``uncertain`` says that parts of a write that failed may still arrive at decode.
    """

    seq: int
    error: str = ""
    uncertain: bool = False


class Failed(Report, frozen=True, kw_only=True):
    """The task cannot go on at this instance: the controller stops it at all of them.

    ``bad_request`` says that the request itself is at fault and that the instance has
    answered its client already. ``revision`` is that of the plan that it tried to carry out.
    """

    seq: int
    error: str
    bad_request: bool = False
    revision: int = 0


class WriteLost(Report, frozen=True, kw_only=True):
    """A KV write of this rank failed: the task's result is of no use.

    ``uncertain`` is as in ``Drained``.
    """

    seq: int
    error: str
    uncertain: bool = False


class Released(Report, frozen=True, kw_only=True):
    """The instance freed the task's slots.

    Attributes:
        joined: it decodes the request now, which holds the prompt's slots there.
    """

    seq: int
    joined: bool = False


class StockEnded(Report, frozen=True, kw_only=True):
    """A one-instance request left the instance; times are None if it never ran."""

    seq: int
    start_s: float | None
    end_s: float | None
    error: str


class StockBatch(Report, frozen=True, kw_only=True):
    """A batch of one-instance requests ran from ``start_s`` to ``at_s``.

    Attributes:
        parts: ``(history, tokens)`` of each request in it, in tokens.
    """

    start_s: float
    parts: list[tuple[int, int]]


class DecodeEnded(Report, frozen=True, kw_only=True):
    """Home's own scheduler is done with a request that chunk tasks had computed.

    ``error`` is "" when it was answered to its end.
    """

    seq: int
    error: str = ""


class Streamed(Report, frozen=True, kw_only=True):
    """Output on its way to the detokenizer, which gets it from the controller.

    What the controller has passed on is what clients have seen, whenever its instance dies.

    Attributes:
        payload: SGLang's message, as SGLang sends it.
        parts: what it says, by request.
    """

    payload: bytes
    parts: list[StreamedPart]


class Retracted(Report, frozen=True, kw_only=True):
    """SGLang has retracted a request at its home, which holds nothing of it any more."""

    seq: int
    output: OutputState
