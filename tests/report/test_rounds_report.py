"""The report of a study of replicates: the answer in plain words, looks, tuning, older studies."""

from __future__ import annotations

import csv
import io
import json
from importlib import resources
from typing import Any

import jsonschema
import pytest
from helpers.report_fixture import HOSTILE, report
from helpers.report_rounds import rounds_report, running_report

from bakeoff.report import markdown, render, render_inline, tables
from bakeoff.report.blocks import Bars, Block, Chart, Facts, Grid, TableBlock, Text
from bakeoff.report.evidence_texts import (
    certainty_text,
    evidence_facts,
    limit_text,
    meaning_text,
    unsettled_lines,
)
from bakeoff.report.live.items import _method_predictions
from bakeoff.report.live.queries import ItemQuery
from bakeoff.report.sections import (
    curves,
    fairness,
    forest,
    load_sections,
    race,
    rounds,
    sensitivity,
    stability,
    table,
    tuning,
    verdict,
)
from bakeoff.report.texts import verdict_text
from bakeoff.study.storage.database import ItemResults


def only(blocks: tuple[Block, ...], kind: type[Any]) -> Any:
    return next(b for b in blocks if isinstance(b, kind))


def texts(blocks: tuple[Block, ...]) -> str:
    return "\n".join(b.text for b in blocks if isinstance(b, Text))


def row_of(made: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(m for m in made["methods"] if m["method"] == name)
    return found


@pytest.mark.parametrize("made", [rounds_report(), running_report()], ids=["done", "running"])
def test_rounds_fixture_keeps_to_the_schema(made: dict[str, Any]) -> None:
    schema = json.loads(resources.files("bakeoff.report").joinpath("schema.json").read_text())
    jsonschema.validate(made, schema)


def test_every_section_of_a_rounds_study() -> None:
    page = render(rounds_report())
    for section in load_sections():
        assert f'<section id="{section.key}"' in page
    assert 'id="rounds"' not in render(report()), "older studies have no looks"
    assert 'id="tuning"' not in render(report())


def test_verdict_says_what_limits_each_contender() -> None:
    """The first screen says who is settled, and what would settle the others."""
    drawn = verdict.build(rounds_report()).blocks
    answers: TableBlock = only(drawn, TableBlock)
    said = {row.cells[0].text: [c.text for c in row.cells[1:]] for row in answers.rows}
    assert said["OFT"] == [
        "better",
        "surely better than LoRA, but maybe by less than 3.0 points",
        "8 of at most 8",
    ]
    assert said["DoRA"] == ["equivalent", "surely less than 3.0 points from LoRA", "5 of at most 8"]
    assert said["Full fine-tuning"][1] == (
        "not settled; items, not seeds, limit this: 1,160 test items would settle it"
    )
    assert said["VeRA"][1] == "not settled; seeds limit this: 14 replicates would settle it"
    assert said["Head only"][1] == "surely worse than LoRA"
    assert said["MiSS"] == ["diverged", row_of(report(), "miss")["reason"], "–"]
    assert "LoRA" not in said, "the control has no verdict"


def test_evidence_of_a_rounds_study() -> None:
    facts = dict(evidence_facts(rounds_report()))
    assert facts["Looks"] == "3 of 3; 1.9 of the 4.5 % error spent"
    assert facts["Replicates"].startswith("8 of at most 8 for the control, 3 to 8 for contenders")
    assert facts["Items and seeds"] == (
        "items make 24 to 61 % of the variance; more seeds would not narrow an interval below "
        "±1.1 to ±2.0 points"
    )
    assert "480 items tell as much as 224 independent ones" in facts["Groups of items"]
    assert facts["Learning rate"] == "lr 5e-4 for OFT, chosen in 6 of 8 replicates"
    assert facts["May be the best"] == "OFT, DoRA (95 % confidence set)"
    said = certainty_text(rounds_report())
    assert said is not None
    assert "at most 5 in 100" in said
    assert said.endswith(
        "LoRA was tuned well: its best setting (lr 1e-3) is inside its grid, and 6 of 8 replicates "
        "chose it (8 it or a neighbour)."
    )
    assert "up to 0.2 points" in texts(verdict.build(rounds_report()).blocks)


def test_open_contenders_name_the_next_look() -> None:
    made = running_report()
    assert limit_text(made, row_of(made, "vera")) == "open; the next look follows at 5 replicates"
    assert meaning_text(made, row_of(made, "ia3")).startswith("surely worse")
    assert unsettled_lines(made) == [
        "OFT, DoRA, Full fine-tuning, VeRA: open; the next look follows at 5 replicates."
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reason": "items", "items_needed": None}, "not settled; items, not seeds, limit this"),
        ({"reason": "time"}, "not settled; the time budget ended first"),
        ({"reason": None, "replicates": 8}, "not settled by all replicates"),
    ],
    ids=["items", "time", "all"],
)
def test_reasons_for_no_verdict(change: dict[str, Any], said: str) -> None:
    made = rounds_report()
    row_of(made, "full")["difference"] |= change
    assert limit_text(made, row_of(made, "full")) == said


def test_older_studies_say_nothing_of_rounds() -> None:
    made = report()
    assert certainty_text(made) is None
    assert evidence_facts(made) == []
    assert unsettled_lines(made) == []
    assert not any(isinstance(b, TableBlock) for b in verdict.build(made).blocks)


def test_looks_narrow() -> None:
    """Each look is a point of a contender's chart; an early verdict ends it."""
    drawn = rounds.build(rounds_report())
    charts = {c.title: c for c in only(drawn.blocks, Grid).charts}
    points = charts["OFT"].panes[0].series[-1]
    assert points.x == (3.0, 5.0, 8.0)
    widths = [h - low for low, h in zip(points.low, points.high, strict=True) if h and low]
    assert widths == sorted(widths, reverse=True)
    assert charts["DoRA"].panes[0].series[-1].x == (3.0, 5.0)
    bars: Bars = only(drawn.blocks, Bars)
    assert bars.rows[0].numbers == "items 61 %, floor ±2.0 points"
    assert bars.rows[0].pieces[0].high == 61.0
    last = only(drawn.blocks, TableBlock).rows[-1]
    assert [c.text for c in last.cells] == [
        "3", "8", "OFT, VeRA", "OFT better, VeRA inconclusive", "100 %", "1.92 %", "2.97",
    ]  # fmt: skip


def test_single_look_has_no_charts() -> None:
    made = rounds_report()
    made["rounds"] |= {"mode": "fixed", "planned": [8], "looks": made["rounds"]["looks"][2:]}
    drawn = rounds.build(made)
    assert not any(isinstance(b, Grid) for b in drawn.blocks)
    assert drawn.lead == "The results were analysed once, after 8 replicates, as planned."
    assert dict(evidence_facts(made))["Replicates"].startswith("8 of 8")
    assert "overstates" not in texts(verdict.build(made).blocks)


def test_rates_chosen_by_replicates() -> None:
    drawn = tuning.build(rounds_report())
    bars: Bars = only(drawn.blocks, Bars)
    lora = bars.rows[0]
    assert lora.numbers == "1e-3 in 6 of 8, 3.2e-3 in 2"
    assert [(p.tone, p.low, p.high) for p in lora.pieces] == [
        ("rate-2", 0.0, 75.0), ("rate-3", 75.0, 100.0),
    ]  # fmt: skip
    said = texts(drawn.blocks)
    assert "The control was tuned well" in said
    assert "every setting diverged: VeRA 1." in said
    assert "learning rate 3e-3 for every method" in said
    assert "No verdict depends on it" in said
    made = rounds_report()
    made["head"]["sensitive"] = ["vera"]
    made["control_tuning"] |= {"well_tuned": False, "inside_grid": False}
    warned = [
        b.text for b in tuning.build(made).blocks if isinstance(b, Text) and b.tone == "warning"
    ]
    assert warned[0].startswith(
        "The control was maybe not tuned well: its best setting (lr 1e-3) is at"
    )
    assert "the verdict of VeRA depends on it" in warned[-1]


def test_sections_count_replicates() -> None:
    """Forest plot, table, fairness and stability speak of replicates; the race of seeds."""
    made = rounds_report()
    assert only(forest.build(made).blocks, object).rows[1].small == "8 replicates"
    numbers: TableBlock = only(table.build(made).blocks, TableBlock)
    hints = {c.title: c.hint for c in numbers.columns}
    assert (hints["n"], hints["Setting"]) == ("items × replicates", "chosen most often")
    assert "P(better)" in hints
    assert "chosen in 6 of 8 replicates" in [c.text for c in numbers.rows[0].cells][-1] + str(
        numbers.rows[0]
    )
    fair = fairness.build(made).blocks
    assert texts(fair).startswith(
        "Every method tried 5 settings in each replicate, the control included. A contender gets "
        "no more replicates once it is settled"
    )
    budget: TableBlock = only(fair, TableBlock)
    assert budget.columns[-1].title == "Agree"
    assert budget.rows[0].cells[-1].text == "6 of 8"
    assert all(len(r.cells) == len(budget.columns) for r in budget.rows)
    assert "Replicate SD" in [
        c.title for c in only(stability.build(made).blocks, TableBlock).columns
    ]
    decisions: TableBlock = only(race.build(made).blocks, TableBlock)
    assert decisions.columns[2].title == "Seed"
    assert decisions.rows[0].cells[2].text == "7"
    assert all(len(r.cells) == len(decisions.columns) for r in decisions.rows)
    assert "the control had begun to learn: its loss had fallen by 14 %" in texts(
        race.build(made).blocks
    )
    made["race"]["first_rung"]["ripe"] = False
    assert "so three went on" in texts(race.build(made).blocks)


def test_curves_show_each_replicates_choice() -> None:
    """The run chosen in each replicate is drawn; the others are in the background."""
    lora: Chart = curves.build(rounds_report()).charts[0]
    roles = [s.role for s in lora.panes[1].series]
    assert sum(role.startswith("seed-") for role in roles) == 8
    assert roles.count("behind") == 8 * 4
    assert lora.description == "losses of 8 runs by step, 32 search runs in the background"


def test_sensitivity_separates_rung_and_end() -> None:
    """Losses at the rung are means over replicates; at the end only runs that got there compare."""
    lora: Chart = sensitivity.build(rounds_report()).charts[0]
    early, final, _ = lora.panes
    assert (early.y.title, final.y.title) == ("early loss", "final loss")
    tried, chosen = early.series
    assert (len(tried.x), tried.draw, chosen.x) == (5, "both", (1e-3,))
    tried, chosen = final.series
    assert (len(tried.x), tried.draw, len(chosen.x)) == (16, "points", 8)


def test_choice_at_end_is_no_stop() -> None:
    """A finalist that another one beat at the end was not stopped by racing."""
    made = rounds_report()
    stopped = made["race"]["decisions"][0] | {"step": 225, "goes_on": False}
    made["race"]["decisions"] = [stopped]
    lora: Chart = curves.build(made).charts[0]
    assert "lost" not in [s.role for s in lora.panes[1].series]


def test_further_evaluations_spend_the_reserve() -> None:
    made = rounds_report()
    made["study"] |= {"test_looks": 2, "test_changes": [{"at": "2026-11-30", "changes": ["x"]}]}
    made["rounds"]["reserve_spent"] = 0.0025
    said = texts(fairness.build(made).blocks)
    assert "have spent 0.25 of the 0.5 % error" in said
    row_of(made, "vera")["difference"]["exploratory"] = "worse"
    assert verdict_text(row_of(made, "vera")) == "inconclusive (exploratory: worse)"
    assert "The 5 % error rate does not cover them" in texts(verdict.build(made).blocks)


def test_tables_of_a_rounds_study() -> None:
    sheets = {
        name: list(csv.DictReader(io.StringIO(t))) for name, t in tables(rounds_report()).items()
    }
    assert len(sheets["looks"]) == 7 + 4 + 2
    assert sheets["looks"][-1]["critical"] == "2.97"
    assert sheets["replicates"][0]["learning_rate"] == "0.001"
    differences = {r["method"]: r for r in sheets["differences"]}
    assert differences["full"]["items_needed"] == "1160"
    assert differences["full"]["limit_reason"] == "items"
    assert sheets["probabilities"][0]["better_than_lora"] == ""
    assert {"looks", "replicates", "probabilities"}.isdisjoint(tables(report()))


def test_long_tables_are_cut_on_the_page() -> None:
    made = rounds_report()
    made["race"]["decisions"] *= 60
    drawn: TableBlock = only(race.build(made).blocks, TableBlock)
    assert len(drawn.rows) == 1000
    assert drawn.caption == "All decisions (the first 1,000 of 1,200)"
    assert tables(made)["race"].count("\n") == 1201, "the CSV has all"


def test_live_view_counts_stand_ins() -> None:
    """A replicate whose settings all diverged counts in the live view as it does in the report."""
    query = ItemQuery(
        "lora", {"vera": "VeRA"}, {"vera": {3: "a", 1: "b"}}, (), {}, {"vera": (2,)}, (1.0, 0.0)
    )
    results = {"a": ItemResults([0.0, 0.0], ["x", "y"]), "b": ItemResults([1.0, 1.0], ["x", "y"])}
    found = _method_predictions(query, "vera", results)
    assert found.seeds == (1, 2, 3)
    assert found.scores.values.tolist() == [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]


def test_hostile_texts_stay_text() -> None:
    made = rounds_report()
    made["groups"]["source"] = HOSTILE[1]
    made["head"]["source"] = HOSTILE[0]
    made["best_set"]["methods"] = list(HOSTILE)
    for method in made["methods"]:
        method["title"] = HOSTILE[1]
    page = render(made).split('<script type="application/json"')[0]
    assert HOSTILE[1] not in page
    assert HOSTILE[1] not in render_inline(made)
    assert HOSTILE[1] not in markdown(made)
    drawn: Facts = only(verdict.build(made).blocks, Facts)
    assert drawn.facts
