"""What `serve` is asked for, and whose each further flag is."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_cdsp.args import add_cli_args
from sglang_cdsp.form import Form

OURS = "--cdsp"
"""What the pool's own flags begin with."""

FORMS: Mapping[str, Form] = {"one-server": Form.ONE_SERVER, "scale-out": Form.PREFILL}
"""The two forms by the names that people give them."""

CHOSEN: Mapping[str, str] = {
    "--cdsp": "serve gives it itself; remove it",
    "--disaggregation-mode": "serve gives it itself; remove it, and give --form scale-out for a "
    "pool that prefills for a decode server",
    "--disaggregation-bootstrap-port": "serve chooses a free port; remove it",
    "--base-gpu-id": "serve takes the first GPUs; remove it, and name others with "
    "CUDA_VISIBLE_DEVICES",
    "--nccl-port": "serve chooses a free port; remove it",
    "--dist-init-addr": "serve runs on this machine; remove it",
    "--nnodes": "serve runs on this machine; remove it",
    "--config": "give the flags themselves, since serve has to read them",
    "--ssl-keyfile": "serve speaks plain HTTP; put a proxy in front",
    "--ssl-certfile": "serve speaks plain HTTP; put a proxy in front",
}
"""Flags of SGLang's that `serve` cannot hand on, and what to do instead."""

CHOSEN_BEHIND_A_ROUTER: Mapping[str, str] = {
    "--api-key": "SGLang's mini router passes no keys on; put a proxy that asks for the key in "
    "front, or start the parts by hand with the Rust router (docs/install.md)",
}
"""The same, of servers behind a router."""


@dataclass(frozen=True)
class Asked:
    """What `serve` is asked for.

    Attributes:
        model: a folder, or the model's name on a hub.
        instances: of the pool.
        tp_size: ranks of an instance, and of a decode server.
        host, port: where clients ask.
        pool_flags: of the pool alone.
        flags: of every server.
        decode_flags: of the decode server alone, where there is one.
        form: one server, or a pool that prefills for a decode server.
    """

    model: Path | str
    instances: int
    tp_size: int = 1
    host: str = "127.0.0.1"
    port: int = 30_000
    pool_flags: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    decode_flags: tuple[str, ...] = ()
    form: Form = Form.ONE_SERVER


@dataclass(frozen=True)
class Sorted:
    """Further flags by whose they are.

    Attributes:
        pool: the pool's own.
        servers: of every server.
    """

    pool: tuple[str, ...]
    servers: tuple[str, ...]


def sort_flags(words: Sequence[str]) -> Sorted:
    """Tell the pool's own flags, with their values, from those of every server, in their order."""
    switches = _switches()
    pool: list[str] = []
    servers: list[str] = []
    into, value_may_follow = servers, True
    for word in words:
        flag, equals, _ = word.partition("=")
        if word.startswith("--"):
            ours = flag == OURS or flag.startswith(f"{OURS}-")
            into, value_may_follow = pool if ours else servers, not ours or not equals
            value_may_follow = value_may_follow and flag not in switches
            into.append(word)
        else:
            # A value that belongs to none of our flags is left to SGLang's parser to refuse.
            (into if value_may_follow else servers).append(word)
            value_may_follow = into is servers
    return Sorted(tuple(pool), tuple(servers))


def refused(words: Sequence[str], form: Form) -> list[str]:
    """What `serve` cannot hand on, one line each with the remedy."""
    chosen = CHOSEN if form is Form.ONE_SERVER else {**CHOSEN, **CHOSEN_BEHIND_A_ROUTER}
    flags = dict.fromkeys(word.partition("=")[0] for word in words)
    return [f"{flag}: {chosen[flag]}" for flag in flags if flag in chosen]


def value_of(words: Sequence[str], flag: str) -> str | None:
    """The last value that ``words`` give a flag, as ``--flag value`` or ``--flag=value``."""
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name == flag:
            found = value if equals else following
    return found


def _switches() -> frozenset[str]:
    """The pool's flags that take no value."""
    parser = argparse.ArgumentParser(add_help=False)
    add_cli_args(parser)
    return frozenset(
        flag for action in parser._actions if action.nargs == 0 for flag in action.option_strings
    )
