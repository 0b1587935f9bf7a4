"""Sections of the report: axes to choose, curves with the race, item by item, costs, evidence."""

from __future__ import annotations

import re
from typing import Any

import pytest
from helpers.large_report import big_report
from helpers.report_fixture import HOSTILE, hostile_report, report

from bakeoff.report import render, render_sections
from bakeoff.report.blocks import Bars, Block, Examples, Picker, TableBlock, Text
from bakeoff.report.sections import (
    costs,
    curves,
    failures,
    items,
    pareto,
    race,
    sensitivity,
    table,
    verdict,
)


def only(blocks: tuple[Block, ...], kind: type[Any]) -> Any:
    return next(b for b in blocks if isinstance(b, kind))


def picker(made: dict[str, Any]) -> Picker:
    found = pareto.build(made).charts[0].picker
    assert found is not None
    return found


def test_measured_axes_are_selectable() -> None:
    """Every axis on which some method was measured can be chosen."""
    made = report()
    found = picker(made)
    assert [a.key for a in found.axes] == [
        "quality", "train_peak_bytes", "step_milliseconds", "trainable_parameters",
        "train_seconds",
    ]  # fmt: skip
    assert [a.sign for a in found.axes] == [1, -1, -1, -1, -1]
    assert (found.x, found.y) == (1, 0)
    assert len(found.points) == 8
    lora = found.points[0]
    assert (lora.title, lora.control, lora.chances) == (
        "LoRA",
        True,
        (None, 0.93, 0.88, None, None),
    )
    assert lora.values[:3] == (pytest.approx(86.2), pytest.approx(24.6, abs=1e-5), 31.2)
    assert (lora.lows[0], lora.highs[1]) == (pytest.approx(83.5), None)
    quality = found.axes[0]
    # Head only, at 53.4, is on the axis where it lies across and beyond it where it stands up
    assert quality.x.low is not None
    assert quality.x.low < 53.4
    assert quality.y.low is not None
    assert quality.y.low > 53.4
    for method in made["methods"]:
        method["forgetting"] = {"estimate": 0.2, "low": 0.1, "high": 0.3}
    made["pareto"].append({"cost": "forgetting", "label": "forgetting", "front": []})
    assert "forgetting" in [a.key for a in picker(made).axes]


def test_lower_scores_turn_the_axis() -> None:
    made = report()
    made["study"] |= {"better": "lower", "unit": "nats"}
    assert picker(made).axes[0].sign == -1
    assert picker(made).axes[0].x.title.endswith("less is better")


def test_curves_show_losses_rungs_stops() -> None:
    """Curves show both losses, the rungs and the stopped trials."""
    panels = {c.title: c for c in curves.build(report()).charts}
    training, validation = panels["VeRA"].panes
    assert (training.y.title, validation.y.title) == ("training", "validation")
    roles = [s.role for s in validation.series]
    assert roles == ["rung", "rung", "reference", "seed-0", "seed-1", "seed-2", "lost"]
    assert [s.x[0] for s in validation.series[:2]] == [22, 67]
    lost = validation.series[-1]
    assert (lost.x, lost.y) == ((22.0,), (pytest.approx(5.1),))
    assert "setting 3 of 3 by validation loss; 2 go on" in lost.hover[0]
    assert "lost" not in [s.role for s in training.series]
    assert "reference" not in [s.role for s in panels["LoRA"].panes[0].series]
    made = report()
    curve = made["methods"][0]["curves"][0]
    made["methods"][0]["curves"].append({**curve, "phase": "search"})
    lora = curves.build(made).charts[0]
    assert [s.role for s in lora.panes[0].series].count("behind") == 1
    assert lora.description == "losses of 3 runs by step, 1 search run in the background"
    made["race"] = None
    assert "rung" not in str(curves.build(made).lead)


def test_control_curve_behind_each_method() -> None:
    """The control's curve is drawn behind each method's."""
    panels = {c.title: c for c in sensitivity.build(report()).charts}
    assert "reference" not in [s.role for s in panels["LoRA"].panes[0].series]
    for name in ("IA\u00b3", "OFT"):
        chart = panels[name]
        behind = chart.panes[0].series[0]
        assert (behind.role, behind.x) == ("reference", (1e-4, 1e-3, 1e-2))
        low, high = chart.x.low, chart.x.high
        assert low is not None
        assert high is not None
        assert low < min(behind.x)
        assert max(behind.x) < high
    assert panels["OFT"].x.tick_text == ("5e-5", "5e-4", "5e-3")
    assert panels["IA\u00b3"].x.tick_text == ("1e-4", "1e-3", "1e-2", "1e-1")


def test_items_show_counts_and_both_answers() -> None:
    drawn = items.build(report())
    bars: Bars = only(drawn.blocks, Bars)
    assert [r.name for r in bars.rows][:3] == ["OFT", "DoRA", "Full fine-tuning"]
    assert bars.rows[0].numbers == "24 worse, 31 better"
    worse, better = bars.rows[0].pieces
    assert worse.high == better.low == bars.zero
    assert all(0 <= p.low <= p.high <= 100 for r in bars.rows for p in r.pieces)
    counts: TableBlock = only(drawn.blocks, TableBlock)
    assert [c.text for c in counts.rows[0].cells] == [
        "OFT", "31", "565", "24", "1,540", "77", "60", "183", "3",
    ]  # fmt: skip
    examples: Examples = only(drawn.blocks, Examples)
    assert examples.caption == "OFT: 2 wins and 2 losses"
    assert [g.heading for g in examples.groups] == ["OFT is better", "LoRA is better"]
    first = examples.groups[0].examples[1]
    assert first.prompt == "is the back door locked"
    assert (first.left.title, first.left.text, first.left.score) == (
        "LoRA", "HassTurnOff", "right with 0 of 3 seeds",
    )  # fmt: skip
    assert (first.right.text, first.right.score) == ("HassGetState", "right with 2 of 3 seeds")


def test_items_without_texts_give_reason() -> None:
    """Items without texts give a reason, and old reports have no items."""
    made = report()
    made["items"] |= {"examples": False, "note": "Left out.", "asked": []}
    for method in made["items"]["methods"]:
        method |= {"wins": [], "losses": [], "outcomes": None}
    drawn = items.build(made)
    assert not any(isinstance(b, Examples) for b in drawn.blocks)
    assert any(isinstance(b, Text) and b.text == "Left out." for b in drawn.blocks)
    assert "Both right" not in [c.title for c in only(drawn.blocks, TableBlock).columns]
    made["items"] = None
    assert items.build(made).blocks == ()
    del made["items"]
    assert items.build(made).blocks == ()


def test_costs_split_by_phase() -> None:
    """Costs are split by phase, and missing ones are marked."""
    made = report()
    drawn = costs.build(made)
    bars: Bars = only(drawn.blocks, Bars)
    lora = next(r for r in bars.rows if r.name == "LoRA")
    assert lora.numbers == "86.7 MiB + 24.6 MiB"
    base, added = lora.pieces
    assert (base.low, base.high) == (0.0, added.low)
    assert added.high / base.high == pytest.approx((86.65 + 24.6) / 86.65, rel=1e-2)
    numbers: TableBlock = only(drawn.blocks, TableBlock)
    assert [c.text for c in numbers.rows[0].cells][-2:] == ["not measured"] * 2
    assert numbers.rows[0].pinned
    made["methods"][0]["cost"] |= {"inference_milliseconds": 12.3, "train_above_base_bytes": None}
    drawn = costs.build(made)
    assert only(drawn.blocks, TableBlock).rows[0].cells[-2].text == "12.3 ms"
    assert only(drawn.blocks, Bars).rows[0].numbers == "not measured"
    assert not any("lanes take" in b.text for b in drawn.blocks if isinstance(b, Text))
    made["methods"][0]["cost"] |= {"lanes_ratio": 3.84, "lanes_timed": 16}
    texts = [b.text for b in costs.build(made).blocks if isinstance(b, Text)]
    assert "16 lanes take 3.8 times a single trial's step with LoRA." in texts


def test_verdict_evidence_and_table_selection() -> None:
    """The verdict shows its evidence, and long tables have a selection."""
    texts = [b.text for b in verdict.build(report()).blocks if isinstance(b, Text)]
    assert (
        "Best contender: OFT, +0.8 (\u22120.9 to +2.5) points against the control, adjusted p "
        "1.000, 3 seeds, 620 test items, 3 settings tried on validation."
    ) in texts
    assert only(table.build(report()).blocks, TableBlock).filterable
    made = report()
    made["race"]["decisions"] *= 20
    made["failures"] *= 5
    assert only(race.build(made).blocks, TableBlock).folded
    assert only(failures.build(made).blocks, TableBlock).filterable


def test_figures_embedded_once_safely() -> None:
    """Each figure is in the page once per section, with a safe file name."""
    made = hostile_report()
    page = render(made)
    names = re.findall(r'data-file="([^"]*)"', page)
    assert names
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+\.csv", n) for n in names)
    for section in render_sections(made):
        sheets = re.findall(r'<template data-sheet="(\w+)">', section["html"])
        assert len(sheets) == len(set(sheets))
        assert "examples" not in sheets
    for text in (HOSTILE[1], HOSTILE[2]):
        assert text not in page.split('<script type="application/json"')[0]


def test_sixty_method_page_below_limit() -> None:
    """A page of sixty methods is below six megabytes."""
    made = big_report()
    assert len(render(made).encode()) < 6_000_000
    assert len(render(report()).encode()) < 1_700_000
