"""How a pool comes up, without a server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from sglang_cdsp.controller import startup
from sglang_cdsp.controller.startup import (
    PoolIncompleteError,
    await_hellos,
    largest_shard,
    link_orders,
)
from sglang_cdsp.protocol.addresses import PoolAddresses, pool_addresses, publish_addresses
from sglang_cdsp.protocol.messages import Hello, Ready, encode_report


@pytest.fixture
def sockets() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    reports: zmq.Socket[bytes] = context.socket(zmq.PULL)
    ranks: zmq.Socket[bytes] = context.socket(zmq.PUSH)
    port = reports.bind_to_random_port("tcp://127.0.0.1")
    ranks.connect(f"tcp://127.0.0.1:{port}")
    yield reports, ranks
    reports.close(0)
    ranks.close(0)


def hello(instance: int, rank: int, max_shard_tokens: int | None = None) -> Hello:
    return Hello(
        instance=instance,
        tp_rank=rank,
        at_s=0.0,
        incarnation=1,
        invitations={i: f"{instance}.{rank} for {i}".encode() for i in range(3) if i != instance},
        kv_capacity=100 * (instance + 1),
        page_size=16,
        max_input_tokens=99,
        vocab_size=32,
        layers=4,
        kv_cache_dtype="float32",
        max_shard_tokens=max_shard_tokens,
    )


def test_the_smallest_memory_says_how_long_a_shard_may_be() -> None:
    some = [hello(0, 0, 900), hello(0, 1, 700), hello(1, 0), hello(1, 1, 800)]
    assert largest_shard(some, None) == 700
    assert largest_shard(some, 5000) == 5000
    assert largest_shard([hello(0, 0)], None) is None


def test_every_rank_greets_once(sockets: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]) -> None:
    reports, ranks = sockets
    early = Ready(instance=0, tp_rank=0, at_s=0.0, seq=1, chunk=0)
    said = [hello(1, 0), hello(0, 1), early, hello(1, 0), hello(0, 0), hello(1, 1)]
    for report in said:
        ranks.send(encode_report(report))
    found = await_hellos(reports, 2, 2)
    assert sorted(found) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert found[(1, 1)].kv_capacity == 200


def test_a_pool_that_is_not_whole_must_not_serve(
    sockets: tuple[zmq.Socket[bytes], zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reports, ranks = sockets
    monkeypatch.setattr(startup, "HELLO_TIMEOUT_S", 0.0)
    ranks.send(encode_report(hello(0, 0)))
    with pytest.raises(PoolIncompleteError, match=r"only \d of 4 schedulers .* tested sglang"):
        await_hellos(reports, 2, 2)


def test_addresses_travel_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_CDSP_POOL", "")
    addresses = PoolAddresses("tcp://127.0.0.1:5", "/proc/1/fd/5", "/tmp/words")
    publish_addresses(addresses)
    assert pool_addresses() == addresses


def test_a_scheduler_outside_the_pool_says_how_to_start_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SGLANG_CDSP_POOL", raising=False)
    with pytest.raises(RuntimeError, match="--cdsp --dp-size"):
        pool_addresses()


def test_every_rank_hears_of_the_same_rank_of_each_other_instance() -> None:
    hellos = {(i, r): hello(i, r) for i in range(3) for r in range(2)}
    orders = list(link_orders(hellos))
    assert len(orders) == 3 * 2 * 2
    for me in range(3):
        told = [(o.seat, o.tp_rank, o.invitation) for to, o in orders if to == me]
        others = [other for other in range(3) if other != me]
        assert told == [(o, r, f"{o}.{r} for {me}".encode()) for o in others for r in range(2)]
