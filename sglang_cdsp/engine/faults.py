"""Fault injection for tests, off unless an environment variable asks for it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from sglang_cdsp.attention.backend import ShardAttention
from sglang_cdsp.engine.fault_orders import FaultFolder, FaultOrder, requested_folder
from sglang_cdsp.engine.tasks import ChunkTask

ENV_VAR = "SGLANG_CDSP_TEST_FAULT"


class InjectedFault(RuntimeError):
    """Raised where a test asked for it."""


@dataclass(frozen=True)
class Fault:
    """An exception in the attention of one instance, for prompts of one length.

    Attributes:
        instance: the instance that fails.
        chunk: the chunk that fails.
        prompt_tokens: length of the prompts that it happens to.
    """

    instance: int
    chunk: int
    prompt_tokens: int

    def hits(self, instance: int, task: ChunkTask, chunk: int) -> bool:
        """Whether this chunk is to fail here."""
        here = (instance, chunk, task.tokens.numel())
        return not task.probe and here == (self.instance, self.chunk, self.prompt_tokens)


class FailingAttention(ShardAttention):
    """Attention that fails at the second layer, in the middle of its partners' exchange."""

    def __init__(self, inner: ShardAttention) -> None:
        self.__dict__.update(inner.__dict__)
        self._calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Attend once, then raise."""
        self._calls += 1
        if self._calls > 1:
            raise InjectedFault("a test asked for this failure")
        return super().forward(*args, **kwargs)


SHAKE_VAR = "SGLANG_CDSP_TEST_SHAKE"


def requested_shake() -> random.Random | None:
    """The order of switches that ``SGLANG_CDSP_TEST_SHAKE=seed`` asks for, if set.

    Coroutines then switch at every point at which they may, to one that is drawn.
    """
    text = os.environ.get(SHAKE_VAR)
    return random.Random(int(text)) if text else None


def requested_fault() -> Fault | None:
    """The fault that ``SGLANG_CDSP_TEST_FAULT=instance:chunk:tokens`` asks for, if set."""
    text = os.environ.get(ENV_VAR)
    return Fault(*(int(part) for part in text.split(":"))) if text else None


CUDA_ERROR = "CUDA error: an illegal memory access was encountered (a test asked for it)"


def moments_of(tasks: Iterable[ChunkTask], *, idle: bool) -> frozenset[str]:
    """Which of ``fault_orders.MOMENTS`` a rank with these tasks is in, between two turns.

    ``idle``: it holds nothing, no one-instance request either.
    """
    held = [task for task in tasks if not task.probe]
    found = {"turn", "idle"} if idle else {"turn"}
    if any(task.started and task.running is None and not task.over for task in held):
        found.add("between")
    if any(task.running is None and task.writes for task in held):
        found.add("transfer")
    return frozenset(found)


class FaultHook:
    """Carries out the orders that are aimed at one rank, at the moments that they name."""

    def __init__(
        self,
        folder: FaultFolder,
        seat: int,
        rank: int,
        incarnation: int,
        *,
        kill: Callable[[int, int], None] = os.kill,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look into ``folder`` from now on; ``kill`` sends a signal to a process."""
        self._folder = folder
        self._seat, self._rank, self._incarnation = seat, rank, incarnation
        self._kill = kill
        self._clock = clock
        self._seen: frozenset[str] = frozenset()
        self._orders: dict[str, FaultOrder] = {}
        self._passed: Counter[str] = Counter()
        self._joined = False
        self._due: Exception | None = None
        self._slow_until_s, self._slow_s = 0.0, 0.0

    def start(self) -> None:
        """The process has begun, and the model is not loaded yet."""
        for order in self._taken({"start"}):
            self._carry_out(order)

    def turn(self, moments: Collection[str]) -> None:
        """A turn of the loop has ended.

        Raises:
            Exception: that was asked for; it is to leave the loop.
        """
        if self._due is not None:
            raise self._due
        first, self._joined = not self._joined, True
        for order in self._taken({*moments, "join"} if first else moments):
            self._carry_out(order)

    def layer(self, give_way: Callable[[Callable[[], bool] | None], None]) -> None:
        """A chunk's forward has come to a layer; ``give_way`` suspends it.

        Raises:
            RuntimeError: as a kernel that failed raises it.
        """
        for order in self._taken({"layer"}):
            if order.way == "exception":
                # What a chunk raises ends the chunk. The loop fails while the chunk is suspended.
                self._due = InjectedFault("a test asked for this failure inside a layer")
                give_way(lambda: False)
            self._carry_out(order)

    def delay_s(self) -> float:
        """By how much the rank's links are slow now."""
        for order in self._taken({"turn"}, ways={"slow-link"}):
            self._carry_out(order)
        return self._slow_s if self._clock() < self._slow_until_s else 0.0

    def _taken(
        self, moments: Collection[str], ways: Collection[str] | None = None
    ) -> Iterable[FaultOrder]:
        """The orders for this rank that are due, each of which it takes for itself."""
        self._look()
        for name, order in list(self._orders.items()):
            if order.moment not in moments or (ways is not None and order.way not in ways):
                continue
            self._passed[name] += 1
            if self._passed[name] <= order.skip:
                continue
            del self._orders[name]
            if self._folder.take(name, self._incarnation):
                yield order

    def _look(self) -> None:
        names = self._folder.names()
        if names == self._seen:
            return
        for name in names - self._seen:
            order = self._folder.read(name)
            if order is not None and order.aims_at(self._seat, self._rank, self._incarnation):
                self._orders[name] = order
        self._orders = {name: order for name, order in self._orders.items() if name in names}
        self._seen = names

    def _carry_out(self, order: FaultOrder) -> None:
        if order.way == "slow-link":
            self._slow_s, self._slow_until_s = order.delay_s, self._clock() + order.for_s
        elif order.way == "kill":
            self._kill(os.getpid(), signal.SIGKILL)
        elif order.way == "stop":
            self._kill(os.getpid(), signal.SIGSTOP)
        elif order.way == "watchdog":
            self._kill(os.getppid(), signal.SIGQUIT)
            _stand_still()
        elif order.way == "cuda":
            self._due = RuntimeError(CUDA_ERROR)
            raise self._due
        else:
            raise InjectedFault("a test asked for this failure of the loop")


def _stand_still() -> NoReturn:
    """What a loop does about which SGLang's watchdog complains."""
    while True:
        time.sleep(3600.0)


def requested_hook(seat: int, rank: int, incarnation: int) -> FaultHook | None:
    """A rank's hook, if the environment names a folder of orders."""
    folder = requested_folder()
    return FaultHook(folder, seat, rank, incarnation) if folder is not None else None
