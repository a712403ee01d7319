"""The page in a real browser, on a pool that does what the test says."""

from __future__ import annotations

import pytest

from sglang_cdsp.controller.request import PoolRequest
from tests.controller.feed.watched import LAYERS
from tests.page.browser import Window, needs_browser, window
from tests.page.stage import Stage, stage

pytestmark = [needs_browser, pytest.mark.slow]

PLAN = [(1000, [1]), (3000, [1, 0])]
HOSTILE = "<img src=x onerror=alert(1)>"
PHONE = (390, 844)


def running(page: Window, request: PoolRequest, shown: Stage) -> list[dict[str, object]]:
    """The bars of a request's chunk that runs."""
    number = shown.pool.recent.number(request)
    return page.all(f'.bar.running[data-n="{number}"]')


def test_a_running_requests_chunk_appears_widens_and_ends(page: Window, shown: Stage) -> None:
    request = shown.submit("widens", PLAN)
    page.until(lambda: "widens" in page.text("#waiting"), "it is not among what waits")
    shown.runs(request, 0)
    shown.layer(request, 3)
    page.until(lambda: len(running(page, request, shown)) == 1, "no chunk appears")
    (row,) = page.all('.row[data-row="1"]')
    page.until(
        lambda: f"runs widens, layer 3 of {LAYERS}" in page.all('.row[data-row="1"]')[0]["label"],
        f"the layer is not told: {row}",
    )

    def share() -> float:
        (fill,) = page.all(".bar.running .fill")
        (box,) = page.all(".bar.running .box")
        return float(fill["width"] / box["width"])

    page.until(lambda: share() == pytest.approx(2 / LAYERS, abs=0.02), "two layers are done")
    shown.layer(request, 7)
    page.until(lambda: share() == pytest.approx(6 / LAYERS, abs=0.02), "six layers are done")
    shown.runs(request, 1)
    page.until(lambda: len(running(page, request, shown)) == 2, "it does not widen")
    rows = {entry["row"] for entry in page.all(".row:has(.bar.running)")}
    assert rows == {"0", "1"}
    shown.decodes(request)
    page.until(lambda: "1 decoding" in page.text('.row[data-row="1"] .count'), "nobody decodes")
    shown.ends(request)
    number = shown.pool.recent.number(request)
    page.until(
        lambda: [bar["state"] for bar in page.all(f'.bar[data-n="{number}"]')] == ["done"] * 3,
        "it does not end",
    )
    page.until(lambda: "finished" in page.text(f'.request[data-n="{number}"]'), "it has no end")


def test_what_a_client_wrote_is_text(page: Window, shown: Stage) -> None:
    request = shown.submit(HOSTILE, PLAN)
    page.until(lambda: HOSTILE in page.text("#waiting"), "it does not wait")
    shown.runs(request, 0)
    number = shown.pool.recent.number(request)
    page.until(lambda: page.all(f'.request[data-n="{number}"]'), "it has no plan")
    page.click(f'.request[data-n="{number}"]')
    assert HOSTILE in page.text("#details")
    assert page.all("img") == []
    shown.ends(request)


def test_details_say_what_was_planned_and_why(page: Window, shown: Stage) -> None:
    request = shown.submit("explained", PLAN)
    shown.runs(request, 1)
    number = shown.pool.recent.number(request)
    page.until(lambda: page.all(f'.request[data-n="{number}"]'), "it has no plan")
    page.click(f'.request[data-n="{number}"]')
    told = page.text("#details")
    for words in ("4,000 tokens", "1,000@1 → 3,000@2", "The request brought this plan.", "chosen"):
        assert words in told, words
    shown.ends(request)
    page.until(lambda: "finished" in page.text("#details"), "the details stand still")
    page.keys("ESCAPE")
    assert page.text("#details") == ""
    assert page.focused()["n"] == str(number), "the focus goes back to where it was"


def test_all_can_be_reached_by_keyboard(page: Window, shown: Stage) -> None:
    for rid, group in (("early", [0]), ("late", [0, 1])):
        request = shown.submit(rid, [(500, group)])
        shown.ends(request)
    number = shown.pool.recent.number(request)
    page.until(lambda: page.all(f'.bar.done[data-n="{number}"]'), "it is not drawn")
    stops = []
    for _ in range(40):
        page.keys("TAB")
        stops.append(page.focused())
        if stops[-1].get("row"):
            break
    assert stops[-1]["row"] == "0"
    page.keys("ARROW_DOWN")
    assert page.focused()["row"] == "1"
    page.keys("END")
    assert page.focused()["label"].startswith("late: chunk 1 of 1, 500 tokens on 2 instances")
    page.keys("ARROW_UP")
    assert page.focused()["row"] == "0"
    page.keys("END")
    for _ in range(30):  # the stage's clock is not the pool's: either may be drawn first
        if page.focused()["label"].startswith("early: "):
            break
        page.keys("ARROW_LEFT")
    assert page.focused()["label"].startswith("early: ")
    page.keys("ENTER")
    page.until(lambda: "early" in page.text("#details"), "the details do not open")
    page.keys("ESCAPE")
    assert page.focused()["label"].startswith("early: ")
    page.keys("ESCAPE")
    assert page.focused()["row"] == "0"


def test_a_phone_shows_it_without_scrolling_sideways(page: Window, shown: Stage) -> None:
    request = shown.submit("a-name-as-long-as-clients-like-to-make-them-" + "x" * 80, PLAN)
    shown.runs(request, 0)
    page.size(*PHONE)
    number = shown.pool.recent.number(request)
    page.until(lambda: page.all(f'.request[data-n="{number}"]'), "it has no plan")

    def wide() -> list[str]:
        found: list[str] = page.run(
            """const most = document.documentElement.clientWidth;
               const inside = (e) => e.closest("svg, .table, .skip");
               return [...document.body.querySelectorAll("*")]
                 .filter((e) => !inside(e) && e.getBoundingClientRect().right > most + 0.5)
                 .map((e) => e.className || e.tagName)"""
        )
        return found

    assert page.run("return document.documentElement.scrollWidth") == PHONE[0]
    assert wide() == []
    page.click(f'.request[data-n="{number}"]')
    assert page.run("return document.documentElement.scrollWidth") == PHONE[0]
    assert wide() == []
    small = [
        button["text"]
        for button in page.all("button")
        if 0 < button["height"] < 24 or 0 < button["width"] < 24
    ]
    assert small == [], "fingers need 24 pixels (WCAG 2.2, 2.5.8)"
    shown.ends(request)


def test_light_and_dark_by_the_system_and_by_the_switch(page: Window) -> None:
    def ground() -> str:
        return str(page.run("return getComputedStyle(document.body).backgroundColor"))

    light = ground()
    page.scheme("dark")
    dark = page.until(lambda: (found := ground()) != light and found, "dark looks like light")
    page.click("#theme")
    assert (page.text("#theme"), ground()) == ("Theme: light", light)
    page.click("#theme")
    assert (page.text("#theme"), ground()) == ("Theme: dark", dark)
    page.open()
    page.until(lambda: page.text("#link") == "live", "the page does not come alive")
    assert page.text("#theme") == "Theme: dark", "the choice stays"
    page.click("#theme")
    assert page.text("#theme") == "Theme: auto"


def test_a_paused_timeline_stands_still(page: Window, shown: Stage) -> None:
    request = shown.submit("moves", [(500, [2])])
    shown.ends(request)
    number = shown.pool.recent.number(request)

    def place() -> float:
        (bar,) = page.all(f'.bar[data-n="{number}"] .box')
        return float(bar["x"])

    page.until(lambda: page.all(f'.bar[data-n="{number}"]'), "it is not drawn")
    before = place()
    page.until(lambda: place() < before, "time stands still")
    page.click("#pause")
    paused = place()
    page.until(lambda: page.text("#pause") == "Go on", "it does not pause")
    drawn = page.run("return performance.now()")
    page.until(lambda: page.run("return performance.now()") > drawn + 700, "the clock stands")
    assert place() == paused
    page.click("#pause")
    page.until(lambda: place() < paused, "time does not go on")


def test_the_key_is_asked_for_and_stays_in_the_tab() -> None:
    with stage(size=2, key="s3cret") as shown, window(shown.url) as page:
        request = shown.submit("hidden", PLAN)
        shown.runs(request, 0)
        page.open()
        page.until(lambda: asks(page), "nobody asks for the key")
        assert "hidden" not in page.text("body")
        page.keys("wrong", "ENTER")
        page.until(lambda: "refused" in page.text("#key-title"), "a wrong key is taken")
        page.keys("s3cret", "ENTER")
        page.until(lambda: "hidden" in page.text("#requests"), "the key does not help")
        assert not asks(page)
        kept = page.run("return [localStorage, sessionStorage].map((s) => JSON.stringify(s))")
        assert ["s3cret" in words for words in kept] == [False, True]
        assert page.complaints() == []
        assert page.hosts() == {page.host()}
        assert not any("s3cret" in entry["name"] for entry in resources(page))
        shown.ends(request)


def asks(page: Window) -> bool:
    """Whether the page asks for a key."""
    return bool(page.run("return document.querySelector('#key-dialog').open"))


def resources(page: Window) -> list[dict[str, str]]:
    """What the page has loaded."""
    found: list[dict[str, str]] = page.run(
        "return performance.getEntriesByType('resource').map(({name}) => ({name}))"
    )
    return found
