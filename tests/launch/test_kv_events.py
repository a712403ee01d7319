"""The option of KV events is read before the start, and its ports are tried."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_cdsp.launch.kv_events import listeners, problems


def server_args(config: Any, mode: str = "null", *, cached: bool = True) -> Any:
    text = config if isinstance(config, str | None) else json.dumps(config)
    return SimpleNamespace(
        kv_events_config=text, disaggregation_mode=mode, disable_radix_cache=not cached
    )


def test_one_port_is_listened_on_whatever_the_number_of_instances() -> None:
    config = {"publisher": "zmq", "endpoint": "tcp://*:6000"}
    assert listeners(server_args(config)) == (("", 6000),)
    config = {**config, "replay_endpoint": "tcp://127.0.0.1:6001"}
    assert listeners(server_args(config)) == (("", 6000), ("127.0.0.1", 6001))
    assert listeners(server_args({"publisher": "zmq"})) == (("", 5557),)


@pytest.mark.parametrize(
    "config",
    [
        None,
        "{}",
        {"publisher": "zmq", "endpoint": "tcp://router:6000"},
        {"publisher": "zmq", "endpoint": "ipc:///tmp/events"},
    ],
)
def test_otherwise_none_is(config: Any) -> None:
    assert listeners(server_args(config)) == ()
    assert problems(server_args(config)) == []


def test_a_prefill_server_publishes_only_what_it_keeps() -> None:
    config = {"publisher": "zmq"}
    assert listeners(server_args(config, "prefill", cached=False)) == ()
    assert listeners(server_args(config, "prefill")) == (("", 5557),)


@pytest.mark.parametrize("config", ["zmq", '{"hwm": "many"}', "[]"])
def test_what_cannot_be_read_is_told_in_one_line(config: str) -> None:
    [line] = problems(server_args(config))
    assert line.startswith("--kv-events-config cannot be read: ")
    assert "\n" not in line
    assert listeners(server_args(config)) == ()
