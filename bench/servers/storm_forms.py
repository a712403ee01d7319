"""The pools that a storm can be for: one before a decode server, or one server that decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from sglang_cdsp.testing.stack import Deployment, RunningStack, disaggregated, one_server

POOL = 4
LENGTHS = (1, 2, 17, 130, 400, 900, 2000, 4096, 8000)
WEIGHTS = (4, 4, 8, 10, 8, 6, 4, 2, 1)
CONTEXT_LENGTH = 40_960
FORMS = ("disaggregated", "one-server")
ONE_SERVER = FORMS[1]


@dataclass(frozen=True)
class StormForm:
    """A pool, and what can be asked of it.

    Attributes:
        asked: name of the server that is asked about the instances.
        told: names of the servers that are told of an abort.
        longest: tokens of the longest prompt.
        outputs: how many tokens requests ask for; which of them is drawn.
        samples_refused: whether several samples of a prompt are refused.
    """

    asked: str = "prefill"
    told: tuple[str, ...] = ("prefill", "decode")
    longest: int = max(LENGTHS)
    outputs: tuple[int, ...] = (4,)
    samples_refused: bool = True

    @property
    def lengths(self) -> dict[int, int]:
        """Lengths of prompts, each with how often it is drawn."""
        pairs = zip(LENGTHS, WEIGHTS, strict=True)
        return {length: weight for length, weight in pairs if length <= self.longest}

    def slots(self, stack: RunningStack) -> list[int]:
        """KV slots of every instance that nobody needs, and the negated number of used ones."""
        states = self._states(stack)
        free = [int(state["free_tokens"]) + int(state["cached_tokens"]) for state in states]
        if "decode" not in self.told:
            return free
        loads = requests.get(f"{stack.urls['decode']}/v1/loads", timeout=30).json()["loads"]
        return [*free, -sum(int(load["num_used_tokens"]) for load in loads)]

    def free(self, stack: RunningStack) -> list[int]:
        """KV slots of every instance that are free, those that are cached left out."""
        return [int(state["free_tokens"]) for state in self._states(stack)]

    def _states(self, stack: RunningStack) -> list[dict[str, Any]]:
        """What every instance says of itself."""
        info = requests.get(f"{stack.urls[self.asked]}/server_info", timeout=30).json()
        return [state["cdsp"] for state in info["internal_states"]]


DISAGGREGATED = StormForm()


def one_server_form(slots: int) -> StormForm:
    """One server, whose instances have ``slots`` KV slots; outputs are long enough to fill them."""
    return StormForm(
        asked="pool",
        told=("pool",),
        longest=slots * 9 // 10,
        outputs=(4, 4, 16, 48),
        samples_refused=False,
    )


def plan_servers(
    form: StormForm, checkpoint: Path, slots: int | None, flags: Sequence[str]
) -> Deployment:
    """Plan the servers of a storm, but for the stock one.

    Args:
        slots: KV slots of each instance, None for as many as there are by default.
        flags: for all servers.
    """
    pool: tuple[str, ...] = ("--cdsp", "--dp-size", str(POOL), "--cdsp-allow-request-plans")
    if slots is not None:
        pool += ("--max-total-tokens", str(slots))
    if form.asked == "pool":
        return one_server(checkpoint, flags=(*pool[1:], *flags))
    return disaggregated(checkpoint, prefill_flags=pool, flags=flags)
