"""Takes the pictures of docs/page.md from a real run.

::

    python -m tests.page.pictures docs/pictures

It starts one server with four instances on the demonstration's checkpoint, which every machine with
two cores can, sends it prompts of all lengths, lets two instances change their roles, and looks at
its page.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from sglang_cdsp.testing.checkpoint import write_checkpoint
from sglang_cdsp.testing.prompts import cut_ids
from sglang_cdsp.testing.stack import one_server, running
from tests.page.browser import Window, missing, window

INSTANCES = 4
LONGEST, SHORTEST = 12_000, 200
IN_HAND = 4
"""Requests at once: a slow machine gets fewer in all, and prompts widen there, too."""
PAUSE_S = 1.2
FIRST_S = 60.0
"""Load before the first picture, so that there is something to see."""
SEEN_WITHIN_S = 150.0
ROLES = "1p2b1d"
"""After that load: instance 0 prefills only and 3 decodes only, so that requests move."""
DESK, PHONE = (1440, 1000), (390, 844)
NAMES = ("report", "chat", "contract", "logs", "mail", "minutes", "paper", "notes")
FLAGS = (
    *("--dp-size", str(INSTANCES), "--context-length", "20000"),
    *("--max-total-tokens", "24576", "--served-model-name", "demo-llama"),
)


class Load:
    """Some requests at a time, of random lengths, until it is over."""

    def __init__(self, url: str, checkpoint: Path, seed: int) -> None:
        self._url = f"{url}/generate"
        self._checkpoint = checkpoint
        self._random = random.Random(seed)
        self._over = threading.Event()

    def send(self) -> None:
        """Send requests until somebody calls ``end``."""
        free = threading.Semaphore(IN_HAND)
        with ThreadPoolExecutor(IN_HAND) as threads:
            number = 0
            while not self._over.wait(self._random.expovariate(1.0 / PAUSE_S)):
                free.acquire()
                number += 1
                asked = threads.submit(
                    self._one, number, self._length(), self._random.randint(24, 160)
                )
                asked.add_done_callback(lambda _: free.release())

    def _length(self) -> int:
        if self._random.random() < 0.55:
            return self._random.randint(SHORTEST, 5 * SHORTEST)
        return self._random.randint(LONGEST // 4, LONGEST)

    def _one(self, number: int, length: int, output: int) -> None:
        name = NAMES[number % len(NAMES)]
        body: dict[str, Any] = {
            "rid": f"{name}-{number}",
            "input_ids": cut_ids(self._checkpoint, length, number),
            "sampling_params": {"temperature": 0, "max_new_tokens": output, "ignore_eos": True},
        }
        requests.post(self._url, json=body, timeout=600)

    def end(self) -> None:
        """Send no more."""
        self._over.set()


def wide_chunk(page: Window) -> str | None:
    """The number of a request that runs on several instances after a narrower chunk."""
    found = page.run(
        """const seen = {};
           for (const bar of document.querySelectorAll('.bar.running')) {
             if (bar.dataset.chunk !== '0') (seen[bar.dataset.n] ??= []).push(bar);
           }
           return Object.keys(seen).find((n) => seen[n].length > 1) ?? null"""
    )
    return None if found is None else str(found)


def turn(page: Window, url: str) -> None:
    """Give the instances their roles, and wait until a request has moved for that."""
    requests.post(f"{url}/cdsp/update", json={"roles": ROLES}, timeout=60).raise_for_status()
    page.until(lambda: page.all(".mark.arrives"), "no request moves", SEEN_WITHIN_S)


def take(page: Window, folder: Path) -> None:
    """All pictures, of a page that has been open for a while."""
    page.size(*DESK)
    page.scheme("light")
    number = page.until(lambda: wide_chunk(page), "no prompt widens", SEEN_WITHIN_S)
    page.picture(folder / "page-light.png")
    page.scheme("dark")
    number = page.until(lambda: wide_chunk(page), "no prompt widens", SEEN_WITHIN_S)
    page.run(
        "document.querySelector(`.bar[data-n='${arguments[0]}']`).dispatchEvent("
        "new MouseEvent('click', {bubbles: true}))",
        number,
    )
    page.until(lambda: page.text("#details"), "the details do not open")
    page.picture(folder / "page-dark.png")
    page.keys("ESCAPE")
    page.size(*PHONE, scale=2.0)
    page.until(lambda: wide_chunk(page), "no prompt widens", SEEN_WITHIN_S)
    page.picture(folder / "page-phone.png")


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--seed", type=int, default=7, help="of the load")
    args = parser.parse_args()
    if missing():
        print(missing(), file=sys.stderr)
        return 2
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = write_checkpoint(Path(scratch) / "checkpoint")
        with running(one_server(checkpoint, flags=FLAGS), Path(scratch) / "logs") as stack:
            load = Load(stack.url, checkpoint, args.seed)
            sender = threading.Thread(target=load.send)
            sender.start()
            try:
                with window(stack.url) as page:
                    page.size(*DESK)
                    page.open()
                    threading.Event().wait(FIRST_S)
                    turn(page, stack.url)
                    take(page, args.folder)
            finally:
                load.end()
                sender.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
