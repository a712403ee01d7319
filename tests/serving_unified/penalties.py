"""Whether answers with penalties are a stock server's."""

from __future__ import annotations

import os
from typing import Any

from sglang_cdsp.platforms.defaults import OVERLAP_VAR

AGREE = os.environ.get(OVERLAP_VAR) != "1"
"""With overlap SGLang counts penalties a step late: docs/one_server.md says what differs then."""


def penalties(**options: Any) -> dict[str, Any]:
    """Sampling options that penalise, or none where these are not to be compared."""
    return options if AGREE else {}
