"""Whether a home before decode servers ends with all KV of a prompt, and so can cache all of it.

A prompt is spread over a group so that it need not fit on one instance. Where it fits on its home
too, home keeps what comes past it in the last chunk, and its prefix cache has the whole prompt when
decode has it. Without that room home caches what it has of the prompt from its first token on.
"""

from __future__ import annotations

from sglang_cdsp.controller.homes import prompt_slots
from sglang_cdsp.controller.ledger import InstanceLedger
from sglang_cdsp.controller.planning import Planning
from sglang_cdsp.controller.request import PoolRequest

LEFT_FREE = 0.25
"""Share of an instance that is not promised to what a home would have beyond its share.

A plan that comes meanwhile needs slots there, too, and computes nothing while it waits for them.
"""


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
        left = LEFT_FREE * self._ledger.capacity[home]
        need = prompt_slots(request, self._ledger.page_size)
        return need + left <= self._ledger.free_tokens()[home]
