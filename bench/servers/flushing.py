"""Caches that are flushed again and again while requests come.

A flush is one decision for the pool and happens while it has no request. So it is asked for once
while prompts run; where it is refused for them, new ones are held back until the next flush, which
waits for those that run, has happened.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import requests

WITHIN_S = 60.0
"""Requests that run end by then."""


class Flusher:
    """Flushes a pool every so many seconds, in a thread, while the block lasts.

    Attributes:
        flushed: flushes that happened.
        refused: flushes that did not happen as prompts ran.
        wrong: flushes that did not happen though requests were held back, a line each.
    """

    def __init__(
        self,
        url: str,
        every_s: float,
        post: Callable[[str], tuple[int, str]] | None = None,
    ) -> None:
        """``url`` is the pool's; ``post`` asks it, and returns status and text of the answer."""
        self._url = url
        self._every_s = every_s
        self._post = post or _post
        self._over = threading.Event()
        self._open = threading.Event()
        self._open.set()
        self._thread = threading.Thread(target=self._flush, daemon=True, name="flusher")
        self.flushed = self.refused = 0
        self.wrong: list[str] = []

    def __enter__(self) -> Flusher:
        self._thread.start()
        return self

    def __exit__(self, *rest: object) -> None:
        self._over.set()
        self._thread.join()
        self.flush_empty()

    def may_send(self) -> None:
        """Wait until requests may be sent."""
        self._open.wait()

    def flush_empty(self) -> None:
        """Flush while no request is sent."""
        status, text = self._post(f"{self._url}/flush_cache?timeout={WITHIN_S:.0f}")
        if status == 200:
            self.flushed += 1
        else:
            self.wrong.append(
                f"a flush did not happen while requests were held back: {status} {text[:200]}"
            )

    def _flush(self) -> None:
        while not self._over.wait(self._every_s):
            status, _ = self._post(f"{self._url}/flush_cache")
            if status == 200:
                self.flushed += 1
                continue
            self.refused += 1
            self._open.clear()
            try:
                self.flush_empty()
            finally:
                self._open.set()


def _post(url: str) -> tuple[int, str]:
    try:
        answer = requests.post(url, timeout=2 * WITHIN_S)
    except requests.RequestException as error:
        return 0, repr(error)
    return answer.status_code, answer.text


def await_empty(url: str, within_s: float = 20.0) -> str:
    """What the controller's index still knows after a flush; "" if it knows nothing."""
    deadline = time.monotonic() + within_s
    while True:
        known = requests.get(f"{url}/cdsp/status", timeout=60).json()["prefixes"]
        if not known["pages"] and not any(known["pages_by_instance"]):
            return ""
        if time.monotonic() > deadline:
            return f"after a flush the index knows {known}"
        time.sleep(0.2)
