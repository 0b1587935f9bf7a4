"""A report as large as they come: 60 methods, 3 seeds, 1,319 items with long texts."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from bakeoff.analysis.per_method.items import item_summary
from bakeoff.analysis.trial_runs import runs_by_method, usable_scores
from bakeoff.core.record import ItemText
from bakeoff.core.results import SplitScores
from helpers.records import Pair, make_record, make_result, make_trial
from helpers.report_fixture import report

N_METHODS, SEEDS, N_ITEMS = 60, (1, 2, 3), 1319
LONG = "<b>\"What is it?\"</b> & 'so on' \N{GRINNING FACE} " * 30


def big_items() -> dict[str, Any]:
    """Return ``items`` of random scores, as analysis makes it."""
    rng = np.random.default_rng(7)
    names = [f"method_{i}" for i in range(N_METHODS)]
    pairs: list[Pair] = []
    for i, name in enumerate(names):
        for seed in SEEDS:
            trial = make_trial(name, seed=seed, phase="final")
            scores = tuple((rng.random(N_ITEMS) < 0.5 + i / 200).astype(float).tolist())
            answers = (f"{i} {seed} {LONG}",) * N_ITEMS
            result = make_result(trial)
            pairs.append((trial, _with_test(result, SplitScores(scores, answers, None))))
    record = make_record(
        pairs, names, asked=tuple(ItemText(f"{k} {LONG}", f"{k} {LONG}") for k in range(N_ITEMS))
    )
    by_method = runs_by_method(record)
    scores_of = {m: s for m, r in by_method.items() if (s := usable_scores(r, N_ITEMS))}
    found = item_summary(record, by_method, scores_of)
    assert found is not None
    return found


def _with_test(result: Any, test: SplitScores) -> Any:
    result.splits["test"] = test
    return result


def big_report() -> dict[str, Any]:
    """Return the report of all of them."""
    made = report()
    shape = made["methods"][1]
    made["methods"] = [_method(shape, i) for i in range(N_METHODS)]
    names = [m["method"] for m in made["methods"]]
    made["study"] |= {"control": names[0], "n_test_items": N_ITEMS}
    made["items"] = big_items()
    for plot in made["pareto"]:
        plot |= {"front": names[:9], "probabilities": dict.fromkeys(names, 0.5)}
    made["front"]["probabilities"] = dict.fromkeys(names, 0.5)
    decision = made["race"]["decisions"][2]
    made["race"]["decisions"] = [
        {**decision, "method": n, "step": step}
        for n in names
        for step in (22, 67)
        for _ in range(5)
    ]
    return made


def _method(shape: dict[str, Any], i: int) -> dict[str, Any]:
    method = copy.deepcopy(shape)
    spread = 1 + i / 20
    method |= {"method": f"method_{i}", "title": f"Method number {i}"}
    method["score"] = {"estimate": 0.6 + i / 250, "low": 0.58 + i / 250, "high": 0.62 + i / 250}
    if i == 0:
        method |= {"difference": None, "verdict": "control"}
    for key in ("train_peak_bytes", "step_milliseconds", "adapter_bytes"):
        method["cost"][key] = int(method["cost"][key] * spread)
    points = [
        {"step": 11 * k, "train_loss": 3 / (k + 1), "validation_loss": 3.3 / (k + 1)}
        for k in range(1, 21)
    ]
    curve = method["curves"][0]
    method["curves"] = [
        {**curve, "seed": seed, "phase": phase, "points": points}
        for phase, seeds in (("final", range(3)), ("search", range(5)))
        for seed in seeds
    ]
    method["settings"] = [method["settings"][k % 3] for k in range(5)]
    return method
