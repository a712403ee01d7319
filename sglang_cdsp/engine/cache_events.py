"""What SGLang's prefix tree stores and evicts, told to the controller as it happens.

SGLang's KV events exist only where a publisher is configured, and go to one reader. Where prefixes
are reused the trees keep them always, and the reader is the controller: it publishes those of all
instances as one stream (``controller/prefixes/merged.py``), so no instance has a publisher of its
own.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable
from typing import Any

from sglang.srt.disaggregation.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    StorageMedium,
)
from sglang.srt.runtime_context import (
    get_context,
    get_disagg,
    get_memory,
    get_observability,
    get_parallel,
)

from sglang_cdsp.args import active_args
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.form import Form, form_of, tells_caches
from sglang_cdsp.protocol.kv_events import is_published
from sglang_cdsp.protocol.messages import CacheChange, CacheChanged
from sglang_cdsp.protocol.values import DEVICE

logger = logging.getLogger(__name__)


def build_with_events(original: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """AROUND hook on ``build_kv_cache``: one rank's tree keeps its events."""
    parallel = get_parallel()
    speaks = int(parallel.tp_rank) == 0 and int(parallel.pp_rank) == 0
    cdsp = active_args()
    reuses = cdsp is not None and cdsp.prefix_cache
    if speaks and (reuses or form_of(get_disagg().disaggregation_mode) is Form.ONE_SERVER):
        more["enable_kv_cache_events"] = True
    return original(*args, **more)


def take_over_publishing() -> bool:
    """Leave this scheduler without a publisher, if the pool publishes; whether it does.

    SGLang would open one at a port of each instance's own.
    """
    config = get_observability().kv_events_config
    mode, off = get_disagg().disaggregation_mode, bool(get_memory().disable_radix_cache)
    if not config or not tells_caches(mode, radix_cache_off=off):
        return False
    get_context().override("sglang-cdsp", kv_events_config=None)
    return is_published(config)


class CacheEvents:
    """Takes the events of SGLang's tree, and tells the controller."""

    def __init__(self, tree: Any, reporter: Reporter, *, published: bool) -> None:
        """Take the events of ``tree``; ``published``: the controller publishes them."""
        self._tree = tree
        self._reporter = reporter
        self._published = published
        self._works = reporter.leads and hasattr(tree, "take_events")

    def tell(self) -> None:
        """Tell the controller what has changed since the last turn."""
        if not self._works:
            return
        changes = changes_of(self._tree.take_events(), whole=self._published)
        if changes:
            self._reporter.send_from_leader(CacheChanged, changes=changes)


def changes_of(events: Iterable[Any], *, whole: bool = False) -> list[CacheChange]:
    """SGLang's events as the controller reads them, in their order.

    Args:
        whole: all that they say, of all places where pages lie; else the names of pages in device
            memory.
    """
    changes: list[CacheChange] = []
    for event in events:
        if isinstance(event, AllBlocksCleared):
            changes.append(CacheChange(kind="cleared"))
        elif isinstance(event, BlockStored | BlockRemoved):
            medium = DEVICE if event.medium is None else str(StorageMedium(event.medium).value)
            if medium != DEVICE and not whole:
                continue
            pages = array("q", event.block_hashes).tobytes()
            if isinstance(event, BlockRemoved):
                changes.append(CacheChange("removed", pages, medium))
            elif whole:
                changes.append(
                    CacheChange(
                        "stored",
                        pages,
                        medium,
                        tokens=array("q", event.token_ids).tobytes(),
                        parent=event.parent_block_hash,
                        salt=event.cache_salt,
                        session=event.session_id,
                    )
                )
            else:
                changes.append(CacheChange("stored", pages, medium))
    return changes


def hashing_works(tree: Any) -> bool:
    """Whether the tree can name pages.

    SGLang's Python tree compiles a small extension for that at its first event, which would end the
    scheduler where no compiler is.
    """
    recorder: Any = getattr(getattr(tree, "tree_core", None), "kv_events", None)
    if not getattr(recorder, "enabled", False):
        return False
    if type(recorder).__name__ != "KVCacheEventRecorder":
        return True
    from sglang.srt.mem_cache.cpp_utils.native_hash import get_native_hash

    try:
        get_native_hash(array("q", [1]), None, 1)
    except Exception as error:
        recorder.enabled = False
        logger.warning(
            "no prefix is reused by chunk tasks: SGLang's tree cannot name pages here (%s); "
            "install a C++ compiler, or unset SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND",
            str(error).splitlines()[0] if str(error) else repr(error),
        )
        return False
    return True
