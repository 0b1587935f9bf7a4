"""From a study to its trials: pure, so it can be printed, priced and compared.

Methods x settings x seeds in two phases: ``search`` (every setting, one seed, validation only) and
``final`` (the best setting of each method, fresh seeds, scored on test). Group and segment follow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bakeoff.spec import StudySpec
from bakeoff.trial import LEARNING_RATE, Conditions, MethodEntry, Segment, Trial

GRID_STEP = 10**0.5
"""Ratio of neighbouring learning rates: 5 of them span two decades around the prior.

arXiv 2602.04998 finds best learning rates up to 18 times apart between LoRA variants.
"""


def learning_rates(prior: float, count: int) -> tuple[float, ...]:
    """Return ``count`` log-spaced rates around ``prior``, rounded to three digits."""
    middle = (count - 1) / 2
    return tuple(float(f"{prior * GRID_STEP ** (i - middle):.3g}") for i in range(count))


def settings(entry: MethodEntry, spec: StudySpec) -> tuple[dict[str, Any], ...]:
    """Return the settings that a method tries: the same number for every method."""
    override = spec.method.get(entry.name)
    given = override.learning_rates if override else None
    rates = given or learning_rates(entry.learning_rate, spec.budget.settings)
    return tuple({LEARNING_RATE: rate} for rate in rates)


def search_trials(
    spec: StudySpec, entries: Sequence[MethodEntry], conditions: Conditions
) -> tuple[Trial, ...]:
    """Return the search phase: every setting of every method at the study's seed."""
    return tuple(
        Trial(entry, setting, spec.seed, "search", conditions)
        for entry in entries
        for setting in settings(entry, spec)
    )


def final_trials(
    spec: StudySpec,
    entries: Sequence[MethodEntry],
    conditions: Conditions,
    chosen: Mapping[str, dict[str, Any]],
) -> tuple[Trial, ...]:
    """Return the final phase: the chosen setting of each method at fresh seeds.

    Fresh, because the search seed's luck helped to choose the setting.
    """
    seeds = [spec.seed + 1 + i for i in range(spec.budget.seeds)]
    return tuple(
        Trial(entry, chosen[entry.name], seed, "final", conditions)
        for seed in seeds
        for entry in entries
        if entry.name in chosen
    )


def groups(trials: Sequence[Trial], most: int | None) -> Iterator[tuple[Trial, ...]]:
    """Yield the trials that share a step: same method, same shapes, at most ``most`` of them.

    Settings that differ in anything but the learning rate may differ in shapes and go apart.
    """
    alike: dict[str, list[Trial]] = {}
    for trial in trials:
        shapes = {k: v for k, v in trial.setting.items() if k != LEARNING_RATE}
        key = json.dumps([trial.method.name, trial.phase, shapes], sort_keys=True)
        alike.setdefault(key, []).append(trial)
    for group in alike.values():
        size = most or len(group)
        yield from (tuple(group[i : i + size]) for i in range(0, len(group), size))


def segments(
    trials: Sequence[Trial],
    folder: str,
    base_path: str,
    engines: Mapping[str, dict[str, Any] | None],
    most: int | None,
) -> tuple[Segment, ...]:
    """Return one segment a group, from the first step to the last.

    ``engines`` holds what each method's probe decided; a method without it runs plain.
    """
    return tuple(
        Segment(
            group,
            0,
            group[0].conditions.steps,
            folder,
            base_path,
            engines.get(group[0].method.name),
        )
        for group in groups(trials, most)
    )
