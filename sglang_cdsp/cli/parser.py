"""An argument parser whose errors are one line, and the lists that the commands read."""

from __future__ import annotations

import argparse
import math
from typing import NoReturn

MOST = 65536
"""Items in a list on the command line: more is a slip."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line without the usage; exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def numbers(text: str) -> tuple[float, ...]:
    """`0,0.31` or, with repetition, `0*8,0.31*8`; ArgumentTypeError names the bad item."""
    found: list[float] = []
    for position, item in enumerate(text.split(",")):
        value, star, times = item.partition("*")
        try:
            number, count = float(value), int(times) if star else 1
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"item {position} is {item!r}; give numbers like 0,0.31 or 0*8,0.31*8"
            ) from None
        if not math.isfinite(number) or count < 1:
            raise argparse.ArgumentTypeError(
                f"item {position} is {item!r}; numbers must be finite, repetitions at least 1"
            )
        if len(found) + count > MOST:
            raise argparse.ArgumentTypeError(f"more than {MOST} items")
        found += [number] * count
    return tuple(found)


def integers(text: str) -> tuple[int, ...]:
    """`1,2,4`, with repetition as in `numbers`; ArgumentTypeError names the bad item."""
    found = numbers(text)
    for position, number in enumerate(found):
        if number != int(number):
            raise argparse.ArgumentTypeError(
                f"item {position} is {number:g}; give integers like 1,2,4"
            )
    return tuple(int(number) for number in found)
