"""Roles of instances and moves of requests on the page in a real browser."""

from __future__ import annotations

import pytest

from tests.page.browser import Window, needs_browser
from tests.page.stage import Stage

pytestmark = [needs_browser, pytest.mark.slow]


def test_a_seat_that_turns_is_marked_and_its_requests_go_on_elsewhere(
    page: Window, shown: Stage
) -> None:
    request = shown.submit("goes-on", [(500, [1]), (500, [1])])
    shown.decodes(request)
    number = shown.pool.recent.number(request)
    page.until(lambda: page.text('.row[data-row="1"] .count') == "1 decoding", "nobody decodes")
    assert [role["text"] for role in page.all(".row .role")] == [""] * 4
    shown.turns("2p1b1d")
    page.until(lambda: page.text('.row[data-row="1"] .role') == "prefill", "it has no role")
    assert [role["text"] for role in page.all(".row .role")] == ["prefill", "prefill", "", "decode"]
    (row,) = page.all('.row[data-row="1"]')
    assert "prefill only" in row["label"]
    page.until(lambda: len(page.all(".role-change")) == 3, "the changes are not marked")
    told = {mark["label"] for mark in page.all(".role-change")}
    assert told == {
        "Instance 0 is to prefill only from here on: asked for",
        "Instance 1 is to prefill only from here on: asked for",
        "Instance 3 is to decode only from here on: asked for",
    }
    assert page.run("return document.querySelector('#legend-moves').hidden")
    shown.leaves(request)
    shown.arrives(request, 2)

    def at(instance: int, kind: str) -> list[dict[str, object]]:
        return page.all(f'.row[data-row="{instance}"] .mark.{kind}[data-n="{number}"]')

    page.until(lambda: at(1, "leaves") and at(2, "arrives"), "the move is not marked")
    assert at(1, "arrives") == at(2, "leaves") == []
    assert str(at(1, "leaves")[0]["label"]).startswith("goes-on leaves for instance 2: 1,000 tok")
    assert "arrives from instance 1" in str(at(2, "arrives")[0]["label"])
    page.until(lambda: page.text('.row[data-row="2"] .count') == "1 decoding", "it does not go on")
    assert page.text('.row[data-row="1"] .count') == ""
    page.run("document.querySelector('.row[data-row=\"1\"]').focus()")
    page.keys("END")
    assert "leaves for instance 2" in page.focused()["label"], "marks are among the row's bars"
    page.keys("ENTER")
    page.until(lambda: "1 → 2" in page.text("#details"), "the details do not tell of the move")
    page.until(lambda: len(page.all(".row .selected[d]")) == 2, "it has its colour on both rows")
    page.keys("ESCAPE")
    assert "leaves for instance 2" in page.focused()["label"]
    shown.turns("4b")
    shown.ends(request)
    page.until(lambda: page.all(".row .role")[1]["text"] == "", "the role stays")


RAN = {"decodes": True, "first_token_s": 10.0, "bound_s": 5.0, "home": 0, "one_instance": False}
NOT_OVER = {"recalls": 0, "last_token_s": None, "ended_s": None, "chunks": [{"ran": [6.0, 10.0]}]}
ANEW = {"recalls": 1, "bound_s": 20.0, "home": 2, "moved": 1}


def way(source: int, target: int, left_s: float) -> dict[str, object]:
    """A move with a pause of a second."""
    return {"from": source, "to": target, "left_s": left_s, "arrived_s": left_s + 1.0}


STRETCHES: list[tuple[dict[str, object], list[list[float]]]] = [
    ({}, [[0, 10, 30]]),
    ({"last_token_s": 12.0, "ended_s": 13.0}, [[0, 10, 12]]),
    ({"first_token_s": None}, []),
    ({"decodes": False}, []),
    (
        {"moved": 2, "home": 3, "moves": [way(0, 2, 11.0), way(2, 3, 15.0)]},
        [[0, 10, 11], [2, 12, 15], [3, 16, 30]],
    ),
    # Before the moves that are told it may have been anywhere.
    ({"moved": 9, "home": 3, "moves": [way(2, 3, 15.0)]}, [[3, 16, 30]]),
    # It is computed anew; then it decodes where its new plan has its home.
    ({**ANEW, "moves": [way(0, 1, 11.0)], "chunks": [{"ran": [21.0, None]}]}, []),
    ({**ANEW, "moves": [way(0, 1, 11.0)], "chunks": [{"ran": [21.0, 24.0]}]}, [[2, 24, 30]]),
    (
        {**ANEW, "moved": 2, "moves": [way(0, 1, 11.0), way(3, 2, 26.0)]}
        | {"chunks": [{"ran": [21.0, 24.0]}]},
        [[3, 24, 26], [2, 27, 30]],
    ),
]
"""Parts of a record, and where it decodes from when to when, at second 30."""


def test_where_a_request_decodes_follows_from_its_moves(page: Window) -> None:
    records = [{**RAN, **NOT_OVER, "moved": 0, "moves": [], **part} for part, _ in STRETCHES]
    found = page.run(
        """const [records, now] = arguments;
           const flat = ({instance, start, end}) => [instance, start, end];
           return import("/cdsp/page/layout.js").then(({decodeStretches}) =>
             records.map((record) => decodeStretches(record, now).map(flat)));""",
        records,
        30.0,
    )
    assert found == [expected for _, expected in STRETCHES]
