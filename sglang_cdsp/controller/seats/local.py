"""Lives of seats as processes of this machine."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from sglang_cdsp.controller.seats.launcher import Ended, Failing, LifeEvent, Started, Vitals
from sglang_cdsp.controller.seats.signals import unblock
from sglang_cdsp.controller.seats.states import Cause
from sglang_cdsp.protocol import lives
from sglang_cdsp.protocol.lives import Life
from sglang_cdsp.protocol.parent import end_with_parent

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rank:
    """A process that can be started.

    Attributes:
        target: a function that a spawned process finds by its name.
        arguments: of it; ``writer`` stands where the end of a pipe goes, on which it says that it
            is ready.
        surroundings: makes the context manager in which it is started.
    """

    target: Callable[..., Any]
    arguments: Sequence[Any]
    surroundings: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


KEEP_ENVIRONMENT = "SPT_NOENV"
"""Read by setproctitle, which SGLang's processes call: it writes titles over the environment."""

WRITER = "<writer>"
"""Stands for the pipe in a rank's arguments."""

Prepare = Callable[[int, int], Callable[[], Sequence[Rank]]]
"""Prepares a life, by seat and incarnation; what it returns is called by the thread that launches,
and gives the ranks."""


@dataclass
class _Process:
    process: BaseProcess
    reader: Connection
    facts: Mapping[str, Any] | None = None


@dataclass
class _Living:
    """A life that was asked for, until its end is confirmed."""

    life: Life
    ranks: Callable[[], Sequence[Rank]]
    processes: list[_Process] = field(default_factory=list)
    launched: bool = False
    """Whether all of them were started, or none of the rest will be."""
    error: str = ""
    killed: bool = False
    told_ready: bool = False
    told_failing: bool = False


class LocalLauncher:
    """Implements ``Launcher``.

    One thread starts all processes and never ends: a process that asks to be killed with its
    parent (PDEATHSIG) is killed when the *thread* ends that started it.
    """

    def __init__(
        self,
        pool: str,
        prepare: Prepare,
        *,
        beats: Callable[[int], tuple[int, ...]] = lambda seat: (),
        complaints: Callable[[], Sequence[int]] = tuple,
        last_words: Callable[[], str] = str,
        stranger: Callable[[int], None] = lambda pid: None,
    ) -> None:
        """Start nothing yet.

        Args:
            pool: what no other pool of the machine has.
            prepare: prepares what is started for a life.
            beats: the counters of a seat's ranks.
            complaints: senders of SIGQUIT since the last call, as ``signals.Complaints`` tells.
            last_words: what a rank that has ended left to say, "" for nothing.
            stranger: called with the sender of a SIGQUIT that is no process of a life.
        """
        # Where one must be started, it must not bear the mark of a life.
        resource_tracker.ensure_running()
        self._pool = pool
        self._prepare = prepare
        self._beats = beats
        self._complaints = complaints
        self._last_words = last_words
        self._stranger = stranger
        self._lives: dict[int, _Living] = {}
        self._former: set[int] = set()
        self._lock = threading.Lock()
        self._orders: queue.SimpleQueue[_Living] = queue.SimpleQueue()
        threading.Thread(target=self._launch_for_ever, daemon=True, name="cdsp-launch").start()

    # -- the launching thread -------------------------------------------------------------

    def _launch_for_ever(self) -> NoReturn:
        while True:
            living = self._orders.get()
            try:
                self._launch(living)
            except Exception as error:
                logger.exception("seat %d cannot be started", living.life.seat)
                living.error = f"its processes could not be started: {error}"
            with self._lock:
                living.launched = True

    def _launch(self, living: _Living) -> None:
        life = living.life
        for rank in living.ranks():
            if living.killed:
                return
            reader, writer = multiprocessing.Pipe(duplex=False)
            arguments = [writer if a is WRITER else a for a in rank.arguments]
            process = multiprocessing.get_context("spawn").Process(
                target=run_rank, args=(rank.target, *arguments)
            )
            try:
                with rank.surroundings(), _marked(life):
                    process.start()
            finally:
                # An end that stays open here would hide that the child's has closed.
                writer.close()
            with self._lock:
                living.processes.append(_Process(process, reader))

    # -- the controller's thread ----------------------------------------------------------

    def start(self, seat: int, incarnation: int, slots: int | None) -> None:
        if seat in self._lives:
            raise ValueError(f"seat {seat} still has a life: end it first")
        life = Life(self._pool, seat, incarnation, slots)
        living = _Living(life, self._prepare(seat, incarnation))
        self._lives[seat] = living
        self._orders.put(living)

    def end(self, seat: int) -> None:
        living = self._lives.get(seat)
        if living is not None:
            living.killed = True
            self._kill(living)

    def poll(self) -> list[LifeEvent]:
        events: list[LifeEvent] = list(self._complained())
        for seat, living in list(self._lives.items()):
            events += self._progress(living)
            if self._over(living):
                self._former.update(self.pids(seat))
                del self._lives[seat]
                for each in living.processes:
                    each.reader.close()
                    each.process.close()
                events.append(Ended(seat, living.life.incarnation))
        return events

    def vitals(self, seat: int) -> Vitals | None:
        living = self._lives.get(seat)
        if living is None or living.killed:
            return None
        stopped = tuple(pid for pid in self.pids(seat) if lives.stopped(pid))
        return Vitals(self._beats(seat), stopped)

    def pids(self, seat: int) -> list[int]:
        """Ids of the ranks' processes that were started so far."""
        living = self._lives.get(seat)
        if living is None:
            return []
        with self._lock:
            return [each.process.pid for each in living.processes if each.process.pid is not None]

    @property
    def processes(self) -> list[BaseProcess]:
        """The ranks' processes of all lives that were started so far, by seat and rank."""
        with self._lock:
            ordered = [living for _, living in sorted(self._lives.items())]
            return [each.process for living in ordered for each in living.processes]

    def _complained(self) -> Iterator[Failing]:
        seats = {pid: seat for seat in self._lives for pid in self.pids(seat)}
        for pid in self._complaints():
            seat = seats.get(pid)
            if seat is not None:
                left = self._last_words()
                why = left or "its watchdog found it stuck, see the log"
                words = f"process {pid} gave up (SIGQUIT): {why}"
                incarnation = self._lives[seat].life.incarnation
                yield Failing(seat, incarnation, Cause.COMPLAINED, words, left)
            elif pid not in self._former:
                self._stranger(pid)

    def _progress(self, living: _Living) -> Iterator[LifeEvent]:
        """What a life has said since, and whether it is whole."""
        life = living.life
        with self._lock:
            launched, processes = living.launched, list(living.processes)
        for each in processes:
            if each.facts is None:
                # A pipe that was closed reads as its end; the process follows.
                with contextlib.suppress(EOFError, OSError):
                    if each.reader.poll(0):
                        each.facts = dict(each.reader.recv())
        if living.killed:
            self._kill(living)
            return
        gone = [each.process for each in processes if each.process.exitcode is not None]
        if (gone or living.error) and not living.told_failing:
            living.told_failing = True
            left = self._last_words()
            words = living.error or f"process {gone[0].pid} {_how(gone[0].exitcode)}"
            words = f"{words}: {left}" if left else words
            yield Failing(life.seat, life.incarnation, Cause.ENDED, words, left)
        elif launched and not living.told_ready and all(p.facts is not None for p in processes):
            living.told_ready = True
            yield Started(life.seat, life.incarnation, processes[0].facts or {})

    def _kill(self, living: _Living) -> None:
        """Kill what there is of a life, whoever started it."""
        with self._lock:
            ranks = [each.process for each in living.processes]
        for rank in ranks:
            if rank.exitcode is None:
                rank.kill()
        for pid in lives.members(living.life):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _over(self, living: _Living) -> bool:
        """Whether the kernel has confirmed the end of all that there was of a life."""
        with self._lock:
            launched, processes = living.launched, list(living.processes)
        if not launched or any(each.process.exitcode is None for each in processes):
            return False
        # A life whose ranks have ended is given up: what they started must not go on alone.
        if lives.members(living.life):
            self._kill(living)
            return False
        return living.told_failing or living.killed


def run_rank(target: Callable[..., Any], *arguments: Any) -> Any:
    """Run ``target`` in a rank's process, which ends with the controller, however early."""
    end_with_parent()
    unblock()
    return target(*arguments)


@contextlib.contextmanager
def _marked(life: Life) -> Iterator[None]:
    """Processes that are started meanwhile belong to ``life``. For the launching thread alone."""
    os.environ.update({lives.ENV_VAR: life.mark, KEEP_ENVIRONMENT: "1"})
    try:
        yield
    finally:
        del os.environ[lives.ENV_VAR], os.environ[KEEP_ENVIRONMENT]


def _how(exitcode: int | None) -> str:
    assert exitcode is not None
    if exitcode >= 0:
        return f"ended with exit code {exitcode}"
    try:
        return f"was killed by {signal.Signals(-exitcode).name}"
    except ValueError:
        return f"was killed by signal {-exitcode}"
