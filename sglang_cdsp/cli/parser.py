"""An argument parser whose errors are one line, and the values that the commands read."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NoReturn

from sglang_cdsp.planner.errors import OptionError
from sglang_cdsp.planner.policies.registry import find

MOST = 65536
"""Items in a list on the command line, and instances: more is a slip."""

MOST_TOKENS = 1 << 40
"""Tokens of any kind: more is a slip, and products of two would leave 64 bits."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line without the usage; exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def integer(least: int | None = None, most: int = MOST) -> Callable[[str], int]:
    """What reads an integer from `least` (None: as low as `-most`) to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"invalid int value: {shown(text)}") from None
        low = -most if least is None else least
        if not low <= value <= most:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not from {low} to {most}")
        return value

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """What reads a number from `least` to `most`, both included."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"invalid float value: {shown(text)}") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not from {least:g} to {most:g}")
        return value

    return read


def numbers(text: str) -> tuple[float, ...]:
    """`0,0.31` or, with repetition, `0*8,0.31*8`; ArgumentTypeError names the bad item."""
    found: list[float] = []
    for position, item in enumerate(text.split(",")):
        value, star, times = item.partition("*")
        try:
            number, count = float(value), int(times) if star else 1
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"item {position} is {shown(item)}; give numbers like 0,0.31 or 0*8,0.31*8"
            ) from None
        if not math.isfinite(number) or count < 1:
            raise argparse.ArgumentTypeError(
                f"item {position} is {shown(item)}; numbers must be finite, repetitions at least 1"
            )
        if len(found) + count > MOST:
            raise argparse.ArgumentTypeError(f"more than {MOST} items")
        found += [number] * count
    return tuple(found)


def integers(text: str) -> tuple[int, ...]:
    """`1,2,4`, with repetition as in `numbers`; ArgumentTypeError names the bad item."""
    found = numbers(text)
    for position, value in enumerate(found):
        if value != int(value) or abs(value) > MOST_TOKENS:
            raise argparse.ArgumentTypeError(
                f"item {position} is {value:g}; give integers like 1,2,4"
            )
    return tuple(int(value) for value in found)


def positive_integers(text: str) -> tuple[int, ...]:
    """`integers` of at least 1."""
    found = integers(text)
    for position, value in enumerate(found):
        if value < 1:
            raise argparse.ArgumentTypeError(f"item {position} is {value}; give at least 1")
    return found


def positive_numbers(text: str) -> tuple[float, ...]:
    """`numbers` above 0."""
    found = numbers(text)
    for position, value in enumerate(found):
        if value <= 0:
            raise argparse.ArgumentTypeError(f"item {position} is {value:g}; it must be above 0")
    return found


def improvement_rates(text: str) -> tuple[float, ...]:
    """`numbers` in [0, 1)."""
    found = numbers(text)
    for position, value in enumerate(found):
        if not 0 <= value < 1:
            raise argparse.ArgumentTypeError(f"item {position} is {value:g}; it is not in [0, 1)")
    return found


def policies(text: str) -> tuple[str, ...]:
    """`cdsp,fixed-sp:8`: policies by name, each once; ArgumentTypeError lists those there are."""
    return tuple(dict.fromkeys(map(policy, text.split(","))))


def policy(text: str) -> str:
    """A policy's name; ArgumentTypeError lists those there are."""
    try:
        find(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def shown(text: str) -> str:
    """A value as messages quote it: on one line, and not longer than one."""
    quoted = repr(text)
    return quoted if len(quoted) <= 60 else f"{quoted[:56]}...'"
