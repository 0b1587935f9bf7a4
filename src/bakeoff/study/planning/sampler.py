"""Settings that differ in more than the learning rate, proposed by Optuna's sampler.

Called by the search where ``budget.tune = "all"``. Optuna keeps nothing: each call builds a study
in memory from the settings tried so far and asks for more, so a search that is run again asks the
same questions and gets the same answers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bakeoff.core.trial import LEARNING_RATE, MethodEntry

STARTUP_TRIALS = 2
"""Settings with a loss from which on the sampler looks at them; before, it draws at random."""


class ObservedSetting(NamedTuple):
    """A setting and its mean validation loss in nats, infinite where it diverged."""

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

    Nothing tried yet: the first is the catalog's own. Optuna's TPE sampler (Bergstra et al. 2011)
    draws at random until something was tried, then where low losses lie.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = _search_space(entry, rates)
    sampler = optuna.samplers.TPESampler(
        seed=(seed + zlib.crc32(entry.name.encode())) % 2**32, n_startup_trials=STARTUP_TRIALS
    )
    study = optuna.create_study(sampler=sampler)
    for known in tried:
        study.add_trial(_as_optuna_trial(space, entry, known))
    found: list[dict[str, Any]] = [] if tried else [{LEARNING_RATE: entry.learning_rate}]
    seen = [_with_defaults(entry, s) for s in (*found, *(t.setting for t in tried))]
    while len(found) < count:
        asked = _setting_from_params(study.ask(space).params, entry)
        # in a small space the sampler may come back to what was tried; a rate is never drawn twice
        if _with_defaults(entry, asked) not in seen:
            found.append(asked)
            seen.append(_with_defaults(entry, asked))
    return tuple(found[:count])


def _search_space(entry: MethodEntry, rates: tuple[float, float]) -> dict[str, Any]:
    """Return Optuna's distributions: the rate, and the position of each argument's value."""
    from optuna.distributions import FloatDistribution, IntDistribution

    space: dict[str, Any] = {LEARNING_RATE: FloatDistribution(*rates, log=True)}
    for argument, given in entry.tuning.items():
        space[argument] = IntDistribution(0, len(given["values"]) - 1)
    return space


def _setting_from_params(params: Mapping[str, Any], entry: MethodEntry) -> dict[str, Any]:
    setting = {a: entry.tuning[a]["values"][i] for a, i in params.items() if a in entry.tuning}
    return {LEARNING_RATE: float(f"{params[LEARNING_RATE]:.3g}"), **setting}


def _with_defaults(entry: MethodEntry, setting: Mapping[str, Any]) -> dict[str, Any]:
    own = {a: entry.config.get(a) for a in entry.tuning}
    return {**own, **setting}


def _as_optuna_trial(space: Mapping[str, Any], entry: MethodEntry, known: ObservedSetting) -> Any:
    """Return a tried setting as Optuna's trial, without the arguments that lie off the space."""
    import optuna

    whole = _with_defaults(entry, known.setting)
    low, high = space[LEARNING_RATE].low, space[LEARNING_RATE].high
    params = {LEARNING_RATE: min(max(whole[LEARNING_RATE], low), high)}
    for argument, given in entry.tuning.items():
        if whole[argument] in given["values"]:
            params[argument] = given["values"].index(whole[argument])
    lost = known.loss == float("inf")
    return optuna.trial.create_trial(
        params=params,
        distributions={name: space[name] for name in params},
        value=None if lost else known.loss,
        state=optuna.trial.TrialState.FAIL if lost else optuna.trial.TrialState.COMPLETE,
    )
