"""All policies by name: one entry each, and what is derived from the entries.

Help texts, checks and the table in the documentation come from here, so a policy is added by its
class and its entry. Entries name their factory, and only `make_policy` imports it: the command
line of every server reads the names, and must not load compiled code for them. Policies from
outside of the package have no entry here: the user names their class (`outside`).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from sglang_cdsp.planner.errors import OptionError
from sglang_cdsp.planner.policies import outside
from sglang_cdsp.planner.policies.base import Policy
from sglang_cdsp.planner.policies.options import PolicyOptions


class Argument(Enum):
    """The kind of a policy's argument: its letter in help texts, and what the number means."""

    SP_SIZE = ("K", "SP size")
    TOKENS = ("N", "uncached tokens")

    @property
    def letter(self) -> str:
        """What stands for the number in help texts."""
        return self.value[0]

    @property
    def meaning(self) -> str:
        """What the number is."""
        return self.value[1]


class Origin(Enum):
    """The origin of a policy."""

    OURS = "ours"
    PAPER = "Tetris"
    RIVAL = "rival"
    OUTSIDE = "outside"


@dataclass(frozen=True, slots=True)
class Entry:
    """One policy.

    Attributes:
        name: what `--cdsp-policy` selects, without the argument.
        factory: "module:attribute" of what makes it, called with the PolicyOptions and, where
            there is an argument, with that positive integer; "" for a policy from outside, which
            its name leads to.
        does: what it does, in one line.
        origin: whose it is.
        argument: of what kind; None for policies without.
        regulated: whether the improvement rate means anything to it.
        own_sizes: SP sizes that it uses whatever the candidates are, from its argument and the
            number of instances.
    """

    name: str
    factory: str
    does: str
    origin: Origin
    argument: Argument | None = None
    regulated: bool = False
    own_sizes: Callable[[int, int], tuple[int, ...]] = lambda argument, instances: ()

    @property
    def usage(self) -> str:
        """The name as help texts show it: with the argument's letter, if there is one."""
        return f"{self.name}:{self.argument.letter}" if self.argument else self.name


_HERE = "sglang_cdsp.planner.policies"

POLICIES = (
    Entry(
        "cdsp",
        f"{_HERE}.chunkwise:Cdsp",
        "chunks over growing groups of the whole pool, each growth paid for",
        Origin.OURS,
        regulated=True,
    ),
    Entry(
        "cdsp-paper",
        f"{_HERE}.chunkwise:CdspPaper",
        "Algorithms 1 to 3: chunks inside the group that Algorithm 2 chose",
        Origin.PAPER,
        regulated=True,
    ),
    Entry(
        "cdsp-late",
        f"{_HERE}.late:CdspLate",
        "prompts wait unbound, short ones first within a bound; plans by price at the start",
        Origin.OURS,
        regulated=True,
    ),
    Entry(
        "single-chunk",
        f"{_HERE}.chunkwise:SingleChunk",
        "Algorithm 2 alone: one chunk on the group that the improvement rate allows",
        Origin.PAPER,
        regulated=True,
    ),
    Entry(
        "fixed-sp",
        f"{_HERE}.rivals:FixedSP",
        "the pool cut into groups of K once; least queue",
        Origin.RIVAL,
        Argument.SP_SIZE,
        own_sizes=lambda size, instances: (size,),
    ),
    Entry(
        "loongserve",
        f"{_HERE}.rivals:LoongServe",
        "the largest useful group of idle instances, one request at a time; waits for one",
        Origin.RIVAL,
    ),
    Entry(
        "threshold",
        f"{_HERE}.rivals:Threshold",
        "one instance (least queue) below N uncached tokens, every instance that is up above",
        Origin.RIVAL,
        Argument.TOKENS,
        own_sizes=lambda tokens, instances: (1, instances),
    ),
    Entry(
        "data-parallel",
        f"{_HERE}.rivals:DataParallel",
        "one instance, least queue",
        Origin.RIVAL,
        own_sizes=lambda none, instances: (1,),
    ),
    Entry(
        "cache-aware",
        f"{_HERE}.rivals:CacheAware",
        "one instance, least queue and prefill of what it has not cached",
        Origin.RIVAL,
        own_sizes=lambda none, instances: (1,),
    ),
)

DEFAULT_POLICY = "cdsp-late"
"""The policy where no user named one: of the server, and of the commands that plan as it does."""

POLICY_NAMES = tuple(entry.usage for entry in POLICIES)
"""What `--cdsp-policy` accepts; the letters stand for positive integers."""

REGULATED_NAMES = tuple(entry.usage for entry in POLICIES if entry.regulated)
"""Those that have an improvement rate."""

POLICY_HELP = (
    f"{', '.join(POLICY_NAMES)}; "
    + ", ".join(f"{argument.letter}: {argument.meaning}" for argument in Argument)
    + f"; or one of your own as {' or '.join(outside.FORMS)}"
)
"""The names and what the letters mean, for the help of options that take a policy."""


def find(name: str) -> tuple[Entry, int | None]:
    """The entry of a policy's name as users write it, and its argument.

    A policy from outside is imported, and gets an entry from its class.

    Raises:
        OptionError: no policy has the name (the error lists the names there are), its argument
            is missing or not a positive integer, or it is from outside and cannot be had.
    """
    kind, colon, argument = name.partition(":")
    for entry in POLICIES:
        if entry.name == kind and (entry.argument is not None) == bool(colon):
            return entry, _positive(argument, name) if colon else None
    if outside.is_outside(name) and all(entry.name != kind for entry in POLICIES):
        found = outside.load(name)
        does = (found.__doc__ or "").strip().partition("\n")[0]
        return Entry(name, "", does, Origin.OUTSIDE, regulated=found.regulated), None
    raise OptionError(
        f"unknown policy {name!r}; choose one of {', '.join(POLICY_NAMES)}, or name your own as "
        f"{' or '.join(outside.FORMS)}"
    )


def needed_sizes(name: str, instances: int) -> tuple[int, ...]:
    """The SP sizes that a policy needs beside the candidates, in a pool of that many instances.

    Raises:
        OptionError: the name is unknown, or its argument wrong; see `find`.
    """
    entry, argument = find(name)
    return entry.own_sizes(argument or 0, instances)


def make_policy(name: str, options: PolicyOptions) -> Policy:
    """The policy of that name: the only way the rest of the package creates one.

    A policy from outside bears the name that the user gave it.

    Raises:
        OptionError: the name is unknown, or its argument wrong; see `find`.
        PlannerError: the policy cannot do with the options; names the remedy.
    """
    entry, argument = find(name)
    if entry.origin is Origin.OUTSIDE:
        policy = outside.load(name)(options)  # type: ignore[call-arg]
        policy.name = name
        return policy
    factory: Callable[..., Policy] = pkgutil.resolve_name(entry.factory)
    return factory(options) if argument is None else factory(options, argument)


def policy_table() -> str:
    """The policies as a Markdown table, for the documentation."""
    lines = ["| name | from | improvement rate | what it does |", "|---|---|---|---|"]
    lines += [
        f"| `{entry.usage}` | {entry.origin.value} | {'yes' if entry.regulated else '-'} "
        f"| {entry.does} |"
        for entry in POLICIES
    ]
    return "\n".join(lines) + "\n"


def _positive(text: str, policy: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise OptionError(f"policy {policy!r}: give a positive integer after the colon")
    return int(text)
