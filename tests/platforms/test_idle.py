"""Idle processes wait for their next message instead of spinning."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from sglang_cdsp.platforms import idle
from sglang_cdsp.transfer.progress_thread import PROGRESS_INTERVAL_US, CalmBindings


@pytest.fixture
def sockets() -> Any:
    """A connected pair: sender, receiver."""
    with zmq.Context() as context:
        receiver, sender = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        receiver.bind("inproc://requests")
        sender.connect("inproc://requests")
        yield sender, receiver
        sender.close(0)
        receiver.close(0)


class CountingSocket:
    """Counts what the idle path asks of a socket."""

    def __init__(self, socket: Any):
        self._socket = socket
        self.polls: list[int] = []

    def poll(self, timeout: int) -> int:
        self.polls.append(timeout)
        return int(self._socket.poll(timeout))

    def recv(self, flags: int = 0) -> bytes:
        return bytes(self._socket.recv(flags))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


def test_a_patient_socket_waits_for_a_message_that_is_on_its_way(sockets: Any) -> None:
    sender, receiver = sockets
    patient = idle.PatientSocket(receiver, wait_ms=60_000)
    threading.Timer(0.05, lambda: sender.send(b"late")).start()
    assert patient.recv(zmq.NOBLOCK) == b"late"


def test_a_patient_socket_gives_up_after_its_wait(sockets: Any) -> None:
    counting = CountingSocket(sockets[1])
    patient = idle.PatientSocket(counting, wait_ms=3)
    with pytest.raises(zmq.Again):
        patient.recv(zmq.NOBLOCK)
    assert counting.polls == [3]


def test_a_patient_socket_is_the_socket_otherwise(sockets: Any) -> None:
    sender, receiver = sockets
    counting = CountingSocket(receiver)
    patient = idle.PatientSocket(counting, wait_ms=3)
    sender.send(b"one")
    sender.send_pyobj({"two": 2})
    assert patient.recv() == b"one"
    assert counting.polls == []  # a blocking recv waits by itself
    assert patient.recv_pyobj(zmq.NOBLOCK) == {"two": 2}
    assert patient.type == zmq.PULL


def test_the_controller_gets_a_patient_socket(sockets: Any) -> None:
    controller = SimpleNamespace(recv_from_tokenizer=sockets[1])
    idle.make_controller_patient(controller)
    assert isinstance(controller.recv_from_tokenizer, idle.PatientSocket)


@pytest.mark.parametrize(
    ("fully_idle", "wait_ms"), [(True, idle.IDLE_WAIT_MS), (False, idle.BUSY_WAIT_MS)]
)
def test_a_scheduler_waits_longer_when_nothing_is_under_way(
    sockets: Any, monkeypatch: pytest.MonkeyPatch, fully_idle: bool, wait_ms: int
) -> None:
    waits: list[int] = []
    monkeypatch.setattr(type(sockets[1]), "poll", lambda socket, wait: waits.append(wait))
    scheduler = SimpleNamespace(recv_from_tokenizer=sockets[1], is_fully_idle=lambda: fully_idle)
    idle.pause_idle_scheduler(None, scheduler)
    assert waits == [wait_ms]


def test_a_scheduler_without_a_socket_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(idle, "time", SimpleNamespace(sleep=slept.append))
    idle.pause_idle_scheduler(
        None, SimpleNamespace(recv_from_tokenizer=None, is_fully_idle=lambda: True)
    )
    assert slept == [idle.BUSY_WAIT_MS / 1000]


def test_a_request_ends_an_idle_schedulers_wait(
    sockets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, receiver = sockets
    monkeypatch.setattr(idle, "IDLE_WAIT_MS", 600_000)
    threading.Timer(0.05, lambda: sender.send(b"request")).start()
    scheduler = SimpleNamespace(recv_from_tokenizer=receiver, is_fully_idle=lambda: True)
    idle.pause_idle_scheduler(None, scheduler)
    assert receiver.recv(zmq.NOBLOCK) == b"request"


def test_a_paused_scheduler_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(idle, "time", SimpleNamespace(sleep=slept.append))
    idle.pause_paused_scheduler(None, object())
    assert slept == [idle.BUSY_WAIT_MS / 1000]


def test_nixl_agents_get_a_progress_thread_that_sleeps() -> None:
    native = SimpleNamespace(nixlAgent=lambda name, config: (name, config), OTHER=7)
    name, config = CalmBindings(native).nixlAgent("me", SimpleNamespace(pthrDelay=0))
    assert (name, config.pthrDelay) == ("me", PROGRESS_INTERVAL_US)
    assert CalmBindings(native).OTHER == 7


def test_a_real_nixl_agent_is_calm() -> None:
    from nixl._api import nixl_agent, nixl_agent_config

    from sglang_cdsp.transfer.progress_thread import calm_progress_thread

    calm_progress_thread()
    calm_progress_thread()  # twice changes nothing
    agent = nixl_agent("calm", nixl_agent_config(backends=["UCX"]))
    used = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - used < 0.5  # a spinning thread would use the whole second
    del agent
