"""The dashboard names what the server exports, and its files fit together."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from sglang_cdsp.controller.exported.definitions import METRICS, PREFIX
from tests.monitoring.dashboards import (
    FOLDER,
    SGLANGS,
    as_made,
    labels_in,
    names_in,
    queries,
    written,
)

DEFINED = {metric.full_name: metric for metric in METRICS}


def test_the_dashboard_is_the_one_that_its_program_writes() -> None:
    assert json.loads(as_made()) == written()


@pytest.mark.parametrize("query", queries())
def test_a_query_names_metrics_and_labels_that_there_are(query: str) -> None:
    names = names_in(query)
    assert names
    assert names <= DEFINED.keys() | set(SGLANGS)
    labels = {label for name in names & DEFINED.keys() for label in DEFINED[name].labels}
    assert labels_in(query) <= labels | {"model_name"}
    for opening, closing in ("()", "[]", "{}"):
        assert query.count(opening) == query.count(closing)


def test_the_dashboard_shows_every_metric() -> None:
    shown = {name for query in queries() for name in names_in(query)}
    assert {name.removeprefix(PREFIX) for name in DEFINED.keys() - shown} == set()


@pytest.mark.parametrize("name", SGLANGS)
def test_sglang_has_what_the_dashboard_shows_of_its_own(name: str) -> None:
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "srt" / "observability" / "metrics_collector.py"
    assert f'name="{name}"' in file.read_text(encoding="utf-8")


def test_legends_use_labels_of_their_queries() -> None:
    for panel in written()["panels"]:
        for target in panel.get("targets", ()):
            named = {part.partition("}}")[0] for part in target["legendFormat"].split("{{")[1:]}
            assert named <= labels_in(target["expr"]), target


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in written()["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert taken.isdisjoint(cells), panel["title"]
        taken |= cells
        assert at["x"] + at["w"] <= 24


def test_the_files_that_are_mounted_exist() -> None:
    services = yaml.safe_load((FOLDER / "docker-compose.yaml").read_text())["services"]
    for service in services.values():
        for volume in service["volumes"]:
            assert (FOLDER / volume.split(":")[0]).exists(), volume
    source = yaml.safe_load((FOLDER / "grafana/datasources/datasource.yaml").read_text())
    uids = {entry["uid"] for entry in source["datasources"]}
    used = {t["datasource"]["uid"] for p in written()["panels"] for t in p.get("targets", ())}
    assert used <= uids
    jobs = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
    assert {job["job_name"] for job in jobs} == {"sglang-prefill", "sglang-decode"}
