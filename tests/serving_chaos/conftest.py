"""One pool for all of these tests, stock's answers computed before it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.servers.chaos.disk import why_none
from bench.servers.chaos.observed import Pool, References
from bench.servers.chaos.read import read
from bench.servers.chaos.run import load_of, pool_of, questions_to, stock_answers
from bench.servers.chaos.scenario import Scenario
from bench.servers.matrix.trial import questions

SCENARIO = Path(__file__).parents[2] / "bench" / "servers" / "chaos" / "scenarios" / "ci.toml"


@pytest.fixture(scope="package")
def scenario() -> Scenario:
    """A minute of faults; without a full disk where none can be mounted."""
    scenario = read(SCENARIO)
    reason = why_none()
    assert scenario.killer is not None
    if reason:
        print(f"\n{reason}")
        kinds = tuple(do for do in scenario.killer.kinds if do != "full-disk")
        killer = dataclasses.replace(scenario.killer, kinds=kinds)
        scenario = dataclasses.replace(scenario, killer=killer)
    return scenario


@pytest.fixture(scope="package")
def references(
    scenario: Scenario, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> References:
    """What a stock server answers to all that is asked here."""
    asked = [*questions(), *questions_to(load_of(scenario))]
    return stock_answers(checkpoint, asked, tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="package")
def pool(
    scenario: Scenario,
    references: References,
    checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pool]:
    """The scenario's servers, started once stock's has ended."""
    with pool_of(scenario, checkpoint, tmp_path_factory.mktemp("pool"), print) as pool:
        yield pool
