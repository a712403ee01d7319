"""Which homes before decode servers end with all KV of a prompt, for their prefix caches.

Without the room for all of it a home caches what it has of the prompt from its first token on.
"""

from __future__ import annotations

from sglang_cdsp.controller.homes import prompt_slots
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.planning import Planning
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.prefixes.keeping import may_keep


class Keeping:
    """Decides it when a request gets its plan, or another home."""

    def __init__(self, ledger: InstanceLedger, planning: Planning) -> None:
        """``ledger`` knows what is promised, ``planning`` whether anything is reused."""
        self._ledger = ledger
        self._planning = planning

    def may_keep(self, request: PoolRequest, home: int) -> bool:
        """Whether ``home``, which has promised a request nothing yet, is to have all of its prompt.

        What starts from a cached prefix there was promised room for all of it.
        """
        if self._planning.prefixes is None or not self._planning.policy.reuses:
            return False
        if request.decodes or request.one_instance or request.room is None:
            return False
        assert request.plan is not None
        if request.plan.reused:
            return True
        need = prompt_slots(request, self._ledger.page_size)
        return may_keep(need, self._ledger.free_tokens()[home], self._ledger.capacity[home])
