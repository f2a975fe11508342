"""The pages in a real browser: at a phone's and a desktop's width, by keys alone, without JavaScript.

Chromium is driven through chromedriver's own protocol (W3C WebDriver over HTTP), which takes no package.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import uvicorn
from starlette.applications import Starlette

from lorareg.cli.web.pages.routes import page_routes
from lorareg.registry.peft_format import read_folder
from lorareg.registry.reader import Reader
from lorareg.registry.store import Registry

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PHONE, DESKTOP = (360, 800), (1280, 900)
TAB, ENTER = "\ue004", "\ue007"
PAGES = ("/", "/tasks/man-nl", "/tasks/man-nl?version=1", "/report", "/?q=manual+pages+in+dutch", "/?q=zzz", "/tasks/x")

CONTRAST = """
const part = value => { const c = value / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
const colour = text => text.match(/[\\d.]+/g).map(Number);
const ground = element => {
  for (let one = element; one; one = one.parentElement) {
    const found = colour(getComputedStyle(one).backgroundColor);
    if (found.length < 4 || found[3] > 0) return found;
  }
};
const bad = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node; (node = walker.nextNode());) {
  const element = node.parentElement;
  if (!node.data.trim() || element.tagName === "title" || !element.checkVisibility()) continue;
  const style = getComputedStyle(element), own = element.closest("svg") ? style.fill : style.color;
  const [a, b] = [light(colour(own)), light(ground(element))].sort((x, y) => y - x);
  if ((a + 0.05) / (b + 0.05) < 4.5) bad.push([node.data.trim().slice(0, 40), own, (a + 0.05) / (b + 0.05)]);
}
return bad;
"""
UNREACHABLE = """
return [...document.querySelectorAll("body *")].filter(one => {
  const style = getComputedStyle(one);
  const scrolls = /auto|scroll/.test(style.overflowX + style.overflowY);
  const isCut = one.scrollWidth > one.clientWidth + 1 || one.scrollHeight > one.clientHeight + 1;
  return scrolls && isCut && one.tabIndex < 0;
}).map(one => one.outerHTML.slice(0, 80));
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)"
    ),
]


class Browser:
    """A headless Chromium."""

    def __init__(self, driver: str, profile: Path) -> None:
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        self._driver = driver
        created = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}})
        self._session = f"/session/{created['sessionId']}"

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._driver + path, data, {"Content-Type": "application/json"}, method=method)
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def cdp(self, command: str, **parameters: Any) -> Any:
        return self._ask("POST", f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, size: tuple[int, int]) -> None:
        is_phone = size == PHONE
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1.5 if is_phone else 1,
            mobile=is_phone,
        )

    def colours(self, scheme: str) -> None:
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url: str) -> None:
        self._ask("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str) -> Any:
        return self._ask("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def reaches(self, script: str, value: object) -> bool:
        """Whether a script comes to return a value within some seconds: pages take their time to open."""
        for _ in range(50):
            if self.run(script) == value:
                return True
            time.sleep(0.1)
        return False

    def press(self, *keys: str) -> None:
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        body = {"actions": [{"type": "key", "id": "keys", "actions": actions}]}
        self._ask("POST", f"{self._session}/actions", body)

    def click(self, selector: str) -> None:
        found = self._ask("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        (element,) = found.values()
        self._ask("POST", f"{self._session}/element/{element}/click", {})

    def picture(self, path: Path) -> None:
        shot = self.cdp("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def errors(self) -> list[str]:
        """What the console was told: files that are missing, what the page's own policy refused."""
        entries = self._ask("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def close(self) -> None:
        self._ask("DELETE", self._session)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium behind chromedriver."""
    port = free_port()
    driver = subprocess.Popen([str(DRIVER), f"--port={port}", "--log-level=SEVERE"], stdout=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/status")
        opened = Browser(f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("profile"))
        yield opened
        opened.close()
    finally:
        driver.terminate()
        driver.wait(timeout=20)


def _wait_for(url: str) -> None:
    for _ in range(100):
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail(f"nothing answers at {url}")


@pytest.fixture
def site(certified_home: Path, make_adapter: Callable[..., Path]) -> Iterator[str]:
    """The pages on a port of this machine: the samples, and a task with long words that has 600 characters to say."""
    with Registry.open(certified_home, create=False) as registry:
        folder = read_folder(make_adapter("long", seed=3, config={"base_model_name_or_path": "x" * 90}))
        registry.ingest(folder, name=f"{'n' * 90}/{'t' * 90}", description="supercalifragilistic" * 10 + " words" * 60)
    routes = page_routes(lambda request: Reader(certified_home), lambda request, name: True)
    port = free_port()
    config = uvicorn.Config(Starlette(routes=routes), port=port, log_level="warning", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        _wait_for(f"http://127.0.0.1:{port}/")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_scrolls_sideways_and_nothing_is_refused(
    browser: Browser, site: str, size: tuple[int, int], scheme: str, tmp_path: Path
) -> None:
    browser.resize(size)
    browser.colours(scheme)
    for index, url in enumerate(PAGES):
        browser.open(site + url)
        assert browser.run("return document.documentElement.scrollWidth") <= size[0], url
        path = tmp_path / f"{index}.png"
        browser.picture(path)
        assert path.stat().st_size > 5000
        errors = [error for error in browser.errors() if "404" not in error]
        assert errors == [], url
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(26, 26, 25)" if scheme == "dark" else "rgb(252, 252, 251)")


def test_text_is_legible(browser: Browser, site: str) -> None:
    """Contrast of at least 4.5 : 1 wherever there is text (WCAG 2.2, level AA), in both schemes."""
    for scheme in ("light", "dark"):
        browser.colours(scheme)
        for url in PAGES:
            browser.open(site + url)
            assert browser.run(CONTRAST) == [], (scheme, url)


def test_by_keys_alone(browser: Browser, site: str) -> None:
    browser.resize(DESKTOP)
    browser.open(site)
    browser.press(TAB)
    assert browser.run("return document.activeElement.textContent") == "Skip to content"
    assert browser.run("return document.activeElement.getBoundingClientRect().top") >= 0
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press(ENTER)
    browser.press(TAB)
    assert browser.run("return document.activeElement.closest('main') !== null")  # past the navigation
    browser.press(TAB)
    assert browser.run("return document.activeElement.id") == "q"
    browser.press(*"german", ENTER)
    assert browser.reaches("return location.search + document.readyState", "?q=germancomplete")
    for _ in range(12):
        browser.press(TAB)
        if browser.run("return document.activeElement.textContent") == "man-de":
            break
    browser.press(ENTER)
    assert browser.reaches("return location.pathname", "/tasks/man-de")


def test_everything_that_scrolls_can_be_reached_by_keys(browser: Browser, site: str) -> None:
    browser.resize(PHONE)
    for url in PAGES:
        browser.open(site + url)
        assert browser.run(UNREACHABLE) == [], url


def test_without_javascript(browser: Browser, site: str) -> None:
    browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(f"{site}/tasks/man-nl?version=1")
        assert browser.run("return document.scripts.length") == 0
        assert not browser.run("return document.querySelector('details').open")
        browser.click("summary")
        assert browser.run("return document.querySelector('details').open")
        assert browser.run("return document.querySelector('details td').checkVisibility()")
        browser.open(site)
        browser.click("tbody a")
        assert browser.reaches("return location.pathname", "/tasks/man-de")
    finally:
        browser.cdp("Emulation.setScriptExecutionDisabled", value=False)


def test_the_style_sheet_is_in_use_under_the_policy(browser: Browser, site: str) -> None:
    browser.open(f"{site}/tasks/man-nl?version=1")
    assert browser.run("return getComputedStyle(document.querySelector('.facts')).display") == "grid"
    assert browser.run("return getComputedStyle(document.querySelector('rect')).fill") != "rgb(0, 0, 0)"
    assert browser.run("return document.querySelector('.brand img').naturalWidth") > 0
