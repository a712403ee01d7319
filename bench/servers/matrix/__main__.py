"""Every way to die at every moment, with one and with two ranks an instance, on real servers.

    python -m bench.servers.matrix [--ways kill,stop] [--moments idle,layer] [--tp 1,2]
                                   [--out bench/results/matrix.json] [--again]

Cells run one after the other on one set of servers for each number of ranks; those of the first
start have servers of their own. A cell that is in the file already is not run again without
--again. The table is printed and written beside the file. Exit status 1 if a cell does not hold.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.servers.chaos.observed import References
from bench.servers.chaos.run import Say, pool_of, stock_answers
from bench.servers.chaos.scenario import Checks, Load, Scenario, Servers
from bench.servers.flags import check, some_of
from bench.servers.matrix.cells import MOMENTS, SIZES, WAYS, Cell, Results, cells, markdown
from bench.servers.matrix.starts import run_start
from bench.servers.matrix.trial import INSTANCES, questions, run_cell
from bench.servers.progress import say
from sglang_cdsp.cli.parser import OneLineParser
from sglang_cdsp.testing.checkpoint import write_checkpoint
from sglang_cdsp.testing.scratch import kept_on_failure

RESULTS = Path("bench/results/matrix.json")


def servers_of(tp: int) -> Scenario:
    """The servers of the cells of ``tp`` ranks, as a scenario without load and events."""
    servers = Servers(instances=INSTANCES[tp], tp=tp)
    return Scenario(f"matrix-{tp}", 0, servers, Load(), (), None, Checks())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cells, keep the results, print the table."""
    parser = OneLineParser(prog="python -m bench.servers.matrix", description=__doc__)
    sizes = [str(tp) for tp in SIZES]
    parser.add_argument("--ways", type=some_of(WAYS), default=tuple(WAYS))
    parser.add_argument("--moments", type=some_of(MOMENTS), default=tuple(MOMENTS))
    parser.add_argument("--tp", type=some_of(sizes), default=tuple(sizes))
    parser.add_argument("--out", type=Path, metavar="FILE", default=RESULTS)
    parser.add_argument(
        "--answers", type=Path, metavar="FILE", help="where stock's answers are kept for next time"
    )
    parser.add_argument("--again", action="store_true", help="run cells that are there already")
    options = parser.parse_args(arguments)
    check(parser, options, files=("out", "answers"))
    results = Results.load(options.out)
    wanted = [
        cell
        for cell in cells(options.ways, options.moments, map(int, options.tp))
        if options.again or cell not in results.by_cell
    ]
    say(f"{len(wanted)} cells to run")
    with kept_on_failure("bench-matrix") as scratch:
        checkpoint = scratch / "checkpoint"
        write_checkpoint(checkpoint)
        references = stock_answers(checkpoint, questions(), scratch / "stock", options.answers)
        for tp in dict.fromkeys(cell.tp for cell in wanted):
            of_size = [cell for cell in wanted if cell.tp == tp]
            results = _run(of_size, results, checkpoint, references, scratch, options.out)
    table = markdown(results.ordered())
    options.out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    print(table)
    sys.exit(1 if any(result.wrong for result in results.by_cell.values()) else 0)


def _run(
    wanted: Sequence[Cell],
    results: Results,
    checkpoint: Path,
    references: References,
    scratch: Path,
    out: Path,
    tell: Say = say,
) -> Results:
    """Run cells of one number of ranks, and keep each result as soon as it is there."""
    first = [cell for cell in wanted if cell.moment == "start"]
    others = [cell for cell in wanted if cell.moment != "start"]
    for cell in first:
        tell(f"{cell}")
        folder = scratch / f"start-{cell.tp}-{cell.way}"
        results = results.having(run_start(cell, checkpoint, folder, tell))
        results.save(out)
    if others:
        folder = scratch / f"pool-{others[0].tp}"
        folder.mkdir()
        with pool_of(servers_of(others[0].tp), checkpoint, folder, tell) as pool:
            for cell in others:
                tell(f"{cell}")
                result = run_cell(cell, pool, references, INSTANCES[cell.tp])
                tell(markdown([result]).splitlines()[-1])
                results = results.having(result)
                results.save(out)
    return results


if __name__ == "__main__":
    main()
