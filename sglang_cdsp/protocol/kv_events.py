"""SGLang's option ``--kv-events-config``, as far as a pool reads it."""

from __future__ import annotations

from typing import Any


def read_config(text: str | None) -> Any:
    """SGLang's ``KVEventsConfig``, None where nothing is published.

    Raises:
        ValueError: it cannot be read, as SGLang says it.
    """
    # Late: the launching process reads its command line before SGLang's runtime is imported.
    from sglang.srt.disaggregation.kv_events import KVEventsConfig

    config = KVEventsConfig.from_cli(text) if text else None
    return None if config is None or config.publisher == "null" else config


def is_published(text: str | None) -> bool:
    """Whether the option asks for KV events; what cannot be read does not."""
    try:
        return read_config(text) is not None
    except ValueError:
        return False
