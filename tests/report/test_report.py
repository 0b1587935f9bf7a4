"""The report: numbers for people, geometry, inert text, the schema."""

from __future__ import annotations

import copy
import html
import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers.report_engines import DIFFERS, NOT_PACKABLE, NOT_SHARED
from helpers.report_fixture import HOSTILE, empty_report, hostile_report, report
from helpers.report_rounds import rounds_report

from bakeoff.core.format import (
    DisplayUnit,
    format_bytes,
    format_count,
    format_lane_costs,
    format_learning_rate,
    format_milliseconds,
    format_p_value,
    format_seconds,
    format_setting,
    format_significant,
)
from bakeoff.report import render
from bakeoff.report.blocks import Facts, Forest, TableBlock, Text
from bakeoff.report.sanitize import clean, content_policy, inert_json
from bakeoff.report.sections import (
    curves,
    fairness,
    forest,
    load_sections,
    pareto,
    sensitivity,
    stability,
    table,
)

POINTS = DisplayUnit(100.0, "points", 1)


def without_assets(page: str) -> str:
    """Drop Plotly and our own script and style: what is left came through the templates."""
    return re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (POINTS.plain(0.8625), "86.2"),
        (POINTS.signed(0.008), "+0.8"),
        (POINTS.signed(-0.0274), "−2.7"),
        (POINTS.signed(-0.0004), "0.0"),
        (POINTS.plain(None), "–"),
        (POINTS.with_interval({"estimate": 0.1, "low": -0.02, "high": 0.2}, signed=True),
         "+10.0 (−2.0 to +20.0)"),
        (POINTS.with_interval({"estimate": 0.1, "low": None, "high": None}), "10.0"),
        (format_count(1_234_567), "1.2 M"),
        (format_count(73_728), "73.7 k"),
        (format_count(912), "912"),
        (format_bytes(24.6 * 2**20), "24.6 MiB"),
        (format_bytes(2048), "2.0 KiB"),
        (format_bytes(20 * 2**30), "20.0 GiB"),
        (format_milliseconds(31.24), "31.2 ms"),
        (format_milliseconds(1234.5), "1,234 ms"),
        (format_seconds(4.21), "4.2 s"),
        (format_seconds(192), "3 min 12 s"),
        (format_seconds(7500), "2 h 05 min"),
        (format_learning_rate(1e-4), "1e-4"),
        (format_learning_rate(3.16e-4), "3.2e-4"),
        (format_p_value(0.0), "< 0.001"),
        (format_p_value(0.0123), "0.012"),
        (format_setting({"r": 8, "learning_rate": 0.001}), "lr 1e-3, r 8"),
        (format_setting(None), "–"),
        (format_significant(0.0), "0"),
        (format_lane_costs([("LoRA", 16, 3.84), ("OFT", 16, 12.0), ("full", None, None)]),
         "16 lanes take 3.8 times a single trial's step with LoRA, 12 times with OFT"),
        (format_lane_costs([("LoRA", 16, 3.0), ("{}", 4, 1.04)]),
         "16 lanes take 3 times a single trial's step with LoRA; "
         "4 lanes take 1 times a single trial's step with {}"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_people(written: str, expected: str) -> None:
    assert written == expected


@pytest.mark.parametrize("made", [report(), hostile_report(), empty_report()])
def test_fixture_keeps_to_the_schema(made: dict[str, Any]) -> None:
    schema = json.loads(resources.files("bakeoff.report").joinpath("schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(made, schema)


@pytest.mark.parametrize(
    ("where", "key", "bad"),
    [
        (lambda r: r["study"], "better", "up"),
        (lambda r: r["methods"][1], "verdict", "great"),
        (lambda r: r["methods"][1], "status", "ok"),
        (lambda r: r["methods"][1]["score"], "estimate", "0.9"),
        (lambda r: r["failures"][0], "status", None),
        (lambda r: r["timing"], "wall_seconds", -1),
    ],
)
def test_schema_refuses_what_is_wrong(where: Any, key: str, bad: Any) -> None:
    schema = json.loads(resources.files("bakeoff.report").joinpath("schema.json").read_text())
    made = report()
    where(made)["later_key"] = "allowed"
    jsonschema.validate(made, schema)
    where(made)[key] = bad
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(made, schema)


def test_documentation_names_every_key() -> None:
    schema = json.loads(resources.files("bakeoff.report").joinpath("schema.json").read_text())
    text = (Path(__file__).parents[2] / "docs" / "report-json.md").read_text()

    def keys(part: Any) -> set[str]:
        if isinstance(part, list):
            return set().union(*map(keys, part)) if part else set()
        if not isinstance(part, dict):
            return set()
        return set(part.get("properties", {})) | keys(list(part.values()))

    assert {k for k in keys(schema) if f"`{k}`" not in text} == set()


def test_rendering_is_deterministic_and_pure() -> None:
    """The same report gives the same bytes and is not modified."""
    made = report()
    before = copy.deepcopy(made)
    assert render(made) == render(made)
    assert made == before


def test_page_has_every_section() -> None:
    """Every section of the package is on the page."""
    page = without_assets(render(rounds_report()))
    found = re.findall(r'<section id="(\w+)"', page)
    assert found == [s.key for s in load_sections()]
    assert found == ["verdict", "forest", "rounds", "pareto", "table", "fairness", "tuning", "race",
                     "sensitivity", "curves", "items", "stability", "costs", "warnings",
                     "failures", "provenance"]  # fmt: skip


def test_verdict_readable_without_scripts() -> None:
    """The page shows the verdict and every method without scripts."""
    page = html.unescape(without_assets(render(report())))
    page = page[: page.index('<script type="application/json"')]
    assert report()["recommendation"]["sentence"] in page
    assert "+0.8 (−0.9 to +2.5)" in page
    assert "86.2 (83.5 to 88.8)" in page
    for method in report()["methods"]:
        assert page.count(method["title"]) >= 3  # forest plot, table, fairness
        assert method["reason"] is None or method["reason"] in page


def test_unfinished_and_bare_studies_render() -> None:
    page = without_assets(render(empty_report()))
    assert "This study is not finished" in page
    assert "Nothing has been trained yet." in page
    bare = {"schema": 1, "study": dict.fromkeys(report()["study"]), "methods": []}
    assert "There is no recommendation yet." in render(bare)


@pytest.mark.parametrize("key", ["score", "difference", "cost", "setting", "settings", "curves",
                                 "seeds", "title", "reason", "n_seeds", "n_settings",
                                 "engine", "stability", "front_probability"])  # fmt: skip
def test_null_method_parts_accepted(key: str) -> None:
    """Any part of a method may be null."""
    made = report()
    for method in made["methods"]:
        method[key] = None
    assert "<h2" in render(made)


def test_every_number_may_be_null() -> None:
    def blank(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: blank(v) for k, v in value.items()}
        if isinstance(value, list):
            return [blank(v) for v in value]
        return None if isinstance(value, int | float) and not isinstance(value, bool) else value

    assert "<h2" in render(blank(report()))


def test_forest_places_band_zero_and_whiskers() -> None:
    made = report()
    made["methods"] = made["methods"][:3]  # LoRA, OFT (-0.009 .. 0.025), DoRA (-0.0071 .. 0.0083)
    drawn = forest.build(made).blocks[0]
    assert isinstance(drawn, Forest)
    # Shown: -0.02 (twice the margin) to 0.025, on 4 % to 96 %: 92/0.045 percent a unit.
    at = lambda v: pytest.approx(4 + 92 * (v + 0.02) / 0.045, abs=0.01)  # noqa: E731
    assert drawn.zero == at(0)
    assert (drawn.band_low, drawn.band_high) == (at(-0.01), at(0.01))
    whisker = drawn.rows[1].whisker
    assert whisker is not None
    assert (whisker.low, whisker.point, whisker.high) == (at(-0.009), at(0.008), at(0.025))
    assert not whisker.low_clipped


def test_forest_clips_outlier_keeps_failures() -> None:
    """The forest plot clips a distant method and keeps failures as rows."""
    drawn = forest.build(report()).blocks[0]
    assert isinstance(drawn, Forest)
    rows = {r.name: r for r in drawn.rows}
    assert len(rows) == 10
    head = rows["Head only"].whisker
    assert head is not None
    assert head.low_clipped
    assert head.point == head.low == 4.0
    assert rows["Head only"].numbers == "−32.8 (−37.1 to −28.6)"
    assert rows["MiSS"].whisker is None
    assert (
        rows["MiSS"].reason == "every setting diverged; the first at step 31 (loss was not finite)"
    )
    assert rows["Prefix tuning"].badge == "incompatible"


def test_forest_says_which_side_is_better() -> None:
    made = report()
    drawn = forest.build(made).blocks[0]
    assert isinstance(drawn, Forest)
    assert (drawn.left, drawn.right) == ("← worse", "better →")
    made["study"]["better"] = "lower"
    drawn = forest.build(made).blocks[0]
    assert isinstance(drawn, Forest)
    assert (drawn.left, drawn.right) == ("← better", "worse →")


def test_pareto_marks_front_and_outliers() -> None:
    """The Pareto plot marks the front, the control and distant points."""
    chart = pareto.build(report()).charts[0]
    roles = {s.role: s for s in chart.panes[0].series}
    assert roles["control"].labels == ("LoRA 93 %",)
    assert roles["control"].x == (pytest.approx(24.6, abs=1e-5),)  # MiB
    assert roles["control"].y == (pytest.approx(86.2),)  # points
    assert set(roles["front"].labels) == {"OFT 71 %", "IA³ 100 %", "LayerNorm tun… 100 %"}
    assert roles["front-line"].x == tuple(sorted(roles["front-line"].x))
    assert roles["beyond"].labels == ("Head only † 53.4",)
    labels = [t for s in chart.panes[0].series for t in s.labels]
    assert len(labels) == 8  # every method that has a score and a cost, once
    assert chart.x.log  # 14 to 412 MiB
    assert chart.x.tick_text == ("10", "20", "50", "100", "200", "500")


def test_pareto_probabilities_and_exclusions() -> None:
    """The Pareto section gives each front probability and names excluded methods."""
    drawn = pareto.build(report())
    assert cells(drawn, "All axes")["OFT"] == "84 %"
    assert cells(drawn, "All axes")["Full fine-tuning"] == "–"
    assert cells(drawn, "Peak training memory")["Head only"] == "0 %"
    assert cells(drawn, "Time of a training step")["Full fine-tuning"] == "66 %"
    said = [b.text for b in drawn.blocks if isinstance(b, Text)]
    assert said[:2] == [
        "Not measured, and so not an axis of the front: forgetting.",
        "Left out of the front over all axes for lack of a measurement: "
        "Full fine-tuning (no size).",
    ]
    hover = [line for s in drawn.charts[0].panes[0].series for h in s.hover for line in h]
    assert "on this front with probability 71 %" in hover


def test_report_without_probabilities_shows_plots() -> None:
    """A report from before probabilities shows the plots only."""
    made = report()
    del made["front"]
    for entry in made["pareto"]:
        del entry["probabilities"]
    drawn = pareto.build(made)
    assert not [b for b in drawn.blocks if isinstance(b, TableBlock)]
    labels = {t for s in drawn.charts[0].panes[0].series for t in s.labels}
    assert {"LoRA", "DoRA †", "LayerNorm tuning"} <= labels


def test_stability_row_per_known_method() -> None:
    """Stability has a row for every method with a known value."""
    drawn = stability.build(report())
    diverged = cells(drawn, "Diverged")
    assert (diverged["LoRA"], diverged["Full fine-tuning"]) == ("0 of 6", "1 of 6")
    assert diverged["MiSS"] == "3 of 3"
    assert "Prefix tuning" not in diverged
    assert cells(drawn, "Plateau")["LoRA"] == "≥ 1.0"
    assert cells(drawn, "Range")["OFT"] == "5e-4 (of 3, by loss from step 75)"
    assert cells(drawn, "Range")["LoRA"] == "1e-4 – 1e-3 (of 3, by score)"
    assert cells(drawn, "Seed SD")["LoRA"] == "0.4 (0.2 to 2.5), n 3"
    assert cells(drawn, "Spikes")["Full fine-tuning"] == "2 of 30"
    assert cells(drawn, "Seed SD")["MiSS"] == "–"
    assert drawn.lead is not None
    assert "within 1.0 points of validation score or 5 % of validation loss" in drawn.lead
    made = report()
    for method in made["methods"]:
        method["stability"] = None  # as it was before it was measured
    assert stability.build(made).blocks == ()


def test_curves_show_failed_runs() -> None:
    """Sensitivity and curves show the runs that gave no result."""
    panels = {c.title: c for c in sensitivity.build(report()).charts}
    loss = {s.role: s for s in panels["MiSS"].panes[0].series}
    assert set(loss) == {"lost", "reference"}
    assert loss["lost"].x == (1e-3, 1e-2, 1e-1)
    full = {s.role: s for s in panels["Full fine-tuning"].panes[0].series}
    assert full["lost"].x == (pytest.approx(1e-3),)
    assert full["chosen"].x == (pytest.approx(1e-4),)
    lines = {c.title: c for c in curves.build(report()).charts}
    for pane in lines["MiSS"].panes:
        assert pane.y.high is not None
        assert pane.y.high < 10  # the diverged 61.0 does not squash the others


def test_fairness_says_when_budgets_differ() -> None:
    made = report()
    first = fairness.build(made).blocks[0]
    assert getattr(first, "text", "") == (
        "Every method got 3 settings and 3 seeds, the control included."
    )
    made["methods"][1] |= {"n_settings": 4, "n_settings_added": 1}
    drawn = fairness.build(made)
    assert getattr(drawn.blocks[0], "text", "") == (
        "Every method got 3 settings and 3 seeds, the control included. More were tried where the "
        "best learning rate was at the edge of the grid: OFT 1."
    )
    assert cells(drawn, "Settings")["OFT"] == "4 (1 added)"
    made["methods"][1] |= {"n_settings": 9, "n_settings_added": 0}
    first = fairness.build(made).blocks[0]
    assert getattr(first, "text", "") == (
        "Not the same for all: most methods have 3 settings, but OFT 9."
    )


def cells(drawn: Any, column: str) -> dict[str, str]:
    """Return a column of the first table among a section's blocks, by the row's first cell."""
    found = next(b for b in drawn.blocks if isinstance(b, TableBlock))
    at = [c.title for c in found.columns].index(column)
    return {r.cells[0].text: r.cells[at].text for r in found.rows}


def test_fairness_says_what_hours_bought() -> None:
    made = report()
    assert "hours" not in str(fairness.build(made).blocks[2])
    made["hours"] = {
        "hours": 2.0, "steps": 400, "settings": 5, "seeds": 3, "contenders": ["oft"],
        "dropped": ["vera"], "passes": 1.5, "seconds": 6800.0, "detectable": 0.03,
        "final_steps": 420, "used": 1.94,
    }  # fmt: skip
    said = " ".join(str(b) for b in fairness.build(made).blocks)
    assert "The budget was 2 hours." in said
    assert "5 settings, 3 seeds and 400 steps per run (1.5 epochs" in said
    assert "final runs took 420" in said
    assert "1.9 hours have been used so far" in said
    assert "Dropped from the end of the list of contenders: vera." in said


def test_fairness_names_lanes_and_reasons() -> None:
    """Fairness says which methods ran in lanes and why others did not."""
    drawn = fairness.build(report())
    lanes = cells(drawn, "Lanes")
    assert (lanes["OFT"], lanes["VeRA"], lanes["Prefix tuning"]) == ("3", "sequential", "–")
    said = " ".join(b.text for b in drawn.blocks if isinstance(b, Text))
    assert "not scores" in said
    assert "On for all: loss. Off for all: compile, graphs. Exceptions:" in said
    (facts,) = (b for b in drawn.blocks if isinstance(b, Facts))
    assert [(f.name, f.value) for f in facts.facts] == [
        ("DoRA", f"sequentially, without lean_inputs: {DIFFERS}\nwithout packing: {NOT_PACKABLE}"),
        ("Full fine-tuning, Head only", f"without packing: {NOT_PACKABLE}"),
        ("VeRA", f"sequentially: {NOT_SHARED}"),
    ]


def test_missing_accelerator_reason_shown() -> None:
    """A reason is shown even if no method had the accelerator."""
    made = report()
    made["methods"] = [m for m in made["methods"] if m["method"] in ("vera", "prefix_tuning")]
    drawn = fairness.build(made)
    (facts,) = (b for b in drawn.blocks if isinstance(b, Facts))
    assert [(f.name, f.value) for f in facts.facts] == [("VeRA", f"sequentially: {NOT_SHARED}")]
    assert any(
        "Off for all: compile, graphs." in b.text for b in drawn.blocks if isinstance(b, Text)
    )
    # alone, its figures compare with nobody's
    assert not any("†" in text for text in cells(table.build(made), "Training").values())


def test_fairness_reports_sequential_runs() -> None:
    """Fairness says when runs were sequential although lanes were enabled."""
    made = report()
    made["methods"][1]["engine"]["lanes"] = 1
    (facts,) = (b for b in fairness.build(made).blocks if isinstance(b, Facts))
    oft = {f.name: f.value for f in facts.facts}["OFT"]
    assert oft == "sequentially: lanes were on, but its runs could not be trained together"
    for method in made["methods"]:  # one setting and one seed each: there was nothing to share
        if method["engine"]:
            method["engine"] |= {"lanes": 1, "on": ["lanes"], "off": {}}
    drawn = fairness.build(made)
    assert not [b for b in drawn.blocks if isinstance(b, Facts)]
    assert set(cells(drawn, "Lanes").values()) == {"sequential", "–"}


def test_costs_without_accelerator_marked() -> None:
    """Costs measured without the accelerators of the others are marked."""
    made = report()
    drawn = table.build(made)
    for column in ("Speed", "Step", "Peak memory"):
        marked = {name for name, text in cells(drawn, column).items() if "†" in text}
        assert marked == {"DoRA", "Full fine-tuning", "Head only"}, column
    # a run's time is shared among lanes; the other costs are of one trial alone
    marked = {name for name, text in cells(drawn, "Training").items() if "†" in text}
    assert marked == {"DoRA", "Full fine-tuning", "Head only", "VeRA"}
    assert not any("†" in text for text in cells(drawn, "Trainable").values())
    note = drawn.blocks[-1]
    assert isinstance(note, Text)
    assert "VeRA (no lanes)" in note.text
    memory = pareto.build(made)
    titles = {t for s in memory.charts[0].panes[0].series for t in s.labels}
    assert {"DoRA † 34 %", "Full fine-tu… † 12 %", "VeRA 4 %", "LoRA 93 %"} <= titles
    hover = [line for s in memory.charts[0].panes[0].series for h in s.hover for line in h]
    assert hover.count("measured without packing, which others had") == 2
    assert not any("VeRA" in b.text for b in memory.blocks if isinstance(b, Text))


def test_report_without_lanes() -> None:
    """A report from before lanes shows nothing about them."""
    made = report()
    for method in made["methods"]:
        del method["engine"]
    page = without_assets(render(made))
    assert "†" not in page
    assert "Lanes" not in page
    assert "Off for all" not in page


def test_clean_removes_unrenderable_values() -> None:
    """Cleaning removes what a page cannot hold."""
    dirty = {"a": [float("nan"), float("inf"), 1.5], "b": "x\x00\x1b[31m\u202ey\ud800\r\nz\tq"}
    assert clean(dirty) == {"a": [None, None, 1.5], "b": "x��[31m�y�\nz\tq"}


def test_json_cannot_leave_its_block() -> None:
    text = inert_json(list(HOSTILE))
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == list(HOSTILE)


def test_policy_names_hashes_and_nothing_inline() -> None:
    # sha256 of "" and of "a", from the standard test vectors
    policy = content_policy(["a"], [""])
    assert "script-src 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='" in policy
    assert "style-src 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    with pytest.raises(ValueError, match="inline"):
        content_policy(["x</script>"], [])


class Tags(HTMLParser):
    """Counts elements and collects attribute names of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}


def test_hostile_text_adds_no_markup() -> None:
    """Hostile text creates no element and no attribute."""
    kind, hostile = Tags(), Tags()
    kind.feed(render(report()))
    hostile.feed(render(hostile_report()))
    hostile_page = render(hostile_report())
    hostile_page.encode("utf-8")
    assert hostile.tags["script"] == kind.tags["script"] == 3
    assert hostile.tags.get("img") is None
    assert hostile.tags["svg"] == kind.tags["svg"]
    assert "href" in hostile.attributes
    assert not {a for a in hostile.attributes if a.startswith("on") or a == "style"}
    assert "javascript:" not in re.sub(
        r"&lt;a href=.*?&gt;",
        "",
        without_assets(hostile_page).split('<script type="application/json"')[0],
    )
    assert "{{ 7 * 7 }}" in hostile_page


def test_page_requests_nothing_external() -> None:
    """The page requests nothing from outside."""
    page = without_assets(render(report()))
    assert not re.findall(r'(?:src|href|action|srcset)="(?!#)[^"]*"', page)
