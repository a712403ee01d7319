"""Every route of the installed server has a row, and every row its test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from sglang.srt.entrypoints.http_server import app

from sglang_cdsp.control.guards import routes_of
from sglang_cdsp.control.table import ENDPOINTS, Effect, Endpoint, row_of
from tests.control.page import page

TESTS = Path(__file__).parents[1]
OF_OTHER_RELEASES = {"/get_hicache_l3_cache_layout"}
ONLY_WITH_A_VARIABLE = {"/dumper/{method}"}


def routes() -> list[tuple[str, frozenset[str]]]:
    """Paths and methods of SGLang's own application."""
    found = [(route.path, frozenset(route.methods or ())) for route in routes_of(app)]
    found += [(r.path, frozenset({"GET"})) for r in app.routes if isinstance(r, APIWebSocketRoute)]
    return [(path, methods) for path, methods in found if not path.startswith("/cdsp/")]


def test_every_route_has_a_row() -> None:
    assert len(routes()) > 80
    without = [(path, *methods) for path, methods in routes() if row_of(path, methods) is None]
    assert without == [], "say in sglang_cdsp/control/table.py what it does in a pool"


def test_every_row_is_about_a_route() -> None:
    paths = {path for path, _ in routes()}
    rows = {row.path for row in ENDPOINTS}
    assert rows - paths <= OF_OTHER_RELEASES | ONLY_WITH_A_VARIABLE


def test_what_is_refused_is_a_route_of_the_application_itself() -> None:
    """A guard is put into a route; those of a router are copied where it is included."""
    own = {(r.path, frozenset(r.methods or ())) for r in app.routes if isinstance(r, APIRoute)}
    for path, methods in routes():
        row = row_of(path, methods)
        assert row is None or row.effect is not Effect.REFUSED or (path, methods) in own, path


def test_no_route_has_two_rows() -> None:
    for path, methods in routes():
        assert len([row for row in ENDPOINTS if row.covers(path, methods)]) == 1, path


@pytest.mark.parametrize(
    "row", [row for row in ENDPOINTS if row.effect is not Effect.REQUEST], ids=lambda row: row.path
)
def test_a_row_is_whole_and_names_a_test(row: Endpoint) -> None:
    assert row.stock
    assert row.pool
    assert row.absent
    path, _, name = row.test.partition("::")
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not name or name in functions, row.test


def test_the_page_is_the_table() -> None:
    written = (TESTS.parent / "docs" / "control.md").read_text(encoding="utf-8")
    assert written == page(), "python -m tests.control.page > docs/control.md"
