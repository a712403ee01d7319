"""Who gives the seats of one server their roles: the command line, an update, the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.planner.policies import Policy
from sglang_cdsp.planner.roles import Roles, read_roles

KEY = "roles"
EVERY_S = 1.0


class RoleTurns:
    """Turns seats, and asks the policy now and then whether any should turn."""

    def __init__(
        self,
        policy: Policy,
        ledger: InstanceLedger,
        turn: Callable[[Roles, str], None],
        clock: Callable[[], float],
        *,
        decodes: bool,
    ) -> None:
        """``turn`` puts roles in force; ``decodes``: the pool does, without decode servers."""
        self._policy = policy
        self._ledger = ledger
        self._turn = turn
        self._clock = clock
        self._decodes = decodes
        self._asked_s = clock()

    def read(self, body: Any) -> Roles | None:
        """The roles that an update asks for, None if it says nothing of them.

        Raises:
            ValueError: they are refused; says why.
        """
        if not isinstance(body, dict) or KEY not in body:
            return None
        if not self._decodes:
            raise ValueError(
                "roles are for one server that decodes what it prefills; this one has decode "
                "servers"
            )
        return read_roles(body[KEY], self._ledger.roles)

    def put(self, roles: Roles) -> None:
        """An update's roles are in force from now on."""
        self._turn(roles, "asked for")

    def ask_policy(self) -> None:
        """Let the policy turn seats, once a while."""
        now_s = self._clock()
        if not self._decodes or now_s < self._asked_s + EVERY_S:
            return
        self._asked_s = now_s
        ledger = self._ledger
        decoding = [ledger.decoding(seat) for seat in range(len(ledger.capacity))]
        found = self._policy.turn(ledger.view(now_s), ledger.roles, decoding)
        if found is not None:
            self._turn(found, f"policy {self._policy.name}")
