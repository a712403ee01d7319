"""Families of attention by forms of the pool by what a client may ask, on real servers.

    python -m bench.servers.families [--families deepseek-v3,gemma-3] [--forms prefill,one]
                                     [--cases 50] [--out bench/results/families.json]
                                     [--tp 1,2] [--again]

Each family and form has servers of its own, beside a stock one with the same checkpoint; the pool
is shaken. What is there already and holds is not tried again, but for ``--again``. The table is
printed and written beside the file. Exit status 1 if a cell does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from bench.servers.families.asking import FEATURES, PAGE, Asked
from bench.servers.flags import check
from sglang_cdsp.cli.parser import OneLineParser
from sglang_cdsp.engine.faults import SHAKE_VAR
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from sglang_cdsp.testing.family_checkpoints import RECIPES, write_family_checkpoint
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import (
    Deployment,
    disaggregated,
    one_server,
    running,
    single,
    together,
)

RESULTS = Path("bench/results/families.json")
CAPACITY = 8192
INSTANCES = {"1": 3, "2": 2}
"""Of a pool, by ranks of an instance; decode servers have as many ranks."""

FORMS = ("prefill", "one")


def say(line: str) -> None:
    """Progress, apart from the table."""
    print(line, file=sys.stderr, flush=True)


def some_of(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """What reads a list of names."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(",")))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return read


def plan_of(checkpoint: Path, family: str, form: str, tp: str) -> Deployment:
    """A pool of the form and a stock server, which has one rank."""
    common = (
        *("--context-length", "16384", "--page-size", str(PAGE), "--enable-custom-logit-processor"),
        *RECIPES[family].flags,
    )
    # Whatever is planned will do, and measuring the pool takes a minute.
    rows = tuple(
        (size, Coefficients(0.01, 1e-4 / size, 1e-8 / size, 1e-8 / size)) for size in (1, 3)
    )
    measured = checkpoint / "latency.json"
    LatencyModel(rows).save(measured)
    pool = (
        *("--cdsp-latency-model", str(measured)),
        *("--dp-size", str(INSTANCES[tp]), "--cdsp-allow-request-plans"),
        *("--max-total-tokens", str(CAPACITY), "--cdsp-stock-tokens", "64"),
    )
    stock = single(checkpoint, flags=common)
    ranks = (*common, "--tp-size", tp)
    if form == "one":
        return together(one_server(checkpoint, flags=(*ranks, *pool)), stock)
    return together(disaggregated(checkpoint, prefill_flags=("--cdsp", *pool), flags=ranks), stock)


@contextmanager
def asked_of(
    family: str, form: str, seed: int, cases: int, scratch: Path, tp: str = "1"
) -> Iterator[Asked]:
    """Start the servers of a family and a form."""
    checkpoint = write_family_checkpoint(scratch / family, family)
    plan = plan_of(checkpoint, family, form, tp)
    with running(plan, scratch / f"{family}-{form}-{tp}", progress=say) as s:
        info = s.urls["pool"] if form == "one" else s.urls["prefill"]
        kind = RECIPES[family].auto_class
        yield Asked(
            s.url, s.urls["single"], checkpoint, INSTANCES[tp], CAPACITY, seed, cases, kind, info
        )


def tried(asked: Asked, features: Sequence[str]) -> dict[str, str]:
    """What became of each feature: "ok", or the first line of what went wrong."""
    found = {}
    for name in features:
        try:
            FEATURES[name](asked)
            found[name] = "ok"
        except Exception as error:
            found[name] = (str(error).splitlines() or [repr(error)])[0][:200]
        say(f"  {name}: {found[name]}")
    return found


def markdown(results: dict[str, Any]) -> str:
    """The cells as a table."""
    lines = [
        "# Families by forms by features",
        "",
        "Each cell tried on real servers, the pool shaken, against a stock server with the same "
        "checkpoint; see `bench/servers/families`.",
        "",
        f"| family | form | {' | '.join(FEATURES)} | largest gap of a log-probability |",
        f"|{'---|' * (len(FEATURES) + 3)}",
    ]
    for key in sorted(results):
        row = results[key]
        cells = [row["features"].get(name, "-") for name in FEATURES]
        family, form = key.split("/")
        lines.append(f"| {family} | {form} | {' | '.join(cells)} | {row['worst']:.1e} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells, keep the results, print the table."""
    parser = OneLineParser(prog="python -m bench.servers.families", description=__doc__)
    parser.add_argument("--families", type=some_of(RECIPES), default=tuple(RECIPES))
    parser.add_argument("--forms", type=some_of(FORMS), default=FORMS)
    parser.add_argument("--tp", type=some_of(INSTANCES), default=("1",))
    parser.add_argument("--features", type=some_of(FEATURES), default=tuple(FEATURES))
    parser.add_argument("--cases", type=int, default=50, help="prompts with drawn plans")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, metavar="FILE", default=RESULTS)
    parser.add_argument("--again", action="store_true", help="try what is there already, too")
    options = parser.parse_args(arguments)
    check(parser, options, files=("out",))
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    os.environ.setdefault(SHAKE_VAR, str(options.seed))
    held = True
    with kept_on_failure("bench-families") as scratch:
        for family, form, tp in product(options.families, options.forms, options.tp):
            name = f"{family}/{form}" + (f", TP {tp}" if tp != "1" else "")
            known = results.get(name, {"features": {}})["features"]
            if not options.again and all(known.get(f) == "ok" for f in options.features):
                continue
            say(name)
            with asked_of(family, form, options.seed, options.cases, scratch, tp) as asked:
                features = tried(asked, options.features)
                results[name] = {
                    "features": {**known, **features},
                    "worst": asked.worst,
                    **asked.notes,
                    "cases": options.cases,
                    "seed": options.seed,
                    "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                }
            held = held and set(features.values()) <= {"ok"}
            options.out.write_text(json.dumps(results, indent=1) + "\n")
            options.out.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
