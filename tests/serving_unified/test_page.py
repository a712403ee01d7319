"""The page at `/cdsp` of a running server, in a real browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.page.browser import Window, needs_browser, window
from tests.serving.client import text_tokens
from tests.serving_unified.client import OneServerClient

pytestmark = needs_browser

# A page with nothing to show asks once in half a second: the first chunk takes several times that.
PLAN = [(9000, [1]), (3000, [1, 0])]
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def page(client: OneServerClient) -> Iterator[Window]:
    with window(client.servers.urls["pool"]) as made:
        made.size(1280, 900)
        made.open()
        made.until(lambda: made.text("#link") == "live", "the page does not come alive")
        yield made


def rows_of(page: Window, selector: str) -> set[str]:
    """The instances on whose rows something is drawn."""
    return {row["row"] for row in page.all(f".row:has({selector})")}


def told_since(client: OneServerClient, since: int) -> tuple[list[dict[str, Any]], int]:
    """All requests that have changed after a version, and the version that they reach.

    An answer has a bounded number of them: whoever wants all asks until there is no more.
    """
    url = f"{client.servers.urls['pool']}/cdsp/timeline"
    found: list[dict[str, Any]] = []
    more = True
    while more:
        told = requests.get(url, params={"since": since}, timeout=10).json()
        found += told["requests"]
        since, more = told["next"], told["more"]
    return found, since


def test_a_running_requests_chunk_appears_widens_and_ends(
    client: OneServerClient, checkpoint: Path, page: Window
) -> None:
    tokens = text_tokens(checkpoint, 12_000, 151)
    sampling = {"max_new_tokens": NEW_TOKENS}
    asking = threading.Thread(
        target=client.pool, args=(tokens, PLAN), kwargs={"rid": "seen", "sampling_params": sampling}
    )
    asking.start()
    try:
        first = '.bar.running[data-chunk="0"]'
        page.until(lambda: rows_of(page, first) == {"1"}, "no chunk appears")
        number = page.all(first)[0]["n"]
        page.until(
            lambda: "runs seen, layer" in page.all('.row[data-row="1"]')[0]["label"],
            "no layer is told",
        )
        second = f'.bar.running[data-n="{number}"][data-chunk="1"]'
        page.until(lambda: rows_of(page, second) == {"0", "1"}, "it does not widen")
        done = f'.bar.done[data-n="{number}"]'
        page.until(lambda: len(page.all(done)) == 3, "it does not end")
    finally:
        asking.join()
    entry = f'.request[data-n="{number}"]'
    page.until(lambda: "finished" in page.text(entry), "the request does not end")
    assert "9,000@1 → 3,000@2" in page.text(entry)
    page.click(entry)
    told = page.text("#details")
    assert "The request brought this plan." in told
    assert f"{NEW_TOKENS} tokens" in told
    page.keys("ESCAPE")
    assert page.complaints() == []
    assert page.hosts() == {page.host()}


def test_what_the_feed_tells_agrees_with_the_plan_log(
    client: OneServerClient, checkpoint: Path
) -> None:
    since = told_since(client, 0)[1]
    answer = client.pool(text_tokens(checkpoint, 1200, 152), [(600, [2]), (600, [2, 3])])
    deadline = time.monotonic() + 10.0
    while True:  # its client has the answer a moment before the controller hears of the end
        ended = [r for r in told_since(client, since)[0] if r["ended_s"] is not None]
        if ended or time.monotonic() > deadline:
            break
    (record,) = ended
    assert record["output_tokens"] == len(answer.tokens)
    assert [(c["tokens"], c["instances"]) for c in record["chunks"]] == [(600, [2]), (600, [2, 3])]
    first, second = (chunk["ran"] for chunk in record["chunks"])
    # Home has its first token before the other member has ended.
    times = [record["arrival_s"], record["bound_s"], *first, second[0]]
    times += [record["first_token_s"], record["last_token_s"]]
    assert times == sorted(times), "one thing comes after another"
    assert second[1] > second[0]


def test_an_open_page_does_not_fill_the_access_log(client: OneServerClient, page: Window) -> None:
    log = client.servers.servers["pool"].log_text()
    assert "GET /cdsp/status" in log or "GET /server_info" in log or "POST /generate" in log
    assert "GET /cdsp/timeline" not in log
