"""What the fake instances keep: clients, tasks and stock requests, and what may happen next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sglang_cdsp.parallel.chunk_layout import ChunkLayout, padded_tokens
from sglang_cdsp.parallel.gather import moves_to_home
from sglang_cdsp.parallel.spans import Span


@dataclass(frozen=True)
class Sampling:
    """What admission reads of a request's sampling parameters."""

    n: int = 1


@dataclass(frozen=True)
class Client:
    """A client, in the place of its request."""

    number: int
    sampling_params: Sampling = Sampling()


@dataclass(frozen=True)
class Move:
    """Something that may happen next; ``fault`` for what goes wrong only now and then."""

    name: str
    do: Callable[[], None]
    fault: bool = False


@dataclass(eq=False)
class FakeTask:
    """A plan on one instance, as ``engine.tasks.ChunkTask`` keeps it."""

    seq: int
    client: Client | None
    room: int | None
    layouts: tuple[ChunkLayout, ...]
    next_chunk: int
    revision: int = 0
    passes: bool = False
    has_request: bool = False
    prepared: int | None = None
    announced: bool = False
    started: bool = False
    over: bool = False
    error: str = ""  # alike on all ranks
    lost: dict[int, str] = field(default_factory=dict)  # by rank
    held: int = 0
    reused: int = 0
    copy: int | None = None
    matched: bool = False
    gathers: bool = False
    writes: Counter[int] = field(default_factory=Counter)
    drained: set[int] = field(default_factory=set)

    def need(self, me: int, page_size: int) -> int:
        """Slots that a member takes before its next chunk."""
        layout = self.layouts[self.next_chunk]
        moves = layout.moves
        if self.gathers and self.final:
            moves += moves_to_home(layout, self.reused)
        incoming = [move.span for move in moves if move.dst == me]
        return padded_tokens(self.own([*incoming, *layout.shard(me)], me), page_size)

    def own(self, spans: Sequence[Span], me: int) -> list[Span]:
        """What of some spans takes slots of a member's own: at home not what it has cached."""
        first = self.reused if me == self.home else 0
        return [Span(max(span.start, first), span.stop) for span in spans if span.stop > first]

    def starts_from_cache(self, me: int) -> bool:
        """Whether a member is to look for the plan's cached prefix first."""
        return bool(self.reused) and not self.matched and me == self.home

    @property
    def home(self) -> int:
        return self.layouts[0].group[0]

    @property
    def final(self) -> bool:
        return self.next_chunk == len(self.layouts) - 1


@dataclass(eq=False)
class FakeStockRequest:
    """A request on the stock path."""

    seq: int
    rid: str
    client: Client
    room: int | None
    tokens: int
    passes: bool = False
    begun: bool = False
    sampled: bool = False
    unwanted: str = ""
    decode_gone: bool = False
    acks_owed: list[int] = field(default_factory=list)
