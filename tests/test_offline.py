"""Keywords of `sgl.Engine` that are this package's."""

from __future__ import annotations

import pytest

from sglang_cdsp import offline
from sglang_cdsp.args import (
    ENV_VAR,
    CdspArgs,
    CdspConfigError,
    active_args,
    from_namespace,
)


def test_keywords_are_read_as_flags_are() -> None:
    given = {"cdsp": True, "cdsp_policy": "cdsp", "cdsp_sp_sizes": (1, 2), "cdsp_min_chunk": 64}
    cdsp, problems = from_namespace(offline.parsed({**given, "cdsp_allow_request_plans": False}))
    assert cdsp is not None
    assert problems == []
    assert (cdsp.policy, cdsp.sp_sizes, cdsp.min_chunk) == ("cdsp", (1, 2), 64)
    assert not cdsp.allow_request_plans


def test_an_unknown_keyword_is_told() -> None:
    _, problems = from_namespace(offline.parsed({"cdsp": True, "cdsp_polcy": "cdsp"}))
    assert problems == ["there is no flag --cdsp-polcy: did you mean --cdsp-policy?"]


def test_a_second_engine_beside_a_pool_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_VAR, CdspArgs().to_json())
    with pytest.raises(CdspConfigError, match="this process has a pool"):
        offline.ENGINE_ARGS(model_path="anything")


def test_an_engine_that_is_shut_down_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_VAR, CdspArgs().to_json())
    assert offline.shut_down(lambda engine: f"{engine} is down", "it") == "it is down"
    assert active_args() is None
