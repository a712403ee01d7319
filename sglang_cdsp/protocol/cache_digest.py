"""What is cached in one line, for tests that compare trees, index and KV events.

Off unless ``SGLANG_CDSP_TEST_CACHES`` is set: whoever asks for a server's state pays for it.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable

CACHES_VAR = "SGLANG_CDSP_TEST_CACHES"


def are_shown() -> bool:
    """Whether servers show digests of what they have cached."""
    return bool(os.environ.get(CACHES_VAR))


def digest(pages: Iterable[int]) -> str:
    """Names of pages, signed 64-bit integers, in any order; each counts as often as it comes."""
    ordered = array("q", sorted(pages))
    return f"{len(ordered)}:{hashlib.sha256(ordered.tobytes()).hexdigest()[:16]}"
