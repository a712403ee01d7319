"""Whether trees, index, KV events and slots of one server agree, when nothing runs in it."""

from __future__ import annotations

import time
from typing import Any

import requests

from sglang_cdsp.protocol.cache_digest import digest
from sglang_cdsp.testing.kv_events import Replay

AGREE_WITHIN_S = 20.0


def await_agreement(
    url: str, replay: Replay | None = None, within_s: float = AGREE_WITHIN_S
) -> list[str]:
    """What does not agree though a while has gone by; [] if all does.

    Args:
        url: of a pool that was started with ``SGLANG_CDSP_TEST_CACHES``, and that is quiet.
        replay: hears its events, None where it publishes none.
    """
    deadline = time.monotonic() + within_s
    while (wrong := disagreements(url, replay)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return wrong


def disagreements(url: str, replay: Replay | None = None) -> list[str]:
    """What does not agree just now, a line each."""
    info = requests.get(f"{url}/server_info", timeout=60).json()
    # SGLang lists them as their answers came.
    told = (state["cdsp"] for state in info["internal_states"])
    states = sorted(told, key=lambda state: int(state["links"]["instance"]))
    index = requests.get(f"{url}/cdsp/status", timeout=60).json()["prefixes"]
    page = int(info["page_size"])
    wrong = []
    for instance, state in enumerate(states):
        pages, known = state["cache"], index["digests"][instance]
        wrong += [f"instance {instance}: {line}" for line in _in_one(state, pages, known, page)]
    if index["lost_events"]:
        wrong.append(f"events were lost {index['lost_events']} times")
    if replay is not None:
        heard = digest(replay.catch_up().held())
        if heard != index["told"]:
            wrong.append(f"a subscriber knows of {heard}, the index of {index['told']}")
    return wrong


def _in_one(state: dict[str, Any], cache: dict[str, Any], known: str, page: int) -> list[str]:
    """What does not agree in one instance."""
    wrong = []
    slots = int(cache["slots"])
    if slots != int(state["cached_tokens"]):
        wrong.append(f"the tree holds {slots} slots, {state['cached_tokens']} of them for nobody")
    for name in ("twice", "free"):
        if cache[name]:
            wrong.append(f"the tree holds {cache[name]} slots that are {name}")
    if int(known.partition(":")[0]) * page != slots:
        wrong.append(f"the index knows {known} pages of {page}, the tree holds {slots} slots")
    if cache["pages"] is not None and cache["pages"] != known:
        wrong.append(f"the index knows {known}, the tree holds {cache['pages']}")
    return wrong
