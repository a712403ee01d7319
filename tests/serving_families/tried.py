"""Which families are tried on servers here, each in one form."""

from __future__ import annotations

TRIED = (("deepseek-v3", "prefill", "1"), ("gemma-3", "one", "1"))
"""Family, form, and ranks of an instance."""
