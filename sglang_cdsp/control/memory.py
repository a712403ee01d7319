"""Which memory of a pool is released, and whether more can be released or taken again."""

from __future__ import annotations

from collections.abc import Callable, Iterable

REGIONS = frozenset({"kv_cache", "weights", "cuda_graph"})
"""What ``/release_memory_occupation`` releases where it is given no tags."""


class Memory:
    """Notes what was released."""

    def __init__(self, in_hand: Callable[[], int], *, shares_weights: bool = False) -> None:
        """Know nothing of released memory yet.

        Args:
            in_hand: how many requests the server has not answered yet.
            shares_weights: other servers use these weights, too (``--weight-cache-mode``).
        """
        self._in_hand = in_hand
        self._shares_weights = shares_weights
        self._released: frozenset[str] = frozenset()

    def fault(self, tags: Iterable[str], *, releases: bool) -> str:
        """Why regions cannot be released or resumed now, with the remedy; "" if they can."""
        regions = frozenset(tags) or REGIONS
        if unknown := sorted(regions - REGIONS):
            return f"unknown tags {', '.join(unknown)}: name some of {', '.join(sorted(REGIONS))}"
        if self._shares_weights and "weights" in regions:
            return (
                "the weights are shared by --weight-cache-mode: restart with "
                "--weight-cache-mode off, or leave the tag weights out"
            )
        if not releases:
            missing = sorted(regions - self._released)
            return _not_released(missing, self._released) if missing else ""
        if again := sorted(regions & self._released):
            return f"{', '.join(again)}: released already; call /resume_memory_occupation first"
        if count := self._in_hand():
            return (
                f"{count} requests are in the pool: wait for them, or end them with "
                "/abort_request or /pause_generation"
            )
        return ""

    def note(self, tags: Iterable[str], *, releases: bool) -> None:
        """Regions were released, or are in use again."""
        regions = frozenset(tags) or REGIONS
        self._released = self._released | regions if releases else self._released - regions


def _not_released(missing: list[str], released: frozenset[str]) -> str:
    there = ", ".join(sorted(released)) or "nothing"
    return f"{', '.join(missing)}: not released ({there} is); name released regions in tags"
