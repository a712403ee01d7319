"""What the engine's protocols name of SGLang is in the table, and is really used."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from sglang_cdsp.engine import stock
from tests.contract.needs import Attributes, Fields, Signature
from tests.contract.table import ROWS

ENGINE = Path(stock.__file__).parent
PROTOCOLS = {
    name: found
    for name, found in vars(stock).items()
    if inspect.isclass(found) and found.__module__ == stock.__name__
}

# SGLang's classes that a protocol stands for; what one inherits is in the row of its base.
OWNERS = {
    "SlotAllocator": (
        "BaseTokenToKVPoolAllocator",
        "TokenToKVPoolAllocator",
        "PagedTokenToKVPoolAllocator",
    ),
    "KVPool": ("KVCache", "MHATokenToKVPool"),
    "MetadataBuffers": ("MetadataBuffers",),
    "ModelConfig": ("ModelConfig",),
    "ModelRunner": ("ModelRunner",),
    "TpWorker": ("TpModelWorker",),
    "ForwardMode": ("ForwardMode",),
    "Batch": ("ScheduleBatch",),
    "MetricsReporter": ("SchedulerMetricsReporter",),
    "GrammarBackend": ("BaseGrammarBackend",),
    "GrammarManager": ("GrammarManager",),
    "BootstrapQueue": ("PrefillBootstrapQueue",),
    "LogprobResultProcessor": ("SchedulerLogprobResultProcessor",),
    "BatchResultProcessor": ("SchedulerBatchResultProcessor",),
    "OutputStreamer": ("SchedulerOutputStreamer",),
    "StockScheduler": ("Scheduler",),
    "JoinedScheduler": ("Scheduler",),
    "RankScheduler": ("Scheduler",),
}


def names_of(protocol: type) -> set[str]:
    """Attributes and methods that a protocol asks for."""
    methods = {name for name, found in vars(protocol).items() if inspect.isfunction(found)}
    own = {name for name in methods if not name.startswith("_")}
    return own | set(inspect.get_annotations(protocol))


def listed(owners: tuple[str, ...]) -> set[str]:
    """Names of these classes of SGLang's that are in a row of the table."""
    found: set[str] = set()
    for row in ROWS:
        need = row.need
        if isinstance(need, Attributes | Fields) and need.owner in owners:
            found.update(need.names)
        elif isinstance(need, Signature):
            owner, _, name = need.name.rpartition(".")
            found |= {name} if owner in owners else set()
    return found


def test_every_protocol_stands_for_a_class_of_sglangs() -> None:
    assert set(PROTOCOLS) == set(OWNERS)


@pytest.mark.parametrize("name", sorted(OWNERS))
def test_what_a_protocol_names_is_in_the_table(name: str) -> None:
    assert names_of(PROTOCOLS[name]) - listed(OWNERS[name]) == set()


def used_names() -> set[str]:
    """Every attribute that the engine's other modules, and what it calls, read or set."""
    folders = (ENGINE, ENGINE.parent / "parallel")
    files = (path for folder in folders for path in folder.glob("*.py"))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("name", sorted(OWNERS))
def test_a_protocol_names_nothing_that_nobody_uses(name: str) -> None:
    assert names_of(PROTOCOLS[name]) - used_names() == set()


def test_the_schedulers_row_has_nothing_more_than_we_use() -> None:
    """Its protocol, or the scheduler of ours that is built on it, names what the row names."""
    tree = ast.parse((ENGINE / "scheduler.py").read_text(encoding="utf-8"))
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    (row,) = (
        row.need
        for row in ROWS
        if isinstance(row.need, Attributes) and row.need.owner == "Scheduler"
    )
    layers = (stock.StockScheduler, stock.JoinedScheduler, stock.RankScheduler)
    protocols = {name for layer in layers for name in names_of(layer)}
    assert set(row.names) - protocols - own == set()
