"""A scenario: servers, the load on them, what happens to them, and what must hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.servers.storm_forms import FORMS, ONE_SERVER

DEATHS_A_SEAT = 2
"""How often the killer ends one seat: at the third death within ten minutes it stays down."""


@dataclass(frozen=True)
class Kind:
    """What an event of one kind does, and what may be said of it.

    Attributes:
        about: for people.
        seat: whether it happens to a seat.
        deadly: whether it ends that seat's life, or may.
        fields: of ``Event``, beside ``at_s``, ``do`` and ``seat``.
        lasts_s: seconds, where ``for_s`` is left open; None for as long as nobody ends it.
        decode: whether it happens to the decode server, which one server has not.
    """

    about: str
    seat: bool = True
    deadly: bool = False
    fields: tuple[str, ...] = ()
    lasts_s: float | None = None
    decode: bool = False


KINDS: Mapping[str, Kind] = {
    "kill": Kind("SIGKILL to a rank", deadly=True, fields=("rank", "state", "moment")),
    "stop": Kind(
        "SIGSTOP to a rank, and SIGCONT after for_s seconds, if given",
        deadly=True,
        fields=("rank", "state", "moment", "for_s"),
    ),
    "continue": Kind("SIGCONT to a rank", fields=("rank",)),
    "exception": Kind(
        "an exception leaves the loop of a rank", deadly=True, fields=("rank", "state", "moment")
    ),
    "cuda": Kind(
        "a rank's device breaks, as torch tells it",
        deadly=True,
        fields=("rank", "state", "moment"),
    ),
    "watchdog": Kind(
        "a rank's loop stands still and its watchdog complains",
        deadly=True,
        fields=("rank", "state", "moment"),
    ),
    "slow-link": Kind(
        "blocks of a rank leave delay_s late, for for_s seconds",
        fields=("rank", "state", "delay_s", "for_s"),
        lasts_s=5.0,
    ),
    "full-disk": Kind(
        "the plan log's disk is full for for_s seconds",
        seat=False,
        fields=("for_s",),
        lasts_s=5.0,
    ),
    "decode-restart": Kind(
        "the decode server is killed, and started again after for_s seconds",
        seat=False,
        fields=("for_s",),
        lasts_s=1.0,
        decode=True,
    ),
    "drain": Kind("the seat is asked to leave", fields=("state",)),
    "start": Kind("the seat is asked to come back", fields=("state",)),
}

KILLER_KINDS = ("kill", "stop", "exception", "slow-link", "full-disk", "decode-restart")

MIX = ("short", "long", "shared", "grammar", "batch")
"""Kinds of requests: plain prompts, plans over several instances, answers after a grammar,
several prompts in one."""

STATES = ("up", "starting", "joining", "down", "any")
"""States of a seat that an event may wait for; ``any`` waits for none."""


def killer_kinds(form: str) -> tuple[str, ...]:
    """What the killer can draw for a pool of this form."""
    return tuple(do for do in KILLER_KINDS if form != ONE_SERVER or not KINDS[do].decode)


@dataclass(frozen=True)
class Servers:
    """What is started: a pool with a decode server and a router, or one server that decodes.

    Attributes:
        form: of the pool, see ``storm_forms.FORMS``.
        instances, tp: seats, and ranks of each.
        backend: SGLang's transfer backend; one server has none.
        flags: more of the pool's flags.
    """

    form: str = FORMS[0]
    instances: int = 4
    tp: int = 1
    backend: str = "nixl"
    flags: tuple[str, ...] = ()

    @property
    def one(self) -> bool:
        """Whether it is one server."""
        return self.form == ONE_SERVER


@dataclass(frozen=True)
class Load:
    """Requests at random times.

    Attributes:
        seconds: how long requests are sent.
        rate: requests a second.
        at_once: in flight at most; the next waits.
        mix: weight of each kind of ``MIX``.
        stream: share of requests that stream.
        abort: share of requests that their clients give up, half of them by closing a stream.
        streamed_tokens: of the answer to a request that streams, which is to be under way still
            when a seat dies.
    """

    seconds: float = 60.0
    rate: float = 2.0
    at_once: int = 8
    mix: Mapping[str, float] = field(
        default_factory=lambda: {"short": 6, "long": 1, "shared": 2, "grammar": 1, "batch": 1}
    )
    stream: float = 0.4
    abort: float = 0.1
    streamed_tokens: int = 24


@dataclass(frozen=True)
class Event:
    """Something that happens.

    Attributes:
        at_s: seconds after the load's begin, at the soonest.
        do: of ``KINDS``.
        seat: where, None for what has no seat or one that is yet to be drawn.
        rank: tensor-parallel rank.
        state: the seat's state that is waited for before.
        moment: of ``fault_orders.MOMENTS``; the fault hook waits for it. Signals of moment ``turn``
            come from outside, at once.
        for_s: how long it lasts, None for as long as nobody ends it.
        delay_s: of a slow link's blocks.
    """

    at_s: float
    do: str
    seat: int | None = None
    rank: int = 0
    state: str = "up"
    moment: str = "turn"
    for_s: float | None = None
    delay_s: float = 0.1

    @property
    def kind(self) -> Kind:
        """What events of this kind are."""
        return KINDS[self.do]

    @property
    def words(self) -> str:
        """The event for people."""
        where = f" seat {self.seat}" if self.kind.seat else ""
        rank = f" rank {self.rank}" if self.rank else ""
        when = f" at {self.moment}" if self.moment != "turn" else ""
        long = f" for {self.for_s:g} s" if self.for_s is not None else ""
        return f"{self.do}{where}{rank}{when}{long}"


@dataclass(frozen=True)
class Killer:
    """Events drawn by the scenario's seed, see ``killer.drawn``.

    Attributes:
        faults: how many.
        kinds: each of which comes at least once.
    """

    faults: int = 12
    kinds: tuple[str, ...] = KILLER_KINDS


@dataclass(frozen=True)
class Checks:
    """What must hold, beside what always must (see ``checks.py``).

    Attributes:
        right: least share of the requests whose answers are right, of those nobody gave up.
        error_within_s: from a death to the last error that it causes.
        back_within_s: from a death to the seat's next life taking part.
        down: seats that are to be down at the end, the others up.
        resumed: least number of right answers that were computed anew after a loss; above 0 only
            for one server.
    """

    right: float = 0.9
    error_within_s: float = 5.0
    back_within_s: float = 120.0
    down: tuple[int, ...] = ()
    resumed: int = 0


@dataclass(frozen=True)
class Scenario:
    """All of it.

    Attributes:
        name: for the report.
        seed: of load, drawn seats and killer.
    """

    name: str
    seed: int
    servers: Servers
    load: Load
    events: tuple[Event, ...]
    killer: Killer | None
    checks: Checks
