"""The demonstration's table and what it reads from the plan log."""

from typing import Any

from sglang_cdsp.demo.client import (
    Answer,
    chunks_at_once,
    describe_plan,
    format_table,
    queue_seconds,
)


def entry(rid: str, arrival_s: float, *chunks: tuple[int, list[int], float, float]) -> Any:
    """A plan log entry of chunks given as tokens, instances, start and end after the arrival."""
    return {
        "rid": rid,
        "arrival_s": arrival_s,
        "chunks": [
            {"tokens": tokens, "instances": instances, "start_s": start, "end_s": end}
            for tokens, instances, start, end in chunks
        ],
    }


def test_a_plan_is_written_chunk_by_chunk() -> None:
    planned = entry("a", 0.0, (500, [1], 0.25, 1.0), (1500, [1, 0, 3], 1.0, 2.0))
    assert describe_plan(planned) == "500@1[1] 1500@3[1,0,3]"
    assert queue_seconds(planned) == 0.25


def test_requests_that_never_ran_have_no_plan() -> None:
    failed = entry("a", 0.0)
    assert describe_plan(failed) == describe_plan(None) == "-"
    assert queue_seconds(failed) is queue_seconds(None) is None


def test_chunks_of_different_requests_are_counted_where_they_overlap() -> None:
    first = entry("a", 10.0, (1, [0], 0.0, 1.0), (1, [0], 1.0, 3.0))
    second = entry("b", 11.5, (1, [1], 0.0, 0.5))
    third = entry("c", 12.0, (1, [2], 0.0, 0.5))
    assert chunks_at_once([first]) == 1
    assert chunks_at_once([first, second, third]) == 2
    assert chunks_at_once([]) == 0


def test_the_table_is_sorted_by_length_and_joined_by_request_id() -> None:
    answers = [
        Answer("long", 2000, 4, ttft_s=1.5, tpot_s=0.02, end_s=2.0, text=""),
        Answer("short", 100, 4, ttft_s=0.5, tpot_s=0.01, end_s=1.0, text=""),
    ]
    entries = {"long": entry("long", 0.0, (2000, [0, 2], 0.5, 1.0))}
    head, short, long = format_table(answers, entries).splitlines()
    assert head.split()[-2:] == ["plan:", "tokens@SP[instances]"]
    assert short.split() == ["100", "-", "0.50", "10.0", "-"]
    assert long.split() == ["2000", "0.50", "1.50", "20.0", "2000@2[0,2]"]
