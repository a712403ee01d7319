"""The model's architecture, where its configuration can be read without loading anything.

The instances check it again before they load weights, with whatever SGLang makes of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sglang_cdsp import architectures


def problems(server_args: Any) -> list[str]:
    """What is wrong with the model, if it lies in a folder; nothing if that cannot be told.

    Args:
        server_args: SGLang's, as given on the command line.
    """
    try:
        text = (Path(server_args.model_path) / "config.json").read_text(encoding="utf-8")
        config = {**json.loads(text), **json.loads(server_args.json_model_override_args)}
    except (OSError, ValueError, TypeError):
        return []  # SGLang says what is wrong with it
    names = config.get("architectures")
    fault = architectures.fault(names, config) if names else ""
    return [f"--model-path {server_args.model_path}: {fault}"] if fault else []
