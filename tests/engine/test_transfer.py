"""KV writes of one holder, and what a stock decode server makes of many holders' notes.

Both forms of SGLang's protocol are tried with each release; what is stock is the installed one's.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.disaggregation.nixl import conn

from sglang_cdsp.parallel.chunk_layout import number_sends, plan_layout
from sglang_cdsp.releases import nixl_writes_notify
from sglang_cdsp.transfer.chunk_write import ChunkWrite
from sglang_cdsp.transfer.failures import TransferFailed
from sglang_cdsp.transfer.manager import PoolKVManager
from sglang_cdsp.transfer.pages import MAX_DESCRIPTORS
from tests.engine.fake_transfer import LAYERS, ROOM, SLOTS, CountingDecode, FakePoolManager
from tests.engine.plans import plans


@pytest.fixture
def manager() -> FakePoolManager:
    manager = FakePoolManager(rank=3)
    manager.peer("a")
    manager.pages("a", [10, 11, 12, 13])
    return manager


def write(
    manager: PoolKVManager, pages: list[int], places: list[int], send_id: int, last: bool = False
) -> ChunkWrite:
    source, index = np.array(pages, np.int32), np.array(places, np.int64)
    posted = manager.open_write(ROOM, source, index, send_id, last=last)
    posted.computed(aux_index=9 if last else None)
    return posted


def end(manager: FakePoolManager, *posted: ChunkWrite) -> None:
    """Everything arrives."""
    manager.agent.end_all()
    assert all(one.poll() for one in posted)


# -- what is written where ------------------------------------------------------------------


def test_pages_go_to_their_places_in_every_layer(manager: FakePoolManager) -> None:
    posted = write(manager, [5, 6], [3, 0], 2)
    assert manager.sent == [
        ("kv", {"to": "a", "layer": layer, "pages": [(5, 13), (6, 10)]}) for layer in range(LAYERS)
    ]
    end(manager, posted)
    assert manager.notes() == [f"{ROOM}_kv_2_0_3"]


def test_a_layer_goes_when_it_is_there_the_word_when_all_have_arrived(
    manager: FakePoolManager,
) -> None:
    posted = manager.open_write(
        ROOM, np.array([5], np.int32), np.array([3], np.int64), 2, last=True
    )
    assert manager.sent == []
    posted.layer_stored(1)
    assert [sent["layer"] for _, sent in manager.sent] == [1]
    manager.agent.end_all()
    assert not posted.poll(), "another layer is to come"
    posted.layer_stored(0)
    posted.computed(aux_index=9)
    assert [how for how, _ in manager.sent] == ["kv", "kv", "aux"]
    assert not posted.poll()
    assert manager.notes() == [f"{ROOM}_aux"]
    manager.agent.states[3] = "DONE"
    assert not posted.poll()
    assert manager.notes() == [f"{ROOM}_aux"], "a layer is still under way"
    end(manager, posted)
    assert manager.notes() == [f"{ROOM}_aux", f"{ROOM}_kv_2_1_3"]
    assert posted.acknowledged


def test_the_last_transfer_carries_the_metadata(manager: FakePoolManager) -> None:
    end(manager, write(manager, [5], [3], 2, last=True))
    assert sorted(manager.notes()) == [f"{ROOM}_aux", f"{ROOM}_kv_2_1_3"]
    (aux,) = [sent for how, sent in manager.sent if how == "aux"]
    assert (aux["source"], aux["place"]) == (9, 4)


def test_metadata_alone_says_how_many_transfers_came_before(manager: FakePoolManager) -> None:
    end(manager, write(manager, [], [], 2, last=True))
    assert manager.notes() == [f"{ROOM}_aux_nokv_3_2"]


@pytest.mark.parametrize("last", [False, True])
def test_without_notifications_the_same_bytes_go_without_a_word(last: bool) -> None:
    """Decode is told by a status message of the controller's, see tests/controller/decode."""
    sent = []
    for notify in (True, False):
        manager = FakePoolManager(rank=3, notify=notify)
        manager.peer("a")
        manager.pages("a", [10, 11, 12, 13])
        end(manager, write(manager, [5, 6], [3, 0], 2, last=last))
        assert bool(manager.notes()) is notify
        sent.append(manager.sent)
    assert sent[0] == sent[1]


def test_every_decode_agent_but_dummies_gets_its_own(manager: FakePoolManager) -> None:
    manager.peer("b")
    manager.peer("c")
    manager.pages("b", [20, 21, 22, 23], required=3)
    manager.pages("c", [], required=3, dummy=True)
    end(manager, write(manager, [5], [1], 0))
    assert [(sent["to"], sent["pages"]) for _, sent in manager.sent] == [
        ("a", [(5, 11)]),
        ("b", [(5, 21)]),
    ] * LAYERS
    assert manager.notes() == [f"{ROOM}_kv_0_0_3"] * 2


def test_another_tensor_parallel_size_takes_the_slices_of_its_group() -> None:
    """As SGLang's ``expand_page_indices_for_slice`` counts, for the buffers of one layer."""
    manager = FakePoolManager(page_size=2)
    manager.peer("a", tp_size=2, group=1)
    manager.pages("a", [10, 11, 12, 13])
    write(manager, [5, 7], [1, 3], 0)
    for layer, (how, sent) in enumerate(manager.sent):
        assert how == "slice"
        assert sent["layer"] == layer
        source, place = (
            conn.expand_page_indices_for_slice(np.array(pages, np.int32), 1, SLOTS, 2, **more)
            for pages, more in (
                ([5, 7], {"num_groups": 2, "head_group_idx": 1}),
                ([11, 13], {}),
            )
        )
        assert sent["pages"] == list(zip(source.tolist(), place.tolist(), strict=True))


def test_a_post_names_a_bounded_number_of_pieces() -> None:
    """Every second page: nothing can be merged."""
    manager = FakePoolManager()
    manager.peer("a")
    manager.pages("a", list(range(MAX_DESCRIPTORS)))
    write(manager, list(range(0, 2 * MAX_DESCRIPTORS, 2)), list(range(MAX_DESCRIPTORS)), 0)
    assert len(manager.sent) == 2 * LAYERS
    assert all(2 * len(sent["pages"]) <= MAX_DESCRIPTORS for _, sent in manager.sent)
    for layer in range(LAYERS):
        pages = [
            pair for _, sent in manager.sent if sent["layer"] == layer for pair in sent["pages"]
        ]
        assert pages == [(2 * at, at) for at in range(MAX_DESCRIPTORS)]


def test_decode_memory_of_several_kinds_is_an_error(manager: FakePoolManager) -> None:
    del manager.prep_handles["a"]
    with pytest.raises(TransferFailed, match="several kinds"):
        write(manager, [5], [3], 0).poll()


# -- in flight ------------------------------------------------------------------------------


def test_a_write_has_ended_when_all_its_parts_have(manager: FakePoolManager) -> None:
    posted = write(manager, [5], [3], 0, last=True)
    manager.agent.states[1] = "DONE"
    assert not posted.poll()
    assert manager.agent.released == [1]
    end(manager, posted)
    assert manager.agent.released == [1, 2, 3]
    assert posted.poll(), "asking again is harmless"
    assert len(manager.notes()) == 2


def test_a_failed_part_is_told_once_all_parts_have_ended(manager: FakePoolManager) -> None:
    posted = write(manager, [5], [3], 0, last=True)
    manager.agent.states[1] = "ERR"
    assert not posted.poll(), "the other parts may still write to decode's pages"
    manager.agent.end_all()
    with pytest.raises(TransferFailed, match=f"room {ROOM}") as failure:
        posted.poll()
    assert failure.value.uncertain, "a block of the failed part may be under way"
    assert sorted(manager.agent.released) == [1, 2, 3]
    assert manager.notes() == [f"{ROOM}_aux"], "decode never counts it as complete"


def test_what_was_posted_before_an_error_ends_before_the_error_is_told(
    manager: FakePoolManager,
) -> None:
    """Decode's pages may be answered for only after nothing writes to them."""
    manager.agent.breaks_at = "aux"
    posted = write(manager, [5], [3], 0, last=True)
    for _ in range(3):
        assert not posted.poll(), "the pages are still being written"
    manager.agent.end_all()
    with pytest.raises(TransferFailed, match=f"room {ROOM} could not start: no such memory"):
        posted.poll()
    assert manager.agent.released == [1, 2]
    assert posted.poll(), "an error is told once"


@pytest.mark.parametrize(("where", "uncertain"), [("make", False), ("post", True)])
def test_a_post_that_is_rejected_half_way_is_uncertain(
    manager: FakePoolManager, where: str, uncertain: bool
) -> None:
    manager.agent.breaks_at = where
    posted = write(manager, [5], [3], 0)
    with pytest.raises(TransferFailed, match="could not start: no such memory") as failure:
        posted.poll()
    assert failure.value.uncertain is posted.uncertain is uncertain
    assert len(manager.sent) == int(where == "post"), "nothing is posted after a failure"


def test_a_word_that_cannot_be_sent_fails_a_write_that_has_arrived(
    manager: FakePoolManager,
) -> None:
    manager.agent.breaks_at = "note"
    posted = write(manager, [5], [3], 0)
    manager.agent.end_all()
    with pytest.raises(TransferFailed, match="could not be announced") as failure:
        posted.poll()
    assert not failure.value.uncertain
    assert not posted.acknowledged


def test_a_room_whose_writes_fail_gets_one_line(
    manager: FakePoolManager, caplog: pytest.LogCaptureFixture
) -> None:
    """When decode dies, every write of its rooms fails, in flight or about to be posted."""
    in_flight = [write(manager, [5], [3], number) for number in range(2)]
    manager.agent.end_all("GONE")
    manager.agent.breaks_at = "make"
    for posted in (*in_flight, write(manager, [5], [3], 2), write(manager, [5], [3], 3)):
        with pytest.raises(TransferFailed):
            posted.poll()
    (record,) = [record for record in caplog.records if record.levelname != "DEBUG"]
    assert f"room {ROOM}" in record.getMessage()
    assert record.exc_info is None
    manager.forget_room(ROOM)
    manager.pages("a", [10, 11, 12, 13])
    with pytest.raises(TransferFailed):
        write(manager, [5], [3], 0).poll()
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2


def test_a_partner_that_is_gone_does_not_end_the_writes_to_others(
    manager: FakePoolManager,
) -> None:
    """NIXL raises where it cannot reach a partner any more."""
    manager.peer("b")
    manager.pages("b", [20, 21, 22, 23], required=2)
    posted = write(manager, [5], [1], 0)
    manager.agent.states[1] = "GONE"
    assert not posted.poll(), "the write to the other may still be under way"
    manager.agent.end_all()
    with pytest.raises(TransferFailed, match="failed") as failure:
        posted.poll()
    assert failure.value.uncertain, "its state could not be read"


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
    assert manager.room_is_here(ROOM, time.monotonic())
    with pytest.raises(TransferFailed, match="did not reach this instance"):
        manager.room_is_here(ROOM + 1, time.monotonic() - 1.0)
    assert not manager.room_is_here(ROOM + 1, time.monotonic() + 60.0)


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
        end(holder, write(holder, positions, positions, send.send_id, send.last))
        notes += holder.notes()
    decode = CountingDecode()
    *before, last = [decode.done_after(note) for note in data.draw(st.permutations(notes))]
    assert not any(before)
    assert last
