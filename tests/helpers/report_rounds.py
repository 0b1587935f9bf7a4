"""A report of a study in rounds, made by hand: replicates that race, looks, groups, the head."""

from __future__ import annotations

import math
from typing import Any

from helpers.report_fixture import report

MOST = 8
LOOKS = (3, 5, 8)
RUNG, STEPS = 22, 225
FIRST_SEED = 7
SPENT = (0.0006, 0.0071, 0.0192)
CRITICAL = (3.69, 3.24, 2.97)
SHAPE = (1.0, 0.8, 0.55, 0.4, 0.34, 0.31)
"""Loss at six readings, the first at the rung, as a share of the start."""

# method, replicates, difference (estimate, low, high), verdict, reason
_ROWS: tuple[tuple[str, int, tuple[float, float, float] | None, str, str | None], ...] = (
    ("lora", 8, None, "control", None),
    ("oft", 8, (0.031, 0.004, 0.058), "better", None),
    ("dora", 5, (0.003, -0.019, 0.024), "equivalent", None),
    ("full", 5, (-0.010, -0.041, 0.021), "inconclusive", "items"),
    ("ia3", 3, (-0.075, -0.122, -0.028), "worse", None),
    ("vera", 8, (-0.021, -0.052, 0.010), "inconclusive", "seeds"),
    ("ln_tuning", 3, (-0.073, -0.131, -0.016), "worse", None),
    ("head", 3, (-0.328, -0.391, -0.266), "worse", None),
)


def rounds_report() -> dict[str, Any]:
    """Return the report of a finished study in rounds: three looks, one contender better."""
    made = report()
    made["study"] |= {"margin": 0.03, "n_test_items": 480, "test_looks": 1, "test_changes": []}
    by_name = {m["method"]: m for m in made["methods"]}
    for name, replicates, difference, verdict, reason in _ROWS:
        by_name[name] |= _replicated(by_name[name], replicates, difference, verdict, reason)
    for name in ("miss", "prefix_tuning"):
        by_name[name] |= {"curves": [], "agreement": None}
    by_name["miss"]["n_settings"] = 5
    made["recommendation"] |= {
        "method": "oft",
        "sentence": "Use OFT: it is better than LoRA by 3.1 points (95 % interval +0.4 to +5.8); "
        "better beyond chance, but maybe by less than 3.0 points.",
    }
    names = [row[0] for row in _ROWS]
    return made | {
        "rounds": _rounds(),
        "race": _race(by_name),
        "groups": {"source": "column template", "n": 48, "design_effect": 2.14},
        "best_set": {"methods": ["oft", "dora"], "level": 0.95},
        "better_probabilities": _better_probabilities(names),
        "control_tuning": {
            "setting": {"learning_rate": 1e-3},
            "inside_grid": True,
            "chosen": 6,
            "near": 8,
            "replicates": 8,
            "well_tuned": True,
        },
        "head": {
            "learning_rate": 3e-3,
            "source": "tuned",
            "grid": [{"learning_rate": r, "loss": v} for r, v in _HEAD_GRID],
            "sensitive": [],
        },
    }


_HEAD_GRID = ((1e-3, 1.42), (3e-3, 1.31), (1e-2, 1.36), (3e-2, 1.58))


def running_report() -> dict[str, Any]:
    """Return the report of the same study after its first look: most contenders are open."""
    made = rounds_report()
    made["complete"] = False
    made["rounds"]["looks"] = made["rounds"]["looks"][:1]
    made["recommendation"]["sentence"] = (
        "Keep LoRA: no contender is shown to be better. The study is not finished."
    )
    for method in made["methods"]:
        if method["difference"] and method["difference"]["replicates"] > LOOKS[0]:
            known = made["rounds"]["looks"][0]["contenders"][method["method"]]
            method["difference"] |= {key: known[key] for key in ("estimate", "low", "high")}
            method["difference"] |= {"replicates": 3, "look": 1, "reason": None}
            method["difference"] |= {"items_needed": None, "seeds_needed": None}
            method |= {"verdict": "inconclusive", "n_seeds": 3}
    return made


def _replicated(
    method: dict[str, Any],
    replicates: int,
    difference: tuple[float, float, float] | None,
    verdict: str,
    reason: str | None,
) -> dict[str, Any]:
    name, score = method["method"], 0.862 + (difference[0] if difference else 0.0)
    rates = [method["setting"]["learning_rate"] * 10 ** (k / 2) for k in range(-2, 3)]
    rates = [float(f"{rate:.2g}") for rate in rates]
    best = [3 if s % 4 == 2 else 2 for s in range(replicates)]
    seeds = [FIRST_SEED + s for s in range(replicates)]
    trials = [
        _trial(name, seed, k, rates[k], best[s], score)
        for s, seed in enumerate(seeds)
        for k in range(len(rates))
    ]
    recommended = max(set(best), key=best.count)
    return {
        "setting": {"learning_rate": rates[recommended]},
        "agreement": {"chosen": best.count(recommended), "replicates": replicates},
        "n_settings": len(rates),
        "n_settings_added": 0,
        "n_seeds": replicates,
        "score": {"estimate": score, "low": score - 0.027, "high": score + 0.026},
        "difference": _difference(name, replicates, difference, reason),
        "verdict": verdict,
        "best_setting_on_edge": False,
        "settings": [t["row"] for t in trials],
        "seeds": [
            {
                "seed": seed,
                "trial_id": f"{name}-{seed}-{best[s]}",
                "status": "done",
                "test_score": score + 0.01 * math.sin(3.0 * s),
                "validation_loss": 0.7 + 0.02 * math.sin(3.0 * s),
                "setting": {"learning_rate": rates[best[s]]},
                "stood_in": "constant" if (name, s) == ("vera", 1) else None,
            }
            for s, seed in enumerate(seeds)
        ],
        "curves": [t["curve"] for t in trials],
    }


def _trial(
    name: str, seed: int, place: int, rate: float, best: int, score: float
) -> dict[str, Any]:
    """Return a trial's row and curve: the best setting and the one below go on to the end."""
    goes_on, off = place in (best, best - 1), 0.3 * abs(place - 2)
    level = 2.4 - score + off + 0.05 * math.sin(seed + place)
    points = [
        {
            "step": RUNG if i == 0 else STEPS * i // (len(SHAPE) - 1),
            "train_loss": 0.9 * level * share,
            "validation_loss": level * share,
        }
        for i, share in enumerate(SHAPE)
    ]
    points = points if goes_on else points[:1]
    reason = None if place == best else "at step 22: setting 3 of 5 by validation loss; 2 continue"
    if goes_on and reason:
        reason = f"at step {STEPS}: another setting of its replicate had a lower validation loss"
    return {
        "row": {
            "setting": {"learning_rate": rate},
            "seed": seed,
            "step": points[-1]["step"],
            "status": "done" if place == best else "stopped",
            "reason": reason,
            "validation_loss": points[-1]["validation_loss"],
            "validation_score": score - 0.1 * off if goes_on else None,
            "chosen": place == best,
        },
        "curve": {
            "trial_id": f"{name}-{seed}-{place}",
            "seed": seed,
            "phase": "replicate",
            "learning_rate": rate,
            "points": points,
        },
    }


def _difference(
    name: str, replicates: int, values: tuple[float, float, float] | None, reason: str | None
) -> dict[str, Any] | None:
    if values is None:
        return None
    return {
        **dict(zip(("estimate", "low", "high"), values, strict=True)),
        "p_adjusted": 0.012 if values[1] > 0 or values[2] < 0 else 0.4,
        "replicates": replicates,
        "look": LOOKS.index(replicates) + 1,
        "items_share": 0.61 if name != "vera" else 0.24,
        "floor": 0.02 if name != "vera" else 0.011,
        "items_needed": 1160 if reason == "items" else None,
        "seeds_needed": 14 if reason == "seeds" else None,
        "reason": reason,
        "exploratory": None,
    }


def _rounds() -> dict[str, Any]:
    contenders = [row for row in _ROWS if row[2] is not None]
    looks = []
    for number, replicates in enumerate(LOOKS, start=1):
        going = [row for row in contenders if row[1] >= replicates]
        looks.append(
            {
                "number": number,
                "replicates": replicates,
                "open": [row[0] for row in going],
                "information": (0.42, 0.68, 1.0)[number - 1],
                "spent": SPENT[number - 1],
                "critical": CRITICAL[number - 1],
                "clock": 0.31,
                "contenders": {row[0]: _at_look(row, replicates) for row in going},
            }
        )
    return {
        "mode": "rounds",
        "planned": list(LOOKS),
        "looks": looks,
        "alpha": 0.045,
        "reserve": 0.005,
        "reserve_spent": 0.0,
    }


def _at_look(row: tuple[Any, ...], replicates: int) -> dict[str, Any]:
    """Return a contender's values at a look: wider than its last ones before them."""
    _, last, (estimate, low, high), verdict, reason = row
    wider = math.sqrt(last / replicates) * (1 + 0.1 * (last - replicates))
    closed = replicates == last
    return {
        "estimate": estimate,
        "low": estimate + wider * (low - estimate),
        "high": estimate + wider * (high - estimate),
        "verdict": verdict if closed else None,
        "reason": reason if closed else None,
    }


def _better_probabilities(names: list[str]) -> dict[str, dict[str, float]]:
    places = {name: place for place, name in enumerate(("oft", "dora", "lora", *names))}
    return {
        a: {b: round(1 / (1 + math.exp(places[a] - places[b])), 3) for b in names if b != a}
        for a in names
    }


def _race(by_name: dict[str, Any]) -> dict[str, Any]:
    decisions = [
        {
            "step": RUNG,
            "trial_id": curve["trial_id"],
            "method": name,
            "seed": curve["seed"],
            "goes_on": len(curve["points"]) > 1,
            "reason": "setting 3 of 5 by validation loss; 2 go on",
            "numbers": {"mean_loss": curve["points"][0]["validation_loss"], "of": 5},
            "learning_rate": curve["learning_rate"],
            "mean_loss": curve["points"][0]["validation_loss"],
            "whole_method": False,
        }
        for name in ("lora", "oft")
        for curve in by_name[name]["curves"][:10]
    ]
    return {
        "rungs": [RUNG],
        "decisions": decisions,
        "methods_stopped": [],
        "first_rung": {"step": RUNG, "ripe": True, "fall": 0.14, "z": 7.1},
        "steps_trained": 8_910,
        "steps_in_full": 21_925,
    }
