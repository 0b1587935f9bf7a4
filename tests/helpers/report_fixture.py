"""A report dict as a study gives it, made by hand: ten methods, every status, hostile text.

Numbers are plausible, not measured. ``hostile`` strings try to leave the place where they stand.
"""

from __future__ import annotations

import math
from typing import Any

from helpers.report_engines import engine
from helpers.report_failures import failures
from helpers.report_fronts import CHANCES, front
from helpers.report_items import items
from helpers.report_race import race
from helpers.report_stability import stability

HOSTILE = (
    "</script><script>window.__pwned = 1</script>",
    '<img src=x onerror="window.__pwned = 2">',
    "\"><svg onload='window.__pwned = 3'>",
    "{{ 7 * 7 }}{% raw %}${window.__pwned = 4}",
    "<!--<script>",
    '<a href="javascript:window.__pwned=5" style="color:red">click</a><b>bold</b>',
    "\x1b[31mred\x00\u202egnp.exe\ud800",
)

STEPS = 225
SEEDS = (0, 1, 2)
LOSSES = (3.72, 2.9, 1.9, 1.2, 0.85, 0.72)


def report() -> dict[str, Any]:
    """Return the whole report of a finished study."""
    methods = [_method(*row) for row in _ROWS] + _without_score()
    return {
        "schema": 1,
        "study": {
            "name": "home-intents",
            "base": "sentence-transformers/all-MiniLM-L6-v2",
            "base_note": None,
            "task": "classify",
            "metric": "accuracy",
            "unit": "fraction",
            "better": "higher",
            "margin": 0.01,
            "control": "lora",
            "n_test_items": 620,
            "n_validation_items": 310,
            "n_train_items": 1850,
            "steps": STEPS,
        },
        "methods": methods,
        "pareto": [
            {
                "cost": "train_peak_bytes",
                "label": "peak training memory",
                "front": ["ln_tuning", "ia3", "lora", "oft"],
                "axis": "memory",
                "probabilities": CHANCES["memory"],
                "left_out": {},
            },
            {
                "cost": "step_milliseconds",
                "label": "time of a training step",
                "front": ["head", "ln_tuning", "ia3", "lora", "full", "oft"],
                "axis": "speed",
                "probabilities": CHANCES["speed"],
                "left_out": {},
            },
        ],
        "front": front(),
        "recommendation": {
            "method": "lora",
            "sentence": "Keep LoRA: no contender is better by more than chance (best: OFT +0.8 "
            "points, 95 % interval \u22120.9 to +2.5, 3 seeds, 620 items).",
            "weighed": None,
            "prefer": "quality",
        },
        "race": race(),
        "items": items(),
        "failures": failures(),
        "warnings": ["The best learning rate of VeRA is the highest tried."],
        "timing": {
            "wall_seconds": 512.3,
            "train_seconds": 401.8,
            "evaluation_seconds": 61.0,
            "load_seconds": 12.4,
        },
        "complete": True,
        "provenance": {
            "versions": {"bakeoff": "0.1.0", "torch": "2.13.0", "peft": "0.21.2"},
            "device": {"kind": "cpu", "name": "2 cores", "precision": "bfloat16"},
            "git": {"commit": "0f3c9a1", "dirty": False},
            "data": {"train": "9b1c" * 16, "validation": "77ae" * 16, "test": "d01f" * 16},
            "command": ["bakeoff", "run", "study.toml"],
        },
    }


def hostile_report() -> dict[str, Any]:
    """Return a report where every text that strangers can write is an attack."""
    made = report()
    made["study"]["name"] = HOSTILE[0]
    made["study"]["base_note"] = HOSTILE[5]
    made["study"]["metric"] = HOSTILE[5]
    made["recommendation"]["sentence"] = HOSTILE[1] + HOSTILE[3]
    made["warnings"] = list(HOSTILE)
    made["pareto"][0]["label"] = HOSTILE[0]
    made["front"] |= {"axes": list(HOSTILE), "left_out": {HOSTILE[0]: [HOSTILE[1]]}}
    made["provenance"]["data"] = dict.fromkeys(HOSTILE, HOSTILE[4])
    for i, method in enumerate(made["methods"][1:]):
        method["title"] = HOSTILE[i % len(HOSTILE)]
        method["setting"] = {**method["setting"], HOSTILE[5]: HOSTILE[0]}
        method["engine"] = {
            "lanes": 1,
            "on": [],
            "off": {"packing": HOSTILE[0], "loss": HOSTILE[1]},
        }
        if method["reason"]:
            method["reason"] = HOSTILE[2]
        for entry in method["settings"]:
            entry["setting"][HOSTILE[1]] = HOSTILE[0]
    for i, asked in enumerate(made["items"]["asked"]):
        asked |= {"prompt": HOSTILE[i] + HOSTILE[6], "reference": HOSTILE[(i + 3) % 7]}
    for i, found in enumerate(made["items"]["methods"]):
        for example in (*found["wins"], *found["losses"]):
            example |= {"control": HOSTILE[i % 7], "contender": HOSTILE[(i + 1) % 7]}
    for failure in made["failures"]:
        failure["reason"] = HOSTILE[0] + HOSTILE[6] + "long " * 200
    return made


def empty_report() -> dict[str, Any]:
    """Return the report of a study that was only just begun: methods known, nothing measured."""
    made = report()
    for method in made["methods"]:
        keep = {k: method[k] for k in ("method", "title")}
        method |= dict.fromkeys(method) | keep | _NOTHING
        method["cost"] = dict.fromkeys(_COST_KEYS)
    del made["front"], made["race"], made["items"]
    made |= {"pareto": [], "failures": [], "warnings": [], "complete": False, "provenance": {}}
    made["recommendation"] = {"method": None, "sentence": None}
    made["timing"] = dict.fromkeys(made["timing"])
    return made


_NOTHING: dict[str, Any] = {
    "status": "stopped",
    "reason": "not finished",
    "verdict": "none",
    "setting": {},
    "settings": [],
    "seeds": [],
    "curves": [],
    "n_settings": 0,
    "n_seeds": 0,
}

# method, title, score, difference (estimate, low, high, p), verdict, cost row, prior, setting
_ROWS: list[tuple[Any, ...]] = [
    ("lora", "LoRA", 0.862, None, "control", (147_456, 24.6, 31.2), 1e-3, {}),
    (
        "oft",
        "OFT",
        0.870,
        (0.008, -0.009, 0.025, 1.0),
        "inconclusive",
        (124_000, 30.9, 47.8),
        5e-4,
        {},
    ),
    (
        "dora",
        "DoRA",
        0.8625,
        (0.0005, -0.0071, 0.0083, 1.0),
        "equivalent",
        (156_672, 41.3, 44.9),
        1e-3,
        {},
    ),
    (
        "full",
        "Full fine-tuning",
        0.861,
        (-0.001, -0.016, 0.014, 1.0),
        "inconclusive",
        (22_713_216, 412.0, 29.4),
        1e-4,
        {},
    ),
    (
        "ia3",
        "IA\u00b3",
        0.835,
        (-0.027, -0.049, -0.006, 0.012),
        "worse",
        (27_648, 19.8, 27.1),
        1e-2,
        {},
    ),
    (
        "vera",
        "VeRA",
        0.811,
        (-0.051, -0.077, -0.026, 0.0004),
        "worse",
        (9_408, 27.2, 33.6),
        3e-2,
        {"r": 64},
    ),
    (
        "ln_tuning",
        "LayerNorm tuning",
        0.789,
        (-0.073, -0.101, -0.046, 0.0001),
        "worse",
        (9_984, 14.2, 22.8),
        1e-2,
        {},
    ),
    (
        "head",
        "Head only",
        0.534,
        (-0.328, -0.371, -0.286, 0.0),
        "worse",
        (15_785, 14.9, 9.6),
        1e-2,
        {},
    ),
]

_COST_KEYS = (
    *("trainable_parameters", "adapter_bytes", "train_tokens_per_second", "step_milliseconds"),
    *("train_peak_bytes", "memory_kind", "base_bytes", "train_seconds"),
    *("train_above_base_bytes", "inference_milliseconds", "inference_merged_milliseconds"),
)


def _method(
    name: str,
    title: str,
    score: float,
    difference: tuple[float, float, float, float] | None,
    verdict: str,
    cost: tuple[int, float, float],
    prior: float,
    extra: dict[str, Any],
) -> dict[str, Any]:
    parameters, peak_mib, step = cost
    lag = 1 + 2.2 * (0.87 - score)
    chosen = {"learning_rate": prior * (10 ** (name == "vera")), **extra}
    names = ("estimate", "low", "high", "p_adjusted")
    return {
        "method": name,
        "title": title,
        "status": "done",
        "reason": None,
        "setting": chosen,
        "n_settings": 3,
        "n_seeds": len(SEEDS),
        "score": {"estimate": score, "low": score - 0.027, "high": score + 0.026},
        "difference": None if difference is None else dict(zip(names, difference, strict=True)),
        "verdict": verdict,
        "cost": {
            "trainable_parameters": parameters,
            "adapter_bytes": parameters * 4 + 2_048,
            "train_tokens_per_second": 16 * 9.4 / step * 1000,
            "step_milliseconds": step,
            "train_peak_bytes": int(peak_mib * 2**20),
            "memory_kind": "rss_above_base",
            "base_bytes": 90_861_568,
            "train_seconds": step * STEPS / 1000,
            "train_above_base_bytes": int(peak_mib * 2**20),
            "inference_milliseconds": None,
            "inference_merged_milliseconds": None,
        },
        "engine": engine(name),
        "forgetting": None,
        "stability": stability(name, prior, score, chosen["learning_rate"], len(SEEDS)),
        "front_probability": None if name == "full" else CHANCES["joint"].get(name),
        "steps_to_control_loss": {"lora": 225, "oft": 180, "full": 225}.get(name),
        "n_trials_diverged": 1 if name == "full" else 0,
        "n_trials_failed": 0,
        "best_setting_on_edge": name == "vera",
        "settings": [_setting(name, prior, k, score, chosen, extra) for k in (-1, 0, 1)],
        "seeds": [
            {
                "seed": s,
                "trial_id": f"{name}{s}f00",
                "status": "done",
                "test_score": score + 0.004 * (s - 1),
                "validation_loss": LOSSES[-1] * lag + 0.01 * s,
            }
            for s in SEEDS
        ],
        "curves": [_curve(name, s, chosen["learning_rate"], lag) for s in SEEDS],
    }


def _setting(
    name: str, prior: float, k: int, score: float, chosen: dict[str, Any], extra: dict[str, Any]
) -> dict[str, Any]:
    rate = prior * 10**k
    diverged = name == "full" and k == 1
    off = abs(math.log10(rate / chosen["learning_rate"]))
    return {
        "setting": {"learning_rate": rate, **extra},
        "status": "diverged" if diverged else "done",
        "reason": "the loss was not finite" if diverged else None,
        "validation_loss": None if diverged else 0.7 + 2 * (0.87 - score) + 0.5 * off,
        "validation_score": None if diverged else score + 0.01 - 0.09 * off,
        "chosen": rate == chosen["learning_rate"],
    }


def _curve(name: str, seed: int, rate: float, lag: float) -> dict[str, Any]:
    return {
        "trial_id": f"{name}{seed}f00",
        "seed": seed,
        "phase": "final",
        "learning_rate": rate,
        "points": [
            {
                "step": (i + 1) * STEPS // len(LOSSES),
                "train_loss": loss * lag * 0.9,
                "validation_loss": loss * lag + 0.03 * (seed - 1) * (i % 2 + 1),
            }
            for i, loss in enumerate(LOSSES)
        ],
    }


def _without_score() -> list[dict[str, Any]]:
    shape = _method("x", "x", 0.5, None, "none", (1, 1.0, 1.0), 1e-3, {})
    nothing: dict[str, Any] = {
        "score": None,
        "setting": {},
        "n_seeds": 0,
        "seeds": [],
        "steps_to_control_loss": None,
        "front_probability": None,
    }
    cost = dict.fromkeys(_COST_KEYS)
    settings = [
        {
            "setting": {"learning_rate": rate},
            "status": "diverged",
            "validation_loss": None,
            "validation_score": None,
            "chosen": False,
        }
        for rate in (1e-3, 1e-2, 1e-1)
    ]
    return [
        {
            **shape,
            **nothing,
            "method": "miss",
            "title": "MiSS",
            "stability": {
                **dict.fromkeys(shape["stability"]),
                "divergence": {"share": 1.0, "diverged": 3, "trials": 3},
            },
            "status": "diverged",
            "cost": cost,
            "reason": "every setting diverged; the first at step 31 (loss was not finite)",
            "n_trials_diverged": 3,
            "best_setting_on_edge": False,
            "settings": settings,
            "curves": [
                {
                    "trial_id": "miss0aa",
                    "seed": 0,
                    "phase": "search",
                    "learning_rate": 1e-3,
                    "points": [
                        {"step": 37, "train_loss": 3.9, "validation_loss": 4.4},
                        {"step": 74, "train_loss": 30.0, "validation_loss": 61.0},
                        {"step": 111, "train_loss": None, "validation_loss": None},
                    ],
                }
            ],
        },
        {
            **shape,
            **nothing,
            "method": "prefix_tuning",
            "title": "Prefix tuning",
            "stability": dict.fromkeys(shape["stability"]),
            "cost": cost,
            "engine": None,
            "status": "incompatible",
            "n_settings": 0,
            "settings": [],
            "curves": [],
            "best_setting_on_edge": False,
            "reason": "BertModel takes no past_key_values in this version of transformers",
        },
    ]
