"""Mooncake's engine as SGLang wraps it, with another way to wait for the end of a write.

SGLang's own (``batch_transfer_sync``) makes Mooncake 0.3.13 wait in a loop without a pause. On few
cores that takes the time away from the threads which move the bytes: writes of a few kilobytes
took up to 30 s. And after 30 s it reports a failure while the bytes may still be on their way
(Mooncake issue 4247), so decode would give its pages to others too early. Here a write's blocks
are handed over one by one, and it returns when each of them has ended, well or not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

logger = logging.getLogger(__name__)

# Blocks of one write that Mooncake has at the same time; over TCP it refuses more than 1,024.
IN_FLIGHT = 256
PAUSE_S = 0.0005
# Mooncake ends every block sooner, well or not (over TCP after 30 s without progress).
GIVE_UP_S = 300.0
# Mooncake's answers to ``transfer_check_status``; others mean that the block is on its way.
DONE, FAILED = 1, -1
# Its answers to ``transfer_submit_write`` when it does not take a block.
NOT_TAKEN = frozenset({0, -1, 2**64 - 1})


class PatientEngine:
    """SGLang's ``MooncakeTransferEngine`` with a ``batch_transfer_sync`` of its own."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def batch_transfer_sync(
        self,
        session_id: str,
        buffers: list[int],
        peer_buffer_addresses: list[int],
        lengths: list[int],
    ) -> int:
        """Write ``lengths`` bytes from each buffer to its address at a session.

        Returns:
            0, or -1 if something failed. Nothing is in flight any more.
        """
        blocks = zip(buffers, peer_buffer_addresses, lengths, strict=True)
        return write_blocks(self._wrapped.engine, session_id, blocks)


def write_blocks(
    engine: Any,
    session: str,
    blocks: Iterable[tuple[int, int, int]],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Write blocks and wait until each has ended, well or not.

    Args:
        engine: Mooncake's ``TransferEngine``.
        session: whose memory is written.
        blocks: address here, address there, bytes.

    Returns:
        0, or -1 if a block failed; what is left is not started then.
    """
    waiting, flying, code = list(reversed(list(blocks))), set[int](), 0
    deadline_s = clock() + GIVE_UP_S
    while flying or (waiting and code == 0):
        while waiting and code == 0 and len(flying) < IN_FLIGHT:
            batch = engine.transfer_submit_write(session, *waiting.pop())
            if batch in NOT_TAKEN:
                code = -1
            else:
                flying.add(batch)
        for batch in tuple(flying):
            status = engine.transfer_check_status(batch)
            if status in (DONE, FAILED):
                flying.discard(batch)
                code = code if status == DONE else -1
        if flying:
            if clock() > deadline_s:
                logger.error("Mooncake has not ended a write in %g s", GIVE_UP_S)
                return -1
            sleep(PAUSE_S)
    return code
