"""The seats of the controller's pool: filled together at the start, kept filled from then on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import zmq
from sglang.srt.managers.load_snapshot import ShmLoadSnapshotWriter, shm_path_for

from sglang_cdsp.controller.control_messages import ControlMessages
from sglang_cdsp.controller.health_checks import HealthChecks
from sglang_cdsp.controller.seats.first_lives import StartFailedError, start_all
from sglang_cdsp.controller.seats.keeper import SeatKeeper
from sglang_cdsp.controller.seats.local import LocalLauncher, Rank
from sglang_cdsp.controller.seats.signals import FROM_KERNEL, UNKNOWN, Complaints
from sglang_cdsp.controller.seats.states import SeatState
from sglang_cdsp.controller.seats.stock_ranks import StockRanks
from sglang_cdsp.controller.seats.table import SeatTable
from sglang_cdsp.controller.seats.ways import SeatObserver, SeatRequests
from sglang_cdsp.controller.seats.wishes import DRAIN, read_wishes
from sglang_cdsp.controller.startup import give_up, refuse_start
from sglang_cdsp.controller.told import Told
from sglang_cdsp.controller.wires import SeatWires
from sglang_cdsp.protocol import last_words
from sglang_cdsp.protocol.messages import Answered, AnyReport, Hello, Streamed
from sglang_cdsp.protocol.progress import ProgressBoard

logger = logging.getLogger(__name__)


class PoolSeats:
    """Implements ``keeper.Wires``, and is what the controller asks about its seats."""

    def __init__(
        self,
        *,
        size: int,
        tp_size: int,
        progress: ProgressBoard,
        words: str,
        control: ControlMessages,
        pass_on: Callable[[bytes], None],
    ) -> None:
        """To be called in the main thread, before it starts others.

        Args:
            size: seats; ``tp_size`` ranks each.
            progress: where the ranks count their beats.
            words: where a scheduler leaves its reason, see ``last_words``.
            control: SGLang's control messages to the instances.
            pass_on: sends an output message of SGLang's to the detokenizer.
        """
        self._pass_on = pass_on
        self._size, self._tp_size = size, tp_size
        self._progress = progress
        self._words = words
        self._control = control
        self._complaints = Complaints()
        self._left_alone = False
        self._facts: Mapping[int, Mapping[str, Any]] = {}
        self.told = Told()
        self.table = SeatTable(size)
        self.health = HealthChecks(
            up=lambda: self.up,
            degraded=lambda: self.table.degraded_words,
            send=self.send,
            clock=time.monotonic,
        )

    # -- the first lives ------------------------------------------------------------------

    def launch(
        self,
        ranks: StockRanks,
        context: zmq.Context[zmq.Socket[bytes]],
        workers: list[Any],
        listens: Callable[[int, bool], None],
    ) -> list[Mapping[str, Any]]:
        """Start all seats; one that fails ends the server with its words.

        Args:
            ranks: makes the processes.
            context, workers, listens: see ``SeatWires``.

        Returns:
            What the leading rank of each seat said of itself.
        """
        self._ranks = ranks
        self._wires = SeatWires(context, workers, listens)
        self._launcher = LocalLauncher(
            self._words,
            self._prepare,
            beats=self._beats,
            complaints=self._complaints.take,
            last_words=self._last_words,
            stranger=_sent_by_stranger,
        )
        try:
            self._facts = start_all(self._launcher, self._size)
        except StartFailedError as error:
            refuse_start(str(error))
        for seat in range(self._size):
            self._wires.listening(seat, listens=True)
        return [self._facts[seat] for seat in range(self._size)]

    def _prepare(self, seat: int, incarnation: int) -> Callable[[], Sequence[Rank]]:
        addresses = self._ranks.addresses()
        self._wires.open(seat, addresses.scheduler_input_ipc_name)
        return partial(self._ranks.ranks, seat, addresses)

    def _beats(self, seat: int) -> tuple[int, ...]:
        first = seat * self._tp_size
        return self._progress.beats()[first : first + self._tp_size]

    def _last_words(self) -> str:
        return last_words.find(self._words).removeprefix("sglang-cdsp: ")

    def refuse(self, process: Any) -> None:
        """A scheduler has ended while the pool was measured: so does the server, with its words."""
        refuse_start(
            self._last_words()
            or f"a scheduler process (pid {process.pid}) ended with exit code {process.exitcode} "
            "while the pool started; its reason stands above, if it had the time to print one"
        )

    @property
    def processes(self) -> list[Any]:
        """The schedulers' processes that live now, as far as is known."""
        return list(self._launcher.processes)

    # -- from then on ---------------------------------------------------------------------

    def keep(
        self,
        requests: SeatRequests,
        hellos: Mapping[tuple[int, int], Hello],
        observers: Sequence[SeatObserver],
    ) -> None:
        """Keep the seats of a pool that is up: deaths are survived from now on."""
        self.table = SeatTable.all_up(self._size)
        self._keeper = SeatKeeper(
            table=self.table,
            launcher=self._launcher,
            requests=requests,
            wires=self,
            observers=observers,
            hellos=hellos,
            slots={seat: facts.get("max_total_num_tokens") for seat, facts in self._facts.items()},
            tp_size=self._tp_size,
            clock=time.monotonic,
        )

    def tick(self) -> None:
        """One turn of the controller's loop."""
        if not self._left_alone:
            self._keeper.tick()

    def leave_alone(self) -> None:
        """The server ends: whoever ends from now on is not lost, and nobody starts."""
        self._left_alone = True

    def on_report(self, report: AnyReport) -> None:
        """A scheduler reports."""
        self._keeper.on_report(report)

    @property
    def up(self) -> tuple[int, ...]:
        """The seats that take requests."""
        return self.table.in_state(SeatState.UP)

    def wish(self, body: Any) -> bool:
        """Do what the body of an update asks of seats; whether it asked anything.

        Raises:
            ValueError: something cannot be done, and nothing is.
        """
        wishes = read_wishes(body, self.table)
        for seat, wish in wishes.items():
            if wish == DRAIN:
                self._keeper.drain(seat)
            else:
                self._keeper.start(seat)
        return bool(wishes)

    def snapshot(self) -> list[dict[str, Any]]:
        """For status pages, JSON-ready."""
        now_s = time.monotonic()
        return self.table.snapshot(now_s, time.time() - now_s)

    # -- what the keeper needs ------------------------------------------------------------

    def send(self, seat: int, order: Any) -> None:
        """Send an order to a seat; where nobody lives, it is dropped."""
        self._wires.send(seat, order)

    def connected(self, seat: int) -> bool:
        """Whether what is sent to the seat reaches its present life."""
        return self._wires.connected(seat)

    def listening(self, seat: int, *, listens: bool) -> None:
        """A life hears SGLang's messages from now on, or hears nothing any more."""
        self._wires.listening(seat, listens=listens)
        if not listens:
            self.health.lost(seat)
            self._control.seat_lost(seat)

    def emptied(self, seat: int) -> None:
        """Nothing of a life is left on the seat, nor must its last load be in ``/v1/loads``."""
        name = shm_path_for(self._ranks.port_args.instance_id)
        try:
            # A writer begins with a load of nothing.
            ShmLoadSnapshotWriter(name, self._size, seat).close()
        except OSError as error:
            logger.warning("the last load of instance %d stays in /v1/loads: %s", seat, error)

    def tell(self, seat: int) -> None:
        """Tell a new life what its predecessor was told."""
        for order in self.told.orders(seat):
            self.send(seat, order)
        self._control.seat_started(seat)

    def quiet(self) -> bool:
        """Whether the pool starts nothing now."""
        return bool(self._control.gate.closed)

    def caught_up(self, seat: int) -> str | None:
        """Whether a new life has done what its predecessor was told; see ``Wires``."""
        return self._control.seat_told(seat)

    def answered(self, report: Answered) -> None:
        """A life answers a question of SGLang's to all of them."""
        self._control.on_answer(report)

    def streamed(self, report: Streamed) -> None:
        """A life's output is passed on to the detokenizer."""
        self._pass_on(report.payload)


def _sent_by_stranger(pid: int) -> None:
    """SIGQUIT from no scheduler: who sends it wants the server to end, as without this plugin."""
    if pid == UNKNOWN:
        logger.error("sglang-cdsp: a process sent SIGQUIT, and it is not known which")
        return
    sender = "the terminal" if pid == FROM_KERNEL else f"process {pid}"
    give_up(f"SIGQUIT from {sender}, which is none of the schedulers: the server ends")
