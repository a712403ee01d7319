"""Cached prefixes of the pool: what instances tell of their caches, and what prompts find there.

What a running prompt will leave at its home counts, too: its instances are busy until then, so a
plan that starts from it there is timed right, and finds it when its turn comes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from sglang.srt.disaggregation.utils import FAKE_BOOTSTRAP_HOST

from sglang_cdsp.controller.homes import tokens_to_reuse
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.prefixes.hashes import PageHashes
from sglang_cdsp.controller.prefixes.merged import MergedEvents
from sglang_cdsp.controller.prefixes.shown import Renaming
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.shared_slots import SharedSlots
from sglang_cdsp.planner.prefixes.index import PrefixIndex
from sglang_cdsp.planner.types import HeldPrefix
from sglang_cdsp.protocol.cache_digest import are_shown, digest
from sglang_cdsp.protocol.messages import CacheChange
from sglang_cdsp.protocol.values import DEVICE

WHOLE_PROMPTS = ("return_hidden_states", "return_routed_experts", "return_indexer_topk")
"""What a request may ask for of every token of its prompt: then all are computed."""


class Copies(Protocol):
    """Copies of prefixes that are under way."""

    def coming(self) -> Iterable[tuple[int, PageHashes]]:
        """What will be cached where when they have arrived."""

    def may_send(self, instance: int) -> bool:
        """Whether one more copy can leave an instance."""


class PoolPrefixes:
    """The prefix index, fed by the schedulers, and the pages of prompts that have no end yet."""

    def __init__(
        self,
        capacity: Sequence[int],
        page_size: int,
        first_logprob: Callable[[Any], int | None] = lambda tokenized: None,
        least_tokens: int = 0,
        promised: Callable[[int], Iterable[SharedSlots]] = lambda instance: (),
        *,
        publishes: bool = False,
        rename: Renaming | None = None,
    ) -> None:
        """Nothing is cached.

        Args:
            capacity: KV slots by instance.
            first_logprob: the prompt position from which on a request wants log-probabilities,
                None for none.
            least_tokens: shorter prefixes count as none. Most prompts begin with one token.
            promised: the prefixes at an instance that plans start from which are in force.
            publishes: whether `events` are kept.
            rename: of the format in which they are published, None for SGLang's own.
        """
        self._page = page_size
        self._index = PrefixIndex([-(-tokens // page_size) for tokens in capacity])
        self._merged = MergedEvents(self._index, rename) if publishes else None
        self._first_logprob = first_logprob
        self._least = least_tokens
        self._promised = promised
        # Of a prompt that begins with each.
        self._shared: WeakKeyDictionary[SharedSlots, PageHashes] = WeakKeyDictionary()
        self._waiting: dict[str, tuple[PoolRequest, PageHashes]] = {}
        self._pages: WeakKeyDictionary[PoolRequest, PageHashes] = WeakKeyDictionary()
        # Prompts that chunk tasks compute, until their home's own events tell of them.
        self._coming: dict[PoolRequest, PageHashes] = {}
        self._hits = self._misses = self._reused = self._cached = 0
        self._copies: Copies | None = None

    def follow(self, copies: Copies) -> None:
        """These copies are what is under way from one cache to another."""
        self._copies = copies

    # -- as the planner sees it -------------------------------------------------------------

    def held(self, rid: str) -> tuple[HeldPrefix, ...]:
        """Who has what of a prompt that waits; a ``PrefixSource``."""
        known = self._waiting.get(rid)
        if known is None:
            return ()
        request, pages = known
        need = tokens_to_reuse(request, self._page)
        stored = {
            instance: found.pages
            for found in self._index.lookup(pages)
            for instance in found.instances
        }
        most = dict(stored)
        for target, theirs in self._copies.coming() if self._copies is not None else ():
            there = pages.in_common(theirs)
            if there > most.get(target, 0):
                most[target] = there
        for leader, theirs in list(self._coming.items()):
            if not _will_be_cached(leader):
                del self._coming[leader]
                continue
            there = pages.in_common(theirs)
            if there > most.get(leader.home, 0):
                most[leader.home] = there
        ordered = sorted(most.items(), key=lambda entry: (-entry[1], entry[0]))
        found = ((i, count, count * self._page) for i, count in ordered)
        return tuple(
            HeldPrefix(
                i,
                tokens,
                need - tokens * self._is_promised(i, tokens, pages),
                self._ready(request, i, stored.get(i, 0), count),
            )
            for i, count, tokens in found
            if tokens >= self._least
        )

    def _is_promised(self, instance: int, tokens: int, pages: PageHashes) -> bool:
        """Whether other plans hold the same prefix there, so that it costs no slots again."""
        return self._known(self._promised(instance), instance, tokens, pages) is not None

    def _known(
        self, held: Iterable[SharedSlots], instance: int, tokens: int, pages: PageHashes
    ) -> SharedSlots | None:
        """The one of the prefixes ``held`` that a plan shares which starts there."""
        for one in held:
            there = one.instance == instance and one.tokens == tokens
            if there and pages.in_common(self._shared[one]) >= tokens // self._page:
                return one
        return None

    def shared(
        self, request: PoolRequest, instance: int, tokens: int, held: Iterable[SharedSlots]
    ) -> SharedSlots | None:
        """The one of the prefixes ``held`` that a prompt would share which starts there."""
        entry = self._waiting.get(request.rid)
        pages = entry[1] if entry and entry[0] is request else self._pages.get(request)
        return None if pages is None else self._known(held, instance, tokens, pages)

    def _ready(self, request: PoolRequest, instance: int, stored: int, count: int) -> int | None:
        """Tokens that an instance can send now of a prefix of ``count`` pages; None for all."""
        sends = self._copies is not None and self._copies.may_send(instance)
        ready = stored if sends and not request.uncopied else 0
        return None if ready == count else ready * self._page

    def pages_of(self, request: PoolRequest) -> PageHashes | None:
        """The pages of a request that waits, or whose plan found some of it cached."""
        known = self._waiting.get(request.rid)
        if known is not None and known[0] is request:
            return known[1]
        return self._pages.get(request)

    def holders(self, pages: PageHashes) -> tuple[list[int], list[int]]:
        """Instances that have all of a prefix in their caches, and those that will have."""
        found = self._index.lookup(pages)
        stored = [i for held in found if held.pages == len(pages) for i in held.instances]
        leaders = [(leader.home, theirs) for leader, theirs in self._coming.items()]
        copied = self._copies.coming() if self._copies is not None else ()
        coming = [
            home for home, theirs in (*leaders, *copied) if pages.in_common(theirs) == len(pages)
        ]
        return stored, coming

    def cached_of(self, request: PoolRequest) -> dict[int, int]:
        """How many of a request's first tokens instances have in their caches now.

        Empty for one of which nobody had any when it was planned.
        """
        pages = self.pages_of(request)
        found = self._index.lookup(pages) if pages is not None else ()
        return {i: held.pages * self._page for held in found for i in held.instances}

    @property
    def cached_tokens(self) -> list[int]:
        """Tokens in each instance's cache."""
        return [count * self._page for count in self._index.counts]

    # -- a request's way --------------------------------------------------------------------

    def waits(self, request: PoolRequest) -> None:
        """A request waits for the policy's plan."""
        self._waiting.pop(request.rid, None)
        reusable = self._reusable(request) // self._page * self._page
        if reusable and not request.missed:
            more = request.resumes.tokens if request.resumes is not None else ()
            tokens = islice(chain(request.tokenized.input_ids, more), reusable)
            salt = getattr(request.tokenized, "cache_salt", None)
            self._waiting[request.rid] = request, PageHashes(tokens, self._page, salt)

    def _reusable(self, request: PoolRequest) -> int:
        """So many of its first tokens may come from a cache.

        At least the last one is computed, and none whose log-probabilities are wanted.
        """
        if any(getattr(request.tokenized, name, None) for name in WHOLE_PROMPTS):
            return 0
        most = request.tokens - 1
        first = None if request.resumes is not None else self._first_logprob(request.tokenized)
        return most if first is None else min(most, first)

    def leaves(self, request: PoolRequest) -> None:
        """A request waits no longer: it has a plan, or has ended."""
        known = self._waiting.get(request.rid)
        if known is None or known[0] is not request:
            return
        del self._waiting[request.rid]
        if request.plan is None:
            return
        # SGLang's tree keeps nothing of a request that names its stand-in for decode.
        kept = getattr(request.tokenized, "bootstrap_host", None) != FAKE_BOOTSTRAP_HOST
        there = request.keeps or (request.decodes and not request.joins_late)
        if kept and there and not request.one_instance:
            self._coming[request] = known[1]
        self._cached += request.plan.cached
        self._reused += request.plan.reused
        if request.plan.cached or request.plan.reused:
            self._pages[request] = known[1]
        self._hits += bool(request.plan.reused)

    def bound(self, request: PoolRequest, held: Iterable[SharedSlots]) -> SharedSlots | None:
        """A request waits no longer, and has a plan; returns the prefix that it starts from.

        Args:
            held: those at its home that plans start from which are in force.
        """
        self.leaves(request)
        plan = request.plan
        if plan is None or not plan.reused or request not in self._pages:
            return None
        found = self.shared(request, plan.home, plan.reused, held)
        if found is None:
            found = SharedSlots(plan.home, plan.reused)
            self._shared[found] = self._pages[request]
        return found

    def missed(self, request: PoolRequest, found: int) -> None:
        """A request's home found less of its prefix than the index said."""
        assert request.plan is not None
        self._misses += 1
        self._hits -= 1
        self._reused -= request.plan.reused
        pages = self._pages.pop(request, None)
        if pages is not None:
            gone = pages[found // self._page : request.plan.reused // self._page]
            self._removed(request.plan.home, gone)

    def lacks(self, instance: int, pages: Iterable[int]) -> None:
        """An instance does not have these pages cached, whatever it has told."""
        self._removed(instance, pages)

    def forget_ended(self) -> None:
        """Keep nothing of requests whose home tells of them itself, or that have ended."""
        for leader in [one for one in self._coming if not _will_be_cached(one)]:
            del self._coming[leader]

    # -- from the instances -----------------------------------------------------------------

    def changed(self, instance: int, changes: Iterable[CacheChange]) -> None:
        """An instance tells what has happened to its cache, in order.

        Only what lies in device memory can be reused.
        """
        merged = self._merged
        for change in changes:
            if change.kind == "cleared":
                self._index.emptied(instance)
                if merged is not None:
                    merged.cleared(instance)
            elif change.medium != DEVICE:
                if merged is not None:
                    merged.elsewhere(instance, change)
            elif change.kind == "removed":
                self._removed(instance, array("q", change.pages))
            else:
                new = self._index.stored(instance, array("q", change.pages))
                if merged is not None:
                    merged.stored(instance, change, new)

    def _removed(self, instance: int, pages: Iterable[int]) -> None:
        gone = self._index.removed(instance, pages)
        if self._merged is not None:
            self._merged.removed(gone)

    def gone(self, instance: int) -> None:
        """An instance's process is lost; its next one has nothing cached."""
        self._index.emptied(instance)
        if self._merged is not None:
            self._merged.lost(instance)

    def tidy(self) -> None:
        """Take some memory back: what emptied instances have left, and what requests that ended."""
        gone = self._index.scrub()
        if self._merged is not None:
            self._merged.removed(gone)
            self._merged.tidy()
        self.forget_ended()

    # -- for subscribers --------------------------------------------------------------------

    def events(self) -> list[Any]:
        """SGLang's KV events of the pool since the last call, if they are kept, in order."""
        return [] if self._merged is None else self._merged.take()

    @property
    def owes_events(self) -> bool:
        """Whether `tidy` has more to tell: pages that only emptied instances held."""
        return self._merged is not None and self._merged.stale

    def snapshot(self) -> dict[str, Any]:
        """For status pages, JSON-ready.

        ``plans_reusing`` started from a cached prefix, of ``reused_tokens`` in all, out of
        ``cached_tokens`` that some instance had. ``misses``: plans that did not find theirs.
        For tests ``digests``, of the pages by instance, and ``told``, of what subscribers know.
        """
        index = self._index
        more: dict[str, Any] = {}
        if are_shown():
            more["digests"] = [digest(index.pages_of(i)) for i in range(index.instances)]
            more["told"] = None if self._merged is None else digest(self._merged.held())
        return {
            "plans_reusing": self._hits,
            "reused_tokens": self._reused,
            "cached_tokens": self._cached,
            "misses": self._misses,
            "pages": len(index),
            "pages_by_instance": index.counts,
            "lost_events": index.lost_events,
            **more,
        }


COMING = frozenset((Phase.BOUND, Phase.RUNNING, Phase.DRAINING, Phase.RELEASING))


def _will_be_cached(leader: PoolRequest) -> bool:
    """Whether a prompt that chunk tasks compute will be in its home's cache when they are done."""
    ends = leader.error or leader.recalled or leader.aborted or leader.plan is None
    stays = leader.keeps or leader.decodes
    return leader.phase in COMING and stays and not ends
