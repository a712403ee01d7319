"""What holds for every plan of every policy, at random pools; and how the rate steers them."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sglang_cdsp.parallel.spans import Span, rebalance, split_chunk
from sglang_cdsp.planner import Plan, PoolView, PromptView, make_policy
from sglang_cdsp.planner.paper import plan_paper
from sglang_cdsp.planner.policies.rivals import IDLE_S
from tests.planner.absolute import plan_absolute
from tests.planner.pools import MODEL, Case, cases, quick

OURS = ("cdsp", "cdsp-paper", "single-chunk")
ALL = (*OURS, "fixed-sp:2", "loongserve", "threshold:20000", "data-parallel")


def planned(case: Case, policy: str, **changes: object) -> Plan | None:
    if policy.startswith("threshold"):
        assume(case.pool.size <= MODEL.sp_sizes[-1])  # its whole pool must be in the model
    options = dataclasses.replace(case.options, **changes)  # type: ignore[arg-type]
    return make_policy(policy, options).plan(case.prompt, case.pool)


def check_memory(case: Case, plan: Plan) -> None:
    """Replays the plan's layout token by token: nobody holds more than its free slots."""
    page, prompt = case.options.page_size, case.prompt
    assert case.pool.free_tokens is not None
    held: dict[int, tuple[Span, ...]] = {}
    if prompt.history_tokens:
        cached = {prompt.history_instances[0]: (Span(0, prompt.history_tokens),)}
        held = dict(rebalance(cached, prompt.history_instances, page).held)
    free = {i: case.pool.free_tokens[i] + slots(held.get(i, ()), page) for i in plan.instances}
    start = prompt.history_tokens
    for chunk in plan.chunks:
        spread = dict(rebalance(held, chunk.instances, page).held) if held else {}
        shards = split_chunk(start, chunk.tokens, chunk.sp_size, page)
        for member, shard in zip(chunk.instances, shards, strict=True):
            before, after = held.get(member, ()), spread.get(member, ())
            assert max(slots(before, page), slots(after, page)) + slots(shard, page) <= free[member]
        held = {
            member: (*spread.get(member, ()), *shard)
            for member, shard in zip(chunk.instances, shards, strict=True)
        }
        start += chunk.tokens


def slots(spans: tuple[Span, ...], page: int) -> int:
    return sum(-(-span.tokens // page) * page for span in spans)


@pytest.mark.parametrize("policy", ALL)
@quick
@given(cases())
def test_every_plan_is_sound(policy: str, case: Case) -> None:
    if policy == "data-parallel":
        case = dataclasses.replace(case, prompt=PromptView("r", case.prompt.tokens))
    plan = planned(case, policy)
    assume(plan is not None)
    assert plan is not None
    prompt, pool, options = case.prompt, case.pool, case.options
    # The chunks are the prompt, cut at page borders.
    assert plan.tokens == prompt.tokens
    assert all(chunk.tokens > 0 for chunk in plan.chunks)
    placed = prompt.history_tokens
    for chunk in plan.chunks[:-1]:
        placed += chunk.tokens
        assert placed % options.page_size == 0
        assert chunk.tokens >= options.min_chunk
    # Groups nest, grow and start with the history's holders; home is the first of the first.
    before = prompt.history_instances
    for position, chunk in enumerate(plan.chunks):
        assert chunk.instances[: len(before)] == before
        assert len(set(chunk.instances)) == chunk.sp_size
        assert position == 0 or chunk.sp_size > len(before)
        before = chunk.instances
    assert plan.home == plan.chunks[0].instances[0]
    assert plan.instances == before
    # Only instances that are up, only SP sizes that were allowed.
    assert pool.up is None or all(pool.up[i] for i in plan.instances)
    if policy in (*OURS, "loongserve"):
        allowed = {*options.sp_sizes, len(prompt.history_instances)}
        assert all(chunk.sp_size in allowed for chunk in plan.chunks)
    # Times: after the chunk before, after the members' earlier work, as long as the model says.
    clock = 0.0
    placed = prompt.history_tokens
    for chunk in plan.chunks:
        free = max(pool.queue_s[i] for i in chunk.instances)
        assert chunk.start_s == max(clock, free)
        seconds = chunk.end_s - chunk.start_s
        expected = options.model.predict(chunk.sp_size, placed, chunk.tokens)
        slower = 1 + options.spread_cost if policy == "cdsp" else 1.0
        assert expected * (1 - 1e-9) <= seconds <= expected * slower * (1 + 1e-9) + 1e-9
        clock = chunk.end_s
        placed += chunk.tokens
    assert plan.ttft_s == clock
    assert plan == planned(case, policy)  # deterministic


@pytest.mark.parametrize("policy", ALL)
@quick
@given(cases(limited=True))
def test_every_chunk_fits_the_memory_of_its_group(policy: str, case: Case) -> None:
    plan = planned(case, policy)
    if plan is not None:
        check_memory(case, plan)


@quick
@given(cases())
def test_loongserve_takes_the_quickest_group_of_idle_instances(case: Case) -> None:
    problem = case.problem
    idle = [q <= IDLE_S for q in problem.queue_s]
    at_home = all(idle[i] for i in problem.history_group)
    groups = [problem.extend((), s, problem.tokens, inside=idle) for s in problem.sizes if at_home]
    ends = [
        problem.finish((), 0.0, group).ttft_s
        for group in groups
        if group and problem.fits(((problem.tokens, group),))
    ]
    plan = planned(case, "loongserve")
    explained, _ = make_policy("loongserve", case.options).explain(case.prompt, case.pool)
    assert (plan.ttft_s if plan else None) == min(ends, default=None)
    assert (plan and plan.chunks) == (explained and explained.chunks)


@quick
@given(cases())
def test_chunked_plans_are_never_slower_than_what_they_start_from(case: Case) -> None:
    ours, paper, single = (planned(case, policy) for policy in OURS)
    assert (ours is None) == (paper is None) == (single is None)
    if ours is None or paper is None or single is None:
        return
    assert ours.ttft_s <= paper.ttft_s + 1e-12
    assert paper.ttft_s <= single.ttft_s + 1e-12
    assert paper.single_chunk_ttft_s == single.ttft_s


@quick
@given(cases(), st.floats(0, 0.99))
def test_rate_0_gives_the_least_ttft(case: Case, rate: float) -> None:
    for policy in ("cdsp", "single-chunk"):
        least = planned(case, policy, improvement_rate=0.0)
        other = planned(case, policy, improvement_rate=rate)
        assert (least is None) == (other is None)
        if least is not None and other is not None:
            assert least.ttft_s <= other.ttft_s + 1e-12


@quick
@given(cases(limited=False))
def test_a_rate_near_1_takes_the_smallest_size(case: Case) -> None:
    for policy in OURS:
        # A thousandfold gain would be needed; the queues here are not that long.
        pool = dataclasses.replace(case.pool, queue_s=(0.0,) * case.pool.size)
        eased = dataclasses.replace(case, pool=pool)
        plan = planned(eased, policy, improvement_rate=0.999)
        up = pool.size if pool.up is None else sum(pool.up)
        held = len(case.prompt.history_instances)
        sizes = [s for s in case.options.sp_sizes if held <= s <= up]
        if held:
            sizes.append(held)
        assert (plan is None) == (not sizes)
        if plan is not None:
            assert [chunk.sp_size for chunk in plan.chunks] == [min(sizes)]


@quick
@given(cases())
def test_both_readings_of_the_queue_times_agree_at_rate_0(case: Case) -> None:
    case = dataclasses.replace(
        case, options=dataclasses.replace(case.options, improvement_rate=0.0)
    )
    assert plan_paper(case.problem) == plan_absolute(case.problem)


@quick
@given(cases(history=False, limited=False), st.integers(0, 19))
def test_an_instance_more_to_choose_from_never_hurts_an_unregulated_flat_pool(
    case: Case, extra: int
) -> None:
    flat = dataclasses.replace(case.pool, instances_per_node=64, up=None)
    larger = PoolView((*flat.queue_s, float(extra)), None, 64)
    before = planned(dataclasses.replace(case, pool=flat), "cdsp", improvement_rate=0.0)
    after = planned(dataclasses.replace(case, pool=larger), "cdsp", improvement_rate=0.0)
    if before is not None:
        assert after is not None
        # A page border may fall differently; nothing else can make it slower.
        assert after.ttft_s <= before.ttft_s + 0.01
