"""The seats of a running pool: what the server says of them, and their processes."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import requests

from bench.servers.chaos.record import Death, Seat
from sglang_cdsp.stack.processes import ServerProcess
from sglang_cdsp.testing.stack import RunningStack

LOOK_EVERY_S = 0.25
ANSWER_WITHIN_S = 10.0
_TITLE = re.compile(r"sglang::scheduler(?P<parts>(_[A-Z]+\d+)*)")
_PART = re.compile(r"_([A-Z]+)(\d+)")


@dataclass(frozen=True)
class Seen:
    """A seat at a time on the wall clock, when it was first seen so."""

    at_s: float
    seat: Seat


def status_of(url: str) -> list[dict[str, Any]]:
    """What ``/cdsp/status`` says of the seats; [] where it says nothing.

    Raises:
        requests.RequestException: no answer.
    """
    answer = requests.get(f"{url}/cdsp/status", timeout=ANSWER_WITHIN_S)
    answer.raise_for_status()
    return list(answer.json().get("seats", []))


def seats_of(status: Iterable[Mapping[str, Any]]) -> tuple[Seat, ...]:
    """The seats of a status, in order."""
    return tuple(
        Seat(
            int(entry["seat"]),
            str(entry["state"]),
            int(entry["incarnation"]),
            str(entry.get("reason") or ""),
        )
        for entry in sorted(status, key=lambda entry: int(entry["seat"]))
    )


def deaths_of(
    status: Iterable[Mapping[str, Any]], history: Sequence[Seen], *, since_s: float
) -> tuple[Death, ...]:
    """The deaths that a status tells of, with the time at which the next life took part.

    Those before ``since_s``, on the wall clock, are left out.
    """
    found = []
    for entry in status:
        seat = int(entry["seat"])
        for death in entry.get("deaths", []):
            at_s = float(death["at"])
            if at_s < since_s:
                continue
            up = (
                seen.at_s
                for seen in history
                if seen.seat.seat == seat and seen.seat.state == "up" and seen.at_s > at_s
            )
            cause = ": ".join(str(death[key]) for key in ("cause", "words") if death.get(key))
            found.append(Death(seat, at_s, cause, next(up, None)))
    return tuple(sorted(found, key=lambda death: death.at_s))


class SeatWatch:
    """Looks at the seats again and again, in a thread of its own, while the block lasts."""

    def __init__(self, url: str) -> None:
        """``url``: of the prefill server."""
        self._url = url
        self._over = threading.Event()
        self._changed = threading.Condition()
        self._history: list[Seen] = []
        self._now: dict[int, Seat] = {}
        self._status: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._watch, daemon=True, name="seat-watch")

    def __enter__(self) -> SeatWatch:
        self._thread.start()
        return self

    def __exit__(self, *rest: object) -> None:
        self._over.set()
        self._thread.join(ANSWER_WITHIN_S + 1)

    @property
    def history(self) -> tuple[Seen, ...]:
        """All changes so far, in order."""
        with self._changed:
            return tuple(self._history)

    @property
    def seats(self) -> dict[int, Seat]:
        """The seats as they were seen last."""
        with self._changed:
            return dict(self._now)

    @property
    def status(self) -> list[dict[str, Any]]:
        """The whole last status of the seats."""
        with self._changed:
            return list(self._status)

    def wait(self, states: Mapping[int, str], timeout_s: float) -> bool:
        """Wait until seats are in these states; False if they are not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._are(states), timeout_s)

    def _are(self, states: Mapping[int, str]) -> bool:
        return all(
            seat in self._now and self._now[seat].state == state for seat, state in states.items()
        )

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            try:
                status = status_of(self._url)
            except (requests.RequestException, ValueError):
                continue  # a server that does not answer shows in what it does not say
            self._take(status, time.time())

    def _take(self, status: list[dict[str, Any]], now_s: float) -> None:
        with self._changed:
            self._status = status
            for seat in seats_of(status):
                if self._now.get(seat.seat) != seat:
                    self._now[seat.seat] = seat
                    self._history.append(Seen(now_s, seat))
            self._changed.notify_all()


def ranks_of(server: ServerProcess) -> dict[tuple[int, int], int]:
    """Process ids of a pool's schedulers by seat and tensor-parallel rank."""
    found: dict[tuple[int, int], int] = {}
    for pid in server.members():
        try:
            title = " ".join(psutil.Process(pid).cmdline())
        except psutil.Error:
            continue
        place = place_of(title)
        if place is not None:
            found[place] = pid
    return found


def place_of(title: str) -> tuple[int, int] | None:
    """Seat and rank of a scheduler by the title that SGLang gives its process, else None."""
    match = _TITLE.match(title)
    if match is None:
        return None
    parts = dict(_PART.findall(match["parts"]))
    return int(parts.get("DP", 0)), int(parts.get("TP", 0))


def free_slots(stack: RunningStack) -> dict[int, int]:
    """Free KV slots of every seat that answers for itself."""
    info = requests.get(f"{stack.urls['prefill']}/server_info", timeout=30).json()
    found = {}
    for state in info["internal_states"]:
        own = state.get("cdsp") or {}
        if "links" in own and "free_tokens" in own:
            found[int(own["links"]["instance"])] = int(own["free_tokens"])
    return found


def decode_used(stack: RunningStack) -> int:
    """KV slots in use on the decode server."""
    loads = requests.get(f"{stack.urls['decode']}/v1/loads", timeout=30).json()["loads"]
    return sum(int(load["num_used_tokens"]) for load in loads)
