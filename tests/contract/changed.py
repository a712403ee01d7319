"""What the tested releases do in different ways, both of which our code serves."""

from __future__ import annotations

from dataclasses import dataclass

from tests.contract.needs import Need
from tests.contract.source import Missing


def problem_with(need: Need) -> str:
    """What is no longer as relied on, "" while all is well."""
    try:
        return need.problem()
    except Missing as missing:
        return str(missing)


@dataclass(frozen=True)
class Not:
    """Another need does not hold: a release does without something."""

    need: Need

    @property
    def module(self) -> str:
        return self.need.module

    def problem(self) -> str:
        return "" if problem_with(self.need) else f"there now is: {self.need.words()}"

    def words(self) -> str:
        return f"without {self.need.words()}"


@dataclass(frozen=True)
class Changed:
    """A need that changed between SGLang 0.5.21 and 0.5.23: a release answers one of the two forms.

    Attributes:
        older: as 0.5.21 has it.
        newer: as 0.5.23 has it.
        handled: what our code does about it, and where.
        newer_if: the answer that tells our code which it has: a function of
            ``sglang_cdsp.releases``, ``not`` before it where its answer is yes for the older
            form, or "" where our code does the same for both.
    """

    older: Need
    newer: Need
    handled: str
    newer_if: str = ""

    @property
    def module(self) -> str:
        return self.older.module

    def forms(self) -> tuple[bool, bool]:
        """Whether the older and whether the newer form holds."""
        return not problem_with(self.older), not problem_with(self.newer)

    def problem(self) -> str:
        older, newer = problem_with(self.older), problem_with(self.newer)
        return f"{older}; {newer}" if older and newer else ""

    def words(self) -> str:
        newer = self.newer.words()
        if self.newer.module != self.older.module:
            newer += f" in `{self.newer.module}`"
        return f"in 0.5.21 {self.older.words()}; in 0.5.23 {newer}"
