"""A browser for tests: fixtures that open an atlas's pages in Debian's chromium.

BROWSER_TESTS=required fails where there is none, instead of skipping.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright import sync_api

CHROMIUM = Path("/usr/bin/chromium")
TIMEOUT = 20_000  # milliseconds
SHOWN = """([before, most]) => new Promise((done) => {
    const until = performance.now() + most;
    const look = () => {
        if (Number(document.body?.dataset.ready) > before) done(true);
        else if (performance.now() > until) done(false);
        else setTimeout(look, 5);
    };
    look();
})"""


@dataclass
class Looked:
    """A page of a site, and what it has complained of or asked for."""

    page: sync_api.Page
    site: Path
    faults: list[str]
    asked: list[str]

    def go(self, hash_: str) -> None:
        """Open an address and wait until its page is there."""
        ready = self.ready()
        url = f"{(self.site / 'index.html').as_uri()}{hash_}"
        if self.page.url == url:
            return
        self.page.goto(url)
        self.wait(ready if self.page.evaluate("performance.now()") > 0 and ready else 0)

    def ready(self) -> int:
        """How many times a page was shown."""
        return int(self.page.evaluate("Number(document.body?.dataset.ready || 0)"))

    def wait(self, ready: int) -> None:
        """Wait until a page was shown once more."""
        # Playwright's own way of waiting evaluates a string, which the page's policy forbids.
        shown = self.page.evaluate(SHOWN, [ready, TIMEOUT])
        assert shown, f"{self.page.url} shows nothing new: {self.faults}"

    def after(self, act, *words) -> None:
        """Do something that shows a page, and wait for it."""
        ready = self.ready()
        act(*words)
        self.wait(ready)

    def text(self, selector: str) -> list[str]:
        return [each.strip() for each in self.page.locator(selector).all_inner_texts()]

    def count(self) -> int:
        """Features that the table's heading tells of."""
        return int(self.text(".count b")[0].replace(",", ""))

    def fits(self) -> bool:
        """Whether the page is no wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    if not CHROMIUM.exists():
        if os.environ.get("BROWSER_TESTS") == "required":
            pytest.fail(f"BROWSER_TESTS=required, and there is no {CHROMIUM}", pytrace=False)
        pytest.skip(f"no {CHROMIUM} (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def sites(analysed, finished, tmp_path_factory) -> tuple[Path, Path]:
    """The atlas of the analysed experiment, and the workflow's own, which has fewer parts."""
    from ontogeny.atlas import build, gather

    home = tmp_path_factory.mktemp("sites")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "SHARD", 40)  # so that there are two
        build.write(gather.gather(analysed), home / "hostile/atlas")
    shutil.copytree(finished / "results/tiny/atlas", home / "tiny/atlas")
    return home / "hostile/atlas", home / "tiny/atlas"


@pytest.fixture
def look(browser, sites) -> Iterator:
    """A function that opens a site's page; in the end nothing may have gone wrong in any."""
    opened: list[Looked] = []

    def open_(hash_: str = "", site: Path = sites[0], **given) -> Looked:
        given = {"viewport": {"width": 1280, "height": 800}} | given
        context = browser.new_context(**given)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        here = Looked(page, site, [], [])
        page.on("console", lambda m: here.faults.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda error: here.faults.append(str(error)))
        page.on("dialog", lambda d: (here.faults.append(f"dialog {d.message}"), d.dismiss()))
        page.on("request", lambda r: here.asked.append(r.url))
        opened.append(here)
        here.go(hash_)
        return here

    yield open_
    for here in opened:
        here.page.context.close()
        assert here.faults == []
        assert [url for url in here.asked if not url.startswith(("file:///", "data:"))] == []
