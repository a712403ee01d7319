"""``--cdsp-*`` flags that there are not, told in a line each with all other mistakes."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any

from sglang_cdsp.args import UNKNOWN_FLAGS

PREFIX = "--cdsp"


def keep_unknown_flags(parser: argparse.ArgumentParser) -> None:
    """Have ``parser`` leave complaints about our flags in its namespace, as ``UNKNOWN_FLAGS``.

    Left to itself it would print its usage, hundreds of flags, and stop at the first mistake.
    Our flags must be written out for that. Flags of others are left to the parser.
    """
    parse = parser.parse_known_args
    known = [
        flag
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith(PREFIX)
    ]

    def parse_known_args(
        args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        unknown, others = split(sys.argv[1:] if args is None else args, known)
        found, rest = parse(others, namespace)
        setattr(found, UNKNOWN_FLAGS, [complaint(flag, known) for flag in unknown])
        return found, rest

    parser.parse_known_args = parse_known_args  # type: ignore[assignment,method-assign]


def complaint(flag: str, known: Sequence[str]) -> str:
    """What is wrong with a flag that is not among ``known``, and what may have been meant."""
    near = difflib.get_close_matches(flag, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else "--help lists the flags"
    return f"there is no flag {flag}: {remedy}"


def split(words: Sequence[str], known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our flags that are not among ``known``, without their values, and all other words."""
    unknown: list[str] = []
    others: list[str] = []
    value_follows = False
    for word in words:
        flag, equals, _ = word.partition("=")
        if flag.startswith(PREFIX) and flag not in known:
            unknown.append(flag)
            value_follows = not equals
        elif value_follows and not word.startswith("-"):
            value_follows = False
        else:
            value_follows = False
            others.append(word)
    return unknown, others
