"""One rank's engine with a real slot allocator and fakes for model, decode and SGLang."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import torch

from sglang_cdsp.engine.agreement import Agreement
from sglang_cdsp.engine.chunk_engine import ChunkEngine
from sglang_cdsp.engine.chunk_work import ChunkWork
from sglang_cdsp.engine.coroutines import Coroutines
from sglang_cdsp.engine.prefixes import CachedPrefix
from sglang_cdsp.engine.shard_runner import ShardDone
from sglang_cdsp.engine.slot_table import SlotTable
from sglang_cdsp.engine.tasks import ChunkTask
from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.traffic import Traffic
from sglang_cdsp.protocol.messages import (
    GoOrder,
    PlanOrder,
    Report,
    StopOrder,
)
from sglang_cdsp.transfer.failures import TransferFailed
from tests.engine.fake_kv import StrictAllocator
from tests.engine.fake_stock import FakeScheduler

ROOM = 7
CHUNKS = [(64, [0]), (64, [0, 1]), (64, [0, 1])]
PAGES = 400


class NoSurroundings:
    """A process in which forwards set nothing."""

    def take(self) -> None:
        """Nothing."""

    def put(self, state: None) -> None:
        """Nothing."""


class FakeWrite:
    """A write whose state is its entry in ``Rank.written``, from the end of its chunk on."""

    def __init__(self, rank: Rank, last: bool) -> None:
        self.rank, self.last = rank, last
        self.number: int | None = None
        self.cancelled = False

    def layer_stored(self, layer_id: int) -> None:
        pass

    def computed(self, *, aux_index: int | None) -> None:
        self.number = len(self.rank.written)
        self.rank.written[self.number] = "flying"

    def cancel(self) -> None:
        self.cancelled = True

    def poll(self) -> bool:
        if self.number is None:
            return self.cancelled
        state = self.rank.written[self.number]
        if state == "lost":
            raise TransferFailed("KV write failed", uncertain=True)
        return state == "landed"


class FakeJoining:
    """Computed prompts that wait for a row, which they never get."""

    def __init__(self, free: Callable[[torch.Tensor], None]) -> None:
        self.free = free
        self.reqs: list[Any] = []
        self.slots: list[torch.Tensor] = []

    def add(self, req: Any, slots: torch.Tensor, prefix: Any = None) -> None:
        assert prefix is None
        self.reqs.append(req)
        self.slots.append(slots)

    def withdraw(self, req: Any) -> bool:
        """Free a request's slots."""
        at = self.reqs.index(req)
        self.reqs.pop(at)
        self.free(self.slots.pop(at))
        return True


class FakeCache:
    """A prefix cache that keeps the slots of whole prompts, and finds a prefix if it has it all.

    Attributes:
        kept: slots of each prompt that was kept, int64 ``[tokens]``.
        locks: of prefixes that were found and not let go of.
    """

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []
        self.locks = 0

    def keep(self, req: Any, table: SlotTable) -> None:
        """Keep what a table has of a prompt from its first token on."""
        self.locks -= table.prefix is not None
        self.kept.append(table.hand_over_front())

    def match(self, req: Any, tokens: torch.Tensor) -> CachedPrefix | None:
        """The prompt that was kept last, if it is long enough."""
        if not self.kept or self.kept[-1].numel() < tokens.numel():
            return None
        self.locks += 1
        return CachedPrefix(self.kept[-1][: tokens.numel()], "node", "lock", self)

    def dec_lock_ref(self, node: Any, lock: Any) -> None:
        """A prefix is let go of."""
        self.locks -= 1

    def unlock(self, lock: Any) -> None:
        """The same in SGLang 0.5.23."""
        self.locks -= 1


def only_prefill_servers_have(scheduler: FakeScheduler) -> None:
    """Take away what SGLang's scheduler lacks in a server that decodes itself."""
    vars(scheduler).update(disagg_prefill_bootstrap_queue=None)
    for name in (
        "disagg_prefill_inflight_queue",
        "disagg_metadata_buffers",
        "req_to_metadata_buffer_idx_allocator",
    ):
        delattr(scheduler, name)


class Rank:
    """A rank of instance 0, or of ``instance``, and everything around it.

    Attributes:
        said: its reports, in order.
        written: its writes to decode; each is "flying", "landed" or "lost".
        breaks: chunks in which the model raises.
        layers: how often a forward gives way.
        device_start_s: when a device says that it started, None for none.
        counted: what has gone over its links since it was asked last.
        joined: links that it was told of: seat, incarnation and invitation.
        dropped: links that it was told to drop.
        no_room: why no further link can be made, "" while it can.
        computed: tokens of each shard that was computed.
        started: for each forward that began, how many had ended.
        known: whether decode's pages are here.
    """

    def __init__(
        self,
        instance: int = 0,
        tp_rank: int = 0,
        *,
        decodes: bool = False,
        cache: FakeCache | None = None,
    ) -> None:
        """What kind of rank it is.

        Args:
            decodes: it is of one server that prefills and decodes.
            cache: before a decode server, where prompts are kept and looked for.
        """
        self.instance, self.tp_rank = instance, tp_rank
        self.cancelled: list[str] = []
        self.known = True
        self.said: list[tuple[type[Report], dict[str, Any]]] = []
        self.written: dict[int, str] = {}
        self.breaks: set[int] = set()
        self.admitted: list[Any] = []
        self.computed: list[int] = []
        self.started: list[int] = []
        self.on_start: Callable[[], None] = lambda: None
        self.layers = 0
        self.device_start_s: float | None = None
        self.counted = Traffic()
        self.joined: list[tuple[int, int, bytes]] = []
        self.dropped: list[int] = []
        self.no_room = ""
        self.allocator = StrictAllocator(PAGES, 1)
        self.joining = FakeJoining(self.allocator.free) if decodes else None
        self.scheduler = FakeScheduler(token_to_kv_pool_allocator=self.allocator)
        if decodes:
            only_prefill_servers_have(self.scheduler)
        reporter: Any = self
        manager: Any = self
        runner: Any = self
        hub: Any = self
        joining: Any = self.joining
        self.coroutines = Coroutines(
            surroundings=NoSurroundings(),
            ranks=Agreement(None, 1),
            leads=True,
            stretch_s=0.0,
            interrupted=lambda: True,
        )
        self.engine = ChunkEngine(
            scheduler=self.scheduler,
            manager=manager,
            reporter=reporter,
            work=ChunkWork(
                self.scheduler,
                manager,
                reporter,
                runner,
                self.coroutines,
                self._starts,
                self.computed.append,
                make_room=self._has_room if decodes or cache else None,
                match=cache.match if cache is not None else None,
                keep=cache.keep if cache is not None else None,
            ),
            coroutines=self.coroutines,
            hub=hub,
            admit=self.admitted.append,
            abort=self.cancelled.append,
            joining=joining,
        )

    def _has_room(self, tokens: int) -> bool:
        return self.allocator.available_size() >= tokens

    def _starts(self) -> None:
        self.started.append(len(self.computed))
        self.on_start()

    # -- reporter -------------------------------------------------------------------------

    leads = property(lambda self: self.tp_rank == 0)

    def send(self, kind: type[Report], **fields: Any) -> None:
        self.said.append((kind, fields))

    def send_from_leader(self, kind: type[Report], **fields: Any) -> None:
        if self.leads:
            self.send(kind, **fields)

    # -- manager --------------------------------------------------------------------------

    kv_args = SimpleNamespace(page_size=1)

    def knows_room(self, room: int) -> bool:
        return room == ROOM and self.known

    def room_is_here(self, room: int, due_s: float) -> bool:
        return room == ROOM

    def decode_prefix(self, room: int) -> int:
        return 0

    def forget_room(self, room: int) -> None:
        assert "flying" not in self.written.values(), "a room is forgotten while it is written to"

    def open_write(self, room: int, pages: Any, *rest: Any, last: bool) -> Any:
        return FakeWrite(self, last)

    # -- runner ---------------------------------------------------------------------------

    def run(self, task: ChunkTask, order: GoOrder, stored: Callable[[int], None]) -> ShardDone:
        for layer in range(self.layers):
            self.coroutines.give_way()
            stored(layer)
        task.slot_table.slots(task.layouts[order.chunk].shard(self.instance))
        if order.chunk in self.breaks:
            raise RuntimeError("the model broke")
        return ShardDone(start_s=self.device_start_s)

    def traffic(self) -> Traffic:
        return self.counted.taken()

    # -- links ----------------------------------------------------------------------------

    def join(self, seat: int, incarnation: int, invitation: bytes) -> None:
        if self.no_room:
            raise LinkError(self.no_room)
        self.joined.append((seat, incarnation, invitation))

    def invite(self, seat: int) -> bytes:
        if self.no_room:
            raise LinkError(self.no_room)
        return f"for {seat}".encode()

    def incarnation_of(self, seat: int) -> int | None:
        lives = [life for at, life, _ in self.joined if at == seat]
        return lives[-1] if lives and seat not in self.dropped else None

    def drop(self, seat: int, why: str) -> None:
        self.dropped.append(seat)

    # -- what the tests do ----------------------------------------------------------------

    def plan(
        self,
        chunks: list[Any] | None = None,
        *,
        rid: str = "r",
        seq: int = 0,
        reused: int = 0,
        gathers: bool = False,
    ) -> None:
        """A plan arrives."""
        chunks = chunks or CHUNKS
        length = reused + sum(tokens for tokens, _ in chunks)
        order = PlanOrder(
            rid=rid,
            seq=seq,
            tokens=array("q", range(length)).tobytes(),
            chunks=chunks,
            room=None if self.joining is not None else ROOM,
            reused=reused,
            gathers=gathers,
        )
        self.engine.on_plan(order)

    def request(self, rid: str = "r") -> Any:
        """SGLang's request object arrives at home."""
        req = Mock(
            rid=rid,
            to_finish=None,
            finished=lambda: False,
            return_logprob=False,
            metadata_buffer_index=3,
            output_ids=[5],
        )
        assert self.engine.adopt(req)
        return req

    def enter(self, chunk: int, *, seq: int = 0, revision: int = 0) -> None:
        """A chunk starts; it runs in the engine's turns."""
        self.engine.on_go(GoOrder(seq=seq, chunk=chunk, revision=revision))

    def go(self, chunk: int, *, seq: int = 0, revision: int = 0) -> None:
        """A chunk starts, and nothing else happens until it is over."""
        self.enter(chunk, seq=seq, revision=revision)
        while self.coroutines.turn():
            pass

    def stop(self, *, seq: int = 0) -> None:
        self.engine.on_stop(StopOrder(seq=seq))

    def kinds(self) -> list[type[Report]]:
        return [kind for kind, _ in self.said]

    def last(self, kind: type[Report]) -> dict[str, Any]:
        return next(fields for said, fields in reversed(self.said) if said is kind)
