"""KV writes of one holder, and what a stock decode server makes of many holders' notes.

Both forms of SGLang's protocol are tried with each release; what is stock is the installed one's.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_cdsp.parallel.chunk_layout import number_sends, plan_layout
from sglang_cdsp.releases import nixl_writes_notify
from sglang_cdsp.transfer.manager import PoolKVManager, ShardWrite, TransferFailed
from tests.engine.fake_transfer import ROOM, CountingDecode, FakePoolManager
from tests.engine.plans import plans


@pytest.fixture
def manager() -> FakePoolManager:
    manager = FakePoolManager(rank=3)
    manager.peer("a")
    manager.pages("a", [10, 11, 12, 13])
    return manager


def write(
    manager: PoolKVManager, pages: list[int], places: list[int], send_id: int, last: bool = False
) -> ShardWrite:
    aux = 9 if last else None
    source, index = np.array(pages, np.int32), np.array(places, np.int64)
    return manager.write_shard(ROOM, source, index, send_id, last=last, aux_index=aux)


# -- what is written where ------------------------------------------------------------------


def test_pages_go_to_their_places_with_the_transfers_number(manager: FakePoolManager) -> None:
    write(manager, [5, 6], [3, 0], 2)
    ((how, sent),) = manager.sent
    assert how == "kv"
    assert sent["pages"] == [(5, 13), (6, 10)]
    assert (sent["to"], sent["note"]) == ("a", f"{ROOM}_kv_2_0_3")
    assert sent["dst_mem_kind"] == "DRAM"


def test_the_last_transfer_carries_the_metadata(manager: FakePoolManager) -> None:
    write(manager, [5], [3], 2, last=True)
    assert manager.notes() == [f"{ROOM}_kv_2_1_3", f"{ROOM}_aux"]
    assert manager.sent[1][1]["source"] == 9
    assert manager.sent[1][1]["place"] == 4


def test_metadata_alone_says_how_many_transfers_came_before(manager: FakePoolManager) -> None:
    write(manager, [], [], 2, last=True)
    assert manager.notes() == [f"{ROOM}_aux_nokv_3_2"]


@pytest.mark.parametrize("last", [False, True])
def test_without_notifications_the_same_bytes_go_without_a_word(last: bool) -> None:
    """Decode is told by a status message of the controller's, see tests/controller/decode."""
    sent = []
    for notify in (True, False):
        manager = FakePoolManager(rank=3, notify=notify)
        manager.peer("a")
        manager.pages("a", [10, 11, 12, 13])
        write(manager, [5, 6], [3, 0], 2, last=last)
        assert all(bool(note) is notify for note in manager.notes())
        sent.append([(how, {**fields, "note": ""}) for how, fields in manager.sent])
    assert sent[0] == sent[1]


def test_every_decode_agent_but_dummies_gets_its_own(manager: FakePoolManager) -> None:
    manager.peer("b")
    manager.peer("c")
    manager.pages("b", [20, 21, 22, 23], required=3)
    manager.pages("c", [], required=3, dummy=True)
    write(manager, [5], [1], 0)
    assert [(sent["to"], sent["pages"]) for _, sent in manager.sent] == [
        ("a", [(5, 11)]),
        ("b", [(5, 21)]),
    ]


def test_another_tensor_parallel_size_takes_stocks_slices(manager: FakePoolManager) -> None:
    manager.peer("a", tp_size=2)
    write(manager, [5], [1], 0)
    assert [how for how, _ in manager.sent] == ["slice"]


# -- in flight ------------------------------------------------------------------------------


def test_a_write_is_settled_when_all_its_parts_are(manager: FakePoolManager) -> None:
    shard = write(manager, [5], [3], 0, last=True)
    manager.agent.states[1] = "DONE"
    assert not manager.settled(shard)
    assert manager.agent.released == []
    manager.agent.end_all()
    assert manager.settled(shard)
    assert manager.agent.released == [1, 2]
    assert manager.settled(shard), "asking again is harmless"


def test_a_failed_part_is_told_once_all_parts_have_ended(manager: FakePoolManager) -> None:
    shard = write(manager, [5], [3], 0, last=True)
    manager.agent.states[1] = "ERR"
    assert not manager.settled(shard), "the other part may still write to decode's pages"
    manager.agent.end_all()
    with pytest.raises(TransferFailed, match=f"room {ROOM}"):
        manager.settled(shard)
    assert manager.agent.released == [1, 2]


def test_what_was_posted_before_an_error_ends_before_the_error_is_told(
    manager: FakePoolManager,
) -> None:
    """Decode's pages may be answered for only after nothing writes to them."""
    manager.breaks_at = "aux"
    shard = write(manager, [5], [3], 0, last=True)
    for _ in range(3):
        assert not manager.settled(shard), "the pages are still being written"
    manager.agent.end_all()
    with pytest.raises(TransferFailed, match=f"room {ROOM} could not start: no such memory"):
        manager.settled(shard)
    assert manager.agent.released == [1]
    assert manager.settled(shard), "an error is told once"


def test_a_room_whose_writes_fail_gets_one_line(
    manager: FakePoolManager, caplog: pytest.LogCaptureFixture
) -> None:
    """When decode dies, every write of its rooms fails, in flight or about to be posted."""
    in_flight = [write(manager, [5], [3], number) for number in range(2)]
    manager.agent.end_all("GONE")
    manager.breaks_at = "kv"
    for shard in (*in_flight, write(manager, [5], [3], 2), write(manager, [5], [3], 3)):
        with pytest.raises(TransferFailed):
            manager.settled(shard)
    (record,) = [record for record in caplog.records if record.levelname != "DEBUG"]
    assert f"room {ROOM}" in record.getMessage()
    assert record.exc_info is None
    manager.forget_room(ROOM)
    with pytest.raises(TransferFailed):
        manager.settled(write(manager, [5], [3], 0))
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2


def test_nothing_posted_is_an_error_at_once(manager: FakePoolManager) -> None:
    manager.breaks_at = "kv"
    with pytest.raises(TransferFailed, match="could not start"):
        manager.settled(write(manager, [5], [3], 0))
    del manager.transfer_infos[ROOM]
    with pytest.raises(TransferFailed, match="could not start"):
        manager.settled(write(manager, [5], [3], 0))


def test_a_partner_that_is_gone_does_not_end_the_writes_to_others(
    manager: FakePoolManager,
) -> None:
    """NIXL raises where it cannot reach a partner any more."""
    manager.peer("b")
    manager.pages("b", [20, 21, 22, 23], required=2)
    shard = write(manager, [5], [1], 0)
    manager.agent.states[1] = "GONE"
    assert not manager.settled(shard), "the write to the other may still be under way"
    manager.agent.states[2] = "DONE"
    with pytest.raises(TransferFailed, match="failed"):
        manager.settled(shard)
    assert manager.agent.released == [2]


# -- rooms ----------------------------------------------------------------------------------


def test_a_room_is_known_with_all_its_agents_registered(manager: FakePoolManager) -> None:
    assert manager.knows_room(ROOM)
    assert not manager.knows_room(ROOM + 1)
    manager.pages("b", [1], required=2)
    manager.transfer_infos[ROOM]["a"].required_dst_info_num = 2
    assert not manager.knows_room(ROOM), "agent b did not register"
    manager.peer("b")
    assert manager.knows_room(ROOM)
    del manager.transfer_infos[ROOM]["a"]
    assert not manager.knows_room(ROOM), "agent a's pages are missing"


def test_waiting_for_a_room_ends_in_an_error(manager: FakePoolManager) -> None:
    manager.await_room(ROOM)
    with pytest.raises(TransferFailed, match="did not reach this instance"):
        manager.await_room(ROOM + 1, timeout_s=0.001)


def test_decodes_prefix(manager: FakePoolManager) -> None:
    manager.pages("a", [1], prefix=64)
    assert manager.decode_prefix(ROOM) == 64
    manager.req_to_decode_prefix_len[ROOM] = None
    assert manager.decode_prefix(ROOM) == 0
    assert manager.decode_prefix(ROOM + 1) == 0


def test_a_forgotten_room_leaves_nothing(manager: FakePoolManager) -> None:
    manager.request_status[ROOM] = manager.failure_records[ROOM] = "x"
    manager.forget_room(ROOM)
    manager.forget_room(ROOM)
    for table in (
        manager.transfer_infos,
        manager.request_status,
        manager.req_to_decode_prefix_len,
        manager.failure_records,
    ):
        assert ROOM not in table
    assert "a" in manager.decode_kv_args_table, "the agent stays registered"


# -- a stock decode server ------------------------------------------------------------------


@pytest.mark.skipif(not nixl_writes_notify(), reason="this SGLang's decode counts no notes")
@settings(max_examples=60, deadline=None, print_blob=True)
@given(st.data(), st.integers(0, 40))
def test_stock_decode_is_done_with_the_last_note_in_any_order(
    data: st.DataObject, prefix: int
) -> None:
    """Every holder writes with its own manager; decode counts the notes of all."""
    chunks = data.draw(plans(1))
    length = sum(tokens for tokens, _ in chunks)
    notes: list[str] = []
    for send in number_sends(plan_layout(chunks, 1), min(prefix, length)):
        holder = FakePoolManager()
        holder.peer("a")
        holder.pages("a", list(range(length)))
        positions = [p for span in send.spans for p in range(span.start, span.stop)]
        write(holder, positions, positions, send.send_id, send.last)
        notes += holder.notes()
    decode = CountingDecode()
    *before, last = [decode.done_after(note) for note in data.draw(st.permutations(notes))]
    assert not any(before)
    assert last
