"""Lives as real processes: every way in which they end is told, and the end is the end of all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import psutil
import pytest

from sglang_cdsp.controller.seats.launcher import Ended, Failing, LifeEvent, Started, Vitals
from sglang_cdsp.controller.seats.local import WRITER, LocalLauncher, Rank
from sglang_cdsp.controller.seats.states import Cause
from sglang_cdsp.protocol import lives
from sglang_cdsp.protocol.lives import Life
from tests.controller.seats import small_ranks

POOL = f"test-{os.getpid()}"
LIMIT_S = 60.0
LIVE = Rank(small_ranks.live, (WRITER, {"max_total_num_tokens": 77}))


class Pool:
    """A launcher whose seats run what the test says."""

    def __init__(self) -> None:
        self.ranks: dict[int, Sequence[Rank]] = {}
        self.words = ""
        self.launcher = LocalLauncher(
            POOL,
            lambda seat, incarnation: lambda: self.ranks[seat],
            beats=lambda seat: (seat, seat),
            last_words=lambda: self.words,
        )
        self.events: list[LifeEvent] = []

    def until(self, seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not seen():
            assert time.monotonic() < deadline, self.events
            self.events += self.launcher.poll()
            time.sleep(0.01)

    def until_event(self, kind: type[LifeEvent], seat: int = 0) -> LifeEvent:
        def found() -> list[LifeEvent]:
            return [e for e in self.events if isinstance(e, kind) and e.seat == seat]

        self.until(lambda: bool(found()))
        return found()[-1]

    def started(self, *ranks: Rank, seat: int = 0, incarnation: int = 1) -> Started:
        self.events = [event for event in self.events if event.seat != seat]
        self.ranks[seat] = ranks
        self.launcher.start(seat, incarnation, 50)
        event = self.until_event(Started, seat)
        assert isinstance(event, Started)
        return event


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    for seat in pool.ranks:
        pool.launcher.end(seat)
    with contextlib.suppress(AssertionError):
        pool.until(lambda: not pool.launcher.processes)


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_life_is_told_who_it_is_and_ends_on_demand(pool: Pool) -> None:
    started = pool.started(LIVE, LIVE, incarnation=4)
    assert {k: started.facts[k] for k in ("seat", "incarnation", "slots")} == {
        "seat": 0,
        "incarnation": 4,
        "slots": 50,
    }
    assert started.facts["max_total_num_tokens"] == 77
    pids = pool.launcher.pids(0)
    assert len(pids) == 2
    assert pool.launcher.vitals(0) == Vitals((0, 0), ())
    with pytest.raises(ValueError, match="still has a life"):
        pool.launcher.start(0, 5, None)
    pool.launcher.end(0)
    pool.launcher.end(0)
    assert pool.launcher.vitals(0) is None
    pool.until_event(Ended)
    assert not any(map(alive, pids))
    assert [type(event) for event in pool.events] == [Started, Ended], "told once, and no failure"
    assert pool.started(LIVE, incarnation=5).facts["incarnation"] == 5


def test_a_killed_rank_is_told_at_once_and_the_life_ends_with_the_last_one(pool: Pool) -> None:
    pool.started(LIVE, LIVE)
    first, second = pool.launcher.pids(0)
    os.kill(second, signal.SIGKILL)
    failing = pool.until_event(Failing)
    assert isinstance(failing, Failing)
    assert (failing.cause, failing.incarnation) == (Cause.ENDED, 1)
    assert f"process {second} was killed by SIGKILL" in failing.words
    pool.events += pool.launcher.poll()
    assert not any(isinstance(event, Ended) for event in pool.events), "its other rank lives"
    assert alive(first)
    pool.launcher.end(0)
    pool.until_event(Ended)
    assert not alive(first)


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        (Rank(small_ranks.leave, (WRITER, 7)), "ended with exit code 7"),
        (Rank(small_ranks.leave, (WRITER, 0)), "ended with exit code 0"),
        (Rank(small_ranks.be_killed, (WRITER,)), "was killed by SIGKILL"),
        (Rank(small_ranks.raise_an_error, (WRITER,)), "ended with exit code 1"),
    ],
)
def test_a_death_during_the_start_is_told(pool: Pool, rank: Rank, words: str) -> None:
    pool.words = "no memory"
    pool.ranks[1] = (rank,)
    pool.launcher.start(1, 1, None)
    pool.until_event(Ended, 1)
    failing, ended = pool.events
    assert isinstance(failing, Failing)
    assert words in failing.words
    assert failing.words.endswith(": no memory")
    assert failing.left == "no memory"
    assert ended == Ended(1, 1)


def test_what_cannot_be_started_ends(pool: Pool) -> None:
    pool.ranks[0] = (Rank(small_ranks.live, (WRITER, lambda: "cannot be sent to a process")),)
    pool.launcher.start(0, 1, None)
    failing = pool.until_event(Failing)
    assert isinstance(failing, Failing)
    assert "could not be started" in failing.words
    pool.launcher.end(0)
    pool.until_event(Ended)
    assert pool.started(LIVE, incarnation=2), "the thread that launches goes on"


def test_others_that_a_rank_started_end_with_it(pool: Pool) -> None:
    facts = pool.started(Rank(small_ranks.start_others, (WRITER,))).facts
    other, mine = facts["other"], facts["pid"]
    assert {other, mine} <= set(lives.members(Life(POOL, 0, 1, 50)))
    os.kill(mine, signal.SIGKILL)
    pool.until_event(Ended)
    assert not alive(other)
    assert lives.members(Life(POOL, 0, 1, 50)) == []


def test_who_is_stopped_is_seen_and_can_be_killed(pool: Pool) -> None:
    pool.started(LIVE)
    (pid,) = pool.launcher.pids(0)
    os.kill(pid, signal.SIGSTOP)
    pool.until(lambda: pool.launcher.vitals(0) == Vitals((0, 0), (pid,)))
    os.kill(pid, signal.SIGCONT)
    pool.until(lambda: pool.launcher.vitals(0) == Vitals((0, 0), ()))
    os.kill(pid, signal.SIGSTOP)
    pool.launcher.end(0)
    pool.until_event(Ended)
    assert not alive(pid)


def test_seats_do_not_disturb_each_other(pool: Pool) -> None:
    for seat in range(3):
        pool.started(LIVE, seat=seat)
    (pid,) = pool.launcher.pids(1)
    os.kill(pid, signal.SIGKILL)
    pool.until_event(Ended, 1)
    assert all(alive(pid) for seat in (0, 2) for pid in pool.launcher.pids(seat))
    assert pool.started(LIVE, seat=1, incarnation=2).facts["incarnation"] == 2


def test_a_complaint_is_of_the_seat_whose_process_sent_it() -> None:
    """In a process of its own: SIGQUIT is blocked in all of it."""
    script = "tests.controller.seats.complaining"
    found = subprocess.run(
        [sys.executable, "-m", script], capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    assert found.stdout.split() == ["complained", "1", "open", "ended", "stranger"]


def test_a_life_ends_with_its_controller() -> None:
    script = (
        "import sys, time\n"
        "from sglang_cdsp.controller.seats.launcher import Started\n"
        "from sglang_cdsp.controller.seats.local import WRITER, LocalLauncher, Rank\n"
        "from tests.controller.seats import small_ranks\n"
        "ranks = [Rank(small_ranks.live, (WRITER, {}))]\n"
        "launcher = LocalLauncher(sys.argv[1], lambda seat, life: lambda: ranks)\n"
        "launcher.start(0, 1, None)\n"
        "while not any(isinstance(event, Started) for event in launcher.poll()):\n"
        "    time.sleep(0.01)\n"
        "print(launcher.pids(0)[0], flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, f"{POOL}-alone"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as controller:
        assert controller.stdout is not None
        pid = int(controller.stdout.readline())
        assert alive(pid)
        controller.kill()
    deadline = time.monotonic() + LIMIT_S
    while alive(pid):
        assert time.monotonic() < deadline
