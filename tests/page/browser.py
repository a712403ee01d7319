"""Debian's Chromium, as a person has it: a window of some size, a theme, a keyboard."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

PROGRAMS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
WITHIN_S = 30.0
QUIET = (
    "--headless=new",
    "--no-sandbox",  # root has none
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--hide-scrollbars",
    # What Chromium asks of its maker is none of the page's requests.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
)


def missing() -> str:
    """Why there can be no browser; "" where there is one."""
    absent = [name for name, path in PROGRAMS.items() if path is None]
    if absent:
        return f"no {' and no '.join(absent)} on the PATH: apt-get install chromium chromium-driver"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed: pip install -r requirements/dev.txt"
    return ""


needs_browser = pytest.mark.skipif(bool(missing()), reason=missing())


class Window:
    """A page in a browser.

    Attributes:
        driver: Selenium's.
        url: of the server whose page it is.
    """

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(self) -> None:
        """Go to the page."""
        self.driver.get(f"{self.url}/cdsp")

    def size(self, width: int, height: int, *, scale: float = 1.0) -> None:
        """Take the size of a screen, in CSS pixels; ``scale`` of them are one of a picture's."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, name: str) -> None:
        """Let the system prefer "light" or "dark"."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[dict[str, Any]]:
        """The elements that a selector finds: their text, place and `data-` attributes."""
        found: list[dict[str, Any]] = self.run(
            """return [...document.querySelectorAll(arguments[0])].map((e) => {
                 const box = e.getBoundingClientRect();
                 return {text: e.textContent, x: box.x, width: box.width, height: box.height,
                         label: e.getAttribute("aria-label"), ...e.dataset};
               })""",
            selector,
        )
        return found

    def text(self, selector: str) -> str:
        """The text of the first element that a selector finds, "" if it finds none."""
        script = """const found = document.querySelector(arguments[0]);
                    return found ? found.innerText ?? found.textContent : "";"""
        return str(self.run(script, selector))

    def click(self, selector: str) -> None:
        """Click on the first element that a selector finds."""
        from selenium.webdriver.common.by import By

        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def keys(self, *names: str) -> None:
        """Press keys, by the names that Selenium has for them, or type text."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        actions = ActionChains(self.driver)
        for name in names:
            actions.send_keys(getattr(Keys, name, name))
        actions.perform()

    def focused(self) -> dict[str, Any]:
        """The element that has the focus."""
        (found,) = self.all(":focus") or [{"text": "", "label": None}]
        return found

    def until(self, reached: Callable[[], Any], what: str, within_s: float = WITHIN_S) -> Any:
        """Wait until something is true, and return it."""
        deadline = time.monotonic() + within_s
        while not (found := reached()):
            assert time.monotonic() < deadline, f"{what}; the page says {self.text('body')[:2000]}"
            time.sleep(0.05)
        return found

    def picture(self, path: Path) -> None:
        """Write what can be seen as a PNG."""
        self.driver.save_screenshot(str(path))

    def complaints(self) -> list[str]:
        """What the console has, but for the answer that asks for a key."""
        logged = [str(entry["message"]) for entry in self.driver.get_log("browser")]
        return [words for words in logged if "401 (Unauthorized)" not in words]

    def hosts(self) -> set[str]:
        """Whom the page has asked for anything."""
        asked = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked.add(urlsplit(message["params"]["request"]["url"]).netloc)
        return asked

    def host(self) -> str:
        """The server, as ``hosts`` names it."""
        return urlsplit(self.url).netloc


@contextmanager
def window(url: str) -> Iterator[Window]:
    """A browser of its own on a server's page, which has yet to be opened."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = str(PROGRAMS["chromium"])
    for flag in QUIET:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(str(PROGRAMS["chromedriver"])))
    try:
        driver.set_page_load_timeout(WITHIN_S)
        yield Window(driver, url)
    finally:
        driver.quit()
