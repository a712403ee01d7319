"""The pool's events on the wire: SGLang's publisher, at the port that is named, as rank 0."""

from __future__ import annotations

import atexit
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import zmq
from sglang.srt.disaggregation import kv_events as stock

from sglang_cdsp.controller.prefixes.publisher import PoolPublisher
from sglang_cdsp.releases import kv_events_have_formats

END = (-1).to_bytes(8, "big", signed=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture
def ports() -> tuple[int, int]:
    """Where events are published, and replayed."""
    return free_port(), free_port()


@pytest.fixture
def config(ports: tuple[int, int]) -> str:
    """As on the command line."""
    return json.dumps(
        {
            "publisher": "zmq",
            "endpoint": f"tcp://*:{ports[0]}",
            "replay_endpoint": f"tcp://127.0.0.1:{ports[1]}",
            "topic": "pool",
        }
    )


@pytest.fixture
def publisher(config: str) -> Iterator[PoolPublisher]:
    """A publisher that listens."""
    opened = PoolPublisher(config)
    yield opened
    assert opened._stock is not None
    opened._stock.shutdown()
    atexit.unregister(opened._stock.shutdown)  # a second time it would wait for its thread


def removed(name: int) -> Any:
    return stock.BlockRemoved(block_hashes=[name], medium="GPU")


def replayed(port: int, first: int) -> list[tuple[int, Any]]:
    """What the publisher replays from a sequence number on, by number."""
    batches: list[tuple[int, Any]] = []
    with zmq.Context() as context, context.socket(zmq.DEALER) as asks:
        asks.setsockopt(zmq.LINGER, 0)
        asks.connect(f"tcp://127.0.0.1:{port}")
        asks.send_multipart((b"", first.to_bytes(8, "big")))
        while True:
            assert asks.poll(20_000), "nothing is replayed"
            number, payload = asks.recv_multipart()[-2:]
            if number == END:
                return batches
            decoded = msgspec.msgpack.decode(payload, type=stock.KVEventBatch)
            batches.append((int.from_bytes(number, "big"), decoded))


def replayed_all(port: int, count: int) -> list[tuple[int, Any]]:
    """The same, once so many were published; that happens on a thread."""
    for _ in range(200):
        batches = replayed(port, 0)
        if len(batches) >= count:
            return batches
        time.sleep(0.05)
    raise AssertionError(f"only {len(batches)} of {count} batches")


def test_batches_are_numbered_and_replayed(
    publisher: PoolPublisher, ports: tuple[int, int]
) -> None:
    assert publisher.is_open
    publisher.publish([stock.AllBlocksCleared()])
    publisher.publish([])
    publisher.publish([removed(1), removed(2)])
    publisher.publish([removed(3)])
    batches = replayed_all(ports[1], 3)
    assert [number for number, _ in batches] == [0, 1, 2]
    assert {batch.attn_dp_rank for _, batch in batches} == {0}
    assert [batch.events for _, batch in batches] == [
        [stock.AllBlocksCleared()],
        [removed(1), removed(2)],
        [removed(3)],
    ]
    assert replayed(ports[1], 2) == batches[2:]


def test_subscribers_hear_what_is_published(
    publisher: PoolPublisher, ports: tuple[int, int]
) -> None:
    with zmq.Context() as context, context.socket(zmq.SUB) as hears:
        hears.setsockopt(zmq.LINGER, 0)
        hears.subscribe("pool")
        hears.connect(f"tcp://127.0.0.1:{ports[0]}")
        for name in range(200):  # whoever has just connected hears the next ones
            publisher.publish([removed(name)])
            if hears.poll(100):
                break
        topic, number, payload = hears.recv_multipart()
    assert topic == b"pool"
    [event] = msgspec.msgpack.decode(payload, type=stock.KVEventBatch).events
    assert event.block_hashes == [int.from_bytes(number, "big")]


@pytest.mark.parametrize("config", [None, "", "{}", '{"publisher": "null"}'])
def test_without_the_option_nothing_is_published(config: str | None) -> None:
    publisher = PoolPublisher(config)
    assert not publisher.is_open
    publisher.publish([removed(1)])
    assert publisher.sources(16) == []
    assert publisher.rename is None


def test_a_port_that_is_taken_is_an_error(publisher: PoolPublisher, config: str) -> None:
    with pytest.raises(zmq.ZMQError):
        PoolPublisher(config)


@pytest.mark.parametrize("config", ['{"publisher": "no such one"}', "zmq"])
def test_what_cannot_be_read_is_an_error(config: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        PoolPublisher(config)


@pytest.mark.skipif(not kv_events_have_formats(), reason="this SGLang has one format")
def test_names_in_the_format_dynamo_are_sglangs(ports: tuple[int, int]) -> None:
    publisher = PoolPublisher(
        json.dumps({"publisher": "zmq", "endpoint": f"tcp://*:{ports[0]}", "format": "dynamo"})
    )
    assert publisher.rename is not None
    assert publisher.rename(7, None, None) == 7
    seed = stock.kv_event_namespace_seed(extra_key="k", cache_salt="s")
    expected = stock.namespaced_block_hash(7, namespace_seed=seed)
    assert publisher.rename(7, "k", "s") == expected
    [source] = publisher.sources(16)
    assert (source["dp_rank"], source["block_size"]) == (0, 16)
