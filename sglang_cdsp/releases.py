"""What the installed SGLang does, where the releases that are served differ.

Each function looks at the part of SGLang that it asks about, never at the version: a build between
two releases is told by what it has. ``tests/contract`` proves for each tested release that the
answers follow from its sources; docs/releases.md lists what depends on them.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any


@functools.cache
def nixl_writes_notify() -> bool:
    """Whether a NIXL write carries a notification that decode counts (SGLang 0.5.21).

    In 0.5.23 decode waits for a status message from every prefill rank instead, over NIXL as over
    Mooncake.
    """
    manager = _module("disaggregation.nixl.conn").NixlKVManager
    return "notif" in inspect.signature(manager.send_kvcache).parameters


@functools.cache
def aborts_have_generations() -> bool:
    """Whether an abort from decode has a generation, which its acknowledgement repeats (0.5.23).

    There an abort without one awaits no acknowledgement: decode had named no pages.
    """
    return hasattr(_module("disaggregation.common.conn"), "AbortAck")


@functools.cache
def controller_loads_plugins() -> bool:
    """Whether the data-parallel controller's process loads plugins by itself (0.5.23)."""
    return hasattr(_module("managers.data_parallel_controller"), "load_plugins")


@functools.cache
def kv_is_checkpointed() -> bool:
    """Whether a request says by its ``extend_end`` how much KV the prefix tree may keep (0.5.23).

    There ``release_kv_cache`` is told whether to keep it, and a tree whether it shares prefixes.
    """
    release = _module("mem_cache.common").release_kv_cache
    return "checkpoint" in inspect.signature(release).parameters


@functools.cache
def controller_records_facts() -> bool:
    """Whether the data-parallel controller keeps what its schedulers say of themselves (0.5.23)."""
    controller = _module("managers.data_parallel_controller").DataParallelController
    return hasattr(controller, "_record_scheduler_init_infos")


@functools.cache
def kv_events_have_formats() -> bool:
    """Whether KV events can be published in the format ``dynamo``, too (0.5.23).

    There a page's published name depends on the request's extra key.
    """
    return hasattr(_module("disaggregation.kv_events"), "namespaced_block_hash")


def _module(name: str) -> Any:
    """A module of SGLang's runtime; imported late, since it brings torch with it."""
    return importlib.import_module(f"sglang.srt.{name}")
