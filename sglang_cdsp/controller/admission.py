"""Which requests a pool can run at all; the others are refused on arrival."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sglang_cdsp.controller.decode.servers import DecodeServers
from sglang_cdsp.controller.homes import home_tokens, with_home
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.planner.errors import ForcedPlanError, PromptTooLongError
from sglang_cdsp.planner.forced import ForcedPlan, parse_forced
from sglang_cdsp.planner.policies import Policy
from sglang_cdsp.planner.roles import Roles
from sglang_cdsp.planner.types import PoolView, PromptView


class RefusedError(ValueError):
    """A request that this pool cannot run; names the limit and the remedy."""


class Admission:
    """Checks requests against the pool's limits, its policy and the server's options."""

    def __init__(
        self,
        *,
        policy: Policy,
        view: Callable[[], PoolView],
        page_size: int,
        max_input_tokens: int,
        allow_request_plans: bool,
        decode: DecodeServers,
        unsupported: Callable[[Any], str] = lambda request: "",
        roles: Callable[[], Roles] | None = None,
    ) -> None:
        """Remember the limits.

        Args:
            view: gives the pool as it is.
            max_input_tokens: SGLang's prompt limit for the pool, the first length too long.
            decode: knows decode's.
            unsupported: says why a request cannot be served here, "" if it can.
            roles: of the seats now; by default every one does both.
        """
        self._policy = policy
        self._view = view
        self._page = page_size
        self._limit = max_input_tokens
        self._allow_plans = allow_request_plans
        self._decode = decode
        self._unsupported = unsupported
        self._roles = roles

    def check(self, request: PoolRequest, raw_plan: Any) -> ForcedPlan | None:
        """Returns the plan that the request demands, None if the policy is to plan it.

        Raises:
            RefusedError, PlannerError: it cannot be run here.
        """
        if reason := self._unsupported(request.tokenized):
            raise RefusedError(reason)
        if request.tokens < 1:
            raise RefusedError("the prompt is empty; send at least one token")
        if request.tokens >= self._limit:
            raise RefusedError(
                f"the prompt has {request.tokens} tokens, this pool takes at most "
                f"{self._limit - 1}; shorten it, or serve with a larger --context-length or "
                "--max-total-tokens"
            )
        self.check_decode(request)
        self._check_home(request)
        samples = getattr(request.tokenized.sampling_params, "n", 1)
        if samples > 1 and not request.decodes:
            raise RefusedError(
                f"n={samples}: disaggregated serving has one bootstrap room per prompt, so it "
                "generates one sample; send the prompt that many times with n=1"
            )
        view = self._view()
        if raw_plan is None:
            self.recheck(request)
            return None
        if not self._allow_plans:
            raise RefusedError(
                "cdsp_plan given, but this server does not take plans from requests; start it "
                "with --cdsp-allow-request-plans or leave the plan out"
            )
        plan = parse_forced(raw_plan, request.tokens, view.size, self._page)
        idle = set(plan.instances) - self._prefill(view)
        if idle:
            raise ForcedPlanError(
                f"cdsp_plan names instances {sorted(idle)}, whose role is to decode only; use "
                "others, or change their roles with POST /cdsp/update"
            )
        assert view.capacity_tokens is not None
        home = plan.chunks[0][1][0]
        if any(
            need > view.capacity_tokens[i]
            for demand in plan.demands(self._page)
            for i, need in with_home(demand, home, request, self._page).items()
        ):
            raise ForcedPlanError(
                "cdsp_plan needs more KV slots than its instances have "
                f"({min(view.capacity_tokens)} tokens each); use more instances or fewer tokens"
            )
        return plan

    def _check_home(self, request: PoolRequest) -> None:
        """Check that an instance can hold the whole prompt, where that decodes it.

        Raises:
            RefusedError: none can.
        """
        view = self._view()
        assert view.capacity_tokens is not None
        capacity = [view.capacity_tokens[seat] for seat in self._prefill(view)]
        if home_tokens(request, self._page) > max(capacity):
            raise RefusedError(
                f"the prompt has {request.tokens} tokens, and the instance that decodes it holds "
                f"at most {max(capacity)}; shorten it, or serve with a larger --max-total-tokens"
            )

    def check_decode(self, request: PoolRequest) -> None:
        """Check a prompt's length against decode's; to be done again when decode makes contact.

        Raises:
            RefusedError: none of them takes it.
        """
        if request.room is not None and (reason := self._decode.refusal(request.tokens)):
            raise RefusedError(reason)

    def recheck(self, request: PoolRequest) -> None:
        """Check a prompt that the policy is to plan, again after the SP sizes changed.

        Raises:
            PlannerError: it would not fit even an empty pool.
        """
        prompt, view = PromptView(request.rid, request.tokens), self._view()
        self._policy.check(prompt, view)
        able = self._prefill(view)
        present = replace(view, up=tuple(seat in able for seat in range(view.size)))
        if len(able) < view.size and not self._policy.could_run(prompt, present):
            raise PromptTooLongError(
                f"prompt {request.rid}: {request.tokens} tokens fit only with instances whose role "
                "is to decode; send a shorter prompt, or let more of them prefill with POST "
                "/cdsp/update"
            )

    def _prefill(self, view: PoolView) -> frozenset[int]:
        """Seats that take chunks, absent or not."""
        return frozenset(range(view.size)) if self._roles is None else self._roles().prefill
