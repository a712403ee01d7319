"""Runs a scenario of faults against real servers, and checks that only what was lost failed.

    python -m bench.servers.chaos --scenario FILE [--form one-server] [--seed N] [--out FILE]
                                  [--show]

A scenario is TOML: load, events, killer, checks; see ``bench/servers/chaos/scenarios`` and
``scenario.py``. A stock server answers all prompts first; then the pool does, with a decode server
and a router or, with ``--form one-server``, by itself, while the events happen. Exit status 1 if a
check does not hold.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.servers.chaos.checks import judge
from bench.servers.chaos.disk import why_none
from bench.servers.chaos.killer import resolved
from bench.servers.chaos.read import ScenarioError, read
from bench.servers.chaos.report import json_lines, table
from bench.servers.chaos.run import load_of, pool_of, questions_to, run, stock_answers
from bench.servers.chaos.scenario import Scenario
from bench.servers.flags import check
from bench.servers.progress import say
from bench.servers.storm_forms import FORMS
from sglang_cdsp.cli.parser import OneLineParser, integer
from sglang_cdsp.testing.checkpoint import write_checkpoint
from sglang_cdsp.testing.scratch import kept_on_failure


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the scenario, run it, report."""
    parser = OneLineParser(prog="python -m bench.servers.chaos", description=__doc__)
    parser.add_argument("--scenario", type=Path, required=True, metavar="FILE")
    parser.add_argument("--form", choices=FORMS, help="in place of the scenario's own")
    parser.add_argument("--seed", type=integer(0, 1 << 31), help="in place of the scenario's own")
    parser.add_argument("--out", type=Path, metavar="FILE", help="every fact, JSON lines")
    parser.add_argument(
        "--answers", type=Path, metavar="FILE", help="where stock's answers are kept for next time"
    )
    parser.add_argument("--show", action="store_true", help="print the events and start nothing")
    options = parser.parse_args(arguments)
    try:
        scenario = read(options.scenario, options.form)
    except ScenarioError as error:
        for line in error.lines:
            print(f"{parser.prog}: {line}", file=sys.stderr)
        sys.exit(2)
    if options.seed is not None:
        scenario = dataclasses.replace(scenario, seed=options.seed)
    events = resolved(scenario)
    if options.show:
        for event in events:
            print(f"{event.at_s:7.1f} s  {event.words}")
        return
    check(parser, options, files=("out", "answers"))
    if any(event.do == "full-disk" for event in events) and (reason := why_none()):
        parser.error(reason)
    sys.exit(0 if _passes(scenario, options.out, options.answers) else 1)


def _passes(scenario: Scenario, out: Path | None, answers: Path | None) -> bool:
    """Run a scenario and say how it went; whether everything holds."""
    with kept_on_failure("bench-chaos") as scratch:
        checkpoint = scratch / "checkpoint"
        write_checkpoint(checkpoint)
        load = load_of(scenario)
        say(f"{scenario.name}: seed {scenario.seed}, {len(load)} requests")
        references = stock_answers(checkpoint, questions_to(load), scratch / "stock", answers)
        with pool_of(scenario, checkpoint, scratch, say) as pool:
            facts = run(scenario, pool, references, say)
        verdicts = judge(facts, scenario.checks)
        if out is not None:
            out.write_text("\n".join(json_lines(scenario, facts, verdicts)) + "\n")
        print(table(scenario, facts, verdicts))
        passes = all(verdict.holds for verdict in verdicts)
        if not passes:
            kept = scratch.with_name(f"{scratch.name}-logs")
            (scratch / "servers").rename(kept)
            print(f"repeat with --seed {scenario.seed}; the servers' logs are in {kept}")
    return passes


if __name__ == "__main__":
    main()
