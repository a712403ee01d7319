"""What the pool chooses where the command line leaves it open."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sglang_cdsp.launch import defaults
from sglang_cdsp.launch.defaults import open_settings


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults.torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("gpus")
def test_pages_have_64_tokens_on_gpus() -> None:
    assert open_settings(SimpleNamespace(page_size=None, device=None)) == {"page_size": 64}
    assert open_settings(SimpleNamespace(page_size=None, device="cuda")) == {"page_size": 64}


@pytest.mark.usefixtures("gpus")
def test_what_the_user_says_stays() -> None:
    assert open_settings(SimpleNamespace(page_size=1, device=None)) == {}
    assert open_settings(SimpleNamespace(page_size=None, device="cpu")) == {}


@pytest.mark.usefixtures("gpus")
def test_the_cpu_platform_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_PLATFORM", "cdsp_cpu")
    assert open_settings(SimpleNamespace(page_size=None, device=None)) == {}


def test_without_gpus_nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults.torch.cuda, "is_available", lambda: False)
    assert open_settings(SimpleNamespace(page_size=None, device=None)) == {}
