"""Decode's pages belong to somebody else as soon as its abort is acknowledged.

Life cycle, engines, writes and NIXL agents are the real ones; only the wire is slow: a write lands
when the test says so. An acknowledgement that comes before the last holder's write has landed lets
that write destroy the KV of whoever got the pages next, here in so many bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sglang_cdsp.controller.decode.room_manager import UNCERTAIN_FOR_S
from sglang_cdsp.controller.request import AbortTarget, PoolRequest
from sglang_cdsp.protocol import messages
from sglang_cdsp.transfer.pages import Pages
from sglang_cdsp.transfer.progress_thread import calm_progress_thread
from tests.controller.fake_pool import FakePool
from tests.engine.fake_rank import PAGES, Rank
from tests.engine.fake_transfer import ROOM, FakePoolManager

nixl = pytest.importorskip("nixl._api", reason="NIXL is the transfer engine that is tried here")

CHUNKS = [(4, [0, 1]), (4, [0, 1])]
ROW = 64
DECODE_PAGES = list(range(8))
NEXT_OWNER = 99
Rows = npt.NDArray[np.uint8]


class Memory:
    """An agent's registered rows of bytes."""

    def __init__(self, name: str, rows: int, value: int) -> None:
        calm_progress_thread()
        self.agent = nixl.nixl_agent(name, nixl.nixl_agent_config(backends=["UCX"]))
        self.rows: Rows = np.full((rows, ROW), value, dtype=np.uint8)
        self.agent.register_memory([(self.rows.ctypes.data, self.rows.nbytes, 0, "")], "DRAM")

    def descriptors(self, rows: Iterable[int]) -> Any:
        start = self.rows.ctypes.data
        return self.agent.get_xfer_descs([(start + int(r) * ROW, ROW, 0) for r in rows], "DRAM")


class SlowManager(FakePoolManager):
    """A holder's manager whose writes are posted when the test lets them go."""

    def __init__(self, here: Memory, decode: Memory) -> None:
        super().__init__()
        self.here, self.decode = here, decode
        self.held: list[Any] = []
        self.broken: list[Any] = []
        self.peer("decode")
        self.pages("decode", DECODE_PAGES)

    @property
    def layer_buffers(self) -> dict[int, tuple[int, ...]]:
        """The memory's rows are all the KV that there is."""
        return {0: (0,)}

    def _hold(self, source: Iterable[int], target: Iterable[int]) -> Any:
        local, remote = self.here.descriptors(source), self.decode.descriptors(target)
        self.held.append(self.here.agent.initialize_xfer("WRITE", local, remote, "decode"))
        return self.held[-1]

    def post_layer(self, info: Any, pages: Pages, layer_id: int) -> Any:
        return self._hold(pages.source, pages.place)

    def send_aux(self, *given: Any) -> Any:
        return self._hold([0], [len(DECODE_PAGES)])

    def say_written(self, *told: Any, **more: Any) -> None:
        """This decode is told by the pool."""

    def outcome(self, handle: Any) -> str | None:
        if handle in self.broken:
            return "its state cannot be read"
        if handle in self.held:
            return None
        assert self.here.agent.check_xfer_state(handle) == "DONE"
        return ""

    def forget_posted(self, handle: Any) -> None:
        if handle not in self.held:
            self.here.agent.release_xfer_handle(handle)

    def lose_sight(self) -> None:
        """Nobody knows any more what becomes of the writes that are held."""
        self.broken += self.held

    def land(self) -> None:
        """Everything that is held goes out and arrives."""
        for handle in self.held:
            state = self.here.agent.transfer(handle)
            while state == "PROC":
                state = self.here.agent.check_xfer_state(handle)
            assert state == "DONE"
        self.held.clear()


class Holder(Rank):
    """An instance whose writes are a ``SlowManager``'s and whose reports reach the pool."""

    def __init__(self, instance: int, manager: SlowManager, tell: Callable[..., None]) -> None:
        super().__init__(instance)
        self.manager, self.tell = manager, tell

    def send(self, kind: type[messages.Report], **fields: Any) -> None:
        self.tell(self.instance, kind, **fields)

    def open_write(self, *given: Any, last: bool) -> Any:
        return self.manager.open_write(*given, last=last)

    def forget_room(self, room: int) -> None:
        self.manager.forget_room(room)


class SlowPool(FakePool):
    """The real life cycle over real engines; decode reuses its pages when they are said safe."""

    def __init__(self, decode: Memory, sources: list[Memory]) -> None:
        super().__init__(size=len(sources))
        self.decode = decode
        self.read: list[int] = []
        self.mail: list[Callable[[], None]] = []
        self.holders = [
            Holder(i, SlowManager(source, decode), self._tell) for i, source in enumerate(sources)
        ]

    def _tell(self, instance: int, kind: Callable[..., messages.AnyReport], **fields: Any) -> None:
        report = kind(instance=instance, tp_rank=0, at_s=1.0, **fields)
        self.mail.append(partial(self.hear, report))

    def turn(self) -> None:
        """Every loop comes round a few times."""
        for _ in range(6):
            self.lifecycle.on_loop()
            for holder in self.holders:
                holder.engine.step()
            mail, self.mail = self.mail, []
            for letter in mail:
                letter()

    def bind(self, request: PoolRequest) -> None:
        assert request.plan is not None
        for instance in request.plan.instances:
            self.holders[instance].plan(CHUNKS, rid=request.rid, seq=request.seq)
        self.holders[0].request(request.rid)

    def go(self, request: PoolRequest, instances: Iterable[int]) -> None:
        for instance in instances:
            self.mail.append(
                partial(self.holders[instance].go, request.next_chunk, seq=request.seq)
            )

    def stop(self, request: PoolRequest, instances: Iterable[int]) -> None:
        for instance in instances:
            self.mail.append(partial(self.holders[instance].stop, seq=request.seq))

    def release(self, request: PoolRequest) -> None:
        for holder in self.holders:
            holder.engine.on_release(messages.ReleaseOrder(seq=request.seq, silent=True))

    def answer(self, request: PoolRequest, status: HTTPStatus, message: str) -> None:
        pass

    def fail_room(self, room: int, reason: str) -> None:
        pass

    def ended(self, request: PoolRequest) -> None:
        pass

    def finish_room(self, room: int) -> None:
        """Decode reads the pages at once."""
        self.told_finished[room] += 1
        self.read = self.decode.rows[: len(DECODE_PAGES), 0].tolist()

    def ack_abort(self, room: int, target: AbortTarget) -> None:
        self.acks[(room, target.tp_rank)] += 1
        self.decode.rows[:] = NEXT_OWNER


@pytest.fixture(scope="module")
def memories() -> list[Memory]:
    decode = Memory("decode", len(DECODE_PAGES) + 1, 0)
    sources = [Memory(f"holder{i}", PAGES + 1, 1 + i) for i in range(2)]
    for source in sources:
        source.agent.add_remote_agent(decode.agent.get_agent_metadata())
    return [decode, *sources]


@pytest.mark.parametrize("last", [0, 1])
def test_no_write_lands_after_the_acknowledgement(memories: list[Memory], last: int) -> None:
    decode, *sources = memories
    pool = SlowPool(decode, sources)
    decode.rows[:] = 0
    request = pool.submit(8, room=ROOM, plan=CHUNKS)
    pool.decode_sends(ROOM, 0)
    pool.turn()
    assert [len(holder.manager.held) for holder in pool.holders] == [3, 2], "all writes are held"
    pool.decode_aborts(ROOM, 0)
    pool.turn()
    pool.holders[1 - last].manager.land()
    pool.turn()
    early = dict(pool.acks)
    pool.holders[last].manager.land()
    pool.turn()
    assert pool.acks == {(ROOM, 0): 1}
    assert (decode.rows == NEXT_OWNER).all(), "the next owner's KV was overwritten"
    assert early == {}
    assert request.outcome == "aborted"


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("aborted", ["before", "after"])
def test_a_write_whose_end_is_unknown_holds_the_acknowledgement_back(
    memories: list[Memory], aborted: str, gone: bool
) -> None:
    """It lands late, on pages that decode must not have given to anybody while it lives."""
    decode, *sources = memories
    pool = SlowPool(decode, sources)
    decode.rows[:] = 0
    pool.submit(8, room=ROOM, plan=CHUNKS)
    pool.decode_sends(ROOM, 0)
    pool.turn()
    if aborted == "before":
        pool.decode_aborts(ROOM, 0)
        pool.turn()
    pool.holders[0].manager.land()
    pool.holders[1].manager.lose_sight()
    pool.turn()
    if aborted == "after":
        # Stock decode gives a failed room up and waits for the acknowledgement as well.
        pool.decode_aborts(ROOM, 0)
    pool.turn()
    assert pool.acks == {}
    pool.now_s += UNCERTAIN_FOR_S - 1
    pool.turn()
    assert pool.acks == {}, "decode lives"
    pool.holders[1].manager.land()
    assert set(decode.rows[:8, 0].tolist()) == {1, 2}, "the late write hurts nobody"
    if gone:
        pool.lifecycle.on_decode_link("decode", 7000, alive=False)
    pool.now_s += 1
    pool.turn()
    # Nobody waits for it at a rank that is gone, and the next process there knows no such room.
    assert pool.acks == ({} if gone else {(ROOM, 0): 1})


@pytest.mark.parametrize("last", [0, 1])
def test_decode_is_told_when_the_last_holders_bytes_are_there(
    memories: list[Memory], last: int
) -> None:
    """Its only word from a transfer engine whose writes carry no notification."""
    decode, *sources = memories
    pool = SlowPool(decode, sources)
    decode.rows[:] = 0
    pool.submit(8, room=ROOM, plan=CHUNKS)
    pool.decode_sends(ROOM, 0)
    pool.turn()
    pool.holders[1 - last].manager.land()
    pool.turn()
    assert pool.told_finished[ROOM] == 0
    pool.holders[last].manager.land()
    pool.turn()
    assert pool.told_finished[ROOM] == 1
    assert sorted(pool.read) == [1] * 4 + [2] * 4, "what decode read is not all holders' KV"


def test_nothing_is_lost_without_an_abort(memories: list[Memory]) -> None:
    """The same world, left alone: decode gets each holder's bytes."""
    decode, *sources = memories
    pool = SlowPool(decode, sources)
    decode.rows[:] = 0
    request = pool.submit(8, room=ROOM, plan=CHUNKS)
    pool.decode_sends(ROOM, 0)
    pool.turn()
    for holder in pool.holders:
        holder.manager.land()
    pool.turn()
    assert request.outcome == "finished"
    for chunk in (decode.rows[:4, 0], decode.rows[4:8, 0]):
        assert set(chunk.tolist()) == {1, 2}, "each chunk comes from both"
    assert decode.rows[7, 0] == 1, "home holds the prompt's last token"
