"""Seats of one server that turn again and again, and which of them took no chunks meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass

import requests

from sglang_cdsp.planner.errors import OptionError
from sglang_cdsp.planner.roles import Role, Roles

REFUSED = "whose role is to decode only"
"""Of what the pool tells those whose own plan names a seat that takes no chunks."""


@dataclass(frozen=True)
class Turn:
    """Roles, and the least and the latest times at which they were in force.

    Attributes:
        from_s: when they were asked for, monotonic.
        until_s: when the next ones had been answered, infinity for the last ones.
    """

    roles: Roles
    from_s: float
    until_s: float = float("inf")


def draw_roles(rng: random.Random, seats: int) -> Roles:
    """Roles of all seats, each of the three as likely; one takes chunks and one decodes."""
    while True:
        try:
            return Roles(tuple(rng.choice([*Role]) for _ in range(seats)))
        except OptionError:
            continue  # nobody would take chunks, or nobody decode


def without_chunks(turns: Collection[Turn], from_s: float, until_s: float) -> frozenset[int]:
    """The seats that may have been told to decode only at some time between two."""
    found: set[int] = set()
    for turn in turns:
        if turn.from_s <= until_s and turn.until_s >= from_s:
            found |= set(range(len(turn.roles.seats))) - turn.roles.prefill
    return frozenset(found)


class RoleTurner:
    """Turns the seats of a pool every so many seconds, in a thread, while the block lasts.

    Afterwards every seat does both.

    Attributes:
        turns: all of them so far, in order.
        wrong: updates that were not taken, a line each.
    """

    def __init__(self, url: str, seats: int, every_s: float, rng: random.Random) -> None:
        """``url`` is the pool's; ``rng`` draws the roles."""
        self._url = url
        self._seats = seats
        self._every_s = every_s
        self._rng = rng
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._turn, daemon=True, name="role-turner")
        self.turns: list[Turn] = [Turn(Roles.all_both(seats), 0.0)]
        self.wrong: list[str] = []

    def __enter__(self) -> RoleTurner:
        self._thread.start()
        return self

    def __exit__(self, *rest: object) -> None:
        self._over.set()
        self._thread.join()
        self._put(Roles.all_both(self._seats))

    def _turn(self) -> None:
        while not self._over.wait(self._every_s):
            self._put(draw_roles(self._rng, self._seats))

    def _put(self, roles: Roles) -> None:
        from_s = time.monotonic()
        try:
            answer = requests.post(
                f"{self._url}/cdsp/update", json={"roles": str(roles)}, timeout=30
            )
            problem = "" if answer.status_code == 200 else answer.text[:200]
        except requests.RequestException as error:
            problem = repr(error)[:200]
        if problem:
            self.wrong.append(f"the roles {roles} were not taken: {problem}")
            return
        last = self.turns[-1]
        self.turns[-1] = Turn(last.roles, last.from_s, time.monotonic())
        self.turns.append(Turn(roles, from_s))
