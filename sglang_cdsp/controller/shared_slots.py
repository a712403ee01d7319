"""KV slots that several plans hold together: those of a cached prefix that all of them start from.

Each plan is promised all that its home needs of it, the cached prefix included, whose lock takes
those slots from the cache. A second plan that starts from the same prefix locks the same slots.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class SharedSlots:
    """Slots of a cached prefix: one object for all plans that start from it.

    Attributes:
        instance: who has it cached.
        tokens: how long it is, whole pages.
    """

    instance: int
    tokens: int
