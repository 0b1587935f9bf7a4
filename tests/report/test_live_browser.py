"""The live view in a browser: silent under its policy, hostile text inert, live, for everybody."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.live_server import run_server
from helpers.live_study import ITEMS, SEEDS, Texts, final_result, final_trials, write_study
from helpers.untrusted import PAGES

from bakeoff.report.live.server import BoundServer
from bakeoff.study.storage.database import Writer

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = pytest.mark.browser
DRAWN = (
    "(n => n.length > 0 && n.every(e => e.querySelector('svg.main-svg')))"
    "([...document.querySelectorAll('[data-chart]')])"
)
LISTED = (
    "document.querySelectorAll('#studies tbody tr').length > 0 && "
    "![...document.querySelectorAll('#studies td')].some(e => e.textContent === '…')"
)
BRIEF = {"resultTypes": ["violations"]}
"""What makes axe three times as fast: it describes nothing that it found in order."""
ACTED = (
    "document.querySelectorAll('#report img, #item-list img, #studies img, a[href^=javascript],"
    " iframe, base, form, meta[http-equiv=refresh]').length"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next((p for n in ("chromium", "chromium-browser") if (p := shutil.which(n))), None)
    if program is None:
        pytest.skip("no chromium on the path")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoundServer]:
    runs = tmp_path_factory.mktemp("view") / "runs"
    write_study(runs / "small", "small")
    write_study(runs / "hostile", "hostile", PAGES)
    bad = write_study(runs / "bad", "bad") / "study.db"
    raw = bytearray(bad.read_bytes())
    raw[2 * 4096 : 5 * 4096] = b"x" * (3 * 4096)
    bad.write_bytes(bytes(raw))
    with run_server([runs]) as opened:
        yield opened


class Tab:
    """A page that was let in, and everything that the browser complained about."""

    def __init__(
        self, browser: Any, opened: BoundServer, dark: bool = False, width: int = 1280
    ) -> None:
        scheme = "dark" if dark else "light"
        size = {"width": width, "height": 900}
        self._context = browser.new_context(color_scheme=scheme, viewport=size)
        self._opened = opened
        self.page = self._context.new_page()
        self.noises: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.noises.append(m.text))
        self.page.on("pageerror", lambda e: self.noises.append(str(e)))
        self.page.on("dialog", lambda d: (self.noises.append(d.message), d.dismiss()))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.goto(opened.url)
        self.until(LISTED)

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def until(self, true: str, seconds: float = 30) -> None:
        """Wait; the policy forbids the eval that Playwright's own waiting is made of."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(true):
            assert time.monotonic() < end, f"never: {true}; heard {self.noises}"
            time.sleep(0.05)

    def study(self, name: str) -> None:
        """Go to a study from the list."""
        self.page.goto(self._opened.address)
        self.until(LISTED)
        self.page.locator("#studies th a", has_text=name).click()
        self.until("document.querySelector('#report section, #trouble p') !== null")

    def whole(self, name: str) -> None:
        """Go to a study and wait for all of it."""
        self.study(name)
        self.until(DRAWN)
        self.until("document.querySelectorAll('#item-list > li').length > 0")

    def grave(self) -> list[tuple[str, str]]:
        """Return what axe finds serious or critical, with the first place."""
        found = axe.Axe().run(self.page, options=BRIEF).response["violations"]
        return [
            (v["id"], v["nodes"][0]["html"])
            for v in found
            if v["impact"] in ("serious", "critical")
        ]


def test_address_clean_requests_local(browser: Any, view: BoundServer) -> None:
    """The address is clean and the page requests nothing else."""
    with Tab(browser, view) as tab:
        assert tab.page.url == view.address
        tab.whole("small")
        assert {url.split("/")[2] for url in tab.asked} == {f"127.0.0.1:{view.port}"}
        assert tab.page.evaluate("document.cookie") == ""
        assert tab.noises == []


@pytest.mark.parametrize("dark", [False, True])
def test_pages_are_silent_and_for_everybody(browser: Any, view: BoundServer, dark: bool) -> None:
    with Tab(browser, view, dark) as tab:
        assert tab.grave() == []
        tab.whole("small")
        tab.page.locator("#search").fill("question 60")  # axe takes its time over fifty items
        tab.until("document.querySelectorAll('#item-list > li').length === 1")
        assert tab.grave() == []
        ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(18, 22, 27)" if dark else "rgb(255, 255, 255)")
        keys = tab.page.evaluate(
            "[...document.querySelectorAll('#report > section')].map(e => e.id)"
        )
        assert {"verdict", "forest", "pareto", "table", "curves", "provenance"} <= set(keys)
        links = tab.page.evaluate("[...document.querySelectorAll('nav a')].map(e => e.hash)")
        assert links == [*(f"#{key}" for key in keys), "#all-items"]
        assert tab.noises == []


def test_hostile_text_is_inert(browser: Any, view: BoundServer) -> None:
    with Tab(browser, view, width=390) as tab:
        assert "<script>" in tab.page.locator("#studies").inner_text()
        assert tab.page.evaluate(ACTED) == 0
        tab.whole("hostile")
        for _ in range(2):
            tab.page.locator("#next").click()
            tab.until("document.querySelectorAll('#item-list > li').length > 0")
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert "<script>window.__pwned" in tab.page.locator("#message").inner_text()
        tab.page.locator("#search").fill("<img src=x")
        tab.until("document.getElementById('items-note').textContent.includes(' of ')")
        assert "<img src=x onerror" in tab.page.locator("#item-list").inner_text()
        assert tab.page.evaluate(ACTED) == 0
        assert tab.page.evaluate("window.__pwned === undefined")
        assert tab.noises == []


def test_items_keyboard_navigation(browser: Any, view: BoundServer) -> None:
    """Items are chosen, searched and paged with the keyboard."""
    with Tab(browser, view) as tab:
        tab.whole("small")
        page = tab.page
        note = "document.getElementById('items-note').textContent"
        tab.until(f"{note} === '{ITEMS} items.'")
        assert page.locator("#previous").is_disabled()
        page.locator("#next").focus()
        page.keyboard.press("Enter")
        tab.until("document.getElementById('page').textContent === 'Page 2 of 3'")
        page.locator("#contender").select_option("ia3")
        tab.until("document.getElementById('page').textContent === 'Page 1 of 3'")
        page.locator("#outcome").select_option("losses")
        tab.until(f"{note} === '17 of {ITEMS} items.'")
        assert "control better" in page.locator("#item-list > li").first.inner_text()
        page.locator("#search").fill("question 60")
        tab.until(f"{note} === '1 of {ITEMS} items.'")
        answers = page.locator("#item-list > li").inner_text()
        assert all(f"seed {seed}" in answers for seed in SEEDS)
        page.reload()  # the address holds the choice
        tab.until(f"{note} === '1 of {ITEMS} items.'")
        assert tab.noises == []


def test_study_list_sort_filter_compare(browser: Any, view: BoundServer) -> None:
    """The list is sorted and filtered, and two studies are compared."""
    names = "[...document.querySelectorAll('#studies th a')].map(e => e.textContent)"
    with Tab(browser, view) as tab:
        page = tab.page
        page.get_by_role("button", name="Study").click()
        assert page.evaluate(names) == ["bad", "hostile", "small"]
        page.get_by_role("button", name="Study").press("Enter")
        assert page.evaluate(names) == ["small", "hostile", "bad"]
        page.locator("#filter").fill("database-damaged")
        page.locator("#filter").fill("small")
        assert page.evaluate(names) == ["small"]
        page.locator("#filter").fill("")
        assert page.locator("#compare").is_disabled()
        for name in ("small", "hostile"):
            page.get_by_role("checkbox", name=f"Compare {name}").press("Space")
        page.locator("#compare").click()
        tab.until("document.querySelectorAll('#verdicts tbody tr').length === 3")
        assert page.locator("#verdicts tbody tr", has_text="OFT").inner_text().count("better") == 2
        assert tab.grave() == []
        assert tab.noises == []


def test_damaged_study_shows_error(browser: Any, view: BoundServer) -> None:
    """A damaged study shows its error."""
    with Tab(browser, view) as tab:
        assert "database-damaged" in tab.page.locator("#studies tr", has_text="bad").inner_text()
        tab.study("bad")
        said = tab.page.locator("#trouble").inner_text()
        assert "database-damaged" in said
        assert "Try:" in said
        assert tab.grave() == []
        assert tab.noises == []


def test_growing_study_updates_page(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page updates while a study runs."""
    monkeypatch.setattr("bakeoff.report.live.study_feed.MIN_INTERVAL", 0.2)
    monkeypatch.setattr("bakeoff.report.live.app.POLL_SECONDS", 0.2)
    study = write_study(tmp_path / "runs" / "small", finals=False)
    with run_server([tmp_path / "runs"]) as opened, Tab(browser, opened) as tab:
        tab.study("small")
        tab.until(DRAWN)
        trials = "document.getElementById('trials').textContent"
        assert tab.page.evaluate(trials) == "6 of 15 planned trials"
        assert "No recommendation yet" in tab.page.locator("#verdict").inner_text()
        tab.page.evaluate("document.querySelector('#sensitivity').dataset.kept = 'yes'")
        tab.page.locator("#table table[data-sortable] thead button").first.click()
        with Writer(study / "study.db") as store:
            store.save_group([final_result(t, Texts()) for t in final_trials()])
            tab.until(f"{trials} === '15 of 15 planned trials'")
            tab.until("document.querySelector('#verdict').textContent.includes('Use OFT')")
        tab.until(DRAWN)
        tab.until("document.querySelectorAll('#item-list > li').length > 0")
        assert (
            tab.page.locator("#table th[aria-sort]").count() == 1
        )  # what a reader sorted stays so
        assert tab.page.evaluate("document.querySelector('#sensitivity').dataset.kept") == "yes"
        assert tab.noises == []
