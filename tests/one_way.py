"""`--one-way SEED`: of tests that ask the same of every way through a pool, each asks it of one.

A way is what the parameter ``way`` says, and the seed draws it for each test; it is printed, and
without the option every way is tried.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

OPTION = "--one-way"
DRAWN = "drawn"


def add_option(parser: pytest.Parser) -> None:
    """Let pytest take the option."""
    parser.addoption(
        OPTION,
        metavar="SEED",
        help=f"each feature takes one way through the pool: by a seed, or by one that is {DRAWN}",
    )


def seed_of(given: str | None) -> int | None:
    """The seed that draws, None to try every way."""
    if given is None:
        return None
    return random.SystemRandom().randrange(1 << 31) if given == DRAWN else int(given)


def left_out(tests: Iterable[tuple[str, str | None, str]], seed: int) -> set[str]:
    """Which tests are left out.

    Args:
        tests: of each its id, its way (None for one that has none), and what it asks: all that
            differ in the way alone ask the same.
    """
    by_question: dict[str, list[str]] = {}
    for test, way, question in tests:
        if way is not None:
            by_question.setdefault(question, []).append(test)
    out: set[str] = set()
    for question, same in by_question.items():
        kept = random.Random(f"{seed} {question}").choice(sorted(same))
        out.update(test for test in same if test != kept)
    return out


def select(config: pytest.Config, items: list[pytest.Function], seed: int) -> None:
    """Leave tests out of what pytest runs."""
    out = left_out([_seen(item) for item in items], seed)
    gone: Sequence[pytest.Function] = [item for item in items if item.nodeid in out]
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item.nodeid not in out]


def _seen(item: pytest.Function) -> tuple[str, str | None, str]:
    callspec: Any = getattr(item, "callspec", None)
    parameters = dict(callspec.params) if callspec is not None else {}
    way = parameters.pop("way", None)
    function = item.nodeid.partition("[")[0]
    return item.nodeid, way if isinstance(way, str) else None, f"{function} {parameters!r}"
