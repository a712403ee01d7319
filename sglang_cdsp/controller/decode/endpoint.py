"""The pool's face towards decode: the mailbox of every room.

A stock decode server sees one prefill replica whose ranks live in the controller process, so it
needs to know nothing of the pool, and no instance is special. (The alternative, a mailbox on the
instance that stock's rule names, costs a hop and needs stock's per-replica registration, which
does not work for plain data parallelism in SGLang 0.5.21.)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import requests
import zmq
from sglang.srt.disaggregation.base import KVPoll
from sglang.srt.utils.network import NetworkAddress, get_zmq_socket_on_host
from zmq.utils.monitor import recv_monitor_message

from sglang_cdsp.controller.decode.rooms import RoomMessage
from sglang_cdsp.controller.decode.servers import DecodeRank
from sglang_cdsp.controller.decode.wire import (
    PeerMessage,
    RoomAbort,
    RoomPages,
    WireFormat,
    acknowledgement,
)
from sglang_cdsp.controller.request import AbortTarget
from sglang_cdsp.controller.startup import give_up

logger = logging.getLogger(__name__)

REGISTER_TRIES, REGISTER_PAUSE_S = 120, 0.5
# How long a decode rank is called again and again after its connection has closed. Every start of a
# decode server listens at new ports, so those of the former one are of no use for long.
FORGOTTEN_AFTER_S = 600.0
# A machine that is gone closes no connection: the kernel asks after so many idle seconds, then at
# this interval, and gives up after so many questions without an answer.
KEEPALIVE_IDLE_S, KEEPALIVE_EVERY_S, KEEPALIVE_TRIES = 15, 5, 3


class DecodeEndpoint:
    """Sockets towards decode servers, one per prefill rank."""

    def __init__(
        self,
        tp_size: int,
        host: str,
        wire_format: WireFormat,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Bind the sockets.

        Args:
            tp_size: how many.
            host: where.
            wire_format: that of the transfer engine in use.
            clock: monotonic seconds.
        """
        self._clock = clock
        self._closed_s: dict[tuple[str, int], float] = {}
        self._wire_format = wire_format
        self._context = zmq.Context()
        self._host = host
        self._ports: list[int] = []
        self.sockets: list[zmq.Socket[bytes]] = []
        for _ in range(tp_size):
            port, socket = get_zmq_socket_on_host(self._context, zmq.PULL, host=host)
            self._ports.append(port)
            self.sockets.append(socket)
        self._outgoing: dict[tuple[str, int], zmq.Socket[bytes]] = {}
        self._monitors: dict[tuple[str, int], zmq.Socket[bytes]] = {}

    def messages(self) -> Iterator[tuple[int, PeerMessage | RoomPages | RoomAbort]]:
        """What waits at the sockets, with the prefill rank that it is meant for; never blocks."""
        for rank, socket in enumerate(self.sockets):
            while socket.poll(0):
                message = self.receive(rank)
                if isinstance(message, RoomPages):
                    # Of a rank that was forgotten, although it was only out of reach.
                    self._call(message.message.host, message.message.port)
                if message is not None:
                    yield rank, message

    def receive(self, tp_rank: int) -> PeerMessage | RoomPages | RoomAbort | None:
        """Read one waiting message of a rank's socket; None for foreign or malformed ones."""
        frames = self.sockets[tp_rank].recv_multipart(zmq.NOBLOCK)
        try:
            return self._wire_format.parse(tp_rank, frames)
        except (IndexError, ValueError, UnicodeDecodeError):
            logger.warning("dropping a malformed message of %d frames from decode", len(frames))
            return None

    def watch(self, rank: DecodeRank) -> None:
        """Keep an eye on a decode rank from now on, see ``changes``."""
        self._call(rank.host, rank.port)

    def changes(self) -> Iterator[tuple[str, int, bool]]:
        """Decode ranks (host, port) that can be reached (True) or no longer (False) since."""
        for (host, port), monitor in self._monitors.items():
            while monitor.poll(0):
                alive = recv_monitor_message(monitor)["event"] == zmq.EVENT_CONNECTED
                if alive:
                    self._closed_s.pop((host, port), None)
                else:
                    self._closed_s.setdefault((host, port), self._clock())
                yield host, port, alive
        late_s = self._clock() - FORGOTTEN_AFTER_S
        for place in [at for at, closed_s in self._closed_s.items() if closed_s < late_s]:
            self._forget(place)

    def _forget(self, place: tuple[str, int]) -> None:
        """Call a decode rank no longer; what it still says is heard."""
        del self._closed_s[place]
        socket, monitor = self._outgoing.pop(place), self._monitors.pop(place)
        socket.disable_monitor()
        monitor.close()
        socket.close()

    def register(self, url: str, row: dict[str, Any]) -> None:
        """Register every rank at SGLang's bootstrap server, in the background.

        Args:
            url: the server's ``/route``.
            row: fields that all ranks share, see ``CommonKVManager.register_to_bootstrap``.
        """
        rows = [
            {**row, "attn_tp_rank": rank, "rank_ip": self._host, "rank_port": port}
            for rank, port in enumerate(self._ports)
        ]
        threading.Thread(target=_register, args=(url, rows), daemon=True).start()

    def fail_room(
        self, room: int, rank: RoomMessage | DecodeRank, reason: str, status: HTTPStatus
    ) -> None:
        """Tell a decode rank that a room failed; it answers its client with ``reason``.

        Stock decode's ``status`` is 500 whatever is told. One that does not have the room takes
        no notice.
        """
        parts = self._wire_format.failure(room, rank.tp_rank, reason, status)
        self._send(rank.host, rank.port, parts)

    def finish_room(self, room: int, message: RoomMessage) -> None:
        """Tell decode that all KV and the metadata are there, if it waits for that word."""
        if self._wire_format.awaits_success:
            parts = self._wire_format.status(room, KVPoll.Success, message.tp_rank)
            self._send(message.host, message.port, parts)

    def ack_abort(self, room: int, target: AbortTarget) -> None:
        """Tell decode that nobody writes to an aborted room's pages any more."""
        self._send(target.host, target.port, acknowledgement(room, target))

    def _socket(self, host: str, port: int) -> zmq.Socket[bytes]:
        socket = self._outgoing.get((host, port))
        if socket is None:
            address = NetworkAddress(host, port)
            socket = self._context.socket(zmq.PUSH)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
            socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S)
            socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_EVERY_S)
            socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_TRIES)
            if address.is_ipv6:
                socket.setsockopt(zmq.IPV6, 1)
            events = zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED
            self._monitors[(host, port)] = socket.get_monitor_socket(events)
            socket.connect(address.to_tcp())
            self._outgoing[(host, port)] = socket
        return socket

    def _call(self, host: str, port: int) -> None:
        try:
            self._socket(host, port)
        except zmq.ZMQError as error:
            logger.warning("decode's address %s:%d is none: %s", host, port, error)

    def _send(self, host: str, port: int, parts: list[bytes]) -> None:
        try:
            self._socket(host, port).send_multipart(parts, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # Decode's own time-outs cover a decode server that is gone.
            logger.warning("cannot reach decode at %s:%d: %s", host, port, error)


def _register(url: str, rows: list[dict[str, Any]]) -> None:
    """Keep trying: the bootstrap server lives in the launching process and may come up later.

    Without it the pool serves nobody, so the server ends where it does not come up.
    """
    pause = threading.Event()
    for row in rows:
        reason = ""
        for _ in range(REGISTER_TRIES):
            try:
                answer = requests.put(url, json=row, timeout=5)
                if answer.status_code == 200:
                    break
                reason = f"{answer.status_code} {answer.reason}"
            except requests.RequestException as error:
                reason = str(error)
            pause.wait(REGISTER_PAUSE_S)
        else:
            give_up(
                f"cannot register the pool at {url}, so no decode server would find it ({reason}): "
                "set --disaggregation-bootstrap-port to a free port"
            )
    logger.info("pool registered for decode at %s (%d ranks)", url, len(rows))
