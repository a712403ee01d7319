"""What `serve` shows: how far each part has come, and one panel once all is up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sglang_cdsp.serve.asked import value_of
from sglang_cdsp.serve.layout import Layout
from sglang_cdsp.stack.running import READY

PROMPT = "The import statement"


@dataclass(frozen=True)
class Seen:
    """What a pool that is up shows of itself.

    Attributes:
        status: what it answers at ``/cdsp/status``; {} if it does not.
        page: whether it has a page for browsers at ``/cdsp``.
    """

    status: Mapping[str, Any] = field(default_factory=dict)
    page: bool = False


def progress_table(layout: Layout, stages: Mapping[str, str], elapsed_s: float) -> Table:
    """A row a part: its name, what it is for, and how far it has come."""
    table = Table.grid(padding=(0, 2))
    for part in layout.parts:
        stage = stages.get(part.name, "starting")
        style = "green" if stage == READY else "yellow"
        table.add_row(part.name, Text(part.does, style="dim"), Text(stage, style=style))
    table.add_row("", Text(f"{elapsed_s:.0f} s", style="dim"), "")
    return table


def rows(layout: Layout, seen: Seen, logs: Path, tp_size: int) -> list[tuple[str, str]]:
    """The panel's rows, name and text."""
    found = [("server", f"{layout.front.url}  (OpenAI's API under /v1)")]
    status = seen.status
    if status:
        regulation = status.get("regulation", {})
        sizes = ", ".join(map(str, regulation.get("sp_size_candidates", ())))
        candidates = f", SP sizes {sizes}" if sizes else ""
        found.append(("policy", f"{status.get('policy')}{candidates}"))
        found.append(("instances", _instances(status.get("pool", {}), tp_size)))
        # Where decode is another server's, all instances do the same.
        if layout.front is layout.pool and (roles := status.get("roles")):
            found.append(("roles", f"{roles}  (p: prefill, d: decode, b: both)"))
        if source := status.get("latency_model_source"):
            found.append(("latency model", str(source)))
    if seen.page:
        found.append(("page", f"{layout.pool.url}/cdsp  (live, for a browser)"))
    found.append(("status", f"{layout.pool.url}/cdsp/status"))
    metrics = [f"{part.url}/metrics  ({part.name})" for part in layout.parts if part.has_metrics]
    found += _named("metrics", metrics or ["none: --enable-metrics gives them"])
    found.append(("logs", str(logs)))
    found += _named("note", layout.notes)
    return found


def _named(name: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    """Rows of one name, which stands at the first."""
    return [("" if number else name, text) for number, text in enumerate(texts)]


def _instances(pool: Mapping[str, Any], tp_size: int) -> str:
    capacity = pool.get("capacity_tokens") or []
    ranks = f" of {tp_size} ranks" if tp_size > 1 else ""
    tokens = f", {min(capacity)} KV tokens each" if capacity else ""
    return f"{pool.get('instances', len(capacity))}{ranks}{tokens}"


def curl_line(layout: Layout) -> str:
    """A request for a shell, on one line; its key is the shell's ``API_KEY``."""
    asks = value_of(layout.front.server_flags, "--api-key") is not None
    key = """ -H "Authorization: Bearer $API_KEY\"""" if asks else ""
    body = json.dumps({"model": "default", "prompt": PROMPT, "max_tokens": 16})
    url = f"{layout.front.url}/v1/completions"
    return f"curl {url}{key} -H 'Content-Type: application/json' -d '{body}'"


def show_ready(
    console: Console,
    layout: Layout,
    seen: Seen,
    logs: Path,
    start_s: float,
    tp_size: int,
) -> None:
    """Print the panel, in which no line is broken: paths and the curl line are there to be copied.

    Args:
        layout: all of whose parts answer.
        seen: of the pool.
        logs: the folder of the logs.
        start_s: seconds that the start took.
        tp_size: ranks of an instance.
    """
    found = [*rows(layout, seen, logs, tp_size), ("try", curl_line(layout))]
    width = max(len(name) for name, _ in found)
    console.rule(f"ready after {start_s:.0f} s", align="left", style="green")
    for name, text in found:
        line = Text.assemble((f"  {name:{width}}  ", "bold"), text)
        console.print(line, soft_wrap=True)
    console.rule("Ctrl-C ends all of it", align="left", style="green")
