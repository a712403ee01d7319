"""What SGLang's prefix tree holds, read node by node: for tests, beside what it has told."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from sglang.srt.mem_cache.utils import get_hash_str, hash_str_to_int64

from sglang_cdsp.protocol.cache_digest import digest

SALT_SEED = b"sglang-cache-salt-v1\0"


def walked(tree: Any, allocator: Any) -> dict[str, Any]:
    """The state of a tree and of its slots, JSON-ready.

    Returns:
        ``slots`` that the tree holds, those among them that it holds ``twice``, and those that are
        ``free`` for others at the same time; ``pages``, a digest of the names of all its pages,
        None where nothing can walk the tree: SGLang's Rust one.
    """
    slots = _slots(tree)
    different = slots.unique()
    free = _free_slots(allocator, different)
    names = _names(tree)
    return {
        "slots": int(slots.numel()),
        "twice": int(slots.numel() - different.numel()),
        "free": int(free.numel()),
        "pages": None if names is None else digest(names),
    }


def _slots(tree: Any) -> torch.Tensor:
    """All slots of a tree, int64; none where nothing is cached at all."""
    flatten = getattr(tree, "all_values_flatten", None)
    if flatten is None:
        return torch.empty(0, dtype=torch.int64)
    slots: torch.Tensor = flatten().to(torch.int64).reshape(-1)
    return slots


def _free_slots(allocator: Any, slots: torch.Tensor) -> torch.Tensor:
    """Those of some slots that lie in pages which the allocator has free."""
    free = allocator.get_all_free_pages().to(torch.int64)
    page = int(allocator.page_size)
    return slots[torch.isin(slots // page, free.to(slots.device))]


def _names(tree: Any) -> list[int] | None:
    """The names of all pages, from the tokens of each node: what the tree has kept counts not."""
    try:
        root: Any = tree.tree_core.root_node
    except (AttributeError, NotImplementedError):
        return None
    page = int(tree.page_size)
    names: list[int] = []
    nodes = [(child, _seed(child.key.cache_salt)) for child in root.children.values()]
    while nodes:
        node, before = nodes.pop()
        values = get_hash_str(node.key, before, page)
        assert isinstance(values, list)
        names.extend(map(hash_str_to_int64, values))
        nodes.extend((child, values[-1]) for child in node.children.values())
    return names


def _seed(salt: str | None) -> str | None:
    """What SGLang hashes before the first page of a namespace, as hexadecimal digits."""
    return None if salt is None else hashlib.sha256(SALT_SEED + salt.encode()).hexdigest()
