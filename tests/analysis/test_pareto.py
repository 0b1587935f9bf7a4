"""Fronts, their probabilities and the recommendation, with answers computed by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pytest
from helpers.configs import values
from helpers.records import (
    final,
    finished_record,
    hits,
    make_cost,
    make_engine,
    make_record,
)
from helpers.summaries import accuracy_scores, row, summarise_checked

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.pareto import (
    COST_AXES,
    draw_scores,
    find_fronts,
    front_probabilities,
    is_cost_tie,
    pareto_front,
)
from bakeoff.analysis.recommendation.preferences import choose_by_weights
from bakeoff.core.record import StudyRecord
from bakeoff.methods import registry
from bakeoff.methods.serving import serving_forms
from bakeoff.study.config import parse_spec
from bakeoff.study.config.budget import ParetoAxis
from bakeoff.study.setup.compatibility import comparable_spec

MIB = 2**20
NOWHERE = Path("no-such-cache")


def test_axes_agree_with_study_file() -> None:
    """The study file and the analysis know the same axes."""
    assert ("quality", *COST_AXES) == ParetoAxis.__args__  # type: ignore[attr-defined]


def test_costs_within_five_percent_are_tied() -> None:
    assert is_cost_tie(100.0, 105.0)
    assert is_cost_tie(105.0, 100.0)
    assert not is_cost_tie(100.0, 105.1)
    assert not is_cost_tie(-0.01, 0.01)  # forgetting may be on either side of nothing
    assert is_cost_tie(0.0, 0.0)


def test_front_over_several_costs() -> None:
    """A front over several costs keeps every method that is cheapest on some axis."""
    scores = {"a": 0.9, "b": 0.9, "c": 0.8, "d": 0.8, "e": 0.95}
    memory = {"a": 2.0, "b": 3.0, "c": 1.0, "d": 4.0, "e": None}
    speed = {"a": 2.0, "b": 1.0, "c": 2.0, "d": 4.0, "e": 1.0}
    assert pareto_front(scores, memory, speed, better="higher") == ["c", "a", "b"]
    assert pareto_front(scores, memory, better="higher") == ["c", "a"]


def test_probabilities_by_hand() -> None:
    # a needs least. b beats a in draws 1 and 2 but costs more; c costs as b and more than a
    drawn = np.array([[0.5, 0.5, 0.5, 0.5], [0.6, 0.6, 0.4, 0.4], [0.7, 0.5, 0.5, 0.3]])
    costs = np.array([[100.0], [200.0], [204.0]])
    found = front_probabilities(drawn, costs, better="higher")
    # a: nobody is as cheap: always. b: draw 2 only, as c (tied with b) is above it in draw 1.
    # c: draw 1; in draw 2 b is above it, in 3 a is as good and cheaper
    assert found.tolist() == [1.0, 0.25, 0.25]
    assert front_probabilities(-drawn, costs, better="lower").tolist() == found.tolist()


def test_front_keeps_ties() -> None:
    """Methods with equal scores and equal costs are all on the front."""
    drawn = np.full((3, 5), 0.5)
    costs = np.array([[100.0, 10.0], [104.0, 10.2], [100.0, 11.0]])
    # the third is 10 % slower than the first, and the same otherwise
    assert front_probabilities(drawn, costs, better="higher").tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_probability_matches_moocore(better: str) -> None:
    """Without ties, a probability is the frequency with which moocore finds the method."""
    rng = np.random.default_rng(3)
    drawn = rng.normal(size=(7, 50))
    costs = 2.0 ** rng.integers(0, 4, size=(7, 2))  # equal, or far from tied
    up = [better == "higher", False, False]
    seen = [
        moocore.is_nondominated(np.column_stack([d, costs]), maximise=up, keep_weakly=True)
        for d in drawn.T
    ]
    found = front_probabilities(drawn, costs, better=better)
    assert found == pytest.approx(np.mean(seen, axis=0))


def fake_row(method: str, score: float, **values: Any) -> dict[str, Any]:
    cost = {"train_peak_bytes": None, "step_milliseconds": None, "adapter_bytes": None}
    forgetting = values.pop("forgetting", None)
    return {
        "method": method,
        "score": {"estimate": score},
        "cost": {**cost, **values},
        "forgetting": forgetting,
    }


def drawn(scores: dict[str, Scores], control: str) -> Any:
    return draw_scores(scores, control, np.random.default_rng(0))


def test_missing_values_excluded() -> None:
    """A method without a value is excluded, and an axis without values is dropped."""
    scores = {m: Scores((1, 2), np.tile(hits(n, 100), (2, 1))) for m, n in (("a", 60), ("b", 70))}
    rows = [
        fake_row("a", 0.6, train_peak_bytes=100, adapter_bytes=10),
        fake_row("b", 0.7, train_peak_bytes=100),
    ]
    found = find_fronts(rows, drawn(scores, "a"), None, better="higher")
    assert found.joint["axes"] == ["quality", "memory", "size"]
    assert found.joint["not_measured"] == ["speed", "forgetting"]
    assert found.joint["left_out"] == {"b": ["size"]}
    assert found.joint["front"] == ["a"]
    assert found.probabilities == {"a": 1.0}
    memory = next(p for p in found.plots if p["axis"] == "memory")
    assert (memory["cost"], memory["front"], memory["left_out"]) == ("train_peak_bytes", ["b"], {})
    assert memory["probabilities"]["b"] > 0.99
    speed = next(p for p in found.plots if p["axis"] == "speed")
    assert speed["front"] == []
    assert speed["left_out"] == {"a": ["speed"], "b": ["speed"]}


def test_front_without_control() -> None:
    """There is a front even when the control is missing."""
    scores = {m: Scores((1, 2), np.tile(hits(n, 100), (2, 1))) for m, n in (("a", 30), ("b", 70))}
    rows = [fake_row(m, s, train_peak_bytes=100) for m, s in (("a", 0.3), ("b", 0.7))]
    found = find_fronts(rows, drawn(scores, "lora"), None, better="higher")
    assert found.probabilities["b"] > 0.99
    assert find_fronts([], drawn({}, "lora"), None, better="higher").joint["draws"] is None


def test_forgetting_axis_where_measured() -> None:
    """Forgetting is an axis if it was measured."""
    scores = {m: Scores((1, 2), np.tile(hits(60, 100), (2, 1))) for m in ("a", "b")}
    rows = [
        fake_row("a", 0.6, train_peak_bytes=100, forgetting={"estimate": 0.02}),
        fake_row("b", 0.6, train_peak_bytes=100, forgetting=-0.01),
    ]
    axes = ("quality", "forgetting")
    found = find_fronts(rows, drawn(scores, "a"), axes, better="higher")
    assert [p["axis"] for p in found.plots] == ["forgetting"]
    assert found.joint["front"] == ["b"]
    assert found.probabilities == {"a": 0.0, "b": 1.0}


def test_finished_study_probabilities() -> None:
    """A finished study has probabilities between 0 and 1."""
    made = summarise_checked(finished_record())
    # OFT scores 20 points more at LoRA's costs; IA3 needs half the memory
    assert row(made, "oft")["front_probability"] == 1.0
    assert row(made, "ia3")["front_probability"] == 1.0
    assert row(made, "lora")["front_probability"] < 0.001
    assert row(made, "full")["front_probability"] is None
    assert made["front"]["front"] == ["ia3", "oft"]
    assert made["front"]["not_measured"] == ["forgetting"]
    assert made["front"]["draws"] == 10_000


def test_indistinguishable_methods_share_front() -> None:
    """Two methods that differ by chance share the front."""
    other = [1.0] * 100 + [0.0] * 80 + [1.0] * 20  # 120 right as well, other items
    trials = final("lora", accuracy_scores(120)) + final("oft", dict.fromkeys((1, 2, 3), other))
    costs = {"lora": make_cost("lora"), "oft": make_cost("oft", 1_030_000)}
    made = summarise_checked(make_record(trials, ("lora", "oft"), costs=costs))
    chances = made["pareto"][0]["probabilities"]
    assert chances["lora"] == pytest.approx(0.5, abs=0.06)
    assert chances["oft"] == pytest.approx(0.5, abs=0.06)
    # the estimates know no chance and no tie
    assert made["pareto"][0]["front"] == ["lora"]


# -- what to recommend ---------------------------------------------------------------------------


def study(prefer: Any, **more: Any) -> StudyRecord:
    """Return LoRA 60 %, OFT better, IA3 the same with half the memory, DoRA worse and tiny."""
    trials = [
        *final("lora", accuracy_scores(120)),
        *final("oft", accuracy_scores(160)),
        *final("ia3", accuracy_scores(120)),
        *final("dora", accuracy_scores(60)),
    ]
    costs = {
        "lora": make_cost("lora", 8 * MIB, 10.0),
        "oft": make_cost("oft", 16 * MIB, 10.2),
        "ia3": make_cost("ia3", 4 * MIB, 9.0),
        "dora": make_cost("dora", 1 * MIB, 1.0),
    }
    given = {"costs": costs, "prefer": prefer, "margin": 0.1, **more}
    return make_record(trials, ("lora", "oft", "ia3", "dora"), **given)


def advice(record: StudyRecord) -> tuple[str | None, str]:
    found = summarise_checked(record)["recommendation"]
    assert found["prefer"] == record.prefer
    return found["method"], found["sentence"]


def test_memory_picks_smallest_not_worse() -> None:
    """The memory preference picks the smallest method that is not worse."""
    method, sentence = advice(study("memory"))
    assert method == "ia3"  # DoRA needs an eighth, and is worse
    assert sentence == (
        "Use IA3: it needs 50 % less training memory than LoRA (4.0 MiB against 8.0 MiB) and is "
        "equivalent within 10.0 points (0.0 points, 95 % interval 0.0 to 0.0, 3 seeds, 200 items)."
    )
    weighed = summarise_checked(study("memory"))["recommendation"]["weighed"]
    assert weighed == {"lora": 0.0, "oft": -1.0, "ia3": 1.0}


def test_speed_counts_only_beyond_five_percent() -> None:
    method, sentence = advice(study("speed"))
    assert method == "ia3"
    assert "10 % less time for a training step than LoRA (9 ms against 10 ms)" in sentence


def test_better_method_wins_tied_costs() -> None:
    """A better method is preferred to the control when their costs are tied."""
    record = study("size")  # every adapter is 4096 bytes
    method, sentence = advice(record)
    assert method == "oft"
    assert sentence.startswith(
        "Use OFT: no method that is not worse needs less space on disk than LoRA, and OFT is "
        "better (+20.0 points, 95 % interval +"
    )


def test_control_kept_without_saving() -> None:
    """The control stays recommended when no method saves anything."""
    trials = final("lora", accuracy_scores(120)) + final("ia3", accuracy_scores(120))
    costs = {"lora": make_cost("lora", 8 * MIB), "ia3": make_cost("ia3", int(7.8 * MIB))}
    record = make_record(trials, ("lora", "ia3"), costs=costs, prefer="memory", margin=0.1)
    assert advice(record) == (
        "lora",
        "Keep LoRA: no contender that is better or equivalent within 10.0 points needs less "
        "training memory than its 8.0 MiB (1 such contender, LoRA: 60.0 points, 3 seeds, "
        "200 items).",
    )


def test_inconclusive_is_never_recommended_but_named() -> None:
    other = [1.0] * 100 + [0.0] * 80 + [1.0] * 20
    trials = final("lora", accuracy_scores(120)) + final("ia3", dict.fromkeys((1, 2, 3), other))
    costs = {"lora": make_cost("lora", 8 * MIB), "ia3": make_cost("ia3", 1 * MIB)}
    record = make_record(trials, ("lora", "ia3"), costs=costs, prefer="memory", margin=0.01)
    method, sentence = advice(record)
    assert method == "lora"
    assert sentence.startswith(
        "Keep LoRA: no contender is shown to be better or equivalent within 1.0 points. "
        "Inconclusive, so they might save more at no loss, or might not: IA3 88 % less, 0.0 points,"
    )


def test_unmeasured_cost_saves_nothing() -> None:
    """Without a measured cost, there is no saving."""
    method, sentence = advice(study("memory", costs={}))
    assert method == "lora"
    assert sentence.startswith("Keep LoRA: its training memory was not measured")
    assert sentence.endswith(
        "Left out, because no comparable training memory was measured: LoRA, OFT, IA3."
    )


def test_accelerated_memory_is_no_saving() -> None:
    """Memory saved by an accelerator is not credited to the method."""
    costs = {
        "lora": make_cost("lora", 8 * MIB, engine=make_engine(packing="it does not agree")),
        "ia3": make_cost("ia3", 4 * MIB, engine=make_engine()),
    }
    trials = final("lora", accuracy_scores(120)) + final("ia3", accuracy_scores(120))
    record = make_record(trials, ("lora", "ia3"), costs=costs, prefer="memory", margin=0.1)
    method, sentence = advice(record)
    assert method == "lora"
    assert "Left out, because no comparable training memory was measured: IA3." in sentence


def test_no_saving_without_control() -> None:
    """Without the control, there is no saving."""
    record = make_record(final("oft", accuracy_scores(120)), ("lora", "oft"), prefer="memory")
    method, sentence = advice(record)
    assert method is None
    assert sentence.startswith("No recommendation yet: LoRA")


@pytest.mark.parametrize(
    ("serving", "method", "says"),
    [
        (
            {"lora": "adapter", "oft": "merged", "ia3": "merged"},
            "oft",
            "Use OFT: it merges into the base and is better (+20.0 points",
        ),
        (
            {"lora": "adapter", "oft": None, "ia3": "merged"},
            "lora",
            "Keep LoRA: it is saved as plain LoRA, and no contender that can be served is "
            "better by more than chance (1 such contender, LoRA: 60.0 points, 3 seeds, 200 items).",
        ),
        (
            {"lora": None, "ia3": "converted"},
            "ia3",
            "Use IA3: it converts to LoRA without loss and is equivalent within 10.0 points (0.0 "
            "points, 95 % interval 0.0 to 0.0, 3 seeds, 200 items); LoRA neither converts to LoRA "
            "nor merges.",
        ),
        (
            {"dora": "merged"},
            "lora",
            "Keep LoRA, though how LoRA can be served is not known: no method that can be served "
            "is better or equivalent within 10.0 points.",
        ),
    ],
)
def test_serving(serving: dict[str, str | None], method: str, says: str) -> None:
    found = advice(study("serving", serving=serving))
    assert found[0] == method
    assert found[1].startswith(says)


def test_weights_add_up_margins_and_halvings() -> None:
    # OFT: 0.2 / 0.1 = 2 margins better, twice the memory; IA3: half the memory
    weights = {"quality": 1.0, "memory": 0.5}
    made = summarise_checked(study(weights))["recommendation"]
    assert made["weighed"] == {
        "lora": 0.0,
        "oft": pytest.approx(2 - 0.5),
        "ia3": pytest.approx(0.5),
    }
    assert made["method"] == "oft"
    assert made["sentence"].startswith(
        "Use OFT: by your weights (quality 1, memory 0.5) it gains +1.50 (quality +2.00, memory "
        "−0.50) over LoRA, and it is better (+20.0 points"
    )
    heavy = summarise_checked(study({"quality": 1.0, "memory": 2.0}))["recommendation"]
    assert heavy["method"] == "ia3"  # 2 * 1 against 2 - 2
    assert heavy["weighed"]["oft"] == pytest.approx(0.0)
    # speed: 10 / 9 is log2 = 0.152 of a halving; OFT's 2 % is none
    slow = summarise_checked(study({"speed": 1.0}))["recommendation"]["weighed"]
    assert slow == {"lora": 0.0, "oft": 0.0, "ia3": pytest.approx(math.log2(10 / 9))}


def test_weights_without_gain_keep_control() -> None:
    """Preference weights that favour no method keep the control."""
    trials = final("lora", accuracy_scores(120)) + final("ia3", accuracy_scores(120))
    costs = {"lora": make_cost("lora", 8 * MIB), "ia3": make_cost("ia3", 16 * MIB)}
    record = make_record(
        trials, ("lora", "ia3"), costs=costs, prefer={"quality": 1.0, "memory": 1.0}, margin=0.1
    )
    assert advice(record) == (
        "lora",
        "Keep LoRA: by your weights (quality 1, memory 1) no contender that is better or "
        "equivalent gains anything over it (best: IA3 −1.00 (quality 0, memory −1.00); LoRA: "
        "60.0 points, 3 seeds, 200 items).",
    )


def test_full_quality_weight_equals_quality() -> None:
    """Putting all weight on quality equals the quality preference."""
    assert advice(study({"quality": 3.0}))[0] == advice(study("quality"))[0] == "oft"


def test_weights_do_not_depend_on_units() -> None:
    made = summarise_checked(study({"quality": 1.0, "memory": 0.5}))
    rows = made["methods"]
    control = row(made, "lora")
    record = study({"quality": 1.0})
    before = choose_by_weights(record, control, rows, {"quality": 1.0, "memory": 0.5}).totals
    for each in rows:
        each["cost"]["train_peak_bytes"] = each["cost"]["train_peak_bytes"] / 1024
    assert (
        choose_by_weights(record, control, rows, {"quality": 1.0, "memory": 0.5}).totals == before
    )


# -- from the study file to the record -----------------------------------------------------------


def test_preferences_editable_after_run() -> None:
    """The preferences of the verdict may change after the run."""
    before = parse_spec(values())
    after = parse_spec(values(verdict={"prefer": "memory", "pareto": ["quality", "size"]}))
    assert before != after
    assert comparable_spec(before) == comparable_spec(after)


def test_catalog_serving_forms() -> None:
    """Each method of the catalog has its serving form."""
    names = ("lora", "dora", "vera", "prompt_tuning")
    found = serving_forms([registry.load(name, Path()) for name in names], NOWHERE)
    assert found == {
        "lora": "adapter",
        "dora": "merged",
        "vera": "converted",
        "prompt_tuning": None,
    }


def test_serving_unaffected_by_tuning() -> None:
    """Tuning does not change how a method is served, but other arguments may."""
    lora = registry.load("lora", Path())
    larger = dataclasses.replace(lora, config={**lora.config, "r": 64, "lora_dropout": 0.1})
    assert serving_forms([larger], NOWHERE) == {"lora": "adapter"}
    dora = dataclasses.replace(lora, config={**lora.config, "use_dora": True})
    assert serving_forms([dora], NOWHERE) == {"lora": "merged"}
    other = dataclasses.replace(lora, config={**lora.config, "layers_to_transform": [0]})
    assert serving_forms([other], NOWHERE) == {}
    variant = dataclasses.replace(larger, name="lora-r64")
    assert serving_forms([variant], NOWHERE) == {"lora-r64": "adapter"}
