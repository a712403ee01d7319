"""One server of the page and one browser for all tests that look at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.page.browser import Window, window
from tests.page.stage import Stage, stage

DESK = (1280, 900)


@pytest.fixture(scope="package")
def shown() -> Iterator[Stage]:
    with stage() as made:
        yield made


@pytest.fixture(scope="package")
def tab(shown: Stage) -> Iterator[Window]:
    with window(shown.url) as made:
        yield made


@pytest.fixture
def page(tab: Window, shown: Stage) -> Iterator[Window]:
    """The page, opened anew; in the end it has not complained, and has asked nobody else."""
    tab.size(*DESK)
    tab.scheme("light")
    tab.open()
    tab.until(lambda: tab.text("#link") == "live", "the page does not come alive")
    yield tab
    assert tab.complaints() == []
    assert tab.hosts() == {tab.host()}
