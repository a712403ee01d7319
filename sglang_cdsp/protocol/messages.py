"""What the pool controller and the schedulers say to each other.

Orders travel on SGLang's own scheduler sockets, in order, and reach every tensor-parallel rank
of an instance through SGLang's broadcast: all ranks see the same orders in the same loop
iteration. Their format is SGLang's (``SGLANG_USE_PICKLE_IPC``). Reports travel back over one PULL
socket of the controller's, as msgpack.
"""

from __future__ import annotations

import msgspec
from sglang.srt.managers.io_struct import BaseReq, hook_custom_types


class LogprobPart(msgspec.Struct, frozen=True):
    """Prompt log-probabilities of some rows of task ``seq``; lists are empty where not asked for.

    Attributes:
        positions: prompt positions of the rows, ascending.
        values: per row, the log-probability of the prompt's next token.
        top_values, top_ids: per row, the best tokens.
        chosen_values, chosen_ids: per row, the tokens that the request named.
    """

    seq: int
    positions: list[int]
    values: list[float]
    top_values: list[list[float]]
    top_ids: list[list[int]]
    chosen_values: list[list[float]]
    chosen_ids: list[list[int]]


class OutputState(msgspec.Struct, frozen=True, kw_only=True):
    """What a request that leaves its home is beside its prompt and its KV: its next one goes on.

    See ``engine/req_state.py``.

    Attributes:
        tokens: output token ids, the first one first.
        sent: how many of them have gone to the detokenizer, and so count as seen by the client.
        cached_tokens: prompt tokens that the prefix cache had, as the client is told.
        retractions: how often the request was retracted, as the client is told.
        logprobs: SGLang's record of its log-probabilities. Empty where it is lost with its
            instance: the client has those of the tokens that were sent.
    """

    tokens: list[int]
    sent: int
    cached_tokens: int = 0
    retractions: int = 0
    logprobs: bytes = b""


class PeerOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """A decode agent's registration, as it came from decode's rank ``tp_rank``."""

    tp_rank: int
    frames: list[bytes]


class RoomOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Destination pages of one request (or its abort) from decode's rank ``tp_rank``."""

    tp_rank: int
    frames: list[bytes]


class LogprobSpec(msgspec.Struct, frozen=True):
    """Prompt log-probabilities that a request asks for.

    Attributes:
        start: first prompt position whose row is computed.
        top: how many of the best tokens per row, 0 for none.
        token_ids: tokens whose values are wanted per row, None for none.
    """

    start: int
    top: int
    token_ids: list[int] | None


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


class RestOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """The rest of task ``seq`` runs by another plan, of which this instance is a member still.

    It comes between two chunks. What was got ready for the next one is given up.

    Attributes:
        revision: of the plan; what was said of an earlier one means nothing any more.
        chunk: the next to start; those before it are as they were.
        chunks, urgency, passes: as in ``PlanOrder``.
    """

    seq: int
    revision: int
    chunk: int
    chunks: list[tuple[int, list[int]]]
    urgency: float = 0.0
    passes: bool = False


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


class LoadOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """What waits at the controller, to be counted by one instance into SGLang's own numbers."""

    requests: int
    tokens: int


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


class MoveInOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Get ready to go on with request ``seq``, which ``source`` decodes; the request follows.

    Attributes:
        lane, serial: the buffers of the links that are promised to the move, as in ``GoOrder``.
    """

    seq: int
    source: int
    lane: int
    serial: int


class MoveOutOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Take request ``seq`` out of the running batch between two steps and send its KV.

    Attributes:
        target: the instance that goes on with it, which is ready.
        lane, serial: as in ``MoveInOrder``.
    """

    seq: int
    target: int
    lane: int
    serial: int


class MovedOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Request ``seq`` has left its source, and its KV is on its way.

    Attributes:
        rows: KV rows that come, of all its tokens but the last.
        output: what else there is of it.
    """

    seq: int
    rows: int
    output: OutputState


class MoveEndOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """The move of request ``seq`` is over for this instance.

    ``moved``: it goes on at the target, and its source frees what it holds. Else the source goes on
    with it, and the target forgets it. A target that goes on with it already has said so
    (``MovedIn``), and takes no notice; so its source hears of the end after the target has.
    """

    seq: int
    moved: bool


class LinkOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """How rank ``tp_rank`` of an instance reaches the same rank of another one.

    Attributes:
        seat: the other instance.
        incarnation: which life of that seat it is.
        invitation: what that process said of its inbound area for this instance.
    """

    tp_rank: int
    seat: int
    incarnation: int
    invitation: bytes


class LeaveOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Life ``incarnation`` of instance ``seat`` is gone or will be: drop the link to it."""

    seat: int
    incarnation: int


class InviteOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Get ready for life ``incarnation`` of instance ``seat``; answered by ``Invitation``.

    Every process of the seat's former life has ended.
    """

    seat: int
    incarnation: int


class GrammarOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Compile the grammar of a request that waits for decode, and say if that cannot be done.

    ``kind`` and ``text`` are the key of SGLang's grammar backends.
    """

    kind: str
    text: str
    reasoning: bool = False


class StatusOrder(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """What the controller wants shown in ``/server_info``, as JSON."""

    status: str


ORDER_TYPES: tuple[type[BaseReq], ...] = (
    PeerOrder,
    RoomOrder,
    PlanOrder,
    RestOrder,
    ForgetOrder,
    LogprobOrder,
    StockOrder,
    ResumeOrder,
    LoadOrder,
    CancelOrder,
    GoOrder,
    StopOrder,
    ReleaseOrder,
    MoveInOrder,
    MoveOutOrder,
    MovedOrder,
    MoveEndOrder,
    LinkOrder,
    LeaveOrder,
    InviteOrder,
    GrammarOrder,
    StatusOrder,
)


def register_orders() -> None:
    """Teach this process's SGLang message decoder the order types; safe to call twice."""
    hook_custom_types(*ORDER_TYPES)


class Report(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Base of all reports: which rank of which instance speaks, and when (monotonic seconds).

    ``incarnation`` says which life of its seat the instance is.
    """

    instance: int
    tp_rank: int
    at_s: float
    incarnation: int = 1


class Hello(Report, frozen=True, kw_only=True):
    """A rank is up. Sizes are in tokens.

    Attributes:
        invitations: by instance, how the same rank of it reaches this one.
        max_shard_tokens: how many tokens a forward may have here, None where nothing limits it.
        links: the kind of its links to other instances.
    """

    invitations: dict[int, bytes]
    kv_capacity: int
    page_size: int
    max_input_tokens: int
    vocab_size: int
    layers: int
    kv_cache_dtype: str
    max_shard_tokens: int | None = None
    links: str = ""


class Invitation(Report, frozen=True, kw_only=True):
    """How the same rank of a seat's next life reaches this one.

    Attributes:
        seat, life: the instance that is invited, and which life of it.
        invitation: what that process needs to join; empty where there is an ``error``.
    """

    seat: int
    life: int
    invitation: bytes
    error: str = ""


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


class MoveReady(Report, frozen=True, kw_only=True):
    """The instance could go on with request ``seq`` at once; ``MoveInOrder`` asked it to."""

    seq: int


class MovedOut(Report, frozen=True, kw_only=True):
    """The instance took request ``seq`` out of its batch; ``rows`` and ``output``: ``MovedOrder``.

    Attributes:
        start_s, end_s: of a one-instance request, as in ``StockEnded``.
    """

    seq: int
    rows: int
    output: OutputState
    start_s: float | None = None
    end_s: float | None = None


class MovedIn(Report, frozen=True, kw_only=True):
    """The instance has all of request ``seq`` and goes on with it."""

    seq: int


class MoveFailed(Report, frozen=True, kw_only=True):
    """The instance cannot do its part of a move, and has nothing of the move any more.

    But a source that has taken the request out keeps it until it hears how the move has ended.

    Attributes:
        stays: the request has a state that cannot be moved, now or later.
    """

    seq: int
    error: str
    stays: bool = False


class MoveEnded(Report, frozen=True, kw_only=True):
    """The instance has nothing of a move any more; its source has freed the request or goes on."""

    seq: int


class StreamedPart(msgspec.Struct, frozen=True, kw_only=True):
    """What an output message says of one request.

    Attributes:
        rid: SGLang's id.
        tokens: output token ids that are new in it.
        ended: it is the request's last.
        cached_tokens, retractions: as in ``OutputState``.
    """

    rid: str
    tokens: list[int]
    ended: bool = False
    cached_tokens: int = 0
    retractions: int = 0


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


class SlotsTaken(Report, frozen=True, kw_only=True):
    """What SGLang's own requests take of the instance.

    Attributes:
        tokens: KV slots that they hold.
        step_s: what one of their decode steps takes, seconds; None before the first.
    """

    tokens: int
    step_s: float | None = None


class CacheChange(msgspec.Struct, frozen=True):
    """Something that happened to an instance's prefix cache.

    Attributes:
        kind: ``"stored"``, ``"removed"`` or ``"cleared"``.
        pages: names of pages, int64 in this machine's byte order; see ``prefixes/hashes.py``.
    """

    kind: str
    pages: bytes = b""


class CacheChanged(Report, frozen=True, kw_only=True):
    """The instance's prefix cache holds other pages, by what happened, in order."""

    changes: list[CacheChange]


class GrammarRefused(Report, frozen=True, kw_only=True):
    """The grammar of request ``rid`` cannot be compiled."""

    rid: str
    error: str


class Answered(Report, frozen=True, kw_only=True):
    """The instance answers a question of SGLang's to all of them; see ``protocol/answers.py``.

    Attributes:
        kind: the name of the answer's type.
        payload: the answer, as SGLang sends it to the tokenizer manager.
        failure: "" or what it says has failed.
    """

    kind: str
    payload: bytes
    failure: str = ""


AnyReport = (
    Hello
    | Invitation
    | Ready
    | ChunkDone
    | FirstToken
    | PromptLogprobs
    | Drained
    | Failed
    | WriteLost
    | Released
    | StockEnded
    | StockBatch
    | DecodeEnded
    | MoveReady
    | MovedOut
    | MovedIn
    | MoveFailed
    | MoveEnded
    | Streamed
    | Retracted
    | SlotsTaken
    | CacheChanged
    | GrammarRefused
    | Answered
)


def encode_report(report: Report) -> bytes:
    """Serialise a report."""
    return msgspec.msgpack.encode(report)


def decode_report(data: bytes) -> AnyReport:
    """Inverse of :func:`encode_report`; raises ``msgspec.DecodeError`` on foreign bytes."""
    return msgspec.msgpack.decode(data, type=AnyReport)
