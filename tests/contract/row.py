"""One line of the table: what of SGLang is relied on, by which of our modules, and why."""

from __future__ import annotations

from dataclasses import dataclass

from tests.contract.needs import Need


@dataclass(frozen=True)
class Row:
    """A need with its reason.

    Attributes:
        by: our modules, below ``sglang_cdsp``.
        why: what breaks without it, in a few words.
        need: what must stand in SGLang's sources.
    """

    by: tuple[str, ...]
    why: str
    need: Need


def row(by: str, why: str, need: Need) -> Row:
    """``by`` names our modules, separated by spaces."""
    return Row(tuple(by.split()), why, need)
