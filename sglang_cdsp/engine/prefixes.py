"""Prefixes of prompts that SGLang's tree has cached here: matched, locked, and read in place.

A task whose plan starts from one takes the slots of its first tokens from the tree. They stay the
tree's: the lock keeps them from being evicted until the task lets go of them, or its request joins
SGLang's batch and holds the lock from then on, as after a match of SGLang's own.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey

from sglang_cdsp import releases

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


@dataclass(frozen=True, eq=False)
class CachedPrefix:
    """A prefix in SGLang's tree, locked.

    Attributes:
        slots: of its tokens by position, int64 ``[tokens]``, at least one whole page.
        node: of the tree, at which it ends.
        lock: SGLang's receipt of the lock on ``node``.
        tree: SGLang's.
    """

    slots: torch.Tensor
    node: Any
    lock: Any
    tree: Any

    @property
    def tokens(self) -> int:
        """Its length."""
        return int(self.slots.numel())

    def let_go(self) -> None:
        """Unlock it: SGLang may evict it from now on. To be called once, by whoever holds it."""
        if releases.kv_is_checkpointed():
            self.tree.unlock(self.lock)
        else:
            self.tree.dec_lock_ref(self.node, self.lock)

    def bind(self, req: Req) -> None:
        """A request holds the lock from now on, as if SGLang had matched the prefix for it.

        It has no row yet and no other prefix.
        """
        req.last_node = req.last_host_node = req.best_match_node = self.node
        req.kv.cache_protected_len = self.tokens
        req.num_matched_prefix_tokens = self.tokens
        if releases.kv_is_checkpointed():
            req.prefix_len = self.tokens
            req.kv.cache_inserted_len = self.tokens
            req.lock = self.lock
        else:
            req.prefix_indices = self.slots
            req.lock_receipt = self.lock


Match = Callable[["Req", torch.Tensor], "CachedPrefix | None"]
"""``(req, tokens)``: the longest cached prefix of these tokens in the request's namespace, locked;
None if there is none."""


def match_in(tree: Any) -> Match:
    """Matches in SGLang's prefix tree; all ranks of an instance find alike, as SGLang relies on."""

    def match(req: Req, tokens: torch.Tensor) -> CachedPrefix | None:
        key = RadixKey(
            array("q", tokens.tolist()), extra_key=req.extra_key, cache_salt=req.cache_salt
        )
        found = tree.match_prefix(MatchPrefixParams(key=key))
        node = found.last_device_node
        slots = _slots(tree, found)
        if not slots.numel():
            return None
        lock = (
            tree.lock(node)
            if releases.kv_is_checkpointed()
            else tree.inc_lock_ref(node).to_dec_params()
        )
        return CachedPrefix(slots, node, lock, tree)

    return match


def _slots(tree: Any, found: Any) -> torch.Tensor:
    """The slots of a match, int64."""
    if releases.kv_is_checkpointed():
        path = tree.path_device_indices(found.last_device_node)
        slots: torch.Tensor = path[: found.device_prefix_len]
    else:
        slots = found.device_indices
    return slots.to(torch.int64)
