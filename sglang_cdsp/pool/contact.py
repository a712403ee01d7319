"""The pool's face towards decode: the mailbox of every room.

A stock decode server sees one prefill replica whose ranks live in the controller process, so it
needs to know nothing of the pool, and no instance is special. (The alternative, a mailbox on the
instance that stock's rule names, costs a hop and needs stock's per-replica registration, which
does not work for plain data parallelism in SGLang 0.5.21.)
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

import requests
import zmq
from sglang.srt.disaggregation.base import KVPoll
from sglang.srt.disaggregation.nixl.conn import GUARD
from sglang.srt.utils.network import NetworkAddress, get_zmq_socket_on_host

from sglang_cdsp.pool.rooms import RoomMessage

logger = logging.getLogger(__name__)

# Where the fields stand in decode's messages (``NixlKVReceiver`` of SGLang 0.5.21).
ROOM, HOST, PORT, AGENT, REQUIRED = 1, 2, 3, 4, 7
REGISTER_TRIES, REGISTER_PAUSE_S = 120, 0.5


@dataclass(frozen=True)
class PeerMessage:
    """A decode agent registered with prefill rank ``tp_rank``."""

    tp_rank: int
    agent: str
    frames: list[bytes]


@dataclass(frozen=True)
class RoomPages:
    """Decode named a room's destination pages."""

    room: int
    message: RoomMessage


@dataclass(frozen=True)
class RoomAbort:
    """Decode gave a room up and waits at ``host:port`` to hear that its pages are safe."""

    room: int
    tp_rank: int
    host: str | None
    port: int | None
    frames: list[bytes]


class DecodeContact:
    """Sockets towards decode servers, one per prefill rank."""

    def __init__(self, tp_size: int, host: str) -> None:
        """Bind the sockets on ``host``."""
        self._context = zmq.Context()
        self._host = host
        self._ports: list[int] = []
        self.sockets: list[zmq.Socket[bytes]] = []
        for _ in range(tp_size):
            port, socket = get_zmq_socket_on_host(self._context, zmq.PULL, host=host)
            self._ports.append(port)
            self.sockets.append(socket)
        self._outgoing: dict[tuple[str, int], zmq.Socket[bytes]] = {}

    def receive(self, tp_rank: int) -> PeerMessage | RoomPages | RoomAbort | None:
        """Read one waiting message of a rank's socket; None for foreign or malformed ones."""
        frames = self.sockets[tp_rank].recv_multipart(zmq.NOBLOCK)
        try:
            return parse(tp_rank, frames)
        except (IndexError, ValueError, UnicodeDecodeError):
            logger.warning("dropping a malformed message of %d frames from decode", len(frames))
            return None

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

    def fail_room(self, room: int, message: RoomMessage, reason: str) -> None:
        """Tell decode that a room failed; it answers its client with ``reason``."""
        status = str(int(KVPoll.Failed)).encode()
        parts = [b"KV_STATUS", str(room).encode(), status, str(message.tp_rank).encode()]
        self._send(message.host, message.port, [*parts, reason.encode()])

    def ack_abort(self, room: int, tp_rank: int, host: str, port: int) -> None:
        """Tell decode that nobody writes to an aborted room's pages any more."""
        self._send(host, port, [b"ABORT_ACK", str(room).encode(), str(tp_rank).encode()])

    def _send(self, host: str, port: int, parts: list[bytes]) -> None:
        socket = self._outgoing.get((host, port))
        if socket is None:
            address = NetworkAddress(host, port)
            socket = self._context.socket(zmq.PUSH)
            socket.setsockopt(zmq.LINGER, 0)
            if address.is_ipv6:
                socket.setsockopt(zmq.IPV6, 1)
            socket.connect(address.to_tcp())
            self._outgoing[(host, port)] = socket
        try:
            socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # Decode's own time-outs cover a decode server that is gone.
            logger.warning("cannot reach decode at %s:%d: %s", host, port, error)


def parse(tp_rank: int, frames: list[bytes]) -> PeerMessage | RoomPages | RoomAbort | None:
    """Read a message of ``NixlKVReceiver``; None for kinds that the pool does not use.

    Raises:
        IndexError, ValueError: malformed.
    """
    if frames[0] == b"ABORT":
        host = frames[2].decode() if len(frames) > 2 else None
        port = int(frames[3]) if len(frames) > 3 else None
        return RoomAbort(int(frames[1]), tp_rank, host, port, frames)
    if frames[0] != GUARD:
        return None
    agent = frames[AGENT].decode()
    if frames[ROOM] == b"None":
        return PeerMessage(tp_rank, agent, frames)
    message = RoomMessage(
        tp_rank=tp_rank,
        agent=agent,
        required=int(frames[REQUIRED]),
        host=frames[HOST].decode(),
        port=int(frames[PORT]),
        frames=frames,
    )
    return RoomPages(int(frames[ROOM]), message)


def _register(url: str, rows: list[dict[str, Any]]) -> None:
    """Keep trying: the bootstrap server lives in the launching process and may come up later."""
    pause = threading.Event()
    for row in rows:
        for _ in range(REGISTER_TRIES):
            try:
                if requests.put(url, json=row, timeout=5).status_code == 200:
                    break
            except requests.RequestException:
                pass
            pause.wait(REGISTER_PAUSE_S)
        else:
            logger.error("cannot register the pool at %s: decode servers will not find it", url)
            return
    logger.info("pool registered for decode at %s (%d ranks)", url, len(rows))
