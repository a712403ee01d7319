"""Whoever follows the timeline knows what there is to know, whatever happens in what order."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import settings
from hypothesis.stateful import rule

from sglang_cdsp.controller.feed.records import MOST_MOVES, state_of
from sglang_cdsp.planner.roles import Role
from tests.controller.any_order import SETTINGS, AnyOrder
from tests.controller.fake_pool import FakePool
from tests.controller.feed.watched import Follower, WatchedOneServer, WatchedPool
from tests.controller.one_server_order import AnyOrderOfOneServer


class Followed(AnyOrder):
    """The same turns; a page asks now and then."""

    make_pool: type[FakePool] = WatchedPool
    pool: WatchedPool
    _follower: Follower | None = None

    @property
    def follower(self) -> Follower:
        if self._follower is None:
            self._follower = Follower(self.pool.feed)
        return self._follower

    @rule()
    def page_asks(self) -> None:
        self.pool.feed.tick(self.pool.now_s)
        answer = self.follower.poll()
        json.dumps(answer, allow_nan=False)
        planned = {self.pool.recent.number(r): r for r in self.pool.lifecycle.planned}
        assert sorted(answer["live"]) == sorted(planned)
        for number, request in planned.items():
            seen = self.follower.records[number]
            assert seen["state"] == state_of(request)
            assert seen["chunk"] == request.next_chunk
            assert request.plan is not None
            placed = [(c["tokens"], tuple(c["instances"])) for c in seen["chunks"]]
            assert placed == list(request.plan.placement)
            assert seen["home"] == request.home
            assert seen["moved"] == len(request.moves)
            ways = [(move["from"], move["to"]) for move in seen["moves"]]
            assert ways == [(m.source, m.target) for m in request.moves][-MOST_MOVES:]
        waiting = answer["waiting"]
        assert (waiting["requests"], waiting["tokens"]) == self.pool.lifecycle.waiting
        self._check_roles(answer)

    def _check_roles(self, answer: dict[str, Any]) -> None:
        assert {instance["role"] for instance in answer["instances"]} == {None}
        assert answer["role_changes"] == []

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        super().teardown()
        answer = self.follower.poll()
        assert answer["live"] == []
        assert set(self.follower.ends.values()) <= {1}, "an end is told once"
        assert len(self.follower.ends) == len(self.pool.ends)
        anew = Follower(self.pool.feed)
        anew.poll()
        assert anew.records == self._ended(), "who comes late learns of the same ends"

    def _ended(self) -> dict[int, dict[str, Any]]:
        return {n: r for n, r in self.follower.records.items() if r["ended_s"] is not None}


class FollowedOneServer(Followed, AnyOrderOfOneServer):
    """The same of one server, whose seats turn and whose requests move."""

    make_pool = WatchedOneServer
    pool: WatchedOneServer

    def _check_roles(self, answer: dict[str, Any]) -> None:
        roles = [instance["role"] for instance in answer["instances"]]
        assert roles == [role.value for role in self.pool.ledger.roles.seats]
        turned = self.follower.roles
        assert roles == [turned.get(seat, Role.BOTH.value) for seat in range(len(roles))]

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "pool"):
            moved = sum(record["moved"] for record in self._ended().values())
            assert moved == len(self.pool.moves_seen), "a move is told of once"


Followed.TestCase.settings = settings(SETTINGS, max_examples=40)
TestFollowed = Followed.TestCase
FollowedOneServer.TestCase.settings = settings(SETTINGS, max_examples=40)
TestFollowedOneServer = FollowedOneServer.TestCase
