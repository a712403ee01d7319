"""What SGLang's prefix tree stores and evicts, told to the controller as it happens.

SGLang's KV events exist only where a publisher is configured, and go to one reader. In one server,
and in a prefill server that reuses prefixes, the trees keep them always; they are taken each turn,
told, and passed on to SGLang's own publisher if there is one.
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
from sglang.srt.runtime_context import get_disagg, get_parallel

from sglang_cdsp.args import active_args
from sglang_cdsp.engine.reports import Reporter
from sglang_cdsp.form import Form, form_of
from sglang_cdsp.protocol.messages import CacheChange, CacheChanged

logger = logging.getLogger(__name__)

KEPT = 100_000
"""Events kept for SGLang's publisher, which takes them when it is idle or logs: older ones go."""


def build_with_events(original: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """AROUND hook on ``build_kv_cache``: one rank's tree keeps its events."""
    parallel = get_parallel()
    speaks = int(parallel.tp_rank) == 0 and int(parallel.pp_rank) == 0
    cdsp = active_args()
    reuses = cdsp is not None and cdsp.prefix_cache
    if speaks and (reuses or form_of(get_disagg().disaggregation_mode) is Form.ONE_SERVER):
        more["enable_kv_cache_events"] = True
    return original(*args, **more)


class CacheEvents:
    """Stands between SGLang's tree and its publisher, which asks it for events."""

    def __init__(self, tree: Any, reporter: Reporter, *, published: bool) -> None:
        """Take the events of ``tree``; ``published``: SGLang's own publisher wants them, too."""
        self._tree = tree
        self._reporter = reporter
        self._published = published
        self._passed_on: list[Any] = []
        self._works = reporter.leads and hasattr(tree, "take_events")

    def tell(self) -> None:
        """Tell the controller what has changed since the last turn."""
        if not self._works:
            return
        events = self._tree.take_events()
        if not events:
            return
        changes = changes_of(events)
        if changes:
            self._reporter.send_from_leader(CacheChanged, changes=changes)
        if self._published:
            self._passed_on.extend(events)
            del self._passed_on[:-KEPT]

    def take_events(self) -> list[Any]:
        """SGLang's publisher takes what the controller was told."""
        self.tell()
        events, self._passed_on = self._passed_on, []
        return events


def changes_of(events: Iterable[Any]) -> list[CacheChange]:
    """SGLang's events as the controller reads them, in their order; of device memory only."""
    changes: list[CacheChange] = []
    for event in events:
        if isinstance(event, AllBlocksCleared):
            changes.append(CacheChange(kind="cleared"))
        elif isinstance(event, BlockStored | BlockRemoved) and _on_device(event.medium):
            kind = "stored" if isinstance(event, BlockStored) else "removed"
            changes.append(CacheChange(kind, array("q", event.block_hashes).tobytes()))
    return changes


def _on_device(medium: Any) -> bool:
    return medium is None or medium == StorageMedium.GPU


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
