"""Settings beside the learning rate come from Optuna's sampler, the same ones each time."""

from __future__ import annotations

from pathlib import Path

from bakeoff.methods import registry
from bakeoff.study.planning.sampler import ObservedSetting, propose_settings

LORA = registry.load("lora", Path())
RATES = (1e-4, 1e-2)


def test_first_setting_is_catalog_default() -> None:
    """The first setting is the catalog's own."""
    first, *others = propose_settings(LORA, RATES, (), 4, seed=0)
    assert first == {"learning_rate": LORA.learning_rate}
    assert len(others) == 3
    for setting in others:
        assert RATES[0] <= setting["learning_rate"] <= RATES[1]
        assert setting["r"] in LORA.tuning["r"]["values"]
        assert set(setting) == {"learning_rate", *LORA.tuning}


def test_sampler_is_deterministic_per_seed() -> None:
    """The sampler repeats its answers, and another seed gives others."""
    assert propose_settings(LORA, RATES, (), 5, seed=3) == propose_settings(
        LORA, RATES, (), 5, seed=3
    )
    assert propose_settings(LORA, RATES, (), 5, seed=3) != propose_settings(
        LORA, RATES, (), 5, seed=4
    )


def test_tried_settings_guide_sampler() -> None:
    """Settings that were tried are not proposed again and guide the search."""
    rates = [10 ** (-4 + 2 * i / 29) for i in range(30)]
    tried = [ObservedSetting({"learning_rate": r, "r": 8}, abs(r - rates[25])) for r in rates]
    tried.append(ObservedSetting({"learning_rate": 1e-2, "r": 32}, float("inf")))
    found = propose_settings(LORA, RATES, tried, 8, seed=0)
    assert not [s for s in found if s in [t.setting for t in tried]]
    near = [s for s in found if s["learning_rate"] > 10**-3]
    assert len(near) > len(found) / 2, "half of the range, on a log scale, lies below 1e-3"
