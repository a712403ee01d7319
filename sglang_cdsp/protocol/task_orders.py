"""Orders about requests, from their plan to their release: chunk tasks and one-instance ones."""

from __future__ import annotations

from sglang.srt.managers.io_struct import BaseReq

from sglang_cdsp.protocol.values import (
    LogprobPart,
    LogprobSpec,
    OutputState,
)


class PlanOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """A request's plan, sent to every instance of its last group.

    Attributes:
        seq: position in the pool's one global order of tasks.
        tokens: the token ids to prefill, as int64 bytes: the prompt, and the output so far of a
            request that goes on here.
        chunks: ``(tokens, instances)`` per chunk, those that ran included.
        revision: how often the plan was changed before it reached this instance.
        room: bootstrap room, None when no decode server takes the KV (probe, fake host).
        arrival_s: when the request reached the pool, monotonic seconds of this machine.
        probe: a measurement of the controller's own: nothing is sampled, nobody is answered.
        logprobs: prompt log-probabilities to compute on the shards, None for none.
        urgency: its place among the chunks that run at once, the largest goes first; alike at all
            members.
        passes: it may start while tasks before it in the order have not ended.
        reused: tokens in front of the first chunk that home has cached: they are not computed.
        copy: the copy by which home gets those, if it is under way: it is waited for.
        gathers: home ends with the KV of the whole prompt, for its cache; one that decodes does so
            anyway.
    """

    seq: int
    tokens: bytes
    chunks: list[tuple[int, list[int]]]
    revision: int = 0
    room: int | None = None
    arrival_s: float = 0.0
    probe: bool = False
    logprobs: LogprobSpec | None = None
    urgency: float = 0.0
    passes: bool = False
    reused: int = 0
    copy: int | None = None
    gathers: bool = False


class RestOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """The rest of task ``seq`` runs by another plan, of which this instance is a member still.

    It comes between two chunks. What was got ready for the next one is given up.

    Attributes:
        revision: of the plan; what was said of an earlier one means nothing any more.
        chunk: the next to start; those before it are as they were.
        chunks, urgency, passes, gathers: as in ``PlanOrder``.
    """

    seq: int
    revision: int
    chunk: int
    chunks: list[tuple[int, list[int]]]
    urgency: float = 0.0
    passes: bool = False
    gathers: bool = False


class ForgetOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Task ``seq`` runs without this instance, which holds no KV of it: nothing is reported."""

    seq: int


class LogprobOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Prompt log-probabilities that another member computed, for home."""

    part: LogprobPart


class StockOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """A one-instance request that enters the stock waiting queue once it heads the queue.

    ``passes``: at once, while tasks before it in the order have not ended.
    """

    seq: int
    arrival_s: float = 0.0
    passes: bool = False


class ResumeOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """To the home of task ``seq``: the request that follows goes on from ``output``."""

    seq: int
    output: OutputState


class CancelOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Abort the one-instance request with this ``seq``, and no other."""

    seq: int


class GoOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Start chunk ``chunk`` of task ``seq``.

    Attributes:
        revision: of the plan whose chunk it is.
        lane: the buffers of the links that are promised to the chunk at all its members.
        serial: number of this order among all; it tells one use of a lane from the next.
        decode_share: share of each member's time that decode gets there meanwhile, 0 for none.
    """

    seq: int
    chunk: int
    revision: int = 0
    lane: int = 0
    serial: int = 0
    decode_share: float = 0.0


class StopOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Task ``seq`` ends here, at the next layer where one of its chunks runs.

    ``resumes``: its request is computed anew; home, if it decodes it already, lets go of it and
    answers nobody.
    """

    seq: int
    resumes: bool = False


class ReleaseOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """All writes of task ``seq`` have drained everywhere: free its slots, answer at home.

    ``error`` is the text of a failure, "" for a success; ``silent`` when the client was
    already answered (an abort).
    """

    seq: int
    error: str = ""
    silent: bool = False
