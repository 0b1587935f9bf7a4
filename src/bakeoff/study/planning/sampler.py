"""Settings that differ in more than the learning rate, proposed by Optuna's TPE sampler.

The sampler keeps no state: each call builds an in-memory Optuna study from the settings observed so
far, so a resumed search gets the same proposals.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bakeoff.core.trial import HEAD_FACTOR, LEARNING_RATE, MethodEntry

STARTUP_TRIALS = 2
"""Observed settings before the sampler uses them; until then it draws at random."""
DEFAULTS = {HEAD_FACTOR: 1.0}
"""Values of arguments that are no part of a method's config."""


class ObservedSetting(NamedTuple):
    """A setting and its mean validation loss in nats, infinite if it diverged."""

    setting: dict[str, Any]
    loss: float


def propose_settings(
    entry: MethodEntry,
    rates: tuple[float, float],
    tried: Sequence[ObservedSetting],
    count: int,
    seed: int,
) -> tuple[dict[str, Any], ...]:
    """Return ``count`` settings over ``rates`` (lowest, highest; log scale) and the tuning space.

    The first setting of all is the catalog's default. Optuna's TPE sampler (Bergstra et al. 2011)
    draws at random for the first ``STARTUP_TRIALS``, then where losses are low.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = _search_space(entry, rates)
    sampler = optuna.samplers.TPESampler(
        seed=(seed + zlib.crc32(entry.name.encode())) % 2**32, n_startup_trials=STARTUP_TRIALS
    )
    study = optuna.create_study(sampler=sampler)
    for observed in tried:
        study.add_trial(_as_optuna_trial(space, entry, observed))
    proposals: list[dict[str, Any]] = [] if tried else [{LEARNING_RATE: entry.learning_rate}]
    seen = [_with_defaults(entry, s) for s in (*proposals, *(t.setting for t in tried))]
    while len(proposals) < count:
        setting = _setting_from_params(study.ask(space).params, entry)
        # in a small space the sampler may repeat a setting; it never draws the same rate twice, so
        # this loop ends
        if _with_defaults(entry, setting) not in seen:
            proposals.append(setting)
            seen.append(_with_defaults(entry, setting))
    return tuple(proposals[:count])


def _search_space(entry: MethodEntry, rates: tuple[float, float]) -> dict[str, Any]:
    """Return Optuna's distributions: the learning rate, and an index for each argument."""
    from optuna.distributions import FloatDistribution, IntDistribution

    space: dict[str, Any] = {LEARNING_RATE: FloatDistribution(*rates, log=True)}
    for argument, given in entry.tuning.items():
        space[argument] = IntDistribution(0, len(given["values"]) - 1)
    return space


def _setting_from_params(params: Mapping[str, Any], entry: MethodEntry) -> dict[str, Any]:
    setting = {a: entry.tuning[a]["values"][i] for a, i in params.items() if a in entry.tuning}
    return {LEARNING_RATE: float(f"{params[LEARNING_RATE]:.3g}"), **setting}


def _with_defaults(entry: MethodEntry, setting: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {a: entry.config.get(a, DEFAULTS.get(a)) for a in entry.tuning}
    return {**defaults, **setting}


def _as_optuna_trial(
    space: Mapping[str, Any], entry: MethodEntry, observed: ObservedSetting
) -> Any:
    """Return an observed setting as an Optuna trial, without values outside the search space."""
    import optuna

    whole = _with_defaults(entry, observed.setting)
    low, high = space[LEARNING_RATE].low, space[LEARNING_RATE].high
    params = {LEARNING_RATE: min(max(whole[LEARNING_RATE], low), high)}
    for argument, given in entry.tuning.items():
        if whole[argument] in given["values"]:
            params[argument] = given["values"].index(whole[argument])
    diverged = observed.loss == float("inf")
    return optuna.trial.create_trial(
        params=params,
        distributions={name: space[name] for name in params},
        value=None if diverged else observed.loss,
        state=optuna.trial.TrialState.FAIL if diverged else optuna.trial.TrialState.COMPLETE,
    )
