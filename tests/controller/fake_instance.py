"""An instance without a process: it obeys its orders, one at a time, at any speed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from sglang_cdsp.parallel.chunk_layout import ChunkLayout, number_sends, padded_tokens
from sglang_cdsp.protocol.messages import (
    AnyReport,
    ChunkDone,
    Drained,
    Failed,
    FirstToken,
    Ready,
    Released,
    StockEnded,
    WriteLost,
)
from tests.controller.fake_tasks import Client, FakeStockRequest, FakeTask, Move

if TYPE_CHECKING:
    from tests.controller.fake_pool import FakePool


class FakeInstance:
    """Obeys orders and reports through its ranks' channels, each in order."""

    def __init__(self, me: int, pool: FakePool) -> None:
        self.me = me
        self.pool = pool
        self._inbox: deque[tuple[Callable[[], None], Callable[[], None] | None]] = deque()
        self.queue: list[FakeTask | FakeStockRequest] = []
        self.tasks: dict[int, FakeTask] = {}
        self.stock_requests: dict[int, FakeStockRequest] = {}
        self.inside: list[FakeTask] = []
        self.used = 0
        self.last_seq = -1
        self.paused = False
        self.lost = False

    # -- its process ----------------------------------------------------------------------

    def end(self) -> None:
        """The kernel has confirmed the end of the process: it does nothing any more."""
        self._inbox.clear()
        self.queue, self.tasks, self.stock_requests, self.inside = [], {}, {}, []
        self.used = 0

    def could_write(self, room: int) -> bool:
        """Whether a task of a room is here that may still write to decode.

        One of whose chunks none was ordered to start here has nothing to write.
        """
        return any(
            task.room == room and task.started and len(task.drained) < self.pool.tp_size
            for task in self.tasks.values()
        )

    # -- what may happen next -------------------------------------------------------------

    def moves(self) -> Iterator[Move]:
        """Everything that this instance could do now."""
        for task in list(self.inside):
            yield from self._inside_moves(task)
        if self._inbox:
            obey, refuse = self._inbox[0]
            yield Move(f"{self.me} takes an order", partial(self._take_order, obey))
            if refuse is not None and not self.lost:
                name = f"{self.me} refuses a request"
                yield Move(name, partial(self._take_order, refuse), fault=True)
        for task in list(self.tasks.values()):
            yield from self._write_moves(task)
        if self.paused:
            return
        for stock in list(self.stock_requests.values()):
            yield from self._stock_moves(stock)
        for place, item in enumerate(list(self.queue)):
            if not place or item.passes:
                yield from self._head_moves(item)

    def _inside_moves(self, task: FakeTask) -> Iterator[Move]:
        chunk = task.next_chunk
        group = task.layouts[chunk].group
        if self.pool.entered[(task.seq, chunk)] >= set(group):
            # A partner that left early has sent all it had, or this one waits until it is stopped.
            ends = not self.pool.failed_inside[(task.seq, chunk)]
            end = partial(self._end, task)
            yield Move(f"{self.me} ends chunk {chunk} of {task.seq}", end, fault=not ends)
        fail = partial(self._end, task, fails=True)
        yield Move(f"{self.me} fails in chunk {chunk} of {task.seq}", fail, fault=True)

    def _write_moves(self, task: FakeTask) -> Iterator[Move]:
        for rank in range(self.pool.tp_size):
            if task.writes[rank]:
                name = f"write of {task.seq} at {self.me}.{rank}"
                yield Move(f"{name} lands", partial(self._landed, task, rank))
                yield Move(f"{name} fails", partial(self._landed, task, rank, "lost"), fault=True)
            elif task.over and task not in self.inside and rank not in task.drained:
                name = f"{self.me}.{rank} has drained {task.seq}"
                yield Move(name, partial(self._drained, task, rank))

    def _stock_moves(self, stock: FakeStockRequest) -> Iterator[Move]:
        if not stock.sampled:
            yield Move(f"stock {stock.seq} samples", partial(self._sample, stock))
        if stock.sampled or stock.unwanted:
            yield Move(f"stock {stock.seq} ends", partial(self._leave, stock, stock.unwanted))
        yield Move(f"stock {stock.seq} fails", partial(self._leave, stock, "broke"), fault=True)

    def _head_moves(self, head: FakeTask | FakeStockRequest) -> Iterator[Move]:
        if isinstance(head, FakeStockRequest):
            yield Move(f"stock {head.seq} begins", partial(self._begin, head))
        elif head.over:
            yield Move(f"{self.me} leaves {head.seq} behind", lambda: self._pop(head))
        elif not (head.announced or head.error or head in self.inside) and (
            self._may_announce(head)
        ):
            chunk = head.next_chunk
            name = f"{self.me} is ready for chunk {chunk} of {head.seq}"
            yield Move(name, partial(self._announce, head))
            if head.starts_from_cache(self.me):
                name = f"{self.me} misses the prefix of {head.seq}"
                yield Move(name, partial(self._miss, head), fault=True)
            if head.prepared != chunk:
                short = partial(self._fail, head, "out of slots")
                yield Move(f"{self.me} cannot prepare {head.seq}", short, fault=True)

    def _may_announce(self, task: FakeTask) -> bool:
        prefilling = not task.passes and any(
            not stock.sampled and not stock.passes for stock in self.stock_requests.values()
        )
        at_home = task.home == self.me and task.client is not None
        return not prefilling and (task.has_request or not at_home)

    # -- orders ---------------------------------------------------------------------------

    def order(self, obey: Callable[[], None], refuse: Callable[[], None] | None = None) -> None:
        """An order is under way; ``refuse`` is what a request's own fault leads to."""
        assert not self.lost, "an order for a process that was given up"
        self._inbox.append((obey, refuse))

    def _take_order(self, order: Callable[[], None]) -> None:
        self._inbox.popleft()
        order()

    def on_plan(self, task: FakeTask) -> None:
        """A plan joins the queue; one that was changed keeps its place in the pool's order."""
        if task.revision:
            assert task.seq not in self.tasks
            waits = [item for item in self.queue if not item.passes]
            late = [item for item in waits if not (isinstance(item, FakeTask) and item.over)]
            assert all(item.seq < task.seq for item in late), "it joins behind a later one"
        else:
            self._in_order(task.seq)
        self.tasks[task.seq] = task
        self.queue.append(task)

    def on_rest(
        self,
        seq: int,
        revision: int,
        chunk: int,
        layouts: tuple[ChunkLayout, ...],
        passes: bool,
        gathers: bool,
    ) -> None:
        """What follows a task's chunks that ran is another."""
        task = self.tasks[seq]
        assert task not in self.inside, "the rest of a task changes between two chunks"
        assert not task.over
        assert revision > task.revision
        assert layouts[:chunk] == task.layouts[:chunk], "what ran stays as it was"
        if task.prepared == task.next_chunk:
            need = self._need(task)
            task.held -= need
            self.used -= need
        task.prepared, task.announced = None, False
        task.layouts, task.revision, task.passes = layouts, revision, passes
        task.gathers = gathers
        task.has_request = task.has_request and task.home == self.me
        first = next(layout.index for layout in layouts if self.me in layout.group)
        task.next_chunk = max(chunk, first)

    def on_forget(self, seq: int) -> None:
        """A task goes on without this instance."""
        task = self.tasks.pop(seq)
        assert task not in self.inside
        ran = [self.me in layout.group for layout in task.layouts[: task.next_chunk]]
        assert not any(ran), "who holds KV of a request stays in its plan"
        self._pop(task)
        self.used -= task.held

    def on_stock(self, stock: FakeStockRequest) -> None:
        """A one-instance request joins the queue."""
        self._in_order(stock.seq)
        self.queue.append(stock)

    def _in_order(self, seq: int) -> None:
        assert seq > self.last_seq, "orders to one instance come in the pool's order"
        self.last_seq = seq

    def on_request(self, seq: int) -> None:
        """Home gets the request itself."""
        self.tasks[seq].has_request = True

    def refuse_request(self, seq: int) -> None:
        """Home gets the request and SGLang's own checks refuse it."""
        task = self.tasks[seq]
        task.has_request = True
        assert task.client is not None
        self._answer(task.client, "home refused")
        self._fail(task, "bad request", bad_request=True)

    def on_go(self, seq: int, chunk: int, revision: int) -> None:
        """Enter a chunk."""
        task = self.tasks[seq]
        assert task.revision == revision, "a chunk of a plan that is no longer in force"
        assert not task.over, "a task that was stopped is not started"
        assert task.announced, "a member is sent into a chunk that it did not say it is ready for"
        assert task.next_chunk == chunk
        assert task.prepared == chunk
        self.pool.entered[(seq, chunk)].add(self.me)
        self.inside.append(task)

    def on_stop(self, seq: int, *, resumes: bool = False) -> None:
        """Leave a chunk at its next layer, and run no other one of the task.

        ``resumes``: its request is to be computed anew.
        """
        task = self.tasks[seq]
        task.over = True
        if task in self.inside:
            self._leave_chunk(task)

    def _leave_chunk(self, task: FakeTask) -> None:
        self.inside.remove(task)
        self.pool.left[(task.seq, task.next_chunk)].add(self.me)

    def on_release(self, seq: int, error: str, silent: bool) -> None:
        """Free the slots and answer the client at home."""
        task = self.tasks.pop(seq)
        assert task.over
        assert not any(task.writes.values()), "slots are freed while a write reads them"
        self._pop(task)
        self.used -= task.held
        if task.has_request and not silent and task.client is not None:
            self._answer(task.client, "home failed" if error else "home finished")
        self._say(0, Released, seq=seq)

    def on_cancel(self, seq: int) -> None:
        """Abort one request, whether it was held back or not."""
        if seq in self.stock_requests:
            self.stock_requests[seq].unwanted = self.stock_requests[seq].unwanted or "aborted"
        for request in list(self.queue):
            if isinstance(request, FakeStockRequest) and request.seq == seq:
                self._pop(request)
                self._stock_ended(request, "aborted")

    def on_room_abort(self, room: int, rank: int) -> None:
        """Stock's sender marks the room failed and acknowledges once its writes are over."""
        held_back = [request for request in self.queue if isinstance(request, FakeStockRequest)]
        for stock in (*self.stock_requests.values(), *held_back):
            if stock.room == room:
                stock.unwanted = "decode is gone"
                stock.decode_gone = True
                if stock.begun:
                    stock.acks_owed.append(rank)
                    return
        self.pool.stock_told_safe(room, rank)

    # -- progress -------------------------------------------------------------------------

    def _pop(self, request: FakeTask | FakeStockRequest) -> None:
        if request in self.queue:
            self.queue.remove(request)

    def _take(self, tokens: int) -> None:
        self.used += tokens
        assert self.used <= self.pool.capacity, "the pool promised more slots than there are"

    def _need(self, task: FakeTask) -> int:
        """Slots that the task takes here before its next chunk."""
        return task.need(self.me, self.pool.page_size)

    def _announce(self, task: FakeTask) -> None:
        chunk, found = task.next_chunk, None
        if task.starts_from_cache(self.me):
            # Its lock takes the slots from the cache, which counts as free.
            found, task.matched = task.reused, True
            self._take(found)
            task.held += found
        if task.prepared != chunk:
            need = self._need(task)
            self._take(need)
            task.held += need
            task.prepared = chunk
        task.announced = True
        self._say(0, Ready, seq=task.seq, chunk=chunk, revision=task.revision, found=found)

    def _miss(self, task: FakeTask) -> None:
        """Less is cached than the plan reuses: nothing is held, and nothing can start."""
        task.announced = True
        found = task.reused - self.pool.page_size
        chunk, revision = task.next_chunk, task.revision
        self._say(0, Ready, seq=task.seq, chunk=chunk, revision=revision, found=found)

    def _end(self, task: FakeTask, *, fails: bool = False) -> None:
        """The chunk is over here."""
        self._leave_chunk(task)
        chunk, layout = task.next_chunk, task.layouts[task.next_chunk]
        if fails:
            task.error = f"chunk {chunk} broke"
            self.pool.failed_inside[(task.seq, chunk)].add(self.me)
            self._say(0, Failed, seq=task.seq, error=task.error, revision=task.revision)
            return
        self._send(task)
        if task.final and task.home == self.me and task.client is not None:
            self._say(0, FirstToken, seq=task.seq)
        if task.room is not None:
            for rank in range(self.pool.tp_size):
                self.pool.decode_written(task.room, rank)
                task.writes[rank] += 1
        leaving = task.own([m.span for m in layout.moves if m.src == self.me], self.me)
        keeps = task.gathers and task.final and task.home == self.me
        if leaving and not keeps:
            freed = padded_tokens(leaving, self.pool.page_size)
            task.held -= freed
            self.used -= freed
        task.announced = False
        task.over = task.final
        task.next_chunk += 1
        start_s = self.pool.now_s - 1.0
        self._say(0, ChunkDone, seq=task.seq, chunk=chunk, start_s=start_s)

    def _send(self, task: FakeTask) -> None:
        """The shard's KV leaves under the numbers that decode counts."""
        for send in number_sends(task.layouts, 0):
            if (send.instance, send.chunk) == (self.me, task.next_chunk):
                self.pool.sent(task.seq, send)

    def _fail(self, task: FakeTask, error: str, *, bad_request: bool = False) -> None:
        task.error = error
        self._say(
            0,
            Failed,
            seq=task.seq,
            error=error,
            bad_request=bad_request,
            revision=task.revision,
        )

    def _landed(self, task: FakeTask, rank: int, error: str = "") -> None:
        task.writes[rank] -= 1
        if error:
            task.lost[rank] = error
            self._say(rank, WriteLost, seq=task.seq, error=error)

    def _drained(self, task: FakeTask, rank: int) -> None:
        task.drained.add(rank)
        error = task.error or task.lost.get(rank, "")
        self._say(rank, Drained, seq=task.seq, error=error)

    def _begin(self, stock: FakeStockRequest) -> None:
        self._pop(stock)
        self.stock_requests[stock.seq] = stock
        stock.begun = True
        page = self.pool.page_size
        self._take(-(-stock.tokens // page) * page)

    def _sample(self, stock: FakeStockRequest) -> None:
        stock.sampled = True
        self._say(0, FirstToken, seq=stock.seq)
        if stock.room is not None and not stock.decode_gone:
            for rank in range(self.pool.tp_size):
                self.pool.decode_written(stock.room, rank)

    def _leave(self, stock: FakeStockRequest, error: str) -> None:
        del self.stock_requests[stock.seq]
        page = self.pool.page_size
        self.used -= -(-stock.tokens // page) * page
        for rank in stock.acks_owed:
            assert stock.room is not None
            self.pool.stock_told_safe(stock.room, rank)
        self._answer(stock.client, "stock failed" if error else "stock finished")
        self._stock_ended(stock, error)

    def _answer(self, client: Client, who: str) -> None:
        self.pool.answered(client, who)

    def _stock_ended(self, stock: FakeStockRequest, error: str) -> None:
        self._say(0, StockEnded, seq=stock.seq, start_s=None, end_s=None, error=error)

    def _say(self, rank: int, kind: Callable[..., AnyReport], **fields: object) -> None:
        """A rank reports: the controller hears it later."""
        report = kind(instance=self.me, tp_rank=rank, at_s=self.pool.now_s, **fields)
        self.pool.channels[(self.me, rank)].append(report)
