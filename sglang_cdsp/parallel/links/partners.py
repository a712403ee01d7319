"""Whom one process has links with, from the invitation on, and what is wrong with an invitation.

The same for every implementation of links; what belongs to an invited seat and to a partner is
theirs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, TypeVar

from sglang_cdsp.parallel.errors import LinkError

Invited = TypeVar("Invited")
Partner = TypeVar("Partner")


class Parties(NamedTuple):
    """Between whom an invitation is: ``receiver`` makes the area, ``sender`` writes to it."""

    receiver: int
    incarnation: int
    sender: int


class Partners(ABC, Generic[Invited, Partner]):
    """The base of links: seats that are invited, and those that have joined.

    A seat may be both: its next process is invited while the former one is still the partner.

    Attributes:
        seat, incarnation: as in ``types.Links``.
    """

    def __init__(self, seat: int, incarnation: int) -> None:
        self.seat, self.incarnation = seat, incarnation
        self._invited: dict[int, Invited] = {}
        self._partners: dict[int, Partner] = {}

    @abstractmethod
    def drop(self, seat: int) -> None:
        """As in ``types.Links``."""

    def close(self) -> None:
        """As in ``types.Links``."""
        for seat in {*self._partners, *self._invited}:
            self.drop(seat)

    def _partner(self, seat: int) -> Partner:
        """What belongs to a partner.

        Raises:
            LinkError: it has not joined.
        """
        partner = self._partners.get(seat)
        if partner is None:
            raise LinkError(f"instance {self.seat} has no link to instance {seat}: join it first")
        return partner

    def _require_invited(self, seat: int) -> None:
        """Check that this side has made its own area for a seat that is about to join.

        Raises:
            LinkError: it has not.
        """
        if seat not in self._invited:
            raise LinkError(f"instance {self.seat} has no area for instance {seat}: invite first")

    def _require_parties(self, found: Parties, seat: int, incarnation: int) -> None:
        """Check that an invitation comes from a process of ``seat`` and is for this one.

        Raises:
            LinkError: it is another's, or for another.
        """
        if found != (seat, incarnation, self.seat):
            raise LinkError(
                f"instance {self.seat} cannot use an invitation of {found.receiver}."
                f"{found.incarnation} to {found.sender} as one of {seat}.{incarnation}"
            )
