"""Posting threads: another thread than the loop's, in order."""

from __future__ import annotations

import threading

from sglang_cdsp.transfer.poster import PostingThreads


def test_jobs_run_in_order_in_one_thread_that_was_prepared() -> None:
    seen: list[object] = []
    over = threading.Event()
    poster = PostingThreads(prepare=lambda: seen.append(threading.current_thread()))
    for number in range(100):
        poster.put(lambda number=number: seen.append((number, threading.current_thread())))  # type: ignore[misc]
    poster.put(over.set)
    assert over.wait(10)
    thread = seen[0]
    assert thread is not threading.current_thread()
    assert seen[1:] == [(number, thread) for number in range(100)]


def test_a_post_that_takes_long_holds_nobody_up_who_asks() -> None:
    held, over = threading.Event(), threading.Event()
    poster = PostingThreads()

    def long_post() -> None:
        held.wait(10)

    poster.put(long_post)
    poster.put(over.set)
    assert not over.is_set()
    held.set()
    assert over.wait(10)
