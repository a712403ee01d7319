"""`--one-way SEED`: a run of the server tests that asks each question once.

Every start of servers takes a minute, and most questions are asked of every way through a pool, in
both forms of the server. With the option the seed draws

- of tests that differ in their parameter `way` alone, or that a module shared by the two forms has,
  one;
- of the folders whose tests start servers of their own for one thing, `APART`.

The seed is printed; without the option everything is tried.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

OPTION = "--one-way"
DRAWN = "drawn"

SHARED = "tests.serving.shared."
"""Modules whose tests two folders import: one for each form of the server."""

APART = 1
"""How many of the folders apart are drawn."""

NOT_APART = {"serving", "serving_unified"}
"""Folders of server tests that every run has."""


@dataclass(frozen=True)
class Seen:
    """What counts of a test.

    Attributes:
        test: its id.
        question: what it asks: all that differ in the way or in the form alone ask the same.
        ways: whether others may ask the same.
        folder: the folder apart that it belongs to, "" for none.
    """

    test: str
    question: str
    ways: bool
    folder: str = ""


def add_option(parser: pytest.Parser) -> None:
    """Let pytest take the option."""
    parser.addoption(
        OPTION,
        metavar="SEED",
        help="ask each question of the server tests once, of one way and form, and of the folders "
        f"with servers of their own draw {APART}: by a seed, or by one that is {DRAWN}",
    )


def seed_of(given: str | None) -> int | None:
    """The seed that draws, None to try everything."""
    if given is None:
        return None
    return random.SystemRandom().randrange(1 << 31) if given == DRAWN else int(given)


def left_out(tests: Iterable[Seen], seed: int) -> set[str]:
    """The ids of the tests that are left out; the order of ``tests`` does not count."""
    by_question: dict[str, list[str]] = {}
    by_folder: dict[str, list[str]] = {}
    for seen in tests:
        if seen.ways:
            by_question.setdefault(seen.question, []).append(seen.test)
        if seen.folder:
            by_folder.setdefault(seen.folder, []).append(seen.test)
    out: set[str] = set()
    for question, same in by_question.items():
        kept = random.Random(f"{seed} {question}").choice(sorted(same))
        out.update(test for test in same if test != kept)
    folders = sorted(by_folder)
    drawn = random.Random(f"{seed} folders").sample(folders, min(APART, len(folders)))
    for folder in by_folder.keys() - {*drawn}:
        out.update(by_folder[folder])
    return out


def select(config: pytest.Config, items: list[pytest.Function], seed: int) -> None:
    """Leave tests out of what pytest runs."""
    out = left_out([_seen(item) for item in items], seed)
    gone: Sequence[pytest.Function] = [item for item in items if item.nodeid in out]
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item.nodeid not in out]


def _seen(item: pytest.Function) -> Seen:
    callspec: Any = getattr(item, "callspec", None)
    parameters = dict(callspec.params) if callspec is not None else {}
    way = parameters.pop("way", None)
    module = str(getattr(item.function, "__module__", ""))
    shared = module.startswith(SHARED)
    name = getattr(item, "originalname", None) or item.name
    where = module if shared else item.nodeid.partition("::")[0]
    folder = item.path.parent.name
    apart = item.get_closest_marker("serving") is not None and folder not in NOT_APART
    return Seen(
        test=item.nodeid,
        question=f"{where} {name} {parameters!r}",
        ways=shared or isinstance(way, str),
        folder=folder if apart else "",
    )
