"""What is found out only once the model is built ends the start, and says why in its last line."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_cdsp.stack.processes import ServerFailedError
from sglang_cdsp.testing.stack import prefill_only, running


def test_the_reason_is_the_last_line(checkpoint: Path, tmp_path: Path) -> None:
    """KV of another type than the model's is seen at the KV pool."""
    flags = ("--cdsp", "--dp-size", "2", "--kv-cache-dtype", "bfloat16")
    plan = prefill_only(checkpoint, flags=flags)
    with pytest.raises(ServerFailedError), running(plan, tmp_path):
        pass
    log = (tmp_path / "prefill.log").read_text(encoding="utf-8", errors="replace")
    lines = [line for line in log.splitlines() if line.strip()]
    assert "sglang-cdsp: KV is kept as" in lines[-1]
    assert "remove --kv-cache-dtype" in lines[-1]
    assert log.count("KV is kept as") == 1
    assert "Traceback" not in log
