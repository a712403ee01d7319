"""Stock decode forgets a room's failure with the first of its requests that sees it.

What a pool says again does not help, so tests with several requests in one room have to wait for
decode's time-out now and then. When this fails, SGLang has mended it, and they need not.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict

import pytest
from sglang.srt.disaggregation.base import KVPoll
from sglang.srt.disaggregation.common.conn import KVTransferError
from sglang.srt.disaggregation.nixl.conn import NixlKVManager, NixlKVReceiver

ROOM = 7


def decode_manager() -> NixlKVManager:
    """Decode's manager as far as failures go, without a transfer agent."""
    manager = NixlKVManager.__new__(NixlKVManager)
    manager.request_status, manager.failure_records = {}, {}
    manager.failure_lock = threading.Lock()
    manager.addr_to_rooms_tracker = defaultdict(set)
    manager.required_prefill_response_num_table = {}
    manager.prefill_response_tracker, manager.transfer_statuses = {}, {}
    manager.waiting_timeout = 300
    manager.update_transfer_status = lambda: None
    # 0.5.23 asks for these, too.
    manager._deferred_ack_targets, manager._staging_outstanding = {}, {}
    manager._deferred_ack_poisoned_rooms = set()
    return manager


def waiting(manager: NixlKVManager) -> NixlKVReceiver:
    """One of the room's requests, its pages named."""
    receiver = NixlKVReceiver(manager, "prefill", ROOM)
    manager.update_status(ROOM, KVPoll.WaitingForInput)
    receiver.started_transfer, receiver.init_time = True, time.time()
    return receiver


def fail(manager: NixlKVManager) -> None:
    """The word that the room failed."""
    manager.apply_prefill_status(
        bootstrap_room=ROOM, status=KVPoll.Failed, prefill_rank=0, failure_reason="refused"
    )


def test_one_request_ends_and_the_other_one_waits() -> None:
    manager = decode_manager()
    first, second = waiting(manager), waiting(manager)
    assert first.poll() == KVPoll.WaitingForInput
    fail(manager)  # between the polls of one pass over the queue
    assert second.poll() == KVPoll.Failed
    with pytest.raises(KVTransferError, match="refused"):
        second.failure_exception()
    fail(manager)
    assert first.poll() == KVPoll.WaitingForInput


def test_both_end_if_the_word_comes_before_either_is_polled() -> None:
    manager = decode_manager()
    receivers = [waiting(manager), waiting(manager)]
    fail(manager)
    assert [receiver.poll() for receiver in receivers] == [KVPoll.Failed, KVPoll.Failed]
