"""The report dict from records made by hand: finished, unfinished and failed in every way."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from helpers.records import (
    LOSS,
    final,
    finished_record,
    hits,
    make_cost,
    make_record,
    make_result,
    search,
)
from helpers.summaries import accuracy_scores, row, summarise_checked

from bakeoff.analysis.choose import choose_settings
from bakeoff.core.results import Status

MINUS = "\N{MINUS SIGN}"


def test_choose_lowest_loss_then_rate() -> None:
    """The lowest loss is chosen, and the lower rate on ties."""
    trials = search("lora", {1e-2: 0.5, 1e-3: 0.5, 1e-4: 0.9})
    trials += search("oft", {1e-3: Status.DIVERGED, 1e-4: 0.8, 1e-5: None})
    trials += search("full", {1e-3: Status.FAILED})
    trials += search("dora", {1e-3: float("nan")})
    trials += final("vera", accuracy_scores(3), rate=7.0)
    assert choose_settings(trials) == {
        "lora": {"learning_rate": 1e-3},
        "oft": {"learning_rate": 1e-4},
    }


def test_choose_averages_seeds_without_diverged() -> None:
    """Choosing averages over seeds and leaves out a setting that diverged once."""

    def at_seed(rate: float, seed: int, loss: float | Status) -> Any:
        ((trial, _),) = search("lora", {rate: 0.0})
        trial = dataclasses.replace(trial, seed=seed)
        if isinstance(loss, Status):
            return trial, make_result(trial, status=loss)
        return trial, make_result(trial, losses=(loss,))

    trials = [at_seed(1e-3, 0, 0.2), at_seed(1e-3, 1, 0.8), at_seed(1e-4, 0, 0.4)]
    trials += [at_seed(1e-4, 1, 0.4), at_seed(1e-2, 0, 0.1), at_seed(1e-2, 1, Status.DIVERGED)]
    assert choose_settings(trials) == {"lora": {"learning_rate": 1e-4}}


def test_finished_study_report() -> None:
    """The report of a finished study has every part."""
    made = summarise_checked(finished_record())
    assert made["complete"] is True
    assert [m["method"] for m in made["methods"]] == ["lora", "oft", "ia3", "full"]
    lora, oft, ia3 = (row(made, m) for m in ("lora", "oft", "ia3"))
    assert (lora["verdict"], lora["difference"]) == ("control", None)
    assert lora["score"]["estimate"] == pytest.approx(0.6)
    assert oft["verdict"] == "better"
    assert oft["difference"]["estimate"] == pytest.approx(0.2)
    assert 0.1 < oft["difference"]["low"] < 0.2 < oft["difference"]["high"] < 0.3
    assert (ia3["verdict"], ia3["difference"]["p_adjusted"]) == ("equivalent", 1.0)
    assert oft["setting"] == {"learning_rate": 1e-3}
    assert [s["chosen"] for s in oft["settings"]] == [False, True, False]
    assert [s["validation_loss"] for s in oft["settings"]] == [0.9, 0.5, 0.7]
    assert [s["test_score"] for s in oft["seeds"]] == [0.8, 0.8, 0.8]
    assert (oft["n_settings"], oft["n_seeds"], oft["best_setting_on_edge"]) == (3, 3, False)
    assert len(oft["curves"]) == 6
    assert oft["curves"][0]["points"][-1] == {
        "step": 100,
        "train_loss": 0.9,
        "validation_loss": 0.9,
    }
    assert oft["cost"]["adapter_bytes"] == 4096
    assert oft["cost"]["train_seconds"] == 2.0
    assert oft["cost"]["step_milliseconds"] == 10.0
    assert made["pareto"][0]["front"] == ["ia3", "oft"]
    assert made["pareto"][1]["front"] == ["oft"]
    # 9 + 3 search trials, 9 final ones
    assert made["timing"] == {
        "wall_seconds": 12.5,
        "train_seconds": 42.0,
        "evaluation_seconds": 10.5,
        "load_seconds": 5.25,
    }
    assert made["recommendation"]["method"] == "oft"
    sentence = made["recommendation"]["sentence"]
    assert sentence.startswith("Use OFT: +20.0 points against LoRA (95 % interval +")
    assert sentence.endswith("2 contenders, 3 seeds, 200 items).")


def test_report_is_deterministic() -> None:
    """The same random generator gives the same report."""
    assert summarise_checked(finished_record()) == summarise_checked(finished_record())


def test_all_settings_failed_is_row() -> None:
    """A method whose settings all failed is a row of the report."""
    full = row(summarise_checked(finished_record()), "full")
    assert (full["status"], full["reason"]) == ("diverged", "it diverged")
    assert (full["score"], full["verdict"], full["setting"]) == (None, "none", {})
    assert full["n_trials_diverged"] == 3
    # the loss that was not a number is absent, not a stand-in
    assert full["curves"][0]["points"][-1]["validation_loss"] is None


def test_every_failure_kind_is_row() -> None:
    """Every kind of failure is a row of the report."""
    kinds = [Status.FAILED, Status.DIVERGED, Status.OUT_OF_MEMORY, Status.STOPPED]
    trials = search("lora", dict(zip((1e-5, 1e-4, 1e-3, 1e-2), kinds, strict=True)))
    trials += search("lora", {1e-1: 0.5}) + final("lora", accuracy_scores(100), rate=1e-1)
    trials += final("oft", {1: Status.OUT_OF_MEMORY, 2: Status.OUT_OF_MEMORY, 3: Status.FAILED})
    probe = dataclasses.replace(make_cost("lora"), status=Status.FAILED, reason="no memory")
    record = make_record(
        trials,
        ("lora", "oft", "ia3"),
        incompatible={"ia3": "no such module"},
        costs={"lora": probe},
    )
    made = summarise_checked(record)
    seen = [(f["method"], f["phase"], f["status"], f["reason"]) for f in made["failures"]]
    assert seen == [
        ("lora", "probe", "failed", "no memory"),
        *[("lora", "search", kind.value, f"it {kind.value}") for kind in kinds[:3]],
        ("oft", "final", "out_of_memory", "it out_of_memory"),
        ("oft", "final", "out_of_memory", "it out_of_memory"),
        ("oft", "final", "failed", "it failed"),
        ("ia3", None, "incompatible", "no such module"),
    ]
    assert all(f["trial_id"] for f in made["failures"] if f["phase"] in ("search", "final"))
    # what the race stopped has not failed; it is a setting with its reason
    stopped = next(s for s in row(made, "lora")["settings"] if s["status"] == "stopped")
    assert stopped["reason"] == "it stopped"
    assert row(made, "lora")["n_trials_failed"] == 2
    assert row(made, "lora")["n_trials_diverged"] == 1
    assert row(made, "oft")["status"] == "out_of_memory"
    assert row(made, "oft")["n_trials_failed"] == 3
    assert row(made, "ia3")["status"] == "incompatible"
    assert made["complete"] is True
    sentence = made["recommendation"]["sentence"]
    assert sentence == (
        "Keep LoRA: no contender has a test score to compare (LoRA: 50.0 points, 3 seeds, "
        "200 items)."
    )


def test_report_before_any_trial() -> None:
    """A study without results has a report."""
    made = summarise_checked(make_record([], ("lora", "oft")))
    assert made["complete"] is False
    assert row(made, "oft")["status"] == "stopped"
    assert row(made, "oft")["reason"] == "not finished"
    assert made["recommendation"] == {
        "method": None,
        "sentence": "No recommendation yet: LoRA, the control, has no test score "
        "(0 of 0 planned trials finished).",
        "weighed": None,
        "prefer": "quality",
    }
    assert made["timing"]["train_seconds"] is None
    assert made["pareto"][0]["front"] == []


def test_partial_search_chooses_nothing() -> None:
    """A search that is half finished chooses no setting."""
    trials = search("lora", {1e-4: 0.5, 1e-3: 0.4}) + search("oft", {1e-4: 0.5, 1e-3: None})
    made = summarise_checked(make_record(trials, ("lora", "oft")))
    assert made["complete"] is False
    assert not any(s["chosen"] for m in made["methods"] for s in m["settings"])
    assert [s["status"] for s in row(made, "oft")["settings"]] == ["done", "stopped"]
    assert [(f["status"], f["reason"]) for f in made["failures"]] == [("stopped", "not finished")]
    assert "(3 of 4 planned trials finished)" in made["recommendation"]["sentence"]


def test_paused_trial_is_unfinished() -> None:
    """A trial that waits at a rung is not finished."""
    trials = search("lora", {1e-4: 0.5, 1e-3: Status.STOPPED}) + final("lora", accuracy_scores(120))
    trials[1] = (trials[1][0], dataclasses.replace(trials[1][1], reason=None))  # type: ignore[type-var]
    made = summarise_checked(make_record(trials, ("lora",)))
    assert made["complete"] is False
    assert [(f["status"], f["reason"]) for f in made["failures"]] == [("stopped", "not finished")]
    raced = search("lora", {1e-4: 0.5, 1e-3: Status.STOPPED}) + final("lora", accuracy_scores(120))
    made = summarise_checked(make_record(raced, ("lora",)))
    assert (made["complete"], made["failures"]) == (True, [])


def test_method_stopped_by_racing() -> None:
    """A method that racing stopped entirely is reported as stopped, with the reason."""
    trials = search("lora", {1e-4: 0.5}) + final("lora", accuracy_scores(120))
    trials += search("oft", {1e-4: Status.STOPPED, 1e-3: Status.STOPPED})
    made = summarise_checked(make_record(trials, ("lora", "oft")))
    assert made["complete"] is True
    assert (row(made, "oft")["status"], row(made, "oft")["reason"]) == ("stopped", "it stopped")
    assert (row(made, "oft")["n_trials_failed"], row(made, "oft")["verdict"]) == (0, "none")


def test_search_only_is_incomplete() -> None:
    """A finished search without final trials has settings and is not complete."""
    trials = search("lora", {1e-4: 0.5, 1e-3: 0.4}) + search("oft", {1e-4: 0.5, 1e-3: 0.6})
    made = summarise_checked(make_record(trials, ("lora", "oft")))
    assert made["complete"] is False
    assert row(made, "lora")["setting"] == {"learning_rate": 1e-3}
    assert row(made, "oft")["status"] == "stopped"


def test_partial_finals_are_compared() -> None:
    """Half-finished final trials are compared as far as they go."""
    trials = final("lora", accuracy_scores(120)) + final(
        "oft", {1: hits(121, 200), 2: None, 3: None}
    )
    trials += final("ia3", {1: None, 2: None, 3: None})
    made = summarise_checked(make_record(trials, ("lora", "oft", "ia3")))
    assert row(made, "oft")["n_seeds"] == 1
    assert row(made, "oft")["verdict"] == "inconclusive"
    assert row(made, "ia3")["status"] == "stopped"
    sentence = made["recommendation"]["sentence"]
    assert sentence.startswith("Keep LoRA: no contender is better by more than chance (best: OFT")
    assert "1 seed, seed noise unknown, 200 items" in sentence
    assert sentence.endswith("The study is not finished: 2 of 3 methods scored so far.")
    assert made["warnings"] == [
        "OFT has one seed: its seed noise is unknown and in no interval. [one-seed]"
    ]


def test_no_verdicts_without_control() -> None:
    """Without the control there are no verdicts."""
    trials = final("lora", dict.fromkeys((1, 2, 3), Status.DIVERGED)) + final(
        "oft", accuracy_scores(120)
    )
    made = summarise_checked(make_record(trials, ("lora", "oft")))
    assert made["complete"] is True
    assert row(made, "oft")["verdict"] == "none"
    assert row(made, "oft")["difference"] is None
    assert made["recommendation"]["method"] is None
    assert made["recommendation"]["sentence"] == (
        "No recommendation: LoRA, the control, has no test score (diverged: it diverged); the best "
        "score is that of OFT, 60.0 points, which cannot be compared."
    )
    assert made["warnings"][0] == (
        "LoRA, the control, has no test score: there are no verdicts. [control-without-score]"
    )


def test_control_kept_with_cheaper_equivalents() -> None:
    """The control is kept and the cheaper equivalents are named."""
    trials = (
        final("lora", accuracy_scores(120))
        + final("ia3", accuracy_scores(120))
        + final("oft", accuracy_scores(60))
    )
    costs = {"lora": make_cost("lora"), "ia3": make_cost("ia3", 600_000), "oft": make_cost("oft")}
    made = summarise_checked(make_record(trials, ("lora", "ia3", "oft"), costs=costs))
    assert row(made, "oft")["verdict"] == "worse"
    assert made["recommendation"] == {
        "method": "lora",
        "sentence": "Keep LoRA: no contender is better by more than chance (best: IA3 0.0 points, "
        "95 % interval 0.0 to 0.0, 3 seeds, 200 items). Equivalent within the margin and cheaper: "
        "IA3 (40 % less training memory).",
        "weighed": None,
        "prefer": "quality",
    }


def test_all_contenders_worse() -> None:
    """The verdict says when all contenders are worse."""
    made = summarise_checked(
        make_record(
            final("lora", accuracy_scores(120)) + final("oft", accuracy_scores(60)), ("lora", "oft")
        )
    )
    sentence = made["recommendation"]["sentence"]
    assert sentence.startswith(
        f"Keep LoRA: every contender is worse by more than chance (best: OFT {MINUS}30.0 points, "
        f"95 % interval {MINUS}"
    )


def test_small_gain_is_not_chance() -> None:
    """A gain below the margin is not attributed to chance."""
    better = [x + 0.004 for x in hits(120, 200)]
    trials = final("lora", accuracy_scores(120)) + final("oft", dict.fromkeys((1, 2, 3), better))
    made = summarise_checked(make_record(trials, ("lora", "oft")))
    assert row(made, "oft")["verdict"] == "equivalent"
    assert "no contender is better by 1.0 points or more" in made["recommendation"]["sentence"]


def test_lower_is_better_reverses_order() -> None:
    """A lower-is-better metric reverses order and verdict."""
    trials = (
        final("lora", accuracy_scores(0))
        + final("oft", accuracy_scores(200))
        + final("ia3", accuracy_scores(0))
    )
    trials = [
        (t, dataclasses.replace(r, splits=shifted(r, t.method.name)))
        for t, r in trials
        if r is not None
    ]
    made = summarise_checked(make_record(trials, ("lora", "oft", "ia3"), metric=LOSS))
    assert [m["method"] for m in made["methods"]] == ["lora", "ia3", "oft"]
    assert row(made, "ia3")["verdict"] == "better"
    assert row(made, "ia3")["difference"]["estimate"] == pytest.approx(-0.5)
    assert row(made, "oft")["verdict"] == "worse"
    assert f"{MINUS}0.5 nats against LoRA (lower is better)" in made["recommendation"]["sentence"]
    assert "maybe by less" not in made["recommendation"]["sentence"]


def shifted(result: Any, method: str) -> Any:
    test = result.splits["test"]
    by = {"lora": 2.0, "oft": 2.0, "ia3": 1.5}[method]
    return {"test": dataclasses.replace(test, scores=tuple(s + by for s in test.scores))}


def test_steps_to_the_controls_loss() -> None:
    trials = final("lora", accuracy_scores(120), losses=(1.0, 0.8, 0.6, 0.5))
    trials += final("oft", accuracy_scores(120), losses=(0.9, 0.5, 0.4, 0.3))
    trials += final("ia3", accuracy_scores(120), losses=(0.9, 0.8, 0.7, 0.6))
    made = summarise_checked(make_record(trials, ("lora", "oft", "ia3")))
    steps = {m["method"]: m["steps_to_control_loss"] for m in made["methods"]}
    assert steps == {"lora": 100, "oft": 50, "ia3": None}


def test_warnings_name_what_weakens_the_study() -> None:
    trials = search("lora", {1e-4: 0.4, 1e-3: 0.5}) + final(
        "lora", accuracy_scores(10, 20, (1, 2)), 1e-4
    )
    record = make_record(trials, ("lora",), warnings=("2 labels only in test.",))
    assert summarise_checked(record)["warnings"] == [
        "The test set has 20 items; below 30 its verdicts mean little. [test-too-small]",
        "LoRA has 2 seeds, fewer than 3. [few-seeds]",
        "The best learning rate of LoRA, 0.0001, is at the edge of those tried. [rate-at-edge]",
        "2 labels only in test.",
    ]


def test_foreign_item_scores_excluded() -> None:
    """Scores of other items are excluded, and the report says so."""
    trials = final("lora", accuracy_scores(120))
    trials += final("oft", {1: hits(100, 200), 2: hits(3, 5), 3: [float("nan")] * 200})
    made = summarise_checked(make_record(trials, ("lora", "oft")))
    assert row(made, "oft")["n_seeds"] == 1
    assert row(made, "oft")["seeds"][2]["test_score"] is None
    unusable = "OFT: the test scores of 2 finished trials cannot be used. [scores-unusable]"
    assert unusable in made["warnings"]
