"""A real Prometheus beside something to scrape, asked as Grafana asks it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sglang_cdsp.protocol.ports import free_ports

PROGRAM = shutil.which("prometheus")
WITHIN_S = 60.0


@contextmanager
def prometheus(config: str, folder: Path) -> Iterator[str]:
    """Run it with the text of a configuration; yields its URL before it has scraped anything."""
    assert PROGRAM is not None
    file, log = folder / "prometheus.yaml", folder / "prometheus.log"
    file.write_text(config, encoding="utf-8")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                PROGRAM,
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=output,
            stderr=output,
        )
    try:
        yield f"http://{address}"
    finally:
        ended = process.poll()
        process.terminate()
        process.wait()
        assert ended is None, log.read_text(encoding="utf-8")


def wait_for(url: str, query: str, least: float) -> None:
    """Wait until a query has a value of at least so much."""
    deadline = time.monotonic() + WITHIN_S
    while (value(url, query) or 0.0) < least:
        assert time.monotonic() < deadline, f"{query} is {value(url, query)}"
        time.sleep(0.2)


def value(url: str, query: str) -> float | None:
    """The only value of a query now; None for no data, and while nobody answers."""
    try:
        rows = ask(url, query)
    except OSError:
        return None
    return float(rows[0]["value"][1]) if rows else None


def ask(url: str, query: str) -> list[Any]:
    """The rows of a query now."""
    line = f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(line, timeout=30) as answer:
        found: list[Any] = json.load(answer)["data"]["result"]
    return found
