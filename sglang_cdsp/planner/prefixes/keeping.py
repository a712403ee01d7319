"""Whether a home before decode servers ends with all KV of a prompt, for its prefix cache.

A prompt is spread over a group so that it need not fit on one instance. Where it fits on its home
too, home keeps what comes past it in the last chunk, and has the whole prompt cached when decode
has it.
"""

from __future__ import annotations

LEFT_FREE = 0.25
"""Share of an instance that is not promised to what a home would have beyond its share.

A plan that comes meanwhile needs slots there, too, and computes nothing while it waits for them.
"""


def may_keep(need: int, free: int, capacity: int) -> bool:
    """Whether a home is promised room for a whole prompt.

    Args:
        need: KV slots of the prompt, whole pages.
        free: of the instance, promised to nobody.
        capacity: of the instance, all of them.
    """
    return need + LEFT_FREE * capacity <= free
