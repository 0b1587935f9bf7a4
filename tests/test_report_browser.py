"""The report in a real browser: drawn in silence under its policy, hostile text inert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_browser import Page, chromium, executable
from report_fixture import HOSTILE, hostile_report, report

from bakeoff.report import render

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
def test_browser_sorts_the_table_and_keeps_the_control_on_top(page: Page, tmp_path: Path) -> None:
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
