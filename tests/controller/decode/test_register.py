"""A pool that no decode server could find ends instead of serving nobody."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from sglang_cdsp.controller.decode import endpoint
from sglang_cdsp.controller.decode.endpoint import REGISTER_TRIES

ROWS = [{"rank": 0}, {"rank": 1}]


class Ended(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rows that were sent."""
    monkeypatch.setattr(endpoint, "REGISTER_PAUSE_S", 0)

    def end(reason: str) -> None:
        raise Ended(reason)

    monkeypatch.setattr(endpoint, "give_up", end)
    return []


def answer(monkeypatch: pytest.MonkeyPatch, asked: list[Any], *answers: int | Exception) -> None:
    """Answer one request after another; the last one for ever."""

    def put(url: str, json: Any, timeout: float) -> requests.Response:
        given = answers[min(len(asked), len(answers) - 1)]
        asked.append(json)
        if isinstance(given, Exception):
            raise given
        response = requests.Response()
        response.status_code, response.reason = given, "No Reason"
        return response

    monkeypatch.setattr(requests, "put", put)


def test_every_rank_is_registered_once(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    answer(monkeypatch, asked, 200)
    endpoint._register("http://host/route", ROWS)
    assert asked == ROWS


def test_a_bootstrap_server_may_come_up_late(
    monkeypatch: pytest.MonkeyPatch, asked: list[Any]
) -> None:
    answer(monkeypatch, asked, requests.ConnectionError("refused"), 500, 200)
    endpoint._register("http://host/route", ROWS)
    assert asked == [ROWS[0], *ROWS[:1], *ROWS]


@pytest.mark.parametrize(
    ("given", "reason"), [(requests.ConnectionError("refused"), "refused"), (404, "404 No Reason")]
)
def test_the_server_ends_when_it_does_not(
    monkeypatch: pytest.MonkeyPatch, asked: list[Any], given: int | Exception, reason: str
) -> None:
    answer(monkeypatch, asked, given)
    with pytest.raises(Ended) as caught:
        endpoint._register("http://host/route", ROWS)
    assert len(asked) == REGISTER_TRIES
    assert "cannot register the pool at http://host/route" in str(caught.value)
    assert f"({reason})" in str(caught.value)
    assert "set --disaggregation-bootstrap-port to a free port" in str(caught.value)
