"""The phases of a request at the controller, and the events that are legal in each: one table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType


class Phase(Enum):
    """Where a request stands. It goes back before ``BOUND`` only when its plan is recalled."""

    ARRIVED = "arrived"  # decode's pages are not known yet
    WAITING = "waiting"  # the policy has it
    BOUND = "bound"  # it has a plan; its next chunk's members get ready
    RUNNING = "running"  # a chunk runs
    STOCK = "stock"  # its one instance's own scheduler has it
    DRAINING = "draining"  # computed or dropped; writes may be in flight
    RELEASING = "releasing"  # all writes drained; slots are being freed
    DECODING = "decoding"  # home's own scheduler decodes it, and nobody else holds its KV
    ENDED = "ended"


class Event(Enum):
    """What happens to a request: decisions of the controller, and what it is told."""

    REFUSE = "refuse"  # it ends without a plan, and its client is told why
    PAGES = "pages"  # decode's pages are known, or none will come
    BIND = "bind"  # it gets a plan that chunk tasks carry out
    HAND_OVER = "hand over"  # it gets a plan that its one instance carries out the stock way
    REPLAN = "replan"  # its rest gets another plan
    READY = "ready"  # a member can start a chunk
    GO = "go"  # all members can: the chunk starts
    LOGPROBS = "prompt log-probabilities"  # a member computed some
    FIRST_TOKEN = "first token"
    CHUNK_DONE = "chunk done"  # a member ran its shard
    CHUNK_ENDED = "chunk ended"  # all members did, and another chunk follows
    COMPUTED = "computed"  # all members ran the last chunk
    FAILED = "failed"  # it cannot go on at an instance
    WRITE_LOST = "write lost"  # a KV write to decode failed
    DROP = "drop"  # it ends before its last chunk has
    DRAINED = "drained"  # a rank writes nothing more to decode
    ALL_DRAINED = "all drained"
    RELEASED = "released"  # an instance freed its slots
    ALL_RELEASED = "all released"
    JOINED = "joined"  # all released, and home decodes it
    MOVED = "moved"  # another instance goes on with what one decoded
    DECODE_ENDED = "decode ended"  # home is done with it
    RETRACTED = "retracted"  # home holds nothing of it any more, and it is not at its end
    STOCK_ENDED = "stock ended"  # its one instance is done with it
    ABORT = "abort"  # its client or decode no longer wants it
    LOST = "instance lost"  # an instance of its plan was given up
    LOST_ENDED = "lost instance ended"  # the process of the one that had it, which was given up
    RECALLED = "recalled"  # nothing is left of its plan, and it is to get another one


class IllegalEventError(RuntimeError):
    """An event that cannot happen to a request in its phase: a fault of the pool's own."""


NEXT: Mapping[Phase, Mapping[Event, Phase]] = MappingProxyType(
    {
        Phase.ARRIVED: {
            Event.PAGES: Phase.WAITING,
            Event.BIND: Phase.BOUND,  # a probe, which nobody plans
            Event.REFUSE: Phase.ENDED,
            Event.ABORT: Phase.ENDED,
        },
        Phase.WAITING: {
            Event.BIND: Phase.BOUND,
            Event.HAND_OVER: Phase.STOCK,
            Event.REFUSE: Phase.ENDED,
            Event.ABORT: Phase.ENDED,
        },
        Phase.BOUND: {
            Event.REPLAN: Phase.BOUND,
            Event.READY: Phase.BOUND,
            Event.GO: Phase.RUNNING,
            Event.FAILED: Phase.BOUND,
            Event.WRITE_LOST: Phase.BOUND,
            Event.DROP: Phase.DRAINING,
            Event.ABORT: Phase.BOUND,  # a drop follows
            Event.LOST: Phase.BOUND,  # a drop follows, or another plan
        },
        Phase.RUNNING: {
            Event.READY: Phase.RUNNING,  # of a member that joins in a later chunk
            Event.LOGPROBS: Phase.RUNNING,
            Event.FIRST_TOKEN: Phase.RUNNING,
            Event.CHUNK_DONE: Phase.RUNNING,
            Event.CHUNK_ENDED: Phase.BOUND,
            Event.COMPUTED: Phase.DRAINING,
            Event.FAILED: Phase.RUNNING,
            Event.WRITE_LOST: Phase.RUNNING,
            Event.DROP: Phase.DRAINING,  # takes effect at the next layer
            Event.DRAINED: Phase.RUNNING,  # of a member that is done before the others
            Event.DECODE_ENDED: Phase.RUNNING,  # at home, which is done before the others
            Event.RETRACTED: Phase.RUNNING,  # the same
            Event.ABORT: Phase.RUNNING,  # a drop follows
            Event.LOST: Phase.RUNNING,  # a drop follows, unless it was to join in a later chunk
        },
        Phase.STOCK: {
            Event.FIRST_TOKEN: Phase.STOCK,
            Event.MOVED: Phase.DECODING,
            Event.STOCK_ENDED: Phase.ENDED,
            Event.RETRACTED: Phase.STOCK,  # its end follows, or another plan
            Event.RECALLED: Phase.WAITING,
            Event.ABORT: Phase.STOCK,  # the instance ends it
            Event.LOST: Phase.STOCK,  # what it writes to belongs to it until its end is confirmed
            Event.LOST_ENDED: Phase.ENDED,
        },
        Phase.DRAINING: {
            # Sent before the drop was heard of.
            Event.READY: Phase.DRAINING,
            Event.LOGPROBS: Phase.DRAINING,
            Event.FIRST_TOKEN: Phase.DRAINING,
            Event.CHUNK_DONE: Phase.DRAINING,
            Event.FAILED: Phase.DRAINING,
            Event.WRITE_LOST: Phase.DRAINING,
            Event.DRAINED: Phase.DRAINING,
            Event.ALL_DRAINED: Phase.RELEASING,
            Event.DECODE_ENDED: Phase.DRAINING,
            Event.RETRACTED: Phase.DRAINING,
            Event.ABORT: Phase.DRAINING,
            Event.LOST: Phase.DRAINING,
        },
        Phase.RELEASING: {
            Event.RELEASED: Phase.RELEASING,
            Event.ALL_RELEASED: Phase.ENDED,
            Event.JOINED: Phase.DECODING,
            Event.DECODE_ENDED: Phase.RELEASING,
            Event.RETRACTED: Phase.RELEASING,
            Event.FAILED: Phase.RELEASING,  # home's grammar turned out bad after a drop
            Event.ABORT: Phase.RELEASING,  # too late, unless it was recalled
            Event.LOST: Phase.RELEASING,
            Event.RECALLED: Phase.WAITING,
        },
        Phase.DECODING: {
            Event.MOVED: Phase.DECODING,
            Event.DECODE_ENDED: Phase.ENDED,
            Event.RETRACTED: Phase.DECODING,  # its end follows, or another plan
            Event.RECALLED: Phase.WAITING,
            Event.ABORT: Phase.DECODING,  # home ends it
            Event.LOST: Phase.DECODING,  # home; its slots are kept until its end is confirmed
            Event.LOST_ENDED: Phase.ENDED,
        },
        Phase.ENDED: {
            Event.ABORT: Phase.ENDED,
        },
    }
)
"""By phase and legal event, the phase that follows."""

BEFORE_A_PLAN = frozenset({Phase.ARRIVED, Phase.WAITING})


def after(phase: Phase, event: Event, rid: str) -> Phase:
    """The phase that follows ``event`` in ``phase``.

    Args:
        rid: the request's id, for the error.

    Raises:
        IllegalEventError: the table has no such pair; names both.
    """
    following = NEXT[phase].get(event)
    if following is None:
        raise IllegalEventError(
            f"request {rid}: event {event.value!r} in phase {phase.value!r}; legal there: "
            f"{', '.join(sorted(legal.value for legal in NEXT[phase]))}"
        )
    return following
