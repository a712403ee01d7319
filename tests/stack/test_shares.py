"""Decode never waits for prefill: a core of its own, or a higher priority."""

import os

import pytest

from sglang_cdsp.stack.shares import PREFILL_NICE, bound, decode_first


@pytest.mark.parametrize(
    ("cores", "taken", "decode", "prefill"),
    [
        ({0, 1, 2}, [], (2,), (0, 1)),
        ({0, 1, 2, 5}, [], (5,), (0, 1, 2)),
        ({0, 1, 2, 3}, [0, 1], (2, 3), (0, 1)),
        ({0, 1, 2}, [0, 1, 2], None, None),
        ({0, 1}, [], None, None),
        ({0, 1}, [0, 1], None, None),
        ({3}, [], None, None),
    ],
)
def test_decode_gets_a_core_where_prefill_keeps_two(
    monkeypatch: pytest.MonkeyPatch,
    cores: set[int],
    taken: list[int],
    decode: tuple[int, ...] | None,
    prefill: tuple[int, ...] | None,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
    shares = decode_first(taken)
    assert (shares.decode_cpus, shares.prefill_cpus) == (decode, prefill)
    assert shares.prefill_nice == (0 if decode else PREFILL_NICE)
    assert len(shares.notes) == 1


def test_bindings_are_read_as_the_platform_reads_them() -> None:
    assert bound("0|1-3,5") == [0, 1, 2, 3, 5]
