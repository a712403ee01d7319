"""What the pool chooses where the command line leaves it open."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sglang_cdsp.launch.defaults import access_log_settings, open_settings


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)


@pytest.mark.usefixtures("gpus")
def test_pages_have_64_tokens_on_gpus() -> None:
    assert open_settings(SimpleNamespace(page_size=None, device=None)) == {"page_size": 64}
    assert open_settings(SimpleNamespace(page_size=None, device="cuda")) == {"page_size": 64}


@pytest.mark.usefixtures("gpus")
def test_what_the_user_says_stays() -> None:
    assert open_settings(SimpleNamespace(page_size=1, device=None)) == {}
    assert open_settings(SimpleNamespace(page_size=None, device="cpu")) == {}


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("variable", "value"), [("SGLANG_PLATFORM", "cdsp_cpu"), ("SGLANG_USE_CPU_ENGINE", "1")]
)
def test_the_cpu_stays_as_it_was(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert open_settings(SimpleNamespace(page_size=None, device=None)) == {}


def test_without_gpus_nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_settings(SimpleNamespace(page_size=None, device=None)) == {}


@pytest.mark.parametrize("given", [None, [], ["/health"]])
def test_what_an_open_page_asks_is_not_in_the_access_log(given: list[str] | None) -> None:
    asked = SimpleNamespace(uvicorn_access_log_exclude_prefixes=given)
    chosen = access_log_settings(asked)
    assert chosen == {"uvicorn_access_log_exclude_prefixes": [*(given or ()), "/cdsp/timeline"]}
    assert asked.uvicorn_access_log_exclude_prefixes == given
