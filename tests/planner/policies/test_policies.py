"""The seam: order, waiting, memory, ends; and what each rival does differently."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.planner import (
    LatencyModelError,
    OptionError,
    Plan,
    PolicyOptions,
    PoolView,
    PoolViewError,
    PromptTooLongError,
    PromptView,
    Regulation,
    Regulator,
    default_sp_sizes,
    kv_demand,
    make_policy,
)
from tests.planner.pools import MODEL, quick

SIZES = (1, 2, 4)
EVERY = (
    "cdsp",
    "cdsp-paper",
    "cdsp-late",
    "single-chunk",
    "fixed-sp:2",
    "loongserve",
    "threshold:8000",
    "data-parallel",
)


def options(**changes: object) -> PolicyOptions:
    return dataclasses.replace(PolicyOptions(MODEL, SIZES), **changes)  # type: ignore[arg-type]


def idle(n: int = 4, **changes: object) -> PoolView:
    view = PoolView((0.0,) * n, None, n)
    return dataclasses.replace(view, **changes)  # type: ignore[arg-type]


def only(policy: str, tokens: int, pool: PoolView, **changes: object) -> Plan:
    plan = make_policy(policy, options(**changes)).plan(PromptView("r", tokens), pool)
    assert plan is not None
    return plan


@pytest.mark.parametrize("name", EVERY)
def test_prompts_are_bound_in_arrival_order_each_seeing_the_one_before(name: str) -> None:
    policy = make_policy(name, options())
    for rid in ("a", "b", "c"):
        policy.arrive(PromptView(rid, 20_000), 0.0)
    assert policy.waiting() == ("a", "b", "c")
    started = policy.step(idle(), 0.0)
    order = [rid for rid, _ in started]
    assert order == ["a", "b", "c"][: len(order)]
    assert policy.waiting() == ("a", "b", "c")[len(order) :]
    # Instances that an earlier plan took are only free again at its end.
    free = [0.0] * 4
    for _, plan in started:
        for chunk in plan.chunks:
            assert chunk.start_s >= max(free[i] for i in chunk.instances)
        for i in plan.instances:
            free[i] = plan.ttft_s


@pytest.mark.parametrize("name", [name for name in EVERY if name != "cdsp-late"])
def test_a_prompt_that_does_not_fit_now_waits_and_so_do_those_behind(name: str) -> None:
    policy = make_policy(name, options())
    policy.arrive(PromptView("long", 9_000), 0.0)
    policy.arrive(PromptView("short", 10), 0.0)
    full = idle(free_tokens=(100,) * 4, capacity_tokens=(20_000,) * 4)
    assert policy.step(full, 0.0) == []
    assert policy.waiting() == ("long", "short")
    emptied = dataclasses.replace(full, free_tokens=(20_000,) * 4)
    assert next(rid for rid, _ in policy.step(emptied, 1.0)) == "long"


@pytest.mark.parametrize("name", EVERY)
def test_memory_that_one_plan_takes_is_not_promised_again(name: str) -> None:
    policy = make_policy(name, options(page_size=16))
    prompts = {str(k): PromptView(str(k), 3_000 + 700 * k) for k in range(8)}
    for prompt in prompts.values():
        policy.arrive(prompt, 0.0)
    free = [6_000] * 4
    for _, plan in policy.step(idle(free_tokens=tuple(free)), 0.0):
        chunks = [(chunk.tokens, chunk.instances) for chunk in plan.chunks]
        for i, tokens in kv_demand(chunks, 16).items():
            free[i] -= tokens
    assert min(free) >= 0
    assert policy.waiting()  # 43,600 tokens into 24,000 slots


@pytest.mark.parametrize("name", EVERY)
def test_a_finished_request_no_longer_waits(name: str) -> None:
    policy = make_policy(name, options())
    policy.arrive(PromptView("gone", 5_000), 0.0)
    policy.arrive(PromptView("stays", 5_000), 0.0)
    policy.finish("gone", 0.1)
    policy.finish("never seen", 0.1)
    assert [rid for rid, _ in policy.step(idle(), 0.2)] == ["stays"]
    assert policy.waiting() == ()


@pytest.mark.parametrize("name", EVERY)
def test_what_can_never_fit_is_refused_with_the_limit(name: str) -> None:
    policy = make_policy(name, options())
    pool = idle(free_tokens=(0,) * 4, capacity_tokens=(1_000,) * 4)
    policy.check(PromptView("fits later", 900), pool)
    with pytest.raises(PromptTooLongError, match=r"5000 tokens .* holds (1000|2000|4000) tokens"):
        policy.check(PromptView("r", 5_000), pool)


@pytest.mark.parametrize("name", EVERY)
def test_a_prompt_longer_than_one_instance_is_served_where_the_policy_allows(name: str) -> None:
    policy = make_policy(name, options())
    pool = idle(free_tokens=(1_000,) * 4, capacity_tokens=(1_000,) * 4)
    prompt = PromptView("r", 1_900)
    if name == "data-parallel":
        with pytest.raises(PromptTooLongError):
            policy.check(prompt, pool)
    else:
        policy.check(prompt, pool)
        plan = policy.plan(prompt, pool)
        assert plan is not None
        assert len(plan.instances) >= 2


@pytest.mark.parametrize("name", EVERY)
def test_instances_that_are_down_are_not_planned_on(name: str) -> None:
    for down in range(4):
        up = tuple(i != down for i in range(4))
        plan = make_policy(name, options()).plan(PromptView("r", 30_000), idle(up=up))
        assert plan is not None
        assert down not in plan.instances


def test_a_lost_history_keeps_only_its_own_request_waiting() -> None:
    policy = make_policy("cdsp", options())
    policy.arrive(PromptView("lost", 100, 500, (1,)), 0.0)
    policy.arrive(PromptView("fine", 100), 0.0)
    pool = idle(up=(True, False, True, True))
    assert [rid for rid, _ in policy.step(pool, 0.0)] == ["fine"]
    assert policy.waiting() == ("lost",)


def test_planning_at_a_chunk_boundary_keeps_the_group_and_its_order() -> None:
    policy = make_policy("cdsp", options(page_size=16))
    busy = PoolView((0.0, 0.7, 0.7, 0.0), None, 4)
    whole = policy.plan(PromptView("r", 64_000), busy)
    assert whole is not None
    assert len(whole.chunks) > 1
    first = whole.chunks[0]
    later = PoolView(tuple(max(0.0, q - first.end_s) for q in busy.queue_s), None, 4)
    rest = policy.plan(PromptView("r", 64_000 - first.tokens, first.tokens, first.instances), later)
    assert rest is not None
    assert first.end_s + rest.ttft_s <= whole.ttft_s + 1e-9
    assert rest.instances[: first.sp_size] == first.instances


def test_history_is_planned_on_uncached_tokens_where_it_lies() -> None:
    policy = make_policy("cdsp", options(page_size=16))
    plan = policy.plan(PromptView("r", 1_000, 64_000, (2, 0)), idle())
    assert plan is not None
    assert plan.tokens == 1_000
    assert plan.instances[:2] == (2, 0)
    assert plan.home == 2
    size = len(plan.instances)
    assert plan.ttft_s == pytest.approx(MODEL.predict(size, 64_000, 1_000))


def test_fixed_sp_uses_fixed_groups_and_the_least_queue() -> None:
    plan = only("fixed-sp:2", 20_000, PoolView((0.3, 0.1, 0.2, 0.25, 0.0), None, 5))
    assert plan.instances == (2, 3)  # 0.25 beats 0.3; instance 4 is left over


def test_data_parallel_takes_the_least_queue() -> None:
    assert only("data-parallel", 50_000, PoolView((0.3, 0.1, 0.2), None, 3)).instances == (1,)


def test_threshold_switches_at_its_length() -> None:
    pool = PoolView((0.3, 0.1, 0.2), None, 3)
    assert only("threshold:8000", 7_999, pool).instances == (1,)
    assert only("threshold:8000", 8_000, pool).instances == (0, 1, 2)
    with_down = dataclasses.replace(pool, up=(True, False, True))
    assert only("threshold:8000", 8_000, with_down).instances == (0, 2)


def test_loongserve_takes_the_useful_idle_instances_and_waits_for_one() -> None:
    policy = make_policy("loongserve", PolicyOptions(MODEL, (1, 2, 4, 8)))
    pool = PoolView((0.0, 0.0, 0.0, 0.0, 0.0, 0.4, 0.4, 0.4), None, 8)
    long = policy.plan(PromptView("r", 100_000), pool)
    short = policy.plan(PromptView("r", 2_000), pool)
    assert long is not None
    assert short is not None
    assert len(long.instances) == 4  # greedy: all it can use of the five idle ones
    best = min((MODEL.predict(s, 0, 2_000), s) for s in (1, 2, 4))[1]
    assert len(short.instances) == best  # useful: more would be slower
    assert policy.plan(PromptView("r", 100_000), PoolView((0.1,) * 8, None, 8)) is None


@pytest.mark.parametrize("name", EVERY)
def test_explanations_show_the_same_plan_and_why_others_lost(name: str) -> None:
    policy = make_policy(name, options())
    pool = PoolView((0.0, 0.0, 0.4, 0.9), None, 2)
    prompt = PromptView("r", 60_000)
    if name == "loongserve":
        pool = idle()
    plan, considered = policy.explain(prompt, pool)
    quickly = policy.plan(prompt, pool)
    assert plan is not None
    assert quickly is not None
    assert plan.chunks == quickly.chunks
    assert plan.considered == considered
    chosen = [candidate for candidate in considered if candidate.chosen]
    assert [candidate.chunks for candidate in chosen] == [plan.chunks]
    assert all(candidate.reason for candidate in considered)
    assert [c.ttft_s for c in considered[1:]] == sorted(c.ttft_s for c in considered[1:])


def test_an_explanation_says_why_a_prompt_must_wait() -> None:
    plan, considered = make_policy("cdsp", options()).explain(
        PromptView("r", 5_000), idle(free_tokens=(10,) * 4)
    )
    assert plan is None
    assert any("can hold the KV" in candidate.reason for candidate in considered)


def test_the_regulator_s_rate_and_sizes_are_used() -> None:
    regulator = Regulator(Regulation(((0.0, 0.0), (1.0, 0.8)), (1, 2, 4), 10.0))
    policy = make_policy("cdsp", options(regulator=regulator))
    prompt = PromptView("r", 60_000)
    relaxed = policy.plan(prompt, idle())
    for second in range(11):
        policy.arrive(PromptView(str(second), 10), float(second))
    policy.step(idle(), 11.0)
    strict = policy.plan(prompt, idle())
    assert relaxed is not None
    assert strict is not None
    assert len(strict.instances) < len(relaxed.instances)
    regulator.update({"sp_size_candidates": [1]})
    narrow = policy.plan(prompt, idle())
    assert narrow is not None
    assert len(narrow.instances) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sp_sizes": ()}, "SP sizes"),
        ({"sp_sizes": (2, 1)}, "ascending"),
        ({"page_size": 0}, "page size is 0"),
        ({"min_chunk": 0}, "minimum chunk is 0"),
        ({"improvement_rate": 1.0}, r"improvement rate is 1.0; it must be in \[0, 1\)"),
        ({"spread_cost": -1.0}, "spread cost"),
    ],
)
def test_bad_options_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        options(**changes)


def test_sizes_that_the_model_does_not_cover_are_refused() -> None:
    with pytest.raises(LatencyModelError, match="SP size 32"):
        options(sp_sizes=(1, 32))
    assert options(sp_sizes=(1, 3)).sp_sizes == (1, 3)


def test_impossible_views_are_refused() -> None:
    for bad, message in (
        ({"queue_s": ()}, "no instances"),
        ({"queue_s": (-1.0,) * 4}, "queue_s must be finite"),
        ({"queue_s": (float("nan"),) * 4}, "queue_s must be finite"),
        ({"free_tokens": (1,)}, "free_tokens has 1 entries for 4"),
        ({"up": (True,)}, "up has 1 entries"),
        ({"instances_per_node": 0}, "instances_per_node is 0"),
    ):
        with pytest.raises(PoolViewError, match=message):
            idle(**bad)
    for wrong in ({"tokens": 0}, {"history_tokens": 5}, {"history_instances": (0,)}):
        with pytest.raises(PoolViewError):
            PromptView(**{"rid": "r", "tokens": 1, **wrong})  # type: ignore[arg-type]
    policy = make_policy("cdsp", options(page_size=16))
    with pytest.raises(PoolViewError, match="multiple of the page size 16"):
        policy.plan(PromptView("r", 5, 17, (0,)), idle())
    with pytest.raises(PoolViewError, match="history instance 9 is not in the pool"):
        policy.plan(PromptView("r", 5, 16, (9,)), idle())


@quick
@given(st.lists(st.tuples(st.integers(1, 30_000), st.floats(0, 2)), min_size=1, max_size=12))
def test_every_request_is_started_exactly_once(requests: list[tuple[int, float]]) -> None:
    policy = make_policy("cdsp", options())
    now, free = 0.0, [0.0] * 4
    started: list[str] = []
    for number, (tokens, gap) in enumerate(requests):
        now += gap
        policy.arrive(PromptView(str(number), tokens), now)
        pool = PoolView(tuple(max(0.0, t - now) for t in free), None, 4)
        for rid, plan in policy.step(pool, now):
            started.append(rid)
            for i in plan.instances:
                free[i] = now + plan.ttft_s
    assert started == [str(number) for number in range(len(requests))]


def test_default_sizes_are_the_powers_of_two_up_to_the_pool() -> None:
    assert default_sp_sizes(1) == (1,)
    assert default_sp_sizes(6) == (1, 2, 4)
    assert default_sp_sizes(8) == (1, 2, 4, 8)
