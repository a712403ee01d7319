"""Pools whose timeline is fed, and a page that follows one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sglang_cdsp.controller.feed.feed import Facts, Feed
from sglang_cdsp.controller.feed.reasons import reasons_of
from sglang_cdsp.controller.feed.recent import Recent
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.roles import Role, Roles
from sglang_cdsp.planner.types import Plan
from tests.controller.fake_pool import FakePool
from tests.controller.one_server import OneServerPool

LAYERS = 8


class WatchedPool(FakePool):
    """A pool that is watched; observers hear of an effect after it, as from the dispatcher.

    Attributes:
        recent, feed: what watches it.
        begun: layers that each rank has begun, by ``(rank, serial)``.
        form: as the feed tells it.
    """

    form = "prefill"

    def __init__(self, *, most_ended: int = 400, **options: Any) -> None:
        self.begun: dict[tuple[int, int], int] = {}
        self.recent = Recent(
            lambda request: reasons_of(request, self.planning, self.page_size),
            lambda: self.now_s,
            most_ended=most_ended,
        )
        super().__init__(**options)
        self.feed = Feed(
            self.recent,
            requests=self.lifecycle,
            ledger=self.ledger,
            planning=self.planning,
            layers=lambda rank, serial: self.begun.get((rank, serial), 0),
            seats=lambda: [
                {"state": "ending" if instance.lost else "up", "reason": ""}
                for instance in self.instances
            ],
            decode_ranks=lambda: len(self.decode_servers.ranks),
            facts=Facts(model="m", form=self.form, tp_size=self.tp_size, layers=LAYERS),
            clock=lambda: self.now_s,
        )

    def bind(self, request: PoolRequest) -> None:
        super().bind(request)
        self.recent.bound(request)

    def replan(self, request: PoolRequest, before: Plan) -> None:
        super().replan(request, before)
        self.recent.replanned(request)

    def go(self, request: PoolRequest, instances: Iterable[int]) -> None:
        super().go(request, instances)
        self.recent.chunk_started(request)

    def recalled(self, request: PoolRequest) -> None:
        super().recalled(request)
        self.recent.recalled(request)

    def move_over(self, request: PoolRequest) -> None:
        super().move_over(request)
        self.recent.moved(request)

    def roles_changed(self, roles: Roles, why: str) -> None:
        super().roles_changed(roles, why)
        self.recent.roles_changed(roles, why)

    def ended(self, request: PoolRequest) -> None:
        super().ended(request)
        self.recent.ended(request)


class WatchedOneServer(WatchedPool, OneServerPool):
    """The same of a pool that decodes itself."""

    form = "one_server"


class Follower:
    """Keeps what a page keeps, from answers alone.

    Attributes:
        records: requests by their number.
        ends: how often each was told to have ended.
        roles: of the seats that have turned, as the changes say.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._next = 0
        self.records: dict[int, dict[str, Any]] = {}
        self.ends: dict[int, int] = {}
        self.roles: dict[int, str] = {}
        self.answers = 0

    def poll(self) -> dict[str, Any]:
        """Ask until nothing more is new; returns the last answer."""
        while True:
            answer = self._feed.answer(self._next)
            self.answers += 1
            assert answer["next"] >= self._next, "a follower never goes back"
            self._next = answer["next"]
            for record in answer["requests"]:
                number = record["n"]
                self.records[number] = record
                if record["ended_s"] is not None:
                    self.ends[number] = self.ends.get(number, 0) + 1
            for change in answer["role_changes"]:
                before = self.roles.get(change["seat"], Role.BOTH.value)
                assert before == change["before"] != change["role"], "no change is left out"
                self.roles[change["seat"]] = change["role"]
            if not answer["more"]:
                return answer
