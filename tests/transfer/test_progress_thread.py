"""NIXL's progress thread sleeps between looks, unless an environment variable says otherwise."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sglang_cdsp.transfer.progress_thread import (
    INTERVAL_VAR,
    PROGRESS_INTERVAL_US,
    CalmBindings,
    progress_interval_us,
)


@pytest.mark.parametrize(
    ("value", "interval"), [(None, PROGRESS_INTERVAL_US), ("0", 0), ("50", 50)]
)
def test_the_interval(monkeypatch: pytest.MonkeyPatch, value: str | None, interval: int) -> None:
    monkeypatch.delenv(INTERVAL_VAR, raising=False)
    if value is not None:
        monkeypatch.setenv(INTERVAL_VAR, value)
    native = SimpleNamespace(nixlAgent=lambda name, config: config.pthrDelay)
    assert CalmBindings(native).nixlAgent("me", SimpleNamespace(pthrDelay=7)) == interval


@pytest.mark.parametrize("value", ["", "-1", "fast"])
def test_a_wrong_interval_names_the_remedy(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(INTERVAL_VAR, value)
    with pytest.raises(ValueError, match=f"{INTERVAL_VAR}.*set 0"):
        progress_interval_us()
