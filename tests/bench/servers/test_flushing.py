"""Flushes under a storm: one that is refused is asked for again, while requests are held back."""

from __future__ import annotations

import threading

from bench.servers.flushing import Flusher
from tests.serving.processes import until


class Pool:
    """Answers flushes, and keeps what was asked."""

    def __init__(self) -> None:
        self.busy = True
        self.broken = False
        self.asked: list[str] = []
        self.waiting = threading.Event()
        self.quiet = threading.Event()

    def post(self, url: str) -> tuple[int, str]:
        self.asked.append(url)
        if "timeout" not in url:
            return (400, "requests run") if self.busy else (200, "")
        self.waiting.set()
        assert self.quiet.wait(20)
        return (400, "they still run") if self.broken else (200, "")


def flusher(pool: Pool) -> Flusher:
    return Flusher("pool", 0.001, pool.post)


def test_a_flush_that_is_refused_is_asked_for_again_while_requests_are_held_back() -> None:
    pool = Pool()
    sent = threading.Event()
    with flusher(pool) as flushes:

        def send() -> None:
            flushes.may_send()
            sent.set()

        assert pool.waiting.wait(20)
        client = threading.Thread(target=send, daemon=True)
        client.start()
        assert flushes.refused >= 1
        assert not sent.wait(0.1), "requests are held back"
        pool.quiet.set()
        assert sent.wait(20)
        client.join()
    assert flushes.flushed >= 2, "the second is the last one, of an empty pool"
    assert flushes.wrong == []
    assert pool.asked[0] == "pool/flush_cache"
    assert pool.asked[1].startswith("pool/flush_cache?timeout=")


def test_a_flush_of_an_idle_pool_holds_nobody_back() -> None:
    pool = Pool()
    pool.busy = False
    with flusher(pool) as flushes:
        until(lambda: flushes.flushed > 2)
        assert not pool.waiting.is_set()
        pool.quiet.set()
    assert flushes.refused == 0


def test_a_flush_that_does_not_happen_though_requests_are_held_back_is_wrong() -> None:
    pool = Pool()
    pool.broken = True
    pool.quiet.set()
    with flusher(pool) as flushes:
        until(lambda: bool(flushes.wrong))
        flushes.may_send()
    assert "they still run" in flushes.wrong[0]
