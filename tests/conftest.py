"""What tests of several directories share, and which of them are left out of a quick check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import settings

from sglang_cdsp.args import CACHE_VAR
from sglang_cdsp.testing.checkpoint import write_checkpoint
from tests import one_way

# Tests and checks that stand outside of test modules say as much when they fail.
pytest.register_assert_rewrite("tests.serving.shared", "tests.serving.reference")

TESTS = Path(__file__).parent
WAY_SEED = pytest.StashKey[int | None]()
"""What draws one way for each test (``one_way.py``); None for every way."""

SERVING = ("serving*/*", "platforms/test_stock_servers.py")
"""Files whose tests start real servers."""

SLOW = {
    "attention/test_ring_processes.py": "ranks in processes of their own",
    "contract/test_newest.py": "downloads a release",
    "engine/test_agreement.py": "ranks in processes of their own",
    "engine/test_built_models.py": "imports SGLang in a process of its own",
    "patches/test_behaviour.py": "patches a copy of SGLang and imports both",
    "platforms/test_in_sglang.py": "imports SGLang in processes of its own",
    "testing/test_checkpoint.py": "runs the checkpoint in another implementation",
}
"""Files whose tests take long without a server, and why."""

SLOW_FIXTURES = {"looks": "imports SGLang in processes of its own"}
"""Fixtures whose tests take long without a server, and why."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration's checkpoint, written once a session."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers of a test run keep latency models to themselves, and nothing of the user's counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VAR, str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of these tests."""
    one_way.add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Draw what is to be drawn once, and say so in the head of the run.

    No example fails for being slow: machines are, and tests never judge time.
    """
    settings.register_profile("patient", deadline=None)
    settings.load_profile("patient")
    config.stash[WAY_SEED] = one_way.seed_of(config.getoption(one_way.OPTION))


def pytest_report_header(config: pytest.Config) -> str:
    """What repeats the run."""
    seed = config.stash[WAY_SEED]
    return "every way through a pool" if seed is None else f"{one_way.OPTION}={seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Mark tests by where they stand; leave out those whose device is missing."""
    for item in items:
        place = item.path.relative_to(TESTS)
        if any(place.match(pattern) for pattern in SERVING):
            item.add_marker(pytest.mark.serving)
        if any(place.match(pattern) for pattern in SLOW) or SLOW_FIXTURES.keys() & {
            *item.fixturenames
        }:
            item.add_marker(pytest.mark.slow)
    seed = config.stash[WAY_SEED]
    if seed is not None:
        one_way.select(config, items, seed)
    if any(item.get_closest_marker("gpu") for item in items):
        _skip_without_a_device(items)


def _skip_without_a_device(items: Sequence[pytest.Function]) -> None:
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
