"""Compiles FlashInfer's attention where it is not compiled ahead, beside step 1."""

from __future__ import annotations

import sys

from bench.gpu.attention import attention_cases, check_attention, usable
from bench.gpu.target import target_for


def main() -> int:
    """Run one small case of each head dimension."""
    target = target_for(dry_run="--dry-run" in sys.argv)
    for head_dim in (64, 128, 256):
        case = next(case for case in attention_cases(True) if case.head_dim == head_dim)
        for one in usable(target, head_dim):
            check_attention(target, one, case)
    return 0


if __name__ == "__main__":
    sys.exit(main())
