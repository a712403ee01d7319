"""Counts what is asked for of cached prefixes, and says which of them should have a copy more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.prefixes.hashes import PageHashes
from sglang_cdsp.controller.presence import Presence, Stand
from sglang_cdsp.planner.prefixes.copies import CopyCost
from sglang_cdsp.planner.prefixes.hot import PrefixUses, Turnover, target_of_copy, wants_copy


class HotPrefixes:
    """The uses of a pool's cached prefixes, and the turnover of its caches."""

    def __init__(
        self,
        ledger: InstanceLedger,
        presence: Presence,
        clock: Callable[[], float],
        compute_s: Callable[[int], float],
    ) -> None:
        """Nothing was asked for yet; ``compute_s`` as in ``PrefixCopies``."""
        self._ledger = ledger
        self._presence = presence
        self._clock = clock
        self._compute_s = compute_s
        self._uses = PrefixUses()
        self._turnover = Turnover(len(ledger.capacity))

    def stored(self, instance: int, tokens: int) -> None:
        """So many tokens have entered an instance's cache."""
        if tokens:
            self._turnover.stored(instance, tokens, self._clock())

    def used(
        self,
        pages: PageHashes,
        holders: Collection[int],
        cached: Sequence[int],
        cost: CopyCost,
    ) -> int | None:
        """A prefix is asked for once more.

        Args:
            pages: of the prefix, and no more.
            holders: instances that have all of it, or will have.
            cached: tokens in each instance's cache.
            cost: of copies.

        Returns:
            The instance that should get a copy of it; None for none.
        """
        now_s, ledger = self._clock(), self._ledger
        uses = self._uses.used(pages[-1], now_s)
        # Where no chunk runs a copy serves nobody.
        able = [i for i in ledger.roles.prefill if self._presence.stand(i) is Stand.UP]
        copies = sum(1 for i in able if i in holders)
        tokens = len(pages) * ledger.page_size
        if not wants_copy(uses, copies) or cost.seconds(tokens) >= self._compute_s(tokens):
            return None
        free = ledger.free_tokens()
        ages = [
            self._turnover.age_s(i, cached[i], free[i], now_s) for i in range(len(ledger.capacity))
        ]
        others = [i for i in able if i not in holders and free[i] >= tokens]
        return target_of_copy(uses, copies, ages, ledger.view(now_s).queue_s, others)
