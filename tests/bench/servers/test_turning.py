"""Seats that turn under a storm: which roles are drawn, and who may be refused for them."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.servers.storm import told_of_roles, without_plan
from bench.servers.storm_clients import End
from bench.servers.storm_jobs import Job
from bench.servers.turning import REFUSED, RoleTurner, Turn, draw_roles, without_chunks
from sglang_cdsp.planner.roles import parse_roles
from tests.serving.processes import until

TURNS = (
    Turn(parse_roles("3b"), 0.0, 10.2),
    Turn(parse_roles("1d2p"), 10.0, 15.2),
    Turn(parse_roles("2p1d"), 15.0),
)


@given(st.integers(0, 1 << 31), st.integers(1, 6))
def test_drawn_roles_leave_somebody_to_prefill_and_decode(seed: int, seats: int) -> None:
    roles = draw_roles(random.Random(seed), seats)
    assert len(roles.seats) == seats
    assert roles.prefill
    assert roles.decode


@pytest.mark.parametrize(
    ("from_s", "until_s", "seats"),
    [(1.0, 9.0, set()), (9.0, 10.1, {0}), (11.0, 14.0, {0}), (15.1, 15.1, {0, 2}), (16, 99, {2})],
)
def test_seats_without_chunks_between_two_times(
    from_s: float, until_s: float, seats: set[int]
) -> None:
    assert without_chunks(TURNS, from_s, until_s) == seats


def test_only_a_plan_that_names_such_a_seat_may_be_refused_for_it() -> None:
    told = End("error", words=f"cdsp_plan names instances [0], {REFUSED}; use others", status=400)
    named = Job("r", ((1, 2),), ([(2, [0, 1])],))
    assert told_of_roles(named, told, TURNS, 11.0, 11.5)
    assert not told_of_roles(named, told, TURNS, 16.0, 16.5)
    assert not told_of_roles(Job("r", ((1, 2),), ([(2, [1])],)), told, TURNS, 11.0, 11.5)
    assert not told_of_roles(Job("r", ((1, 2),)), told, TURNS, 11.0, 11.5)
    lost = End("error", words="instance 0 was lost")
    assert not told_of_roles(named, lost, TURNS, 11.0, 11.5)
    again = without_plan(named)
    assert (again.prompts, again.plans) == (named.prompts, (None,))
    assert not again.rid.startswith(named.rid)


@pytest.fixture
def taken() -> Iterator[tuple[str, list[str], threading.Event]]:
    """A server that takes roles until it is told not to: its URL, what it took, and that."""
    found: list[str] = []
    refuses = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not refuses.is_set():
                found.append(json.loads(body)["roles"])
            self.send_response(400 if refuses.is_set() else 200)
            self.end_headers()
            self.wfile.write(b"no")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", found, refuses
    server.shutdown()
    thread.join()
    server.server_close()


def test_seats_turn_and_do_both_in_the_end(
    taken: tuple[str, list[str], threading.Event],
) -> None:
    url, found, _ = taken
    with RoleTurner(url, 4, 0.01, random.Random(1)) as turner:
        assert until(lambda: len(found) >= 5)
    assert found[-1] == "4b"
    assert [str(turn.roles) for turn in turner.turns] == ["4b", *found]
    assert not turner.wrong
    for before, after in zip(turner.turns, turner.turns[1:], strict=False):
        assert before.from_s < after.from_s <= before.until_s


def test_an_update_that_is_not_taken_is_told(
    taken: tuple[str, list[str], threading.Event],
) -> None:
    url, _, refuses = taken
    refuses.set()
    with RoleTurner(url, 4, 60.0, random.Random(1)) as turner:
        pass
    assert turner.wrong == ["the roles 4b were not taken: no"]
    assert len(turner.turns) == 1
