"""How fast links are between processes: round trips, bandwidth, and steps of a ring.

``python -m bench.micro.links [--output results.json] [--kinds shared-memory nixl nixl-tcp]``. All
of it goes through lanes, as attention does. "spin" polls without a pause, "sleep" as the default
``give_way`` does. On fewer cores than processes the ring's steps include their waiting for a core.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from sglang_cdsp.cli.outputs import OutputError, check_file
from sglang_cdsp.cli.parser import OneLineParser
from sglang_cdsp.parallel.links.choose import KINDS, make_links
from sglang_cdsp.parallel.links.lanes import Lane, LinkHub
from sglang_cdsp.parallel.links.types import LinkShape, Message

SHAPE = LinkShape(lanes=1, depth=4, slot_bytes=4 << 20)
ROUND_TRIPS = {"64 B": (64, 3000), "16 kB": (16 << 10, 2000)}
ONE_WAY = {"1 MB": (1 << 20, 200), "16 MB": (16 << 20, 30)}
STEPS = {"1 MB": (1 << 20, 200), "4 MB": (4 << 20, 100)}
TCP = "nixl-tcp"
LIMIT_S = 300.0


def spin(hub: LinkHub) -> Callable[[Callable[[], bool] | None], None]:
    """Waiting that polls without a pause."""

    def give_way(ready: Callable[[], bool] | None) -> None:
        hub.poll()

    return give_way


def round_trips(lane: Lane, size: int, times: int) -> list[float]:
    """Microseconds from a send to its answer; between seats 0 and 1."""
    out, into = (torch.zeros(size, dtype=torch.uint8) for _ in range(2))
    peer, took = 1 - lane.seat, []
    for _ in range(times):
        began = time.perf_counter()
        if lane.seat:
            lane.exchange([], [Message(into, peer)]).wait()
            lane.exchange([Message(out, peer)], [])
        else:
            lane.exchange([Message(out, peer)], [Message(into, peer)]).wait()
        took.append((time.perf_counter() - began) * 1e6)
    return took


def one_way(lane: Lane, size: int, times: int) -> list[float]:
    """GB/s of messages from seat 0 to seat 1, which answers a byte to each."""
    block, word = torch.zeros(size, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    peer, rates = 1 - lane.seat, []
    for _ in range(times):
        began = time.perf_counter()
        if lane.seat:
            lane.exchange([], [Message(block, peer)]).wait()
            lane.exchange([Message(word, peer)], []).wait()
        else:
            lane.exchange([Message(block, peer)], [Message(word, peer)]).wait()
        rates.append(size / (time.perf_counter() - began) / 1e9)
    return rates


def ring(lane: Lane, size: int, times: int) -> list[float]:
    """Milliseconds of a step in which everybody sends to the next one."""
    members = lane.members
    place = members.index(lane.seat)
    ahead, behind = members[(place + 1) % len(members)], members[place - 1]
    out, into = (torch.zeros(size, dtype=torch.uint8) for _ in range(2))
    took = []
    for _ in range(times):
        began = time.perf_counter()
        lane.exchange([Message(out, ahead)], [Message(into, behind)]).wait()
        took.append((time.perf_counter() - began) * 1e3)
    return took


def serve(pipe: Connection, kind: str, seat: int, seats: int) -> None:
    """One process: link up, then run what comes."""
    torch.set_num_threads(1)
    if kind == TCP:
        os.environ["UCX_TLS"] = "tcp"
    links = make_links(kind.removesuffix("-tcp"), seat, 0, SHAPE, torch.device("cpu"))
    hub = LinkHub(links, SHAPE)
    sleeping = hub.give_way
    others = [other for other in range(seats) if other != seat]
    pipe.send({other: hub.invite(other) for other in others})
    for other, invitation in pipe.recv().items():
        hub.join(other, 0, invitation)
    while True:
        # The other side may still need this one's polls.
        while not pipe.poll():
            hub.poll()
            time.sleep(1e-4)
        order = pipe.recv()
        if order is None:
            return
        work, serial, members, size, times, spins = order
        hub.give_way = spin(hub) if spins else sleeping
        lane = hub.open(0, serial, members)
        figures = work(lane, size, times)
        lane.close()
        pipe.send(figures[len(figures) // 10 :])


def measure(kind: str, seats: int) -> dict[str, Any]:
    """All figures of one kind of links."""
    spawn = multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe() for _ in range(seats)]
    processes = [
        spawn.Process(target=serve, args=(pipes[seat][1], kind, seat, seats), daemon=True)
        for seat in range(seats)
    ]
    for process in processes:
        process.start()
    mine = [pipe for pipe, _ in pipes]
    invitations = [answer(pipe) for pipe in mine]
    for seat, pipe in enumerate(mine):
        pipe.send({other: invitations[other][seat] for other in range(seats) if other != seat})
    serials = itertools.count()

    def run(
        work: Callable[[Lane, int, int], list[float]],
        seats: int,
        size: int,
        times: int,
        spins: bool,
    ) -> list[float]:
        serial = next(serials)
        for pipe in mine[:seats]:
            pipe.send((work, serial, tuple(range(seats)), size, times, spins))
        answers = [answer(pipe) for pipe in mine[:seats]]
        figures: list[float] = answers[0]
        return figures

    found: dict[str, Any] = {}
    for way, spins in (("spin", True), ("sleep", False)):
        for name, (size, times) in ROUND_TRIPS.items():
            took = sorted(run(round_trips, 2, size, times, spins))
            found[f"{name} round trip us, {way}"] = statistics.median(took)
            found[f"{name} round trip us, {way}, P99"] = took[int(len(took) * 0.99)]
        for name, (size, times) in ONE_WAY.items():
            rates = run(one_way, 2, size, times, spins)
            found[f"{name} GB/s, {way}"] = statistics.median(rates)
    for name, (size, times) in STEPS.items():
        steps = run(ring, seats, size, times, False)
        found[f"ring step of {seats}, {name} ms"] = statistics.median(steps)
    for pipe, process in zip(mine, processes, strict=True):
        pipe.send(None)
        process.join(10)
        process.kill()
    return found


def answer(pipe: Connection) -> Any:
    """What a process says, within the limit."""
    if not pipe.poll(LIMIT_S):
        raise TimeoutError(f"a process said nothing for {LIMIT_S:g} s")
    return pipe.recv()


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write what was asked for."""
    parser = OneLineParser(prog="python -m bench.micro.links", description=__doc__)
    parser.add_argument("--output", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, TCP], default=[*KINDS, TCP])
    parser.add_argument("--seats", type=int, default=4, help="processes of the ring")
    flags = parser.parse_args(arguments)
    try:
        check_file(flags.output, "--output")
    except OutputError as error:
        parser.error(str(error))
    found = {}
    for kind in flags.kinds:
        found[kind] = measure(kind, flags.seats)
        print(kind)
        for name, value in found[kind].items():
            print(f"  {name:40} {value:10.2f}", flush=True)
    if flags.output is not None:
        flags.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
