"""Roles of a pool's seats in one server: who takes chunks, and who decodes (Tetris, section 4).

By default every instance does both. Pure data: what a seat does differently by its role is decided
where plans and homes are made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sglang_cdsp.planner.errors import OptionError

FORM = "counts and letters like 6p2d: p for prefill, d for decode, b for both"


class Role(Enum):
    """What a seat does."""

    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"

    @property
    def prefills(self) -> bool:
        """Whether plans may use it."""
        return self is not Role.DECODE

    @property
    def decodes(self) -> bool:
        """Whether requests may be decoded there."""
        return self is not Role.PREFILL


_LETTERS = {role.value[0]: role for role in Role}
_RUNS = re.compile(r"(\d+)([pdb])")


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles of all seats, one per seat.

    At least one seat takes chunks and at least one decodes.
    """

    seats: tuple[Role, ...]

    def __post_init__(self) -> None:
        for what, able in (("prefills", self.prefill), ("decodes", self.decode)):
            if not able:
                raise OptionError(
                    f"the roles {self} leave no instance that {what}; give one of them another role"
                )

    @classmethod
    def all_both(cls, seats: int) -> Roles:
        """Every seat does both."""
        return cls((Role.BOTH,) * seats)

    @property
    def prefill(self) -> frozenset[int]:
        """Seats that plans may use."""
        return self._which(lambda role: role.prefills)

    @property
    def decode(self) -> frozenset[int]:
        """Seats at which requests may be decoded."""
        return self._which(lambda role: role.decodes)

    def _which(self, wanted: Callable[[Role], bool]) -> frozenset[int]:
        return frozenset(seat for seat, role in enumerate(self.seats) if wanted(role))

    def turned(self, changes: Mapping[int, Role]) -> Roles:
        """The roles with those of some seats changed.

        Raises:
            OptionError: nobody would prefill, or nobody decode.
        """
        return Roles(tuple(changes.get(seat, role) for seat, role in enumerate(self.seats)))

    def __str__(self) -> str:
        """In the flag's form: seats that follow each other and have one role in one run."""
        runs: list[tuple[int, Role]] = []
        for role in self.seats:
            count = runs.pop()[0] if runs and runs[-1][1] is role else 0
            runs.append((count + 1, role))
        return "".join(f"{count}{role.value[0]}" for count, role in runs)


def parse_roles(text: str) -> Roles:
    """Read ``6p2d``: the first six seats prefill, the two after them decode.

    Raises:
        OptionError: it has another form, or nobody would prefill, or nobody decode.
    """
    runs = _RUNS.findall(text)
    if not runs or "".join(count + letter for count, letter in runs) != text:
        raise OptionError(f"{text!r} has not the form of roles; write {FORM}")
    if any(int(count) > MOST_SEATS for count, _ in runs):
        raise OptionError(f"{text!r} has more seats than any pool; write {FORM}")
    return Roles(tuple(role for count, letter in runs for role in [_LETTERS[letter]] * int(count)))


MOST_SEATS = 4096
"""Seats that one run may name: a slip of the keyboard must not fill the memory."""


def roles_of(text: str, seats: int) -> Roles:
    """The roles of a pool of ``seats``, "" for the default.

    Raises:
        OptionError: the text has another form, or is for another number of seats.
    """
    if not text:
        return Roles.all_both(seats)
    roles = parse_roles(text)
    if len(roles.seats) != seats:
        raise OptionError(
            f"{text} gives roles to {len(roles.seats)} instances, the pool has {seats}; "
            "let the counts sum to --dp-size"
        )
    return roles


def read_roles(raw: Any, before: Roles) -> Roles:
    """The roles that an update asks for: a text like the flag's, or roles by seat.

    Args:
        raw: ``"3p1d"``, or ``{"3": "decode"}``, which leaves the other seats as they are.

    Raises:
        OptionError: it is refused; says what, and what can be asked.
    """
    seats = len(before.seats)
    if isinstance(raw, str):
        return roles_of(raw or "?", seats)
    if not isinstance(raw, dict) or not raw:
        raise OptionError(f'roles are {FORM}, or seats like {{"3": "decode"}}; got {raw!r}')
    return before.turned(dict(_read_seat(name, word, seats) for name, word in raw.items()))


def _read_seat(name: Any, word: Any, seats: int) -> tuple[int, Role]:
    if not (isinstance(name, str) and name.isascii() and name.isdigit() and int(name) < seats):
        raise OptionError(f'there is no seat {name!r}; write a number below {seats} as text: "0"')
    known: Iterable[str] = [role.value for role in Role]
    if word not in known:
        raise OptionError(f"seat {name} cannot be told {word!r}; say one of {', '.join(known)}")
    return int(name), Role(word)
