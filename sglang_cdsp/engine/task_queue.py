"""An instance's queue: tasks and one-instance requests in the pool's order.

The controller numbers all of them in one sequence and sends orders in it, so two groups that share
instances never wait for each other in a circle. All ranks of an instance receive the same orders in
the same loop iteration (SGLang's broadcast), so their queues stay alike. A plan that changes keeps
its place; instances that it takes in have nothing after it in the order, so it joins there as the
last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang_cdsp.engine.tasks import ChunkTask, StockRequest

if TYPE_CHECKING:
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput


class TaskQueue:
    """What has not had its turn yet on one instance, first come first."""

    def __init__(self) -> None:
        self._waiting: deque[ChunkTask | StockRequest] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def append(self, item: ChunkTask | StockRequest) -> None:
        """The last in the pool's order joins."""
        self._waiting.append(item)

    def head(self) -> ChunkTask | StockRequest | None:
        """Whose turn it is; tasks that are over have had theirs."""
        while self._waiting:
            head = self._waiting[0]
            if not (isinstance(head, ChunkTask) and head.over):
                return head
            self._waiting.popleft()
        return None

    def passing(self) -> list[ChunkTask | StockRequest]:
        """What may start before its turn, in the pool's order."""
        return [
            item
            for item in self._waiting
            if item.passes and not (isinstance(item, ChunkTask) and item.over)
        ]

    def remove(self, item: ChunkTask | StockRequest) -> None:
        """Take something out, if it is there."""
        if item in self._waiting:
            self._waiting.remove(item)

    def hold(self, tokenized: TokenizedGenerateReqInput) -> bool:
        """Keep a request until its turn; False for one that has no place here."""
        for request in self.requests():
            if request.rid == tokenized.rid and request.tokenized is None:
                request.tokenized = tokenized
                return True
        return False

    def take_requests(self, wanted: Callable[[StockRequest], bool]) -> list[StockRequest]:
        """Take the one-instance requests out that are wanted; returns them."""
        taken = [request for request in self.requests() if wanted(request)]
        for request in taken:
            self._waiting.remove(request)
        return taken

    def requests(self) -> list[StockRequest]:
        """The one-instance requests."""
        return [item for item in self._waiting if isinstance(item, StockRequest)]
