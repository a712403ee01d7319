"""Which families are tried on servers here, each in one form."""

from __future__ import annotations

TRIED = (("deepseek-v3", "prefill"), ("gemma-3", "one"))
"""Family and form."""
