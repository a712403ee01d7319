"""What links do to their process: its children, its signals, its files."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from sglang_cdsp.parallel.errors import LinkError
from sglang_cdsp.parallel.links.shared_memory import SharedMemoryLinks
from sglang_cdsp.parallel.links.types import LinkShape
from tests.parallel.links import actions, conditions, remote
from tests.parallel.links.kinds import BETWEEN_PROCESSES, NIXL, SHARED, Kind, hubs_of
from tests.parallel.links.remote import End, Remote

SHAPE = LinkShape(lanes=1, depth=2, slot_bytes=4096)
SIZE = 20_000


@pytest.fixture(scope="module", params=BETWEEN_PROCESSES, ids=lambda kind: kind.name)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Remote, Remote]]:
    kind: Kind = request.param
    one, other = Remote(kind, 0, SHAPE), Remote(kind, 1, SHAPE)
    remote.link([one, other])
    for process in (one, other):
        process.call(actions.open_lane, 1, (0, 1))
    yield one, other
    for process in (one, other):
        process.kill()


def both_ways(one: Remote, other: Remote) -> None:
    for sender, receiver in ((one, other), (other, one)):
        receiver.call(actions.start_recv, sender.seat, SIZE)
        sender.call(actions.start_send, receiver.seat, SIZE, 5)
        for process in (sender, receiver):
            process.begin(actions.finish)
        for process in (sender, receiver):
            assert process.answer() == ""
        assert receiver.call(actions.contents)[-1] == [5]


def fork_and_destroy(end: End) -> int:
    """A forked child that lets go of everything; its exit status."""
    pid = os.fork()
    if pid == 0:
        del end.hub, end.links, end.lane
        end.works, end.tensors = [], []
        gc.collect()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork_and_exit(end: End) -> int:
    """A forked child that ends as Python programs end."""
    pid = os.fork()
    if pid == 0:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        end.hub.close()
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def nothing() -> None:
    """A child's work."""


def start_child(end: End, method: str) -> int | None:
    context = multiprocessing.get_context(method)
    # A daemon, which the process itself is here, may not have children otherwise.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    child = context.Process(target=nothing)  # type: ignore[attr-defined]
    child.start()
    child.join()
    status: int | None = child.exitcode
    return status


@pytest.mark.parametrize("fork", [fork_and_destroy, fork_and_exit])
def test_a_forked_child_s_end_breaks_nothing(pair: tuple[Remote, Remote], fork: object) -> None:
    """Red for NIXL over TCP where the child runs the agent's destructor."""
    one, other = pair
    assert one.call(fork) == 0  # type: ignore[arg-type]
    both_ways(one, other)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_multiprocessing_break_nothing(
    pair: tuple[Remote, Remote], method: str
) -> None:
    one, other = pair
    assert one.call(start_child, method) == 0
    both_ways(one, other)


def caught(end: End, number: int) -> bool:
    """Whether the process has a handler for a signal, whoever installed it."""
    with open("/proc/self/status", encoding="ascii") as file:
        mask = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


def test_hanging_up_still_ends_the_process(pair: tuple[Remote, Remote]) -> None:
    """Red for NIXL without ``UCX_DEBUG_SIGNO=0``: UCX then takes SIGHUP."""
    one, _ = pair
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGSEGV):
        assert not one.call(caught, number)


def test_joining_and_dropping_leaves_no_files_open() -> None:
    one = SharedMemoryLinks(0, 0, SHAPE)
    counts = []
    for life in range(20):
        other = SharedMemoryLinks(1, life, SHAPE)
        to_one, to_other = other.invite(0), one.invite(1)
        one.join(1, life, to_one)
        other.join(0, 0, to_other)
        one.poll()
        if life % 2:
            one.drop(1)
        other.close()
        del other
        counts.append(len(os.listdir("/proc/self/fd")))
    assert max(counts[2:]) <= max(counts[:2])
    one.close()
    assert len(os.listdir("/proc/self/fd")) < counts[0]


def test_memory_is_taken_as_it_is_used() -> None:
    """An area of a terabyte is reserved, and a page of it is touched."""
    shape = LinkShape(lanes=16, depth=4, slot_bytes=16 << 30)
    with open("/proc/self/statm", encoding="ascii") as file:
        before = int(file.read().split()[1])
    hubs = hubs_of(SHARED, 2, shape)
    with open("/proc/self/statm", encoding="ascii") as file:
        after = int(file.read().split()[1])
    assert (after - before) * os.sysconf("SC_PAGE_SIZE") < 64 << 20
    for hub in hubs:
        hub.close()


def test_an_area_of_another_user_or_namespace_is_a_clear_error() -> None:
    one = SharedMemoryLinks(0, 0, SHAPE)
    other = SharedMemoryLinks(1, 0, SHAPE)
    other.invite(0)
    _, _, name = one.invite(1).split(b"/", 2)
    for path in (b"1/999999", str(os.getpid()).encode() + b"/0"):
        with pytest.raises(LinkError, match="as one user in one PID namespace"):
            other.join(0, 0, path + b"/" + name)
    with pytest.raises(LinkError, match="no invitation"):
        other.join(0, 0, b"hello")
    one.close()
    other.close()


@pytest.mark.parametrize("kind", [SHARED, NIXL], ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    "condition", [conditions.without_process_vm_writev, conditions.with_a_small_dev_shm]
)
def test_links_work_in_a_container_that_withholds_much(
    kind: Kind, condition: Callable[[], None]
) -> None:
    pair = [Remote(kind, seat, SHAPE, condition=condition) for seat in range(2)]
    try:
        why = [process.made() for process in pair]
        if any(why):
            pytest.skip(f"this machine cannot be made such a one: {why}")
        remote.link(pair)
        for process in pair:
            process.call(actions.open_lane, 1, (0, 1))
        both_ways(*pair)
    finally:
        for process in pair:
            process.kill()
