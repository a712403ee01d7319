"""What the installed SGLang is said to do, against what its parts show when they are used."""

from __future__ import annotations

import inspect

from sglang.srt.disaggregation import kv_events
from sglang.srt.disaggregation.common.conn import CommonKVManager
from sglang.srt.disaggregation.nixl.conn import NixlKVManager
from sglang.srt.managers import data_parallel_controller, schedule_batch
from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache

from sglang_cdsp import releases


def test_nixl_writes_alike() -> None:
    """All three of SGLang's calls take a notification, or none of them does."""
    calls = (NixlKVManager.send_kvcache, NixlKVManager.send_kvcache_slice, NixlKVManager.send_aux)
    for call in calls:
        assert ("notif" in inspect.signature(call).parameters) is releases.nixl_writes_notify()
    counts = hasattr(NixlKVManager, "update_transfer_status")
    assert counts is releases.nixl_writes_notify(), "decode counts what prefill sends"


def test_decode_wants_the_generation_that_it_sent() -> None:
    taken = inspect.signature(CommonKVManager.note_abort_ack).parameters
    assert ("generation" in taken) is releases.aborts_have_generations()


def test_plugins_in_the_controllers_process() -> None:
    target = inspect.getsource(data_parallel_controller.run_data_parallel_controller_process)
    assert ("load_plugins()" in target) is releases.controller_loads_plugins()


def test_requests_and_trees_are_asked_alike_about_what_is_kept() -> None:
    checkpoints = releases.kv_is_checkpointed()
    assert hasattr(schedule_batch.Req, "set_extend_range") is not checkpoints
    assert hasattr(BasePrefixCache, "supports_prefix_sharing") is checkpoints
    assert hasattr(BasePrefixCache, "is_chunk_cache") is not checkpoints


def test_facts_in_the_controllers_process() -> None:
    said = inspect.getsource(data_parallel_controller.DataParallelController.__init__)
    assert ("_scheduler_init_infos" in said) is releases.controller_records_facts()


def test_formats_of_kv_events_are_chosen_by_the_option() -> None:
    fields = kv_events.KVEventsConfig.model_fields
    assert ("format" in fields) is releases.kv_events_have_formats()
