"""The model's architecture, where its configuration lies on this machine.

The instances check it again before they load weights, with whatever SGLang makes of it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sglang_cdsp import architectures
from sglang_cdsp.architectures import OWN_POOL, POOLED_APART


def problems(server_args: Any) -> list[str]:
    """What is wrong with the model; nothing if that cannot be told without asking a hub.

    Args:
        server_args: SGLang's, as given on the command line.
    """
    config = config_of(server_args)
    names = config.get("architectures")
    fault = architectures.fault(names, config) if names else ""
    in_one_pool = getattr(server_args, "disable_hybrid_swa_memory", False)
    if not fault and not in_one_pool and not OWN_POOL.isdisjoint(names or ()):
        fault = f"the model {POOLED_APART}"
    return [f"--model-path {server_args.model_path}: {fault}"] if fault else []


def config_of(server_args: Any) -> dict[str, Any]:
    """The model's ``config.json`` with what the command line overrides, {} if it is not at hand.

    Args:
        server_args: SGLang's, as given on the command line.
    """
    try:
        path = _config_file(str(server_args.model_path), server_args.revision)
        text = path.read_text(encoding="utf-8")
        return {**json.loads(text), **json.loads(server_args.json_model_override_args)}
    except (OSError, ValueError, TypeError):
        return {}  # SGLang says what is wrong with it


def identity(server_args: Any) -> tuple[str, str]:
    """What the model is: its folder or its name, and a digest of its configuration.

    Two models of one configuration take the same time. The digest is "" where there is no
    configuration on this machine.
    """
    path = str(server_args.model_path)
    name = str(Path(path).resolve()) if Path(path).is_dir() else path
    revision = server_args.revision
    try:
        content = _config_file(path, revision).read_bytes()
    except (OSError, ValueError):
        return (f"{name}@{revision}" if revision else name), ""
    content += str(server_args.json_model_override_args).encode()
    return name, hashlib.sha256(content).hexdigest()


def _config_file(model: str, revision: str | None) -> Path:
    """The model's ``config.json``, in its folder or in the cache of what a hub has sent.

    Raises:
        OSError, ValueError: there is none.
    """
    local = Path(model) / "config.json"
    if local.exists():
        return local
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(cached, str):
        raise FileNotFoundError(f"{model} is neither a folder nor cached")
    return Path(cached)
