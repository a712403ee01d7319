"""What the tested releases do in different ways, and that our code is told which it has.

Run with each tested release: `make test` has the pinned one, `make test-newest` the newest.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from sglang_cdsp import releases
from sglang_cdsp.args import TESTED_SGLANG_VERSIONS
from tests.contract.changed import Changed
from tests.contract.releases_page import page
from tests.contract.row import Row
from tests.contract.table import ROWS

PAGE = Path(__file__).parents[2] / "docs" / "releases.md"
CHANGED = [row for row in ROWS if isinstance(row.need, Changed)]
OLDEST, *_, NEWEST = TESTED_SGLANG_VERSIONS
INSTALLED = version("sglang")


def changed(row: Row) -> Changed:
    """The row's need, which is of that kind."""
    assert isinstance(row.need, Changed)
    return row.need


@pytest.mark.skipif(INSTALLED not in TESTED_SGLANG_VERSIONS, reason="an untested release")
@pytest.mark.parametrize("row", CHANGED, ids=lambda row: row.why[:60])
def test_a_release_has_one_form_and_it_is_its_own(row: Row) -> None:
    assert changed(row).forms() == (INSTALLED == OLDEST, INSTALLED == NEWEST)


TOLD = [row for row in CHANGED if changed(row).newer_if]


@pytest.mark.parametrize("row", TOLD, ids=lambda row: row.why[:60])
def test_our_code_is_told_which_form_it_has(row: Row) -> None:
    need = changed(row)
    *negated, name = need.newer_if.split()
    answer: bool = getattr(releases, name)()
    _, newer = need.forms()
    assert newer is (answer is not bool(negated))


def test_every_answer_that_our_code_asks_for_is_in_the_table() -> None:
    asked = {name for name, found in vars(releases).items() if hasattr(found, "cache_info")}
    assert asked == {changed(row).newer_if.split()[-1] for row in TOLD}


def test_the_page_says_the_same() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run: python -m tests.contract.releases_page > docs/releases.md"
    )
