"""The KV events of all instances as those of one cache: the pool's.

A page is stored when the first instance holds it, and removed when none holds it any more. Where it
lies counts by itself (SGLang's ``medium``): a page in device memory here and on the host there is
told twice, as stock tells it. A subscriber that follows the stream knows at any time what the pool
holds, and no more of it: instances are no replicas that a router could choose from.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sglang.srt.disaggregation.kv_events import AllBlocksCleared, BlockRemoved, BlockStored

from sglang_cdsp.controller.prefixes.shown import Renaming, ShownNames
from sglang_cdsp.planner.prefixes.index import PrefixIndex
from sglang_cdsp.protocol.messages import CacheChange
from sglang_cdsp.protocol.values import DEVICE

ANY_NUMBER = 1 << 62
"""Pages that an instance may hold outside of device memory: nobody here knows how many."""


class MergedEvents:
    """Turns what instances tell of their caches into SGLang's events of one cache."""

    def __init__(self, device: PrefixIndex, rename: Renaming | None = None) -> None:
        """The first event says that nothing is cached: a subscriber forgets an earlier server.

        Args:
            device: who holds what in device memory; whoever changes it tells the outcome here.
            rename: of the format in which events are published.
        """
        self._instances = device.instances
        self._tiers = {DEVICE: device}
        self._names = ShownNames(rename)
        # By medium and shown name, how many pages of other names are shown so.
        self._shared: Counter[tuple[str, int]] = Counter()
        self._flushed: set[int] = set()
        self._absent: set[int] = set()
        self._events: list[Any] = [AllBlocksCleared()]

    def take(self) -> list[Any]:
        """SGLang's events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def held(self) -> set[int]:
        """What subscribers should know to be in device memory; looks at all pages."""
        device = self._tiers[DEVICE]
        names = (
            self._names.name(page) for i in range(self._instances) for page in device.pages_of(i)
        )
        return {name for name in names if name is not None}

    # -- device memory, by what has become of its index ---------------------------------------

    def stored(self, instance: int, change: CacheChange, new: Sequence[int]) -> None:
        """An instance stored pages; ``new`` are those among them that nobody held before."""
        self._heard(instance)
        self._flushed.discard(instance)
        if new:
            self._told_stored(change, set(new))

    def removed(self, gone: Sequence[int]) -> None:
        """Nobody holds these pages in device memory any more."""
        self._told_removed(DEVICE, gone)

    def cleared(self, instance: int) -> None:
        """An instance was flushed; its pages in device memory are forgotten already."""
        self._heard(instance)
        self._emptied_elsewhere(instance)
        self._flushed.add(instance)
        if len(self._flushed | self._absent) < self._instances:
            return
        self._flushed.clear()
        if any(tier.holds_any for tier in self._tiers.values()):
            return
        for tier in self._tiers.values():
            tier.forget()
        self._names.clear()
        self._shared.clear()
        self._events.append(AllBlocksCleared())

    def lost(self, instance: int) -> None:
        """An instance's process is lost; its pages in device memory are forgotten already."""
        self._absent.add(instance)
        self._emptied_elsewhere(instance)

    # -- elsewhere ----------------------------------------------------------------------------

    def elsewhere(self, instance: int, change: CacheChange) -> None:
        """An instance stored or removed pages that lie outside of device memory."""
        self._heard(instance)
        tier = self._tiers.get(change.medium)
        if tier is None:
            tier = self._tiers[change.medium] = PrefixIndex([ANY_NUMBER] * self._instances)
        pages = array("q", change.pages)
        if change.kind == "removed":
            self._told_removed(change.medium, tier.removed(instance, pages))
            return
        self._flushed.discard(instance)
        if new := tier.stored(instance, pages):
            self._told_stored(change, set(new))

    def tidy(self) -> None:
        """Strike out some of what emptied instances held outside of device memory."""
        for medium, tier in self._tiers.items():
            if medium != DEVICE and tier.stale:
                self._told_removed(medium, tier.scrub())

    @property
    def stale(self) -> bool:
        """Whether pages are still to be told as removed, when `tidy` comes to them."""
        return any(tier.stale for tier in self._tiers.values())

    def _heard(self, instance: int) -> None:
        self._absent.discard(instance)

    def _emptied_elsewhere(self, instance: int) -> None:
        for medium, tier in self._tiers.items():
            if medium != DEVICE:
                tier.emptied(instance)

    # -- what is told -------------------------------------------------------------------------

    def _told_stored(self, change: CacheChange, new: set[int]) -> None:
        """Tell of those pages that nobody held: one event for each run of them."""
        pages, tokens = array("q", change.pages), array("q", change.tokens)
        salt = self._names.learn(pages, tokens, change.parent, change.salt)
        width = len(tokens) // len(pages)
        parent = self._names.name(change.parent)
        last: BlockStored | None = None
        for number, page in enumerate(pages):
            name = self._names.name(page)
            if page not in new or name is None or not self._is_first(change.medium, page, name):
                last, parent = None, name
                continue
            if last is None:
                last = BlockStored(
                    block_hashes=[],
                    parent_block_hash=parent,
                    token_ids=[],
                    block_size=width,
                    lora_id=None,
                    medium=change.medium,
                    cache_salt=salt,
                    session_id=change.session,
                )
                self._events.append(last)
            last.block_hashes.append(name)
            last.token_ids.extend(tokens[number * width : (number + 1) * width])
            new.discard(page)
            parent = name

    def _told_removed(self, medium: str, gone: Sequence[int]) -> None:
        """Tell of pages that nobody holds any more."""
        if self._shared:
            # Those whose name is their own first: the last of a name's pages tells of it.
            gone = sorted(gone, key=self._names.differs)
        names = [name for page in gone if (name := self._last_name(medium, page)) is not None]
        if gone and len(self._names):
            self._names.drop(self._nowhere(gone))
        if not names:
            return
        last = self._events[-1] if self._events else None
        if isinstance(last, BlockRemoved) and last.medium == medium:
            last.block_hashes.extend(names)
        else:
            self._events.append(BlockRemoved(block_hashes=names, medium=medium))

    def _nowhere(self, pages: Iterable[int]) -> list[int]:
        """Those of some pages that lie nowhere."""
        tiers = self._tiers.values()
        return [page for page in pages if not any(page in tier for tier in tiers)]

    def _is_first(self, medium: str, page: int, name: int) -> bool:
        """Whether a page that is new is the first one of its shown name; counts it."""
        key = medium, name
        if not self._names.differs(page):
            return not self._shared[key] if self._shared else True
        self._shared[key] += 1
        return self._shared[key] == 1 and name not in self._tiers[medium]

    def _last_name(self, medium: str, page: int) -> int | None:
        """The shown name of a page that is gone, None where it stays or was not told."""
        name = self._names.name(page)
        if name is None:
            return None
        key = medium, name
        if not self._names.differs(page):
            return name if not self._shared or not self._shared[key] else None
        self._shared[key] -= 1
        if self._shared[key] > 0:
            return None
        del self._shared[key]
        return name if name not in self._tiers[medium] else None
