"""Families of attention by forms of the pool by what a client may ask, on real servers.

    python -m bench.servers.families [--families deepseek-v3,gemma-3] [--forms prefill,one]
                                     [--cases 50] [--out bench/results/families.json]
                                     [--answers FOLDER] [--tp 1,2,2:1] [--again]

Each family and form has servers of its own; the pool is shaken. What is there already and holds is
not tried again, but for ``--again``; each feature's result is kept as soon as it is there. A stock
server with the same checkpoint is started where its answers are not in the folder. The table is
printed and written beside the file. ``--tp 2:1`` means instances of two ranks before decode servers
of one. Exit status 1 if a cell does not hold.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from pathlib import Path

from bench.servers.families.asking import FEATURES, PAGE, Asked, NothingThereError
from bench.servers.families.results import HELD, NOTHING_THERE, Results, Row, markdown
from bench.servers.families.stock import Stock
from bench.servers.flags import check, some_of
from bench.servers.progress import say
from sglang_cdsp.cli.parser import OneLineParser, integer
from sglang_cdsp.engine.faults import SHAKE_VAR
from sglang_cdsp.planner.latency import Coefficients, LatencyModel
from sglang_cdsp.testing.checkpoint import COMPLETE
from sglang_cdsp.testing.family_checkpoints import RECIPES, write_family_checkpoint
from sglang_cdsp.testing.scratch import kept_on_failure
from sglang_cdsp.testing.stack import Deployment, disaggregated, one_server, running, single

RESULTS = Path("bench/results/families.json")
CAPACITY = 8192
INSTANCES = {"1": 3, "2": 2, "2:1": 2, "1:2": 2}
"""Of a pool, by ranks of an instance and, where they differ, of decode servers."""

FORMS = ("prefill", "one")


def flags_of(family: str) -> tuple[str, ...]:
    """Flags of every server of a family."""
    common = ("--context-length", "16384", "--page-size", str(PAGE))
    return (*common, "--enable-custom-logit-processor", *RECIPES[family].flags)


def pool_of(checkpoint: Path, family: str, form: str, tp: str) -> Deployment:
    """A pool of the form."""
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
    ranks, _, of_decode = tp.partition(":")
    common, ranks_here = flags_of(family), ("--tp-size", ranks)
    if form == "one":
        return one_server(checkpoint, flags=(*common, *ranks_here, *pool))
    return disaggregated(
        checkpoint,
        prefill_flags=("--cdsp", *pool, *ranks_here),
        decode_flags=("--tp-size", of_decode or ranks),
        flags=common,
    )


@contextmanager
def asked_of(
    family: str,
    form: str,
    seed: int,
    cases: int,
    scratch: Path,
    tp: str = "1",
    answers: Path | None = None,
) -> Iterator[Asked]:
    """Start the servers of a family and a form.

    Args:
        seed, cases: see ``Asked``.
        scratch: for checkpoint and logs.
        tp: ranks of an instance, a key of ``INSTANCES``.
        answers: folder where stock's answers are kept; None for ``scratch``.
    """
    checkpoint = write_family_checkpoint(scratch / family, family)
    logs = scratch / f"{family}-{form}-{tp.replace(':', '-')}"

    @contextmanager
    def stock() -> Iterator[str]:
        plan = single(checkpoint, flags=flags_of(family))
        with running(plan, logs / "stock", progress=say) as started:
            yield started.url

    kept = (answers or scratch) / f"{family}.json"
    identity = f"{version('sglang')} {(checkpoint / COMPLETE).read_text(encoding='utf-8')}"
    with (
        running(pool_of(checkpoint, family, form, tp), logs, progress=say) as started,
        Stock(stock, kept, identity) as stocks,
    ):
        info = started.urls["pool"] if form == "one" else started.urls["prefill"]
        kind = RECIPES[family].loaded_by
        yield Asked(
            started.url, stocks, checkpoint, INSTANCES[tp], CAPACITY, seed, cases, kind, info
        )


def tried(asked: Asked, name: str) -> str:
    """What became of a feature."""
    try:
        FEATURES[name](asked)
    except NothingThereError:
        return NOTHING_THERE
    except Exception as error:
        return (str(error).splitlines() or [repr(error)])[0][:200]
    return HELD


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells, keep the results, print the table."""
    parser = OneLineParser(prog="python -m bench.servers.families", description=__doc__)
    parser.add_argument("--families", type=some_of(RECIPES), default=tuple(RECIPES))
    parser.add_argument("--forms", type=some_of(FORMS), default=FORMS)
    parser.add_argument("--tp", type=some_of(INSTANCES), default=("1",))
    parser.add_argument("--features", type=some_of(FEATURES), default=tuple(FEATURES))
    parser.add_argument("--cases", type=integer(1), default=50, help="prompts with drawn plans")
    parser.add_argument("--seed", type=integer(0, 1 << 31), default=1)
    parser.add_argument("--out", type=Path, metavar="FILE", default=RESULTS)
    parser.add_argument(
        "--answers", type=Path, metavar="FOLDER", help="where stock's answers are kept"
    )
    parser.add_argument("--again", action="store_true", help="try what is there already, too")
    options = parser.parse_args(arguments)
    check(parser, options, files=("out",), folders=("answers",))
    results = Results.load(options.out)
    os.environ.setdefault(SHAKE_VAR, str(options.seed))
    # SGLang compiles an activation here and there, which takes every process many seconds.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    names = []
    with kept_on_failure("bench-families") as scratch:
        for family, form, tp in product(options.families, options.forms, options.tp):
            name = f"{family}/{form}" + (f", TP {tp}" if tp != "1" else "")
            names.append(name)
            row = Row() if options.again else results.row(name)
            if row.holds(options.features):
                continue
            say(name)
            with asked_of(
                family, form, options.seed, options.cases, scratch, tp, options.answers
            ) as asked:
                for grown in _rows(asked, row, options.features):
                    results = results.having(name, grown)
                    results.save(options.out, tuple(FEATURES))
    print(markdown(results, tuple(FEATURES)))
    return 0 if all(results.row(name).holds(options.features) for name in names) else 1


def _rows(asked: Asked, row: Row, features: Sequence[str]) -> Iterator[Row]:
    """The row with one more feature each time; the last feature looks at what all others left."""
    asked = replace(asked, worst=row.worst, notes=dict(row.notes))
    made = {"seed": asked.seed, "sglang": version("sglang")}
    last = list(FEATURES)[-1]
    for name in [name for name in features if name == last or not row.holds([name])]:
        became = tried(asked, name)
        say(f"  {name}: {became}")
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        row = row.having(name, became, asked.worst, {**asked.notes, **made, "at": at})
        yield row


if __name__ == "__main__":
    sys.exit(main())
