"""Cached prefixes of the pool: what instances tell of their caches, and what prompts find there.

What a running prompt will leave at its home counts, too: its instances are busy until then, so a
plan that starts from it there is timed right, and finds it when its turn comes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Any
from weakref import WeakKeyDictionary

from sglang.srt.disaggregation.utils import FAKE_BOOTSTRAP_HOST

from sglang_cdsp.controller.homes import tokens_to_reuse
from sglang_cdsp.controller.phases import Phase
from sglang_cdsp.controller.prefixes.hashes import PageHashes
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.prefixes.index import PrefixIndex
from sglang_cdsp.planner.types import HeldPrefix
from sglang_cdsp.protocol.messages import CacheChange

WHOLE_PROMPTS = ("return_hidden_states", "return_routed_experts", "return_indexer_topk")
"""What a request may ask for of every token of its prompt: then all are computed."""


class PoolPrefixes:
    """The prefix index, fed by the schedulers, and the pages of prompts that have no end yet."""

    def __init__(
        self,
        capacity: Sequence[int],
        page_size: int,
        first_logprob: Callable[[Any], int | None] = lambda tokenized: None,
        least_tokens: int = 0,
    ) -> None:
        """Nothing is cached.

        Args:
            capacity: KV slots by instance.
            first_logprob: the prompt position from which on a request wants log-probabilities,
                None for none.
            least_tokens: shorter prefixes count as none. Most prompts begin with one token.
        """
        self._page = page_size
        self._index = PrefixIndex([-(-tokens // page_size) for tokens in capacity])
        self._first_logprob = first_logprob
        self._least = least_tokens
        self._waiting: dict[str, tuple[PoolRequest, PageHashes]] = {}
        self._pages: WeakKeyDictionary[PoolRequest, PageHashes] = WeakKeyDictionary()
        # Prompts that chunk tasks compute, until their home's own events tell of them.
        self._coming: dict[PoolRequest, PageHashes] = {}
        self._hits = self._misses = self._reused = self._cached = 0

    # -- as the planner sees it -------------------------------------------------------------

    def held(self, rid: str) -> tuple[HeldPrefix, ...]:
        """Who has what of a prompt that waits; a ``PrefixSource``."""
        known = self._waiting.get(rid)
        if known is None:
            return ()
        request, pages = known
        need = tokens_to_reuse(request, self._page)
        most = {
            instance: found.pages
            for found in self._index.lookup(pages)
            for instance in found.instances
        }
        for leader, theirs in list(self._coming.items()):
            if not _will_be_cached(leader):
                del self._coming[leader]
                continue
            there = pages.in_common(theirs)
            if there > most.get(leader.home, 0):
                most[leader.home] = there
        ordered = sorted(most.items(), key=lambda entry: (-entry[1], entry[0]))
        found = (HeldPrefix(i, count * self._page, need) for i, count in ordered)
        return tuple(prefix for prefix in found if prefix.tokens >= self._least)

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
        if request.plan.reused:
            self._hits += 1
            self._pages[request] = known[1]

    def missed(self, request: PoolRequest, found: int) -> None:
        """A request's home found less of its prefix than the index said."""
        assert request.plan is not None
        self._misses += 1
        self._hits -= 1
        self._reused -= request.plan.reused
        pages = self._pages.pop(request, None)
        if pages is not None:
            gone = pages[found // self._page : request.plan.reused // self._page]
            self._index.removed(request.plan.home, gone)

    def forget_ended(self) -> None:
        """Keep nothing of requests whose home tells of them itself, or that have ended."""
        for leader in [one for one in self._coming if not _will_be_cached(one)]:
            del self._coming[leader]

    # -- from the instances -----------------------------------------------------------------

    def changed(self, instance: int, changes: Iterable[CacheChange]) -> None:
        """An instance tells what has happened to its cache, in order."""
        for change in changes:
            pages = array("q", change.pages)
            if change.kind == "stored":
                self._index.stored(instance, pages)
            elif change.kind == "removed":
                self._index.removed(instance, pages)
            else:
                self._index.emptied(instance)

    def gone(self, instance: int) -> None:
        """An instance's process is lost; its next one has nothing cached."""
        self._index.emptied(instance)

    def tidy(self) -> None:
        """Take some memory back: what emptied instances have left, and what requests that ended."""
        self._index.scrub()
        self.forget_ended()

    def snapshot(self) -> dict[str, Any]:
        """For status pages, JSON-ready.

        ``plans_reusing`` started from a cached prefix, of ``reused_tokens`` in all, out of
        ``cached_tokens`` that some instance had. ``misses``: plans that did not find theirs.
        """
        return {
            "plans_reusing": self._hits,
            "reused_tokens": self._reused,
            "cached_tokens": self._cached,
            "misses": self._misses,
            "pages": len(self._index),
            "pages_by_instance": self._index.counts,
            "lost_events": self._index.lost_events,
        }


COMING = frozenset((Phase.BOUND, Phase.RUNNING, Phase.DRAINING, Phase.RELEASING))


def _will_be_cached(leader: PoolRequest) -> bool:
    """Whether a prompt that chunk tasks compute will be in its home's cache when they are done."""
    ends = leader.error or leader.recalled or leader.aborted or leader.plan is None
    stays = leader.keeps or leader.decodes
    return leader.phase in COMING and stays and not ends
