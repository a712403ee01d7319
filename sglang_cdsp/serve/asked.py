"""What `serve` is asked for, and whose each further flag is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_cdsp.args import add_cli_args

OURS = "--cdsp"
"""What the pool's own flags begin with."""

CHOSEN = {
    "--cdsp": "serve gives it itself; remove it",
    "--disaggregation-mode": "serve starts both sides; remove it",
    "--disaggregation-bootstrap-port": "serve chooses a free port; remove it",
    "--base-gpu-id": "serve gives the pool the first GPUs and decode the next; remove it, and name "
    "GPUs with CUDA_VISIBLE_DEVICES",
    "--nccl-port": "serve chooses a free port; remove it",
    "--dist-init-addr": "serve runs on this machine; remove it",
    "--nnodes": "serve runs on this machine; remove it",
    "--config": "give the flags themselves, since serve has to read them",
    "--api-key": "SGLang's mini router passes no keys on; put a proxy that asks for the key in "
    "front, or start the parts by hand with the Rust router (docs/install.md)",
    "--ssl-keyfile": "the router speaks plain HTTP; put a proxy in front",
    "--ssl-certfile": "the router speaks plain HTTP; put a proxy in front",
}
"""Flags of SGLang's that `serve` cannot hand on, and what to do instead."""


@dataclass(frozen=True)
class Asked:
    """What `serve` is asked for.

    Attributes:
        model: a folder, or the model's name on a hub.
        instances: of the pool.
        tp_size: ranks of an instance, and of decode.
        host, port: where clients ask.
        pool_flags: of the pool alone.
        flags: of every server.
        decode_flags: of decode alone.
    """

    model: Path | str
    instances: int
    tp_size: int = 1
    host: str = "127.0.0.1"
    port: int = 30_000
    pool_flags: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    decode_flags: tuple[str, ...] = ()


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


def refused(words: Sequence[str]) -> list[str]:
    """What `serve` cannot hand on, one line each with the remedy."""
    flags = dict.fromkeys(word.partition("=")[0] for word in words)
    return [f"{flag}: {CHOSEN[flag]}" for flag in flags if flag in CHOSEN]


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
