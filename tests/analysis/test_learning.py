"""Whether methods have learnt: baselines, sure gains, withheld verdicts, the leading sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.records import LOSS, final, hits, make_cost, make_record, make_result, make_trial
from helpers.summaries import accuracy_scores, row, summarise_checked

from bakeoff.analysis.bootstrap import Scores
from bakeoff.analysis.learning import Baseline, assess_learning
from bakeoff.core.record import ConstantAnswer, MetricInfo, StudyRecord
from bakeoff.core.results import SplitScores
from bakeoff.report import markdown, tables
from bakeoff.report.sections import verdict as verdict_section

ACCURACY = MetricInfo("accuracy", "higher", "fraction", 0.0, 1.0)
MINUS = "\N{MINUS SIGN}"


def base_of(scores: list[float]) -> SplitScores:
    return SplitScores(tuple(scores), ("x",) * len(scores), None)


def study(rights: dict[str, int], base: int | None = 60, **more: Any) -> StudyRecord:
    """Return a study of 200 items and 3 seeds; the base has ``base`` of them right."""
    trials = [t for name, right in rights.items() for t in final(name, accuracy_scores(right))]
    scores = None if base is None else base_of(hits(base, 200))
    return make_record(trials, tuple(rights), base_scores=scores, **more)


def learnt(values: Any, base: Any, better: str = "higher") -> bool:
    values = np.atleast_2d(np.array(values, dtype=float))
    scores = {"m": Scores(tuple(range(len(values))), values)}
    metric = MetricInfo("m", better, "units")
    baseline = Baseline("base", np.array(base, dtype=float))
    found = assess_learning(scores, [baseline], metric, np.random.default_rng(0))
    return found["m"].learnt


def test_zero_percent_control_has_no_verdicts() -> None:
    """At 0 % of both methods and the base nothing is equivalent and nothing is recommended."""
    made = summarise_checked(study({"lora": 0, "ia3": 0}, base=0))
    assert [m["verdict"] for m in made["methods"]] == ["control", "none"]
    assert made["recommendation"]["method"] is None
    assert made["recommendation"]["sentence"] == (
        "Nothing was learnt: LoRA, the control, scores 0.0 points, not surely better than the "
        "base model without fine-tuning, 0.0 points (0.0 points, 95 % interval 0.0 to 0.0, 3 "
        "seeds, 200 items). No contender has surely learnt either. So no method is called better, "
        "equivalent or recommended. Try more than 100 steps, and look at its answers in the report."
    )
    assert made["learning"] == {"control_learnt": False, "not_learnt": ["lora", "ia3"]}
    assert row(made, "ia3")["difference"]["items_needed"] is None


def test_worse_than_unlearnt_control_is_no_verdict() -> None:
    """A contender that is far below a control without a sure gain is not called worse."""
    made = summarise_checked(study({"lora": 61, "ia3": 10}))
    assert row(made, "ia3")["verdict"] == "none"
    assert row(made, "ia3")["learning"]["learnt"] is False


def test_better_needs_a_contender_that_learnt() -> None:
    """Against an unlearnt control only a contender with a sure gain is better; none is advised."""
    made = summarise_checked(study({"lora": 0, "ia3": 120, "oft": 60}, base=60))
    assert row(made, "ia3")["verdict"] == "better"
    assert row(made, "oft")["verdict"] == "none"  # better than LoRA, but only as good as the base
    advice = made["recommendation"]
    assert advice["method"] is None
    assert advice["sentence"].startswith(
        "The control has learnt nothing: LoRA, the control, scores"
    )
    assert "IA3 (+30.0 points, 95 % interval +" in advice["sentence"]
    assert "no method is called equivalent, worse or recommended" in advice["sentence"]


@pytest.mark.parametrize("prefer", ["quality", "memory", "serving", {"quality": 1.0, "size": 1.0}])
def test_no_preference_recommends_without_learning(prefer: Any) -> None:
    made = summarise_checked(
        study(
            {"lora": 60, "ia3": 60},
            prefer=prefer,
            costs={"lora": make_cost("lora"), "ia3": make_cost("ia3", 1000)},
            serving={"lora": "adapter", "ia3": "merged"},
        )
    )
    assert made["recommendation"]["method"] is None
    assert made["recommendation"]["sentence"].startswith("Nothing was learnt: ")


def test_learnt_control_keeps_verdicts() -> None:
    """With a control that has learnt, verdicts are drawn; a contender that has not is marked."""
    made = summarise_checked(study({"lora": 120, "ia3": 120, "oft": 60}))
    verdicts = {m["method"]: m["verdict"] for m in made["methods"]}
    assert verdicts == {"lora": "control", "ia3": "equivalent", "oft": "worse"}
    assert made["learning"] == {"control_learnt": True, "not_learnt": ["oft"]}
    assert (
        "OFT is not surely better than the base model without fine-tuning: it may have learnt "
        "nothing. [not-learnt]"
    ) in made["warnings"]


def test_unlearnt_contender_is_not_recommended() -> None:
    """A cheap contender within a wide margin that has not surely learnt is not advised."""
    record = study(
        {"lora": 80, "ia3": 62},
        margin=0.2,
        prefer="memory",
        costs={"lora": make_cost("lora"), "ia3": make_cost("ia3", 1000)},
    )
    made = summarise_checked(record)
    assert row(made, "ia3")["verdict"] == "equivalent"
    assert row(made, "ia3")["learning"]["learnt"] is False
    assert made["recommendation"]["method"] == "lora"


def test_majority_label_is_the_baseline_of_classifiers() -> None:
    """A classifier that answers the most common label has learnt nothing."""
    constant = ConstantAnswer("constant", "pos", tuple(hits(120, 200)))
    made = summarise_checked(study({"lora": 120, "ia3": 119}, base=None, constant=constant))
    assert made["recommendation"]["method"] is None
    assert (
        "not surely better than always answering 'pos', 60.0 points"
        in (made["recommendation"]["sentence"])
    )
    assert row(made, "ia3")["verdict"] == "none"
    learning = row(made, "lora")["learning"]
    assert (learning["against"], learning["answer"], learning["baseline"]) == (
        "constant", "pos", 0.6,
    )  # fmt: skip


def test_every_baseline_must_be_beaten() -> None:
    """Better than the base is not enough where always 'yes' scores as well."""
    constant = ConstantAnswer("constant", "yes", tuple(hits(110, 200)))
    made = summarise_checked(study({"lora": 112}, base=0, constant=constant))
    assert row(made, "lora")["learning"]["against"] == "constant"
    assert made["learning"]["control_learnt"] is False


def test_lower_is_better() -> None:
    """For a loss a sure gain is a sure decrease."""
    rng = np.random.default_rng(3)
    base = 2 + rng.random(100)
    assert learnt([base - 0.5 - 0.1 * rng.random(100)], base, "lower")
    assert not learnt([base + 0.5], base, "lower")
    trials = final("lora", {s: base + rng.normal(0, 0.5, 100) for s in (1, 2)})
    made = summarise_checked(
        make_record(trials, ("lora",), metric=LOSS, base_scores=base_of(list(base)))
    )
    assert "(lower is better), not surely better than" in made["recommendation"]["sentence"]


def test_score_without_a_natural_zero() -> None:
    """A metric of the user's own, negative and unbounded, is read against the base's score."""
    rng = np.random.default_rng(4)
    base = -50 + rng.normal(0, 5, 80)
    assert learnt([base + rng.normal(3, 4, 80)], base)
    assert not learnt([base + rng.normal(0, 4, 80)], base)


def test_sign_test_by_hand() -> None:
    """Below 30 differing items the sign test decides: 5 of 5 is 1 in 32, 6 of 6 is 1 in 64."""
    assert not learnt([[1] * 5 + [0] * 35], [0] * 40)  # p = 1/32 > 0.025
    assert learnt([[1] * 6 + [0] * 34], [0] * 40)  # p = 1/64
    assert not learnt([[1]], [0])
    # 9 wins and 2 losses: (1 + 11 + 55) / 2048 = 0.033; 10 and 2: (1 + 12 + 66) / 4096 = 0.019
    assert not learnt([[1] * 9 + [0] * 31], [0] * 9 + [1] * 2 + [0] * 29)
    assert learnt([[1] * 10 + [0] * 30], [0] * 10 + [1] * 2 + [0] * 28)


def test_interval_by_hand() -> None:
    """Of 400 items 42 are won and 22 lost: +5 points, standard error 2.0, so learnt."""
    base = [0] * 42 + [1] * 22 + [0] * 336
    found = assess_learning(
        {"m": Scores((1,), np.array([[1.0] * 42 + [0.0] * 358]))},
        [Baseline("base", np.array(base, dtype=float))],
        ACCURACY,
        np.random.default_rng(0),
    )["m"]
    # the 400 differences have the variance 64 / 400 - 0.05^2
    error = np.sqrt((64 / 400 - 0.05**2) / 400)
    assert found.gain.estimate == pytest.approx(0.05)
    assert found.gain.low == pytest.approx(0.05 - 1.96 * error, abs=0.002)
    assert found.learnt
    assert not learnt([[1] * 37 + [0] * 363], [0] * 37 + [1] * 24 + [0] * 339)


@pytest.mark.parametrize(
    ("items", "seeds", "base", "rate", "least", "most"),
    [
        (100, 3, 0.25, 0.25, 0.0, 0.05),  # as good as the base
        (60, 1, 0.5, 0.5, 0.0, 0.06),
        (12, 2, 0.5, 0.5, 0.0, 0.05),
        (100, 2, 0.1, 0.4, 0.95, 1.0),  # clearly above it
    ],
)
def test_error_rate(
    items: int, seeds: int, base: float, rate: float, least: float, most: float
) -> None:
    """A control at chance is called learnt in at most about 5 % of studies."""
    rng, found = np.random.default_rng(7), []
    for _ in range(150):
        values = rng.random((seeds, items)) < rate
        found.append(_learnt_fast(values.astype(float), (rng.random(items) < base).astype(float)))
    assert least <= np.mean(found) <= most


def _learnt_fast(values: Any, base: Any) -> bool:
    scores = {"m": Scores(tuple(range(len(values))), values)}
    known = [Baseline("base", base)]
    return assess_learning(scores, known, ACCURACY, np.random.default_rng(1), 1000)["m"].learnt


def test_no_baseline_changes_nothing() -> None:
    """Without any baseline the verdicts are those of before."""
    made = summarise_checked(study({"lora": 0, "ia3": 0}, base=None))
    assert row(made, "ia3")["verdict"] == "equivalent"
    assert "learning" not in row(made, "ia3")
    assert "learning" not in made


def test_unfinished_study_says_so() -> None:
    trials = final("lora", accuracy_scores(0)) + final("ia3", {1: None})
    record = make_record(trials, ("lora", "ia3"), base_scores=base_of(hits(0, 200)))
    sentence = summarise_checked(record)["recommendation"]["sentence"]
    assert sentence.startswith("Nothing was learnt")
    assert "The study is not finished" in sentence


@pytest.mark.parametrize(
    ("rates", "chosen", "advice"),
    [
        ((1e-7,), 1e-7, "learning rates other than 1e-7, the only one tried"),
        ((1e-7, 1e-6), 1e-6, "Its learning rate 1e-6 is the highest tried: try higher ones"),
        ((1e-7, 1e-6), 1e-7, "Its learning rate 1e-7 is the lowest tried: try lower ones"),
    ],
)
def test_advice_names_the_rate(rates: tuple[float, ...], chosen: float, advice: str) -> None:
    trials = [(t := make_trial("lora", rate), make_result(t)) for rate in rates]
    trials += final("lora", accuracy_scores(0), chosen)
    record = make_record(trials, ("lora",), base_scores=base_of(hits(0, 200)))
    assert advice in summarise_checked(record)["recommendation"]["sentence"]


def test_report_leads_with_it() -> None:
    """Page, Markdown and CSV all say that nothing was learnt, and none shows an equivalence."""
    made = summarise_checked(study({"lora": 0, "ia3": 0}, base=0))
    view = verdict_section.build(made)
    assert view.blocks[0].text.startswith("Nothing was learnt: ")
    assert not any("Best contender" in getattr(b, "text", "") for b in view.blocks)
    text = markdown(made)
    assert "**Nothing was learnt: LoRA, the control" in text
    assert "no verdict, not learnt" in text
    assert "equivalent |" not in text
    assert "none" in tables(made)["differences"]
    assert "False" in tables(made)["methods"] or "false" in tables(made)["methods"]
