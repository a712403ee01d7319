"""The seats of a pool under test, as the tests see them from outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil

from tests.serving.asking import call
from tests.serving.client import Client

WITHIN_S = 240.0
"""A scheduler's start takes most of a minute on two busy cores."""


def seats(client: Client) -> list[dict[str, Any]]:
    """What the pool says of its seats."""
    found: list[dict[str, Any]] = call(client, "prefill", "GET", "/cdsp/status").json()["seats"]
    return found


def states(client: Client) -> list[str]:
    """The state of each seat."""
    return [seat["state"] for seat in seats(client)]


def until(reached: Callable[[], bool]) -> None:
    """Wait until something has come about, as long as a seat may take."""
    deadline = time.monotonic() + WITHIN_S
    while not reached():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)


def until_up(client: Client) -> None:
    """Wait until every seat is up."""
    until(lambda: set(states(client)) == {"up"})


def scheduler(client: Client, seat: int) -> psutil.Process:
    """The process of a seat's only rank."""
    server = psutil.Process(client.servers.servers["prefill"].pid)
    (found,) = (
        process
        for process in server.children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE
        and f"scheduler_DP{seat}" in " ".join(process.cmdline())
    )
    return found
