"""Reads a scenario from TOML, and says everything that is wrong with it, a line each."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from bench.servers.chaos.killer import HEAD_S, TAIL, most_faults
from bench.servers.chaos.scenario import (
    KINDS,
    MIX,
    STATES,
    Checks,
    Event,
    Killer,
    Load,
    Scenario,
    Servers,
    killer_kinds,
)
from bench.servers.storm_forms import FORMS
from sglang_cdsp.engine.fault_orders import MOMENTS

BACKENDS = ("nixl", "mooncake")
DRAWN = "drawn"
MOST_SECONDS = 86_400.0


class ScenarioError(ValueError):
    """A scenario cannot be run; ``lines`` has a sentence for each mistake."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = tuple(lines)
        super().__init__("\n".join(self.lines))


def read(path: Path, form: str | None = None) -> Scenario:
    """Read a file.

    Args:
        path: of it.
        form: of the pool, in place of the file's own.

    Raises:
        ScenarioError: it cannot be read, or a value does not fit.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError([f"{path}: {error}"]) from error
    return parse(text, name=path.stem, form=form)


def parse(text: str, *, name: str, form: str | None = None) -> Scenario:
    """Read TOML; ``name`` is the scenario's unless it has one. The rest as ``read``."""
    try:
        toml = importlib.import_module("tomllib")
    except ImportError:
        raise ScenarioError(["scenarios are TOML, which needs Python 3.11 or newer"]) from None
    try:
        data = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise ScenarioError([f"this is no TOML: {error}"]) from error
    problems: list[str] = []
    whole = _Table(data, "", problems)
    known = [field.name for field in fields(Scenario)]
    servers = _servers(whole.table("servers"), form)
    load = _load(whole.table("load"))
    events = [
        _event(table, servers, load, DRAWN) for table in whole.tables("events") if table is not None
    ]
    killer = _killer(whole.table("killer"), servers, load) if "killer" in data else None
    checks = _checks(whole.table("checks"), servers)
    scenario = Scenario(
        name=whole.text("name", name),
        seed=whole.integer("seed", 0, 0, 1 << 31),
        servers=servers,
        load=load,
        events=tuple(event for event in events if event is not None),
        killer=killer,
        checks=checks,
    )
    whole.only(known)
    if problems:
        raise ScenarioError(problems)
    return scenario


class _Table:
    """A table of TOML: gives values that fit, and notes those that do not."""

    def __init__(self, data: Any, path: str, problems: list[str]) -> None:
        self._path = path
        self._problems = problems
        self._data: Mapping[str, Any] = data if isinstance(data, dict) else {}
        if not isinstance(data, dict):
            problems.append(f"{path} is {data!r}; give a table, [{path}]")

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def name(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def wrong(self, key: str, remedy: str) -> None:
        self._problems.append(f"{self.name(key)} is {self._data.get(key)!r}; {remedy}")

    def only(self, known: Collection[str]) -> None:
        """Note what is not known here."""
        for key in self._data:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                self._problems.append(f"{self.name(key)}: there is no such key; {hint}")

    def table(self, key: str) -> _Table:
        return _Table(self._data.get(key, {}), self.name(key), self._problems)

    def tables(self, key: str) -> list[_Table]:
        value = self._data.get(key, [])
        if not isinstance(value, list):
            self.wrong(key, f"give a list of tables, [[{key}]]")
            return []
        return [
            _Table(item, f"{self.name(key)}[{index}]", self._problems)
            for index, item in enumerate(value)
        ]

    def number(self, key: str, default: float, least: float, most: float) -> float:
        value = self._data.get(key, default)
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not fits or not math.isfinite(value) or not least <= value <= most:
            self.wrong(key, f"give a number from {least:g} to {most:g}")
            return default
        return float(value)

    def integer(self, key: str, default: int, least: int, most: int) -> int:
        value = self._data.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.wrong(key, f"give an integer from {least} to {most}")
            return default
        return value

    def text(self, key: str, default: str, choices: Collection[str] = ()) -> str:
        value = self._data.get(key, default)
        if not isinstance(value, str) or not value or (choices and value not in choices):
            remedy = f"give one of {', '.join(choices)}" if choices else "give a text"
            self.wrong(key, remedy)
            return default
        return value

    def texts(
        self, key: str, default: tuple[str, ...], choices: Collection[str] = ()
    ) -> tuple[str, ...]:
        value = self._data.get(key, list(default))
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if not fits or (choices and not set(value) <= set(choices)):
            remedy = f"give some of {', '.join(choices)}" if choices else "give a list of texts"
            self.wrong(key, remedy)
            return default
        return tuple(value)

    def raw(self, key: str) -> Any:
        return self._data.get(key)


def _servers(table: _Table, form: str | None) -> Servers:
    table.only([field.name for field in fields(Servers)])
    own = table.text("form", FORMS[0], FORMS)
    found = Servers(
        form=form or own,
        instances=table.integer("instances", 4, 2, 16),
        tp=table.integer("tp", 1, 1, 8),
        backend=table.text("backend", "nixl", BACKENDS),
        flags=table.texts("flags", ()),
    )
    for flag in ("--dp-size", "--tp-size", "--cdsp-plan-log"):
        if flag in found.flags:
            table.wrong("flags", f"leave {flag} out: the scenario sets it")
    return found


def _load(table: _Table) -> Load:
    table.only([field.name for field in fields(Load)])
    plain = Load()
    mix = table.table("mix")
    mix.only(MIX)
    weights = {key: mix.number(key, 0.0, 0.0, 1000.0) for key in MIX}
    if "mix" in table and not any(weights.values()):
        table.wrong("mix", f"give a weight above 0 to one of {', '.join(MIX)}")
    return Load(
        seconds=table.number("seconds", plain.seconds, 1.0, MOST_SECONDS),
        rate=table.number("rate", plain.rate, 0.01, 1000.0),
        at_once=table.integer("at_once", plain.at_once, 1, 1024),
        mix=weights if any(weights.values()) else plain.mix,
        stream=table.number("stream", plain.stream, 0.0, 1.0),
        abort=table.number("abort", plain.abort, 0.0, 1.0),
        streamed_tokens=table.integer("streamed_tokens", plain.streamed_tokens, 1, 4096),
    )


def _event(table: _Table, servers: Servers, load: Load, drawn: str) -> Event | None:
    do = table.raw("do")
    if do not in KINDS:
        table.wrong("do", f"give one of {', '.join(KINDS)}")
        return None
    kind = KINDS[do]
    if kind.decode and servers.one:
        table.wrong("do", "one server has no decode server: leave the event out")
        return None
    table.only(["at_s", "do", *(["seat"] if kind.seat else []), *kind.fields])
    if "at_s" not in table:
        table.wrong("at_s", "say when, in seconds after the load's begin")
    seat = table.raw("seat")
    if kind.seat and seat != drawn:
        seat = table.integer("seat", -1, 0, servers.instances - 1)
    return Event(
        at_s=table.number("at_s", 0.0, 0.0, load.seconds),
        do=do,
        seat=seat if kind.seat and seat != drawn else None,
        rank=table.integer("rank", 0, 0, servers.tp - 1),
        state=table.text("state", "down" if do == "start" else "up", STATES),
        moment=table.text("moment", "turn", MOMENTS),
        for_s=table.number("for_s", 1.0, 0.01, MOST_SECONDS) if "for_s" in table else kind.lasts_s,
        delay_s=table.number("delay_s", 0.1, 0.0, 60.0),
    )


def _killer(table: _Table, servers: Servers, load: Load) -> Killer:
    table.only([field.name for field in fields(Killer)])
    able = killer_kinds(servers.form)
    kinds = tuple(dict.fromkeys(table.texts("kinds", able, able)))
    killer = Killer(table.integer("faults", max(12, len(kinds)), 1, 10_000), kinds)
    if not kinds:
        table.wrong("kinds", f"give some of {', '.join(able)}")
        return Killer(kinds=able)
    if killer.faults < len(kinds):
        table.wrong("faults", f"there are {len(kinds)} kinds and each comes once: give more")
    most = most_faults(killer, servers.instances)
    if most is not None and killer.faults > most:
        table.wrong(
            "faults",
            f"{servers.instances} seats die {most} times at most: give fewer, more instances, or "
            "a kind that costs no life",
        )
    if load.seconds * (1 - TAIL) <= HEAD_S:
        table.wrong("faults", f"load.seconds is {load.seconds:g}: give at least {HEAD_S * 2:g}")
    return killer


def _checks(table: _Table, servers: Servers) -> Checks:
    table.only([field.name for field in fields(Checks)])
    plain = Checks()
    down = table.raw("down") or []
    seats = range(servers.instances)
    if not isinstance(down, list) or any(seat not in seats for seat in down):
        table.wrong("down", f"give a list of seats from 0 to {servers.instances - 1}")
        down = []
    resumed = table.integer("resumed", plain.resumed, 0, 1_000_000)
    if resumed and not servers.one:
        table.wrong("resumed", 'only one server computes anew: set servers.form to "one-server"')
    return Checks(
        right=table.number("right", plain.right, 0.0, 1.0),
        error_within_s=table.number("error_within_s", plain.error_within_s, 0.1, 600.0),
        back_within_s=table.number("back_within_s", plain.back_within_s, 1.0, 3600.0),
        down=tuple(sorted(set(down))),
        resumed=resumed,
    )
