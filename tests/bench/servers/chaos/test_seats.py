"""What is read of a pool's seats: titles of processes, statuses, deaths."""

from __future__ import annotations

import pytest

from bench.servers.chaos.record import Death, Seat
from bench.servers.chaos.seats import Seen, deaths_of, place_of, seats_of


@pytest.mark.parametrize(
    ("title", "place"),
    [
        ("sglang::scheduler_DP0", (0, 0)),
        ("sglang::scheduler_DP12_TP1", (12, 1)),
        ("sglang::scheduler_TP1", (0, 1)),
        ("sglang::detokenizer", None),
        ("python -m sglang.launch_server", None),
    ],
)
def test_a_rank_is_known_by_its_title(title: str, place: tuple[int, int] | None) -> None:
    assert place_of(title) == place


def status() -> list[dict[str, object]]:
    deaths = [
        {"at": 50.0, "incarnation": 1, "cause": "ended", "words": "killed by SIGKILL"},
        {"at": 100.0, "incarnation": 2, "cause": "stopped", "words": "stopped for 2 s"},
    ]
    return [
        {"seat": 1, "state": "starting", "incarnation": 3, "reason": "the last life", "deaths": []},
        {"seat": 0, "state": "up", "incarnation": 3, "reason": "", "deaths": deaths},
    ]


def test_a_status_is_read() -> None:
    assert seats_of(status()) == (Seat(0, "up", 3), Seat(1, "starting", 3, "the last life"))


def test_deaths_are_told_with_the_next_lifes_begin() -> None:
    history = [
        Seen(40.0, Seat(0, "up")),
        Seen(70.0, Seat(0, "up", 2)),
        Seen(100.2, Seat(0, "ending", 2)),
        Seen(105.0, Seat(1, "up")),
    ]
    assert deaths_of(status(), history, since_s=0.0) == (
        Death(0, 50.0, "ended: killed by SIGKILL", 70.0),
        Death(0, 100.0, "stopped: stopped for 2 s", None),
    )
    later = deaths_of(status(), history, since_s=60.0)
    assert [death.at_s for death in later] == [100.0]
