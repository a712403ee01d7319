"""Models of other families answer as stock SGLang and as transformers do, whatever the plan.

``python -m bench.servers.families`` tries every family in every form, with more prompts.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from bench.servers.families.__main__ import asked_of
from bench.servers.families.asking import FEATURES, Asked
from sglang_cdsp.engine.faults import SHAKE_VAR
from tests.serving_families.tried import TRIED

CASES = 16
ASKED = tuple(name for name in FEATURES if name != "moves")
"""``tests/serving_unified`` moves requests; of the families the program does."""


@pytest.fixture(scope="module", params=TRIED, ids=lambda tried: "-".join(tried))
def asked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Asked]:
    """The servers of one family and form, whose chunks switch wherever they may."""
    family, form, ranks = request.param
    seed = os.environ.get(SHAKE_VAR) or str(random.SystemRandom().randrange(1 << 31))
    print(f"\nthe pool is shaken: {SHAKE_VAR}={seed}")
    scratch = tmp_path_factory.mktemp("servers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SHAKE_VAR, seed)
        with asked_of(family, form, 1, CASES, scratch, ranks) as servers:
            yield servers


@pytest.mark.parametrize("feature", ASKED)
def test_a_feature(feature: str, asked: Asked) -> None:
    FEATURES[feature](asked)
