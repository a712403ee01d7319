"""What the controller knows of caches, by what the schedulers tell."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

from sglang.srt.disaggregation.utils import FAKE_BOOTSTRAP_HOST

from sglang_cdsp.controller.phases import Event
from sglang_cdsp.controller.prefixes.hashes import PageHashes
from sglang_cdsp.controller.prefixes.pool import PoolPrefixes
from sglang_cdsp.controller.request import PoolRequest
from sglang_cdsp.controller.shared_slots import SharedSlots
from sglang_cdsp.planner.types import HeldPrefix, Plan, PlannedChunk
from sglang_cdsp.protocol.messages import CacheChange, OutputState
from tests.controller.prefixes.prompts import request

PAGE = 4


def stored(ids: list[int], salt: str | None = None) -> CacheChange:
    return CacheChange("stored", array("q", PageHashes(ids, PAGE, salt)).tobytes())


def removed(ids: list[int], first: int) -> CacheChange:
    return CacheChange("removed", array("q", PageHashes(ids, PAGE)[first:]).tobytes())


def held(prefixes: PoolPrefixes, one: PoolRequest) -> dict[int, int]:
    prefixes.waits(one)
    return {prefix.instance: prefix.tokens for prefix in prefixes.held(one.rid)}


def pool() -> PoolPrefixes:
    return PoolPrefixes([1000] * 3, PAGE, lambda raw: raw.logprob_start_len if raw else None)


IDS = list(range(100, 140))
NO_LOGPROBS = {"logprob_start_len": 1000}


def test_events_are_found_by_the_prompts_that_they_are_of() -> None:
    prefixes = pool()
    prefixes.changed(0, [stored(IDS)])
    prefixes.changed(2, [stored(IDS[:20])])
    one = request([*IDS[:30], 7, 8, 9], **NO_LOGPROBS)
    assert held(prefixes, one) == {0: 28, 2: 20}
    assert prefixes.held("r")[0] == HeldPrefix(0, 28, 36 + 8, ready=0), "nobody sends it"
    prefixes.changed(0, [removed(IDS, 3)])
    assert held(prefixes, one) == {2: 20, 0: 12}
    prefixes.changed(2, [CacheChange("cleared"), stored(IDS[:8])])
    assert held(prefixes, one) == {0: 12, 2: 8}
    prefixes.gone(0)
    assert held(prefixes, one) == {2: 8}
    prefixes.tidy()
    assert held(prefixes, one) == {2: 8}


def test_short_prefixes_count_as_none() -> None:
    prefixes = PoolPrefixes([1000] * 2, PAGE, least_tokens=12)
    prefixes.changed(0, [stored(IDS[:12])])
    prefixes.changed(1, [stored(IDS[:8])])
    assert held(prefixes, request(IDS)) == {0: 12}


def test_the_last_token_is_computed() -> None:
    prefixes = pool()
    prefixes.changed(0, [stored(IDS)])
    assert held(prefixes, request(IDS, **NO_LOGPROBS)) == {0: 36}
    assert held(prefixes, request([*IDS, 1], **NO_LOGPROBS)) == {0: 40}
    assert held(prefixes, request(IDS[:4], **NO_LOGPROBS)) == {}


def test_what_has_log_probabilities_is_computed() -> None:
    prefixes = pool()
    prefixes.changed(0, [stored(IDS)])
    assert held(prefixes, request(IDS, logprob_start_len=18)) == {0: 16}
    assert held(prefixes, request(IDS, logprob_start_len=0)) == {}
    # They were sent with its first token.
    anew = request(IDS, logprob_start_len=0)
    anew.resumes = OutputState(tokens=[1, 2], sent=2)
    anew.tokens += 2
    assert held(prefixes, anew) == {0: 40}


def test_hidden_states_are_those_of_all_tokens() -> None:
    prefixes = pool()
    prefixes.changed(0, [stored(IDS)])
    assert held(prefixes, request(IDS, return_hidden_states=True, **NO_LOGPROBS)) == {}


def test_output_is_part_of_what_is_computed_anew() -> None:
    prefixes = pool()
    prefixes.changed(1, [stored([*IDS, 1, 2, 3, 4, 5, 6, 7, 8])])
    anew = request(IDS)
    anew.resumes = OutputState(tokens=[1, 2, 3, 4, 5, 9], sent=6)
    anew.tokens += 6
    assert held(prefixes, anew) == {1: 44}


def test_namespaces_do_not_mix() -> None:
    prefixes = pool()
    prefixes.changed(0, [stored(IDS, "a")])
    assert held(prefixes, request(IDS, **NO_LOGPROBS)) == {}
    assert held(prefixes, request(IDS, cache_salt="b", **NO_LOGPROBS)) == {}
    assert held(prefixes, request(IDS, cache_salt="a", **NO_LOGPROBS)) == {0: 36}


def test_a_miss_corrects_the_index_and_the_request_reuses_nothing_more() -> None:
    prefixes = pool()
    prefixes.changed(0, [stored(IDS)])
    prefixes.changed(1, [stored(IDS)])
    one = request(IDS, **NO_LOGPROBS)
    assert held(prefixes, one) == {0: 36, 1: 36}
    one.plan = replace(Plan((PlannedChunk(4, (0,), 0, 1),), 1, "p"), reused=36, cached=36)
    prefixes.leaves(one)
    assert prefixes.held("r") == ()
    assert prefixes.snapshot()["reused_tokens"] == 36
    prefixes.missed(one, 8)
    one.missed = True
    assert held(prefixes, one) == {}
    assert held(prefixes, request(IDS, **NO_LOGPROBS)) == {1: 36, 0: 8}
    shown = prefixes.snapshot()
    assert (shown["misses"], shown["plans_reusing"], shown["reused_tokens"]) == (1, 0, 0)


def test_a_request_that_ends_without_a_plan_is_forgotten() -> None:
    prefixes = pool()
    prefixes.changed(0, [stored(IDS)])
    one, other = request(IDS, **NO_LOGPROBS), request(IDS[:10], **NO_LOGPROBS)
    prefixes.waits(one)
    prefixes.leaves(other)  # another one of that name
    assert prefixes.held("r")
    prefixes.leaves(one)
    assert prefixes.held("r") == ()


def test_what_a_planned_request_has_cached_is_looked_up_as_it_is_now() -> None:
    prefixes = pool()
    prefixes.changed(0, [stored(IDS)])
    prefixes.changed(1, [stored(IDS[:8])])
    one, other = request(IDS, **NO_LOGPROBS), request([1, *IDS], **NO_LOGPROBS)
    for asked, cached in ((one, 36), (other, 0)):
        asked.rid = str(cached)
        prefixes.waits(asked)
        asked.plan = Plan((PlannedChunk(len(IDS), (2,), 0, 1),), 1, "p", cached=cached)
        prefixes.leaves(asked)
    assert prefixes.cached_of(one) == {0: 36, 1: 8}
    prefixes.changed(0, [removed(IDS, 5)])
    prefixes.gone(1)
    assert prefixes.cached_of(one) == {0: 20}
    assert prefixes.cached_of(other) == {}


def leading(prefixes: PoolPrefixes, ids: list[int], home: int, **more: Any) -> PoolRequest:
    """A request that chunk tasks compute."""
    leader = request(ids, **NO_LOGPROBS, **more)
    leader.rid = "leader"
    prefixes.waits(leader)
    leader.plan = Plan((PlannedChunk(len(ids), (home, 2), 0, 1),), 1, "p")
    leader.advance(Event.PAGES)
    leader.advance(Event.BIND)
    prefixes.leaves(leader)
    return leader


def test_what_is_being_computed_counts_at_its_home() -> None:
    prefixes = pool()
    leader = leading(prefixes, IDS, 1)
    follower = request([*IDS[:30], 1, 2, 3, 4], **NO_LOGPROBS)
    assert held(prefixes, follower) == {1: 28}
    prefixes.changed(0, [stored(IDS[:8])])
    prefixes.changed(1, [stored(IDS[:4])])
    assert held(prefixes, follower) == {1: 28, 0: 8}
    assert held(prefixes, request(IDS, cache_salt="a", **NO_LOGPROBS)) == {}
    leader.error = "it failed"
    assert held(prefixes, follower) == {0: 8, 1: 4}


def test_what_its_home_will_not_keep_does_not_count() -> None:
    prefixes = pool()
    leading(prefixes, IDS, 1, bootstrap_host=FAKE_BOOTSTRAP_HOST)
    assert held(prefixes, request(IDS, **NO_LOGPROBS)) == {}


def test_a_prompt_that_its_home_decodes_is_told_of_by_its_home() -> None:
    prefixes = pool()
    leader = leading(prefixes, IDS, 1)
    leader.advance(Event.GO)
    leader.advance(Event.COMPUTED)
    assert held(prefixes, request(IDS, **NO_LOGPROBS)) == {1: 36}
    leader.advance(Event.ALL_DRAINED)
    leader.advance(Event.JOINED)
    prefixes.tidy()
    assert held(prefixes, request(IDS, **NO_LOGPROBS)) == {}


def bound(prefixes: PoolPrefixes, one: PoolRequest, held: list[SharedSlots]) -> SharedSlots:
    """A plan that starts from the longest prefix there is."""
    prefixes.waits(one)
    found = prefixes.held(one.rid)[0]
    chunk = PlannedChunk(one.tokens - found.tokens, (found.instance,), 0.0, 1.0)
    one.plan = Plan((chunk,), 1.0, "cdsp", reused=found.tokens, cached=found.tokens)
    shared = prefixes.bound(one, held)
    assert shared is not None
    return shared


def test_plans_that_start_from_one_prefix_share_its_slots() -> None:
    promised: list[SharedSlots] = []
    prefixes = PoolPrefixes([1000] * 3, PAGE, promised=lambda i: promised)
    prefixes.changed(1, [stored(IDS)])
    others = [request([*IDS[:20], *range(n, n + 9)], rid=str(n)) for n in (1, 11, 21)]
    apart = request([*IDS[:16], *range(31, 44)], rid="apart")
    need = prefixes_need(prefixes, others[0])
    promised.append(bound(prefixes, others[0], promised))
    assert promised[0].instance == 1
    assert promised[0].tokens == 20
    assert prefixes_need(prefixes, others[1]) == need - 20, "these are promised already"
    assert prefixes_need(prefixes, apart) == need, "it starts from another prefix"
    assert prefixes.shared(others[1], 1, 20, promised) is promised[0]
    assert prefixes.shared(others[1], 0, 20, promised) is None, "nobody holds it there"
    assert bound(prefixes, others[1], promised) is promised[0]
    assert bound(prefixes, apart, promised) is not promised[0]
    promised.clear()
    assert prefixes_need(prefixes, others[2]) == need, "the others have ended"


def prefixes_need(prefixes: PoolPrefixes, one: PoolRequest) -> int:
    """Slots that home needs of a prompt, by its longest prefix."""
    prefixes.waits(one)
    return prefixes.held(one.rid)[0].home_tokens
