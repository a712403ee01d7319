"""Plans for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

PAGE_SIZES = st.sampled_from([1, 4, 16])
Chunks = list[tuple[int, list[int]]]


@st.composite
def plans(draw: st.DrawFn, page_size: int, instances: int = 5, longest: int = 40) -> Chunks:
    """One to four chunks on growing groups; all but the last are whole pages."""
    order = draw(st.permutations(range(instances)))
    count = draw(st.integers(1, 4))
    sizes = sorted(draw(st.integers(1, instances)) for _ in range(count))
    whole = [draw(st.integers(1, longest)) * page_size for _ in range(count - 1)]
    last = draw(st.integers(1, longest * page_size))
    return [(n, list(order[:size])) for n, size in zip([*whole, last], sizes, strict=True)]
