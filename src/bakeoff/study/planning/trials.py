"""The trials of a study: methods x replicates x settings, and their groups and segments."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bakeoff.core.trial import (
    LEARNING_RATE,
    RATE_KEYS,
    REPLICATE,
    Conditions,
    MethodEntry,
    Segment,
    Trial,
)
from bakeoff.study.config import StudySpec
from bakeoff.study.config.budget import BudgetSpec
from bakeoff.study.planning.sampler import ObservedSetting, propose_settings

GRID_STEP = 10**0.5
"""Ratio of adjacent learning rates: 5 of them span two decades around the prior.

In arXiv 2602.04998 the best learning rates of LoRA variants differ by up to 18 times.
"""

MOST_LANES_ON_CPU = 8
"""The same on a CPU, where more lanes save no time and take memory."""
MOST_LANES = 16
"""Trials of a group, unless the study file sets a limit: with more, each costs as much again."""
MIN_RATES = 3
"""The smallest grid that has an interior."""


def learning_rates(prior: float, count: int) -> tuple[float, ...]:
    """Return ``count`` log-spaced rates around ``prior``, rounded to three digits."""
    middle = (count - 1) / 2
    return tuple(float(f"{prior * GRID_STEP ** (i - middle):.3g}") for i in range(count))


def rate_grid(entry: MethodEntry, spec: StudySpec) -> tuple[float, ...]:
    """Return a method's learning rates: the user's, else a grid around the catalog's prior."""
    stated = (table.learning_rates for table in spec.tables_of(entry.name))
    given = next(filter(None, stated), None)
    return given or learning_rates(entry.learning_rate, spec.budget.settings)


def initial_settings(
    entry: MethodEntry, spec: StudySpec, seed: int | None = None
) -> tuple[dict[str, Any], ...]:
    """Return the settings that a replicate tries first; follow-up settings make up the rest.

    ``seed`` is the replicate's: with ``tune = "all"`` each draws its own settings.
    """
    rates, count = rate_grid(entry, spec), spec.budget.settings
    if not tunes_all(entry, spec):
        return tuple({LEARNING_RATE: rate} for rate in rates)
    seed = spec.seed if seed is None else seed
    return propose_settings(entry, (min(rates), max(rates)), (), -(-count // 2), seed)


def follow_up_settings(
    entry: MethodEntry, spec: StudySpec, tried: Sequence[ObservedSetting], seed: int
) -> tuple[dict[str, Any], ...]:
    """Return further settings of a replicate, proposed from the results of its first ones."""
    if not tunes_all(entry, spec):
        return ()
    rates, count = rate_grid(entry, spec), spec.budget.settings - len(tried)
    return propose_settings(entry, (min(rates), max(rates)), tried, count, seed)


def tunes_all(entry: MethodEntry, spec: StudySpec) -> bool:
    """Return whether more than the learning rate is tuned: ``tune = "all"``, and there is more."""
    several = spec.budget.settings > 1 and len(rate_grid(entry, spec)) > 1
    return spec.budget.tune == "all" and bool(entry.tuning) and several


def rung_steps(budget: BudgetSpec) -> tuple[int, ...]:
    """Return the steps at which settings are compared; empty without racing."""
    if budget.race == "off" or budget.settings < 2:
        return ()
    last = budget.planned_steps
    steps = {max(1, round(share * last)) for share in budget.rung_shares}
    return tuple(sorted(s for s in steps if s < last))


def edge_extension(losses: Mapping[float, float]) -> float | None:
    """Return the next learning rate beyond the best one, None if that is inside its grid.

    ``losses`` maps each rate tried to its mean validation loss, infinite if it diverged. The grid
    grows by the ratio of its last two rates. A grid of two rates has no interior and does not grow.
    """
    rates = sorted(losses)
    best = min(rates, key=lambda r: (losses[r], r))
    if len(rates) < MIN_RATES or math.isinf(losses[best]):
        return None
    if best == rates[0]:
        return float(f"{best * rates[0] / rates[1]:.3g}")
    if best == rates[-1]:
        return float(f"{best * rates[-1] / rates[-2]:.3g}")
    return None


def replicate_seeds(spec: StudySpec, count: int) -> tuple[int, ...]:
    """Return the seeds of the first ``count`` replicates."""
    return tuple(spec.seed + 1 + i for i in range(count))


def replicate_trials(
    spec: StudySpec, entries: Sequence[MethodEntry], seeds: Sequence[int], conditions: Conditions
) -> tuple[Trial, ...]:
    """Return the first trials of replicates: each method's initial settings at each seed."""
    return tuple(
        Trial(entry, setting, seed, REPLICATE, conditions)
        for entry in entries
        for seed in seeds
        for setting in initial_settings(entry, spec, seed)
    )


def most_lanes(device: str, max_lanes: int | None = None) -> int:
    """Return the largest number of trials of a group: the study's limit, else the device's."""
    return max_lanes or (MOST_LANES_ON_CPU if device == "cpu" else MOST_LANES)


def group_trials(trials: Sequence[Trial], max_lanes: int | None) -> Iterator[tuple[Trial, ...]]:
    """Yield groups of at most ``max_lanes`` trials that can be batched: same method, same shapes.

    Settings that differ in anything but the learning rate may differ in shapes, so they are in
    different groups. Without a limit a group has at most ``MOST_LANES`` trials.
    """
    alike: dict[str, list[Trial]] = {}
    for trial in trials:
        shapes = {k: v for k, v in trial.setting.items() if k not in RATE_KEYS}
        key = json.dumps([trial.method.name, trial.phase, shapes], sort_keys=True)
        alike.setdefault(key, []).append(trial)
    for group in alike.values():
        size = max_lanes or MOST_LANES
        yield from (tuple(group[i : i + size]) for i in range(0, len(group), size))


def build_segments(
    trials: Sequence[Trial],
    span: tuple[int, int],
    folder: str,
    base_path: str,
    engines: Mapping[str, dict[str, Any] | None],
    max_lanes: int | None,
    scored: bool = False,
) -> tuple[Segment, ...]:
    """Return one segment per group over the steps of ``span``, scored by the metric or not.

    ``engines`` holds the decision of each method's probe; a method without one uses no accelerator.
    """
    return tuple(
        Segment(
            group,
            *span,
            folder,
            base_path,
            engines.get(group[0].method.name),
            scored,
        )
        for group in group_trials(trials, max_lanes)
    )
