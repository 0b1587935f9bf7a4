"""The report in a real browser: drawn in silence under its policy, hostile text inert."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import Page, chromium, executable
from helpers.report_fixture import HOSTILE, hostile_report, report

from bakeoff.report import render, render_sections, tables

READY = (
    "(n => n > 0 && [...document.querySelectorAll('[data-chart]')]"
    ".every(e => e.querySelector('svg.main-svg')))"
    "(document.querySelectorAll('[data-chart]').length)"
)
LOUD = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown",
        "Audits.issueAdded", "Page.javascriptDialogOpening"}  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Any:
    program = executable()
    if program is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")
    with chromium(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def noises(page: Page) -> list[dict[str, Any]]:
    """Everything that a browser complains about: console, policy, exceptions, dialogs."""
    return [e for e in page.events if e["method"] in LOUD]


def serious(page: Page) -> list[str]:
    """Return what axe finds that keeps somebody from reading the page, with everything open."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        pytest.skip("axe-playwright-python brings axe")
    page.evaluate(Path(spec.origin).with_name("axe.min.js").read_text(encoding="utf-8"))
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
    found = page.evaluate("axe.run().then(r => JSON.stringify(r.violations))")
    return [
        f"{v['id']}: {v['nodes'][0]['html'][:200]}"
        for v in json.loads(found)
        if v["impact"] in ("serious", "critical")
    ]


def opened(page: Page, folder: Path, made: dict[str, Any], width: int = 1280) -> None:
    """Open a report and wait until its charts are there."""
    file = folder / "report.html"
    file.write_text(render(made), encoding="utf-8")
    page.open(file, width, wait=READY)


def hover(page: Page, key: str) -> str:
    """Move the mouse over each point of the second chart of a kind; return what it says."""
    page.evaluate(
        f"document.querySelectorAll('[data-chart^={key}]')[1].scrollIntoView({{block: 'center'}})"
    )
    spots = page.evaluate(
        f"[...document.querySelectorAll('[data-chart^={key}]')[1].querySelectorAll('path.point')]"
        ".map(e => e.getBoundingClientRect()).map(r => [r.x + r.width / 2, r.y + r.height / 2])"
    )
    said = ""
    for x, y in spots:
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        page.evaluate("new Promise(done => setTimeout(done, 80))")
        said += page.evaluate(
            "[...document.querySelectorAll('.hovertext')].map(e => e.textContent).join(' ')"
        )
    return said


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_browser_draws_every_chart_in_silence(
    page: Page, tmp_path: Path, width: int, dark: bool
) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(report()), encoding="utf-8")
    page.open(file, width, dark=dark, wait=READY)
    assert noises(page) == []
    asked = [e for e in page.events if e["method"] == "Network.requestWillBeSent"]
    assert [e["params"]["request"]["url"] for e in asked] == [file.as_uri()]
    assert page.evaluate("document.querySelectorAll('[data-chart]').length") == 20
    assert page.evaluate("document.querySelectorAll('.scatterlayer .trace').length") > 60
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(18, 22, 27)" if dark else "rgb(255, 255, 255)")


@pytest.mark.browser
def test_browser_finds_hostile_text_inert(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "hostile.html"
    file.write_text(render(hostile_report()), encoding="utf-8")
    page.open(file, 1280, wait=READY)
    assert "<script>" in hover(page, "pareto-")  # said as text, not read as markup
    assert "<img" in hover(page, "sensitivity-")
    assert "seed 2" in hover(page, "curves-")
    assert noises(page) == []
    assert page.evaluate("window.__pwned === undefined")
    assert (
        page.evaluate(
            "document.querySelectorAll('img, a[href^=javascript], .plot a, .plot b').length"
        )
        == 0
    )
    assert page.evaluate("document.querySelector('h1').textContent") == HOSTILE[0]
    shown = page.evaluate("document.querySelector('.plot .ytitle').textContent")
    assert shown.startswith('<a href="javascript:')  # shown as text, not read as markup
    page.open(file, 390, wait=READY)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.browser
def test_table_sorts_with_control_on_top(page: Page, tmp_path: Path) -> None:
    """The browser sorts the table and keeps the control on top."""
    file = tmp_path / "report.html"
    file.write_text(render(report()), encoding="utf-8")
    page.open(file, 1280, wait=READY)
    names = (
        "[...document.querySelectorAll('#table [data-sortable] tbody th')]"
        ".map(e => e.textContent.trim())"
    )
    press = (
        "[...document.querySelectorAll('[data-sortable] thead button')]"
        ".find(b => b.textContent === 'Peak memory').click()"
    )
    page.evaluate(press)
    down = page.evaluate(names)
    assert down[:3] == ["LoRA", "Full fine-tuning", "DoRA"]
    assert down[-2:] == ["MiSS", "Prefix tuning"]  # absent numbers stay last
    page.evaluate(press)
    up = page.evaluate(names)
    assert up[:3] == ["LoRA", "LayerNorm tuning", "Head only"]
    assert up[-2:] == ["MiSS", "Prefix tuning"]


AXES = "[...document.querySelectorAll('[data-pick] select')]"
FIRST = "document.querySelector('[data-chart^=pareto]')"


def choose(page: Page, which: int, name: str) -> None:
    """Choose an axis by its name: 0 is the one that stands up, 1 the one that lies across."""
    page.evaluate(
        f"(s => {{ s.value = [...s.options].find(o => o.text === {name!r}).value;"
        f" s.dispatchEvent(new Event('change')) }})({AXES}[{which}])"
    )


@pytest.mark.browser
def test_browser_draws_any_two_axes(page: Page, tmp_path: Path) -> None:
    opened(page, tmp_path, report())
    names = page.evaluate(f"{AXES}[0].textContent === {AXES}[1].textContent && {AXES}[0].length")
    assert names == 5
    choose(page, 0, "Time of a training step")
    caption = f"{FIRST}.parentElement.querySelector('figcaption').textContent"
    said = page.evaluate(caption)
    assert "Time of a training step against peak training memory" in said
    # LayerNorm tuning needs least memory, the head alone least time; all else is behind both
    assert "on the front: LayerNorm tuning, Head only. A front without the score" in said
    assert page.evaluate(f"{FIRST}.querySelector('.ytitle').textContent").startswith("time of a tr")
    labels = f"[...{FIRST}.querySelectorAll('.textpoint')].map(e => e.textContent)"
    assert {"LoRA", "Head only \u2020", "Full fine-tuning \u2020"} <= set(page.evaluate(labels))
    choose(page, 1, "Time of a training step")  # the same twice: they change places
    chosen = f"{AXES}.map(s => s.selectedOptions[0].text)"
    assert page.evaluate(chosen) == ["Peak training memory", "Time of a training step"]
    choose(page, 0, "Accuracy")
    assert {"LoRA 88 %", "Head only \u2020 53.4"} <= set(page.evaluate(labels))
    assert page.evaluate(f"{FIRST}.getAttribute('aria-label')").startswith("Accuracy against time")
    choose(page, 0, "Trainable parameters")
    choose(page, 1, "Accuracy")
    assert page.evaluate(f"{FIRST}.querySelectorAll('.xerror').length") > 5
    choose(page, 0, "Peak training memory")
    assert noises(page) == []


@pytest.mark.browser
def test_labels_return_with_room(page: Page, tmp_path: Path) -> None:
    """The browser shows labels again when there is room."""
    opened(page, tmp_path, report(), 390)
    labels = f"{FIRST}.querySelectorAll('.textpoint text').length"
    assert page.evaluate(labels) < 8
    page.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1,
              mobile=False)  # fmt: skip
    until = time.monotonic() + 20
    while page.evaluate(labels) < 8:
        assert time.monotonic() < until, "a label never came back"
        time.sleep(0.1)


@pytest.mark.browser
def test_filter_shows_remaining_count(page: Page, tmp_path: Path) -> None:
    """The browser filters rows and shows how many remain."""
    opened(page, tmp_path, report())
    shown = (
        "[...document.querySelectorAll('#table tbody tr:not([hidden]) th')]"
        ".map(e => e.textContent.trim())"
    )
    said = "document.querySelector('#table output').textContent"
    assert page.evaluate(said) == "10 of 10 rows shown"
    assert page.evaluate("document.querySelector('#table output').ariaLive") == "polite"
    page.evaluate("document.querySelector('#table [data-filter] input').focus()")
    page.call("Input.insertText", text="TUNING")
    assert page.evaluate(shown) == ["LoRA", "Full fine-tuning", "LayerNorm tuning", "Prefix tuning"]
    assert page.evaluate(said) == "4 of 10 rows shown"
    facet = "document.querySelector('#table [data-filter] select')"
    assert page.evaluate(f"[...{facet}.options].map(o => o.text)") == [
        "all", "control", "diverged", "equivalent", "incompatible", "inconclusive", "worse",
    ]  # fmt: skip
    page.evaluate(f"{facet}.value = 'worse'; {facet}.dispatchEvent(new Event('input'))")
    assert page.evaluate(shown) == ["LoRA", "LayerNorm tuning"]
    for key in ("Tab", "Tab"):  # the next thing to press is the choice, then the table
        page.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key,
                  windowsVirtualKeyCode=9)  # fmt: skip
        page.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)
    assert page.evaluate("document.activeElement.className") == "scroll"
    page.evaluate(
        "(e => { e.value = ''; e.dispatchEvent(new Event('input')) })"
        "(document.querySelector('#table [data-filter] input'))"
    )
    assert page.evaluate(said) == "5 of 10 rows shown"


@pytest.mark.browser
def test_figures_download_as_csv(page: Page, tmp_path: Path) -> None:
    """The browser offers every figure as CSV."""
    made = hostile_report()
    made["study"]["name"] = "home/intents"
    opened(page, tmp_path, made)
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.evaluate(
        "document.querySelectorAll('[data-csv] button')"
        ".forEach((b, i) => setTimeout(() => b.click(), 150 * i))"
    )
    sheets = {k: v for k, v in tables(made).items() if k != "examples"}
    assert page.evaluate(
        "[...new Set([...document.querySelectorAll('[data-csv]')].map(e => e.dataset.csv))].sort()"
    ) == sorted(sheets)
    until = time.monotonic() + 20
    for name, text in sheets.items():
        file = tmp_path / f"home-intents-{name}.csv"
        while not file.exists() or not file.stat().st_size:
            assert time.monotonic() < until, f"{file.name} never came"
            time.sleep(0.1)
        assert file.read_text(encoding="utf-8-sig") == text
    assert noises(page) == []
    assert page.evaluate("window.__pwned === undefined")


@pytest.mark.browser
def test_new_rows_mounted_without_reset(page: Page, tmp_path: Path) -> None:
    """The browser mounts new content and keeps what is already there."""
    opened(page, tmp_path, report())
    choose(page, 0, "Time of a training step")
    (section,) = (s for s in render_sections(report()) if s["key"] == "pareto")
    page.evaluate(
        "(s => { const old = document.getElementById(s.key); old.outerHTML = s.html;"
        " window.bakeoff.mount(document.getElementById(s.key), s.charts) })"
        f"({json.dumps(section)})"
    )
    page.evaluate("window.bakeoff.mount(document, [])")
    until = time.monotonic() + 20
    while not page.evaluate(READY):
        assert time.monotonic() < until
        time.sleep(0.1)
    counts = "[...document.querySelectorAll('[data-csv]')].map(e => e.children.length)"
    assert max(page.evaluate(counts)) == 2  # the figures and one button
    assert page.evaluate(f"{AXES}.length") == 2
    chosen = page.evaluate(f"{AXES}[0].selectedOptions[0].text")
    assert chosen == "Time of a training step"  # the reader's choice outlives an update
    assert page.evaluate("document.querySelectorAll('#table thead button').length") > 10
    assert noises(page) == []
