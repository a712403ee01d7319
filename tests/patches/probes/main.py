"""Run every probe in this process's SGLang and write what they found as JSON.

Usage: ``main.py OUT NAME``; each probe is a module beside this one with ``run()``. A probe that
raises leaves its traceback, so that the others still count.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[3]
# The last one loads plugins, whose hooks would change what the others look at.
PROBES = (
    "dp_rank",
    "memory_kind",
    "sample_rooms",
    "idle",
    "holders",
    "admission",
    "refusals",
    "torch_attention",
    "recorder",
    "bootstrap_port",
    "mini_router",
    "refusal_status",
    "controller",
)


def main(out: Path, name: str) -> None:
    """Write ``{probe: answers}`` to ``out``.

    Raises:
        SystemExit: the process runs another SGLang than ``name`` says.
    """
    import sglang

    patched = "site-packages" not in str(Path(sglang.__file__))
    if patched != (name == "patched"):
        raise SystemExit(f"{name} was to be looked at, but sglang is {sglang.__file__}")
    sys.path.append(str(ROOT))  # probes share parts by their full names
    found: dict[str, object] = {}
    for probe in PROBES:
        try:
            found[probe] = importlib.import_module(f"probe_{probe}").run()
        except Exception:
            found[probe] = {"error": traceback.format_exc()}
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    # SGLang's transfer threads never end by themselves.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
