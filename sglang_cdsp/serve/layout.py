"""Which processes serve: a layout names them all, and whatever else is done follows from it.

``one_server`` is a pool that decodes what it prefills: a layout of one part, whose URL is the
layout's. ``prefill_and_decode`` is a pool that prefills for a stock decode server, with a router.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sglang_cdsp.form import Form
from sglang_cdsp.protocol.ports import free_ports
from sglang_cdsp.serve.asked import OURS, Asked, value_of
from sglang_cdsp.serve.devices import Machine
from sglang_cdsp.stack.commands import as_prefill, decode_command, router_command, server_command
from sglang_cdsp.stack.processes import Command
from sglang_cdsp.stack.running import Deployment
from sglang_cdsp.stack.shares import Shares, decode_first

CUDA_PAGE_SIZE = "64"
"""Tokens of a KV page on GPUs: a pool's own choice there, which decode has to share."""

LAUNCHER = "sglang.launch_server"


@dataclass(frozen=True)
class Part:
    """A process that serves.

    Attributes:
        command: starts it.
        url: that this machine reaches it by.
        does: what it is for, in a few words.
        copies: of the weights that it loads.
    """

    command: Command
    url: str
    does: str
    copies: int = 0

    @property
    def name(self) -> str:
        """The name of its process, and of its log."""
        return self.command.name

    @property
    def server_flags(self) -> tuple[str, ...]:
        """What SGLang's server reads of its command line; empty for what is no server of SGLang."""
        words = self.command.arguments
        return words[words.index(LAUNCHER) + 1 :] if LAUNCHER in words else ()

    @property
    def has_metrics(self) -> bool:
        """Whether it answers at ``/metrics``."""
        return "--enable-metrics" in self.server_flags


@dataclass(frozen=True)
class Layout:
    """All processes that serve together.

    Attributes:
        parts: in the order in which a request meets them.
        front: the part that clients ask.
        pool: the part that has the pool.
        notes: what a user should know of it, a line each.
    """

    parts: tuple[Part, ...]
    front: Part
    pool: Part
    notes: tuple[str, ...] = ()

    @property
    def copies(self) -> int:
        """Of the weights, in all."""
        return sum(part.copies for part in self.parts)

    def deployment(self) -> Deployment:
        """As the stack starts and ends it: what stands in front ends before what it asks."""
        return Deployment(
            tuple(part.command for part in self.parts),
            self.front.url,
            {part.name: part.url for part in self.parts},
            self.notes,
            () if self.front is self.pool else (self.front.name,),
        )


def one_server(asked: Asked, machine: Machine) -> Layout:
    """The pool as one server that prefills and decodes."""
    flags = (
        *("--tp-size", str(asked.tp_size), *asked.flags),
        *(OURS, "--dp-size", str(asked.instances), *asked.pool_flags),
    )
    command, url = server_command("pool", asked.model, iter((asked.port,)), flags, host=asked.host)
    does = f"prefills and decodes: {asked.instances} instances"
    pool = Part(_here(command), url, does, asked.instances)
    return Layout((pool,), pool, pool, tuple(_crowded(asked, machine)))


def prefill_and_decode(asked: Asked, machine: Machine) -> Layout:
    """The pool as a prefill server, a stock decode server, and SGLang's mini router in front."""
    ports = iter(free_ports(6))
    common = (*_common(asked, machine), *asked.flags)
    shares = Shares(None, None, 0, ()) if machine.gpus else decode_first()
    bootstrap_port = next(ports)
    pool_flags = as_prefill(
        bootstrap_port,
        (*common, OURS, "--dp-size", str(asked.instances), *asked.pool_flags),
    )
    pool, pool_url = server_command(
        "prefill", asked.model, ports, pool_flags, shares.prefill_cpus, nice=shares.prefill_nice
    )
    decode, decode_url = decode_command(
        asked.model,
        ports,
        (*common, *_decode_gpus(asked, machine), *asked.decode_flags),
        shares.decode_cpus,
    )
    router, url = router_command(
        "router",
        asked.port,
        ((pool_url, bootstrap_port),),
        decode_url,
        ("--mini-lb",),
        host=asked.host,
    )
    front = Part(_here(router), url, "takes requests: SGLang's mini router")
    does = f"prefills: {asked.instances} instances"
    prefill = Part(_here(pool), pool_url, does, asked.instances)
    behind = Part(_here(decode), decode_url, "decodes: stock SGLang", 1)
    notes = (*shares.notes, *_crowded(asked, machine))
    return Layout((front, prefill, behind), front, prefill, notes)


MakeLayout = Callable[[Asked, Machine], Layout]

LAYOUTS: Mapping[Form, MakeLayout] = {
    Form.ONE_SERVER: one_server,
    Form.PREFILL: prefill_and_decode,
}


def layout_of(asked: Asked, machine: Machine) -> Layout:
    """The layout that is asked for."""
    return LAYOUTS[asked.form](asked, machine)


def _here(command: Command) -> Command:
    """A command in this program's directory: files that its flags name are the user's."""
    return dataclasses.replace(command, directory=Path.cwd())


def _common(asked: Asked, machine: Machine) -> Iterator[str]:
    """What both servers are told alike, where it is left open."""
    yield from ("--tp-size", str(asked.tp_size))
    if machine.gpus and value_of(asked.flags, "--page-size") is None:
        yield from ("--page-size", CUDA_PAGE_SIZE)
    backend = "--disaggregation-transfer-backend"
    if value_of(asked.flags, backend) is None and importlib.util.find_spec("nixl") is not None:
        yield from (backend, "nixl")


def _crowded(asked: Asked, machine: Machine) -> Iterator[str]:
    """A note where ranks have to share cores."""
    ranks, cores = asked.instances * asked.tp_size, len(os.sched_getaffinity(0))
    if not machine.gpus and ranks > cores:
        yield (
            f"{ranks} ranks of the pool share {cores} cores, so that chunks on several instances "
            "are no faster: a --dp-size up to the number of cores is better"
        )


def _decode_gpus(asked: Asked, machine: Machine) -> tuple[str, ...]:
    """Decode's GPUs are those after the pool's."""
    if not machine.gpus:
        return ()
    return ("--base-gpu-id", str(asked.instances * asked.tp_size))
