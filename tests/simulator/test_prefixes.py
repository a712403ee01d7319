"""Cached prefixes in the simulated server: what is kept, evicted, reused and accounted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from sglang_cdsp.planner.prefixes.copies import FIXED_S
from sglang_cdsp.simulator import engine
from sglang_cdsp.simulator.engine import simulate
from sglang_cdsp.simulator.errors import SetupError
from sglang_cdsp.simulator.one_server import OneServer, parse_roles
from sglang_cdsp.simulator.plan_log import Recorded
from sglang_cdsp.simulator.prefixes import Cache, Prefixes
from sglang_cdsp.simulator.replay import chunk_errors, replay
from sglang_cdsp.simulator.setup import DecodeModel, Setup
from sglang_cdsp.simulator.sharing import Conversations, Documents, conversations, questions
from sglang_cdsp.simulator.traces import TraceError, read_trace
from sglang_cdsp.simulator.types import Record, Request
from sglang_cdsp.simulator.workload import Lengths, merged
from tests.simulator.small_worlds import world

BLOCK = 100
DECODE = DecodeModel(0.01, 0.0, 0.0)


def server(**changes: object) -> Setup:
    """One server of 4 instances that keeps what it has computed, in blocks of 100 tokens."""
    plain = world(
        one_server=OneServer(),
        policy="cdsp",
        instances=4,
        prefix_cache=True,
        cache_block=BLOCK,
        decode=DECODE,
        kv_tokens=20_000,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_the_second_turn_computes_what_is_new() -> None:
    first = Request("1", 0.0, 5000, 500, tuple(range(55)))
    second = Request("2", 100.0, 6000, 10, tuple(range(60)))
    one, two = simulate(server(), (first, second)).records
    assert (one.reused, one.cached) == (0, 0)
    assert (two.reused, two.cached) == (5500, 5500)
    assert two.chunks[0].instances[0] == one.decode_instance
    assert sum(chunk.tokens for chunk in two.chunks) == 500
    without = simulate(server(prefix_cache=False), (first, second)).records[1]
    assert two.ttft_s is not None
    assert without.ttft_s is not None
    assert two.ttft_s < 0.5 * without.ttft_s


def split(tokens_per_s: float) -> Setup:
    """Three instances that prefill, one that decodes, with links of a speed."""
    return server(
        one_server=OneServer(parse_roles("3p1d", 4)),
        send_bytes_per_s=tokens_per_s,
        receive_bytes_per_s=tokens_per_s,
    )


def test_what_the_decode_seat_has_is_copied_to_where_chunks_run() -> None:
    first = Request("1", 0.0, 5000, 500, tuple(range(55)))
    second = Request("2", 100.0, 6000, 10, tuple(range(60)))
    setup = split(1e4)
    result = simulate(setup, (first, second))
    one, two = result.records
    assert one.decode_instance == two.decode_instance == 3
    assert (two.reused, two.cached) == (5500, 5500)
    assert two.chunks[0].start_s == pytest.approx(100.0 + FIXED_S + 5500 * 1e-4)
    assert 3 not in two.chunks[0].instances
    assert result.copied_tokens == 5500
    # What the decode seat has of the second one does not come back to it.
    assert result.moved_tokens == 5000 + 500
    without = simulate(replace(setup, prefix_copies=False), (first, second))
    assert without.records[1].reused == without.copied_tokens == 0


def test_a_turn_decodes_where_its_past_is_cached() -> None:
    other = Request("0", 0.0, 5000, 5000, tuple(range(1000, 1100)))
    first = Request("1", 20.0, 5000, 500, tuple(range(55)))
    second = Request("2", 200.0, 6000, 10, tuple(range(60)))
    setup = replace(split(1e4), one_server=OneServer(parse_roles("2p2d", 4)))
    result = simulate(setup, (other, first, second))
    # Both seats are free when the second turn comes, and one of them has its past.
    assert [record.decode_instance for record in result.records] == [2, 3, 3]
    assert result.moved_tokens == 5000 + 5000 + (6000 - 5500)


def test_a_copy_that_takes_longer_than_computing_is_none() -> None:
    first = Request("1", 0.0, 5000, 500, tuple(range(55)))
    second = Request("2", 100.0, 6000, 10, tuple(range(60)))
    result = simulate(split(200.0), (first, second))
    assert result.records[1].reused == 0
    assert result.records[1].cached == 5500
    assert result.copied_tokens == 0


def test_a_document_that_many_ask_about_has_more_copies() -> None:
    document = tuple(range(50))
    asked = [Request(f"q{n}", 20.0 + 5.0 * n, 5050, 1, document) for n in range(10)]
    fast = server(send_bytes_per_s=1e5, receive_bytes_per_s=1e5)
    result = simulate(fast, asked)
    assert result.hot_copies > 0
    assert all(record.reused == 5000 for record in result.records[1:])
    assert simulate(replace(fast, prefix_copies=False), asked).hot_copies == 0


def test_an_equal_prompt_computes_its_last_block() -> None:
    blocks = tuple(range(50))
    records = simulate(
        server(), [Request(str(n), 100.0 * n, 5000, 1, blocks) for n in range(2)]
    ).records
    assert records[1].reused == 4900


def test_a_prefix_that_others_have_evicted_is_computed_again() -> None:
    asked = Request("a", 0.0, 5000, 1, tuple(range(50)))
    others = [
        Request(f"o{n}", 10.0 + n, 18_000, 1, tuple(range(1000 * n, 1000 * n + 180)))
        for n in range(1, 9)
    ]
    again = Request("b", 1000.0, 5100, 1, tuple(range(51)))
    result = simulate(server(), [asked, *others, again])
    assert result.records[-1].reused == 0
    assert result.evicted_blocks > 0


def test_a_cache_evicts_the_least_recently_used_leaves_first() -> None:
    cache = Cache()
    cache.lock((1, 2, 3))
    cache.unlock((1, 2, 3))
    cache.lock((1, 2, 4))
    assert cache.shrink(0) == [3]
    cache.unlock((1, 2, 4))
    assert cache.shrink(2) == [4]
    assert cache.shrink(0) == [2, 1]
    assert cache.idle == 0


@st.composite
def workloads(draw: st.DrawFn) -> list[Request]:
    """Requests that share prefixes at random: each goes on from a random point of another."""
    known: list[tuple[int, ...]] = [()]
    names = iter(range(1_000_000))
    out = []
    for n in range(draw(st.integers(1, 25))):
        start = draw(st.sampled_from(known))
        start = start[: draw(st.integers(0, len(start)))]
        prompt = len(start) * BLOCK + draw(st.integers(1, 3000))
        answer = draw(st.integers(1, 400))
        whole = (prompt + answer) // BLOCK
        blocks = start + tuple(next(names) for _ in range(whole - len(start)))
        known.append(blocks)
        out.append(Request(f"r{n}", draw(st.floats(0, 20)), prompt, answer, blocks))
    return out


class Watched(Prefixes):
    """Compares index and caches whenever a prompt is kept."""

    def ended(self, now, task) -> None:  # type: ignore[no-untyped-def]
        super().ended(now, task)
        assert self.differences() == []

    def sent(self, now, task) -> None:  # type: ignore[no-untyped-def]
        super().sent(now, task)
        assert self.differences() == []


def watched(setup: Setup, rows: list[Request]) -> Sequence[Record]:
    """Simulate requests and look at what is left; what became of them."""
    seen: list[Watched] = []

    def made(setup: Setup) -> Watched:
        seen.append(Watched(setup))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "Prefixes", made)
        result = simulate(setup, rows)
    (prefixes,) = seen
    for i, cache in enumerate(prefixes._caches):
        assert not cache._locks
        assert cache.idle * BLOCK <= prefixes.free[i]
    for record in result.records:
        assert not record.error
        computed = sum(chunk.tokens for chunk in record.chunks)
        assert computed + record.reused == record.request.prompt_tokens
        assert computed >= 1
        if setup.policy == "cdsp-paper":
            assert record.reused == 0
    return result.records


@given(
    workloads(),
    st.sampled_from(("cdsp", "cdsp-late", "cache-aware", "cdsp-paper")),
    st.sampled_from((8000, 30_000)),
    st.sampled_from(("", "1p", "1p2d", "2p2d")),
    st.sampled_from((0.0, 0.2)),
)
@settings(max_examples=50, deadline=None, print_blob=True)
def test_any_sharing_ends_well_and_index_and_caches_agree(
    rows: list[Request], policy: str, kv_tokens: int, roles: str, budget: float
) -> None:
    setup = server(
        policy=policy,
        kv_tokens=kv_tokens,
        one_server=OneServer(parse_roles(roles, 4)),
        preempt_budget=budget,
    )
    for record in watched(setup, rows):
        assert record.reused <= record.cached or policy == "cache-aware"


def before_decode(**changes: object) -> Setup:
    """The same before one decode instance, to which KV takes its time."""
    return server(**{"one_server": None, "decode_instances": 1, **changes})


def test_before_decode_the_second_turn_computes_all_but_the_first_prompt() -> None:
    first = Request("1", 0.0, 5000, 500, tuple(range(55)))
    second = Request("2", 100.0, 6000, 10, tuple(range(60)))
    one, two = simulate(before_decode(), (first, second)).records
    assert two.reused == two.cached == 5000
    assert two.chunks[0].instances[0] == one.chunks[0].instances[0]
    assert sum(chunk.tokens for chunk in two.chunks) == 1000
    # Decode gets the whole prompt all the same, 1,000 tokens a second.
    assert two.transferred_s is not None
    assert two.transferred_s >= 106.0


def test_before_decode_a_home_without_much_room_keeps_nothing_beyond_its_share() -> None:
    first = Request("1", 0.0, 16_000, 1, tuple(range(160)))
    second = Request("2", 100.0, 16_100, 1, tuple(range(161)))
    records = simulate(before_decode(), (first, second)).records
    assert [record.reused for record in records] == [0, 0]
    assert len(records[0].chunks[-1].instances) > 1


@given(
    workloads(),
    st.sampled_from(("cdsp", "cdsp-late", "cache-aware", "cdsp-paper")),
    st.sampled_from((8000, 30_000)),
    st.sampled_from((0, 1)),
    st.sampled_from((0.0, 0.2)),
)
@settings(max_examples=50, deadline=None, print_blob=True)
def test_before_decode_any_sharing_ends_well_and_index_and_caches_agree(
    rows: list[Request], policy: str, kv_tokens: int, decode_instances: int, budget: float
) -> None:
    setup = before_decode(
        policy=policy,
        kv_tokens=kv_tokens,
        decode_instances=decode_instances,
        preempt_budget=budget,
    )
    watched(setup, rows)


def test_what_does_not_combine_is_refused() -> None:
    with pytest.raises(SetupError, match="prefix_cache and unified do not combine"):
        world(prefix_cache=True, unified=True, policy="loongserve")
    with pytest.raises(SetupError, match="multiple of the page size"):
        server(page_size=64)


def test_conversations_repeat_what_was_said() -> None:
    made = conversations(2.0, 200, 1, Conversations(), 512)
    assert len(made) == len({r.rid for r in made}) == 200
    by_talk: dict[str, list[Request]] = {}
    for request in made:
        assert len(request.blocks) == (request.prompt_tokens + request.output_tokens) // 512
        by_talk.setdefault(request.rid.split(".")[0], []).append(request)
    assert any(len(turns) > 3 for turns in by_talk.values())
    for turns in by_talk.values():
        for before, after in pairwise(turns):
            assert after.prompt_tokens > before.prompt_tokens + before.output_tokens
            assert after.blocks[: len(before.blocks)] == before.blocks
            assert after.arrival_s - before.arrival_s >= Conversations().least_s


def test_questions_share_their_document_and_nothing_else() -> None:
    shape = Documents(documents=5, document=Lengths(1000, 9000, 3000))
    made = questions(1.0, 300, 2, shape, 100)
    firsts = {r.blocks[0] for r in made}
    assert len(firsts) == 5
    lasts = [r.blocks[-1] for r in made if (r.prompt_tokens + r.output_tokens) // 100 > 90]
    assert len(lasts) == len(set(lasts))


def test_blocks_of_merged_sources_have_nothing_in_common() -> None:
    one = [Request("0", 0.0, 100, 1, (0, 1))]
    both = merged(a=one, b=one)
    assert not set(both[0].blocks) & set(both[1].blocks)


def test_blocks_of_a_trace(tmp_path: Path) -> None:
    line = '{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": %s}\n'
    path = tmp_path / "trace.jsonl"
    path.write_text(line % "[3, 4]")
    assert read_trace(path)[0].blocks == (3, 4)
    path.write_text(line % '"x"')
    with pytest.raises(TraceError, match="line 1: blocks are not a list of integers"):
        read_trace(path)


def test_a_recorded_run_with_reuse_is_replayed_with_its_history() -> None:
    first = Request("1", 0.0, 5000, 5, tuple(range(50)))
    second = Request("2", 100.0, 6000, 5, tuple(range(60)))
    setup = server()
    real = simulate(setup, (first, second)).records
    recorded = tuple(
        Recorded(
            one.request,
            "cdsp",
            one.bound_s or 0.0,
            tuple((chunk.tokens, chunk.instances) for chunk in one.chunks),
            one.ttft_s or 0.0,
            tuple(chunk.end_s - chunk.start_s for chunk in one.chunks),
            end_s=one.end_s,
            reused=one.reused,
        )
        for one in real
    )
    assert recorded[1].reused == 5000
    found = replay(recorded, replace(setup, prefix_cache=False), plans=True)
    assert list(found.simulated) == pytest.approx(list(found.real), rel=1e-6)
    assert chunk_errors(recorded, setup.model) == pytest.approx(0.0, abs=1e-9)


def asked_at_once(*answers: int) -> list[Request]:
    """A document that was asked about long ago, and questions about it of one moment."""
    document = tuple(range(120))
    first = Request("first", 0.0, 12_050, 1, document)
    return [
        first,
        *(Request(str(n), 100.0 + n / 1000, 12_050, a, document) for n, a in enumerate(answers)),
    ]


@pytest.mark.parametrize("answers", [(200,) * 4, (10, 200, 100, 200), (300, 20, 20, 20)])
def test_plans_that_start_from_one_prefix_are_promised_its_slots_once(
    answers: tuple[int, ...],
) -> None:
    """As in the server: an instance that could hold the document once serves all questions."""
    setup = server(instances=1, sp_sizes=(1,), kv_tokens=20_000)
    result = simulate(setup, asked_at_once(*answers))
    records = result.records[1:]
    assert [record.reused for record in records] == [12_000] * 4
    last_bound = max(record.bound_s or 0.0 for record in records)
    assert last_bound < min(record.end_s or 0.0 for record in records)
    assert result.peak_slots == (12_000 + sum(50 + answer for answer in answers),)


def test_before_decode_they_are_promised_them_once_too() -> None:
    setup = before_decode(instances=1, sp_sizes=(1,), kv_tokens=20_000)
    result = simulate(setup, asked_at_once(1, 1, 1, 1))
    assert [record.reused for record in result.records[1:]] == [12_000] * 4
    assert result.peak_slots == (12_000 + 4 * 50,)


@pytest.mark.parametrize("policy", ["cdsp", "cdsp-late"])
def test_questions_that_come_together_compute_their_document_once(policy: str) -> None:
    document = tuple(range(120))
    asked = [Request(str(n), 0.001 * n, 12_050, 1, document) for n in range(10)]
    setup = server(policy=policy, instances=1, sp_sizes=(1,), kv_tokens=200_000)
    records = simulate(setup, asked).records
    computed = sum(chunk.tokens for record in records for chunk in record.chunks)
    assert computed == 12_050 + 9 * 50
    assert sorted(record.reused for record in records) == [0] + 9 * [12_000]
