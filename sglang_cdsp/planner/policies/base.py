"""The seam between planner and pool: the server and the simulator talk to policies through it.

The caller tells a policy of arrivals and ends and calls `step` whenever something changed (an
arrival, an end, an instance up or down); the policy answers with the plans to start now. A policy
may bind everything at once or keep requests waiting and choose their order.

A plan may pass chunks that run (`Plan.passes`), if the pool view shows any (`PoolView.passable`);
the caller refuses one that delays a prompt beyond what the view said. Before each further chunk of
a prompt the caller may ask `replan` whether the rest should run otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from sglang_cdsp.planner.roles import Roles
from sglang_cdsp.planner.types import Considered, Plan, PoolView, PromptView


class Policy(ABC):
    """One way to give prompts to instances. `name` is what `--cdsp-policy` selects."""

    name: str

    regulated = False
    """Whether the improvement rate means anything to it. Of a policy of the package the registry
    says it."""

    replans = False
    """Whether `replan` may ever answer."""

    reuses = False
    """Whether its plans may start from cached prefixes."""

    @abstractmethod
    def arrive(self, prompt: PromptView, now_s: float) -> None:
        """A prompt waits from now on. Call `check` first to refuse what can never fit."""

    def take_back(self, prompt: PromptView, now_s: float) -> None:
        """A prompt waits again whose plan came to nothing before any of it had run.

        It is no new arrival, and goes before those that it went before.
        """
        self.arrive(prompt, now_s)

    @abstractmethod
    def finish(self, rid: str, now_s: float) -> None:
        """A request ended in any way, bound or still waiting; unknown ids are fine."""

    @abstractmethod
    def step(self, pool: PoolView, now_s: float) -> list[tuple[str, Plan]]:
        """The plans to start now, in order. Each sees the pool as the ones before leave it.

        Nothing is planned on an instance that is down. A prompt that only fits with one waits, and
        holds up none behind it (`could_run`). So does one whose history lies on an instance that
        is down: let it finish, and arrive again without that history.
        """

    @abstractmethod
    def waiting(self) -> tuple[str, ...]:
        """Request ids not yet bound, in the order in which they would be planned."""

    @abstractmethod
    def check(self, prompt: PromptView, pool: PoolView) -> None:
        """Raises PromptTooLongError if the prompt could not fit even an empty pool."""

    @abstractmethod
    def could_run(self, prompt: PromptView, pool: PoolView) -> bool:
        """Whether the instances that are up could run the prompt if they had nothing else.

        Changes nothing.
        """

    @abstractmethod
    def plan(self, prompt: PromptView, pool: PoolView) -> Plan | None:
        """The plan this policy would make for the prompt at this pool state; None = must wait.

        Changes nothing.
        """

    def replan(self, rest: PromptView, current: Plan, pool: PoolView) -> Plan | None:
        """A better plan for the rest of a prompt whose next chunk has not started; None = keep it.

        Changes nothing. The answer ends no later than `current` and says why in `replanned`.

        Args:
            rest: the tokens not yet computed; its history is what is, on the last chunk's group.
            current: the plan for it now in force, times from now.
            pool: as if that plan were not bound: its queue times and slots are free. Instances
                that the rest may not join are marked as down.
        """
        return None

    def turn(self, pool: PoolView, roles: Roles, decoding: Sequence[int]) -> Roles | None:
        """Roles that the seats are to have from now on; None = as they are.

        Asked about once a second where one server prefills and decodes. Changes nothing.

        Args:
            pool: as the planner sees it: seats that only decode are down in it.
            roles: those in force.
            decoding: requests that decode on each seat.
        """
        return None

    @abstractmethod
    def explain(
        self, prompt: PromptView, pool: PoolView
    ) -> tuple[Plan | None, tuple[Considered, ...]]:
        """The same plan, and every candidate considered: the chosen one first, then by TTFT."""
