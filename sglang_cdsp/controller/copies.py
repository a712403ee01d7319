"""Copies of cached prefixes from one instance to another: which there are, and how far they are.

The target gets ready first: it has slots for what it lacks, and a lane of the links. Then the
source locks the prefix and sends it. Each of the two says once when it has nothing of the copy any
more; the target's own events tell what it has cached then. Where anything goes wrong the copy does
not come about: a plan that was to start from it does not find it, and is made anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from sglang_cdsp.controller.effects import Effects
from sglang_cdsp.controller.lanes import LaneTable
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.prefixes.copy import Copy, Reason, Step
from sglang_cdsp.controller.prefixes.hashes import PageHashes
from sglang_cdsp.controller.prefixes.hot import HotPrefixes
from sglang_cdsp.controller.prefixes.pool import PoolPrefixes
from sglang_cdsp.controller.presence import Presence, Stand
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.prefixes.copies import CopyTimes
from sglang_cdsp.planner.types import Plan
from sglang_cdsp.protocol.messages import CacheChanged, CopyEnded, CopyReady
from sglang_cdsp.protocol.values import DEVICE

MOST_FROM_ONE = 2
"""So many copies leave an instance at once: more would only share its link."""


class PrefixCopies:
    """The copies of a pool's cached prefixes."""

    def __init__(
        self,
        *,
        prefixes: PoolPrefixes | None,
        times: CopyTimes | None,
        compute_s: Callable[[int], float],
        ledger: InstanceLedger,
        presence: Presence,
        effects: Effects,
        lanes: LaneTable,
        lane_left: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """None is under way.

        Args:
            prefixes: what is cached where; None where nothing is reused.
            times: what copies take; None where none is made.
            compute_s: seconds in which one instance computes so many tokens.
            lanes: of the links, which chunks use, too.
            lane_left: a copy has left its lane: chunks may be waiting for one.
            clock: gives monotonic seconds.
        """
        self._prefixes = prefixes
        self._times = times
        self._ledger = ledger
        self._presence = presence
        self._effects = effects
        self._lanes = lanes
        self._lane_left = lane_left
        self._clock = clock
        self._copies: dict[int, Copy] = {}
        self._last = 0
        self._made: Counter[str] = Counter()
        self._failed = self._tokens = 0
        self._hot = HotPrefixes(ledger, presence, clock, compute_s)
        if prefixes is not None:
            prefixes.follow(self)

    def __len__(self) -> int:
        return len(self._copies)

    def at(self, seat: int) -> bool:
        """Whether an instance has something of a copy."""
        return any(seat in copy.inside for copy in self._copies.values())

    # -- as caches are seen -----------------------------------------------------------------

    def coming(self) -> Iterator[tuple[int, PageHashes]]:
        """What will be cached where when copies have arrived that are under way."""
        for copy in self._copies.values():
            if copy.step is not Step.OFF:
                yield copy.target, copy.pages

    def may_send(self, instance: int) -> bool:
        """Whether one more copy can leave an instance."""
        if self._times is None or self._presence.stand(instance) is not Stand.UP:
            return False
        leaving = sum(1 for copy in self._copies.values() if copy.source == instance)
        return leaving < MOST_FROM_ONE

    # -- for plans --------------------------------------------------------------------------

    def serve(self, request: PoolRequest, plan: Plan) -> bool:
        """Begin the copy that a plan starts from, if there is one; False if it cannot begin.

        A plan whose home gets its prefix by a copy that is under way waits for that.
        """
        request.copy = None
        if self._prefixes is None or not plan.reused:
            return True
        pages = self._prefixes.pages_of(request)
        if pages is None:
            return plan.copy is None
        if plan.copy is None:
            request.copy = self._under_way(plan, pages)
            return True
        first = pages.first(plan.reused // self._ledger.page_size)
        copy = self._begin(Reason.PLAN, plan.copy.source, plan.home, first)
        request.uncopied = copy is None
        if copy is not None:
            request.copy = copy.number
        return copy is not None

    def _under_way(self, plan: Plan, pages: PageHashes) -> int | None:
        """The copy by which a plan's home gets what the plan starts from, if one is under way."""
        need = plan.reused // self._ledger.page_size
        for copy in self._copies.values():
            if copy.target == plan.home and pages.in_common(copy.pages) >= need:
                return copy.number
        return None

    # -- for what is asked for often --------------------------------------------------------

    def used(self, request: PoolRequest) -> None:
        """A request was bound: what was cached of it is asked for once more."""
        plan = request.plan
        if self._prefixes is None or self._times is None or plan is None or not plan.cached:
            return
        pages = self._prefixes.pages_of(request)
        if pages is None:
            return
        first = pages.first(plan.cached // self._ledger.page_size)
        stored, coming = self._prefixes.holders(first)
        sources = [seat for seat in stored if self.may_send(seat)]
        busy = any(copy.reason is Reason.USE for copy in self._copies.values())
        cached = self._prefixes.cached_tokens
        target = self._hot.used(first, {*stored, *coming}, cached, self._times.cost())
        if target is not None and sources and not busy:
            queue_s = self._ledger.view(self._clock()).queue_s
            source = min(sources, key=lambda seat: (queue_s[seat], seat))
            self._begin(Reason.USE, source, target, first)

    def heard(self, report: CacheChanged) -> None:
        """An instance's cache has changed."""
        stored = (c for c in report.changes if c.kind == "stored" and c.medium == DEVICE)
        pages = sum(len(change.pages) // 8 for change in stored)
        self._hot.stored(report.instance, pages * self._ledger.page_size)

    # -- a copy's way -----------------------------------------------------------------------

    def _begin(self, reason: Reason, source: int, target: int, pages: PageHashes) -> Copy | None:
        """Ask a target to get ready; None where the links have no lane, or the source is gone."""
        if not self.may_send(source) or self._presence.stand(target) is not Stand.UP:
            return None
        number = self._last - 1
        lane = self._lanes.take(number, (source, target))
        if lane is None:
            return None
        self._last = number
        tokens = len(pages) * self._ledger.page_size
        serial, now_s = self._lanes.next_serial(), self._clock()
        copy = Copy(number, reason, source, target, pages, tokens, lane, serial, now_s)
        self._copies[number] = copy
        if reason is Reason.USE:  # else they are promised to the plan's home
            self._ledger.copies(number, target, tokens)
        copy.inside.add(target)
        self._effects.copy_in(copy)
        return copy

    def on_report(self, report: CopyReady | CopyEnded) -> None:
        """An instance of a copy reports; what is of none means nothing any more."""
        copy = self._copies.get(report.seq)
        if copy is None or report.instance not in copy.inside:
            return
        if isinstance(report, CopyReady):
            self._ready(copy, report.held)
        elif report.instance == copy.target:
            self._target_ended(copy, report.error)
        else:
            self._source_ended(copy, report)

    def _ready(self, copy: Copy, held: int) -> None:
        copy.held = held
        if copy.step is Step.READYING:
            copy.step = Step.TRAVELLING
            copy.inside.add(copy.source)
            self._effects.copy_out(copy)

    def _target_ended(self, copy: Copy, error: str) -> None:
        copy.inside.discard(copy.target)
        if error:
            self._call_off(copy, error)
        else:
            # Called off or not: it is in the target's cache.
            copy.arrived_s, copy.error = self._clock(), ""
            if copy.step is Step.READYING:  # it had all of it
                copy.held = copy.tokens
        self._finish(copy)

    def _source_ended(self, copy: Copy, report: CopyEnded) -> None:
        copy.inside.discard(copy.source)
        page = self._ledger.page_size
        if self._prefixes is not None and report.found is not None and report.found < copy.tokens:
            self._prefixes.lacks(copy.source, copy.pages[report.found // page :])
        if report.error:
            self._call_off(copy, report.error)
        self._finish(copy)

    def seat_lost(self, seat: int, why: str) -> None:
        """An instance is given up: copies that it has a part in do not come about.

        One that the target has whole is in its cache all the same.

        Args:
            why: in a few words.
        """
        for copy in list(self._copies.values()):
            if seat in (copy.source, copy.target):
                copy.inside.discard(seat)
                self._call_off(copy, f"instance {seat} was lost ({why})")
                self._finish(copy)

    def _call_off(self, copy: Copy, error: str) -> None:
        """Let whoever has a part in a copy end it."""
        if copy.step is Step.OFF or copy.arrived_s is not None:
            return
        copy.step, copy.error = Step.OFF, error
        for seat in sorted(copy.inside):
            self._effects.copy_end(copy.number, seat)

    def _finish(self, copy: Copy) -> None:
        """A copy is over, if nobody has anything of it any more."""
        if copy.inside or self._copies.pop(copy.number, None) is None:
            return
        self._ledger.copied(copy.number)
        if copy.arrived_s is not None:
            self._made[copy.reason.value] += 1
            self._tokens += copy.travelling
            if self._times is not None:
                self._times.observe(copy.travelling, copy.arrived_s - copy.asked_s)
        else:
            self._failed += 1
        self._effects.copy_over(copy)
        if self._lanes.give_back(copy.number):
            self._lane_left()

    # -- shown ------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """For status pages, JSON-ready.

        ``made``: copies that have arrived, by what they were made for. ``tokens``, ``bytes``: of
        KV that travelled for them, all ranks together. ``token_s``: what the next one is reckoned
        to take for each token.
        """
        times = self._times
        return {
            "under_way": len(self._copies),
            "made": {reason.value: self._made[reason.value] for reason in Reason},
            "failed": self._failed,
            "tokens": self._tokens,
            "bytes": self._tokens * (times.token_bytes if times is not None else 0),
            "token_s": times.cost().token_s if times is not None else None,
        }
