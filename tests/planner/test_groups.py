"""GetGroup: node locality, extension inside holding nodes first, ties, refusals."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sglang_cdsp.planner.groups import get_group, straddles
from tests.planner.pools import quick

ALL = (True,) * 16


def test_a_group_that_fits_one_node_takes_the_node_whose_sth_queue_is_least() -> None:
    queue = (0.0, 0.0, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0)
    assert get_group(queue, 4, ALL[:8], (), 2) == (0, 1)
    assert get_group(queue, 4, ALL[:8], (), 3) == (4, 5, 6)


def test_a_group_larger_than_a_node_takes_whole_nodes_then_one_more() -> None:
    queue = (1.0, 1.0, 2.0, 0.0, 0.0, 0.5, 9.0, 0.0)  # nodes of 2; whole-node queues 1, 2, .5, 9
    assert get_group(queue, 2, ALL[:8], (), 5) == (0, 1, 3, 4, 5)
    # One more by the single-node rule: 3 and 7 are idle, the lower node wins.


def test_later_chunks_extend_inside_the_holding_node_first() -> None:
    queue = (0.0, 5.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0)
    assert get_group(queue, 4, ALL[:8], (0,), 2) == (0, 1)
    assert get_group(queue, 4, ALL[:8], (0,), 6) == (0, 1, 2, 3, 4, 5)
    assert get_group(queue, 4, ALL[:8], (0,), 2, spread=True) == (0, 4)


def test_several_holding_nodes_give_their_shortest_queues() -> None:
    queue = (0.0, 3.0, 1.0, 0.0, 2.0, 0.5)
    assert get_group(queue, 3, ALL[:6], (0, 3), 4) == (0, 3, 2, 5)


def test_too_few_allowed_or_too_small_a_size_is_no_group() -> None:
    assert get_group((0.0, 0.0), 2, (True, False), (), 2) is None
    assert get_group((0.0, 0.0), 2, (True, True), (0, 1), 1) is None
    assert get_group((0.0, 0.0), 2, (False, False), (0, 1), 2) == (0, 1)


@quick
@given(
    st.lists(st.integers(0, 3).map(float), min_size=1, max_size=12),
    st.sampled_from((2, 3, 4, 16)),
    st.data(),
)
def test_one_node_groups_are_the_best_of_any_one_node(
    queue: list[float], per_node: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, len(queue)))
    group = get_group(queue, per_node, ALL[: len(queue)], (), size)
    assert group is not None
    assert len(set(group)) == size
    nodes = [
        range(start, min(start + per_node, len(queue))) for start in range(0, len(queue), per_node)
    ]
    options = [c for node in nodes for c in itertools.combinations(node, size)]
    if options:
        assert not straddles(group, per_node)
        assert max(queue[i] for i in group) == min(max(queue[i] for i in c) for c in options)
    spread = get_group(queue, per_node, ALL[: len(queue)], (), size, spread=True)
    assert spread is not None
    assert max(queue[i] for i in spread) == sorted(queue)[size - 1]


@quick
@given(st.lists(st.floats(0, 3), min_size=4, max_size=12), st.sampled_from((2, 4, 16)), st.data())
def test_groups_grow_by_appending(queue: list[float], per_node: int, data: st.DataObject) -> None:
    sizes = sorted(data.draw(st.sets(st.integers(1, len(queue)), min_size=2, max_size=3)))
    group: tuple[int, ...] = ()
    for size in sizes:
        grown = get_group(queue, per_node, ALL[: len(queue)], group, size)
        assert grown is not None
        assert grown[: len(group)] == group
        assert list(grown[len(group) :]) == sorted(grown[len(group) :])
        group = grown
