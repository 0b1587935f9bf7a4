"""Grids of learning rates are centred on the size of the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bakeoff.core.trial import MethodEntry, Trial
from bakeoff.methods import registry
from bakeoff.study.config import parse_spec
from bakeoff.study.planning.learning_rates import centre_note, centre_rate, format_size
from bakeoff.study.planning.trials import rate_grid

MINILM, SMOLLM2 = 22_713_216, 134_515_008


def entry(name: str) -> MethodEntry:
    return registry.load(name, Path())


@pytest.mark.parametrize(
    ("method", "parameters", "found"),
    [
        ("lora", MINILM, 1e-3), ("full", MINILM, 3e-4), ("ia3", MINILM, 3e-2),
        ("vera", MINILM, 3e-2), ("oft", MINILM, 3e-3), ("ln_tuning", MINILM, 1e-2),
        ("bitfit", MINILM, 3e-3), ("lora", SMOLLM2, 3e-3), ("oft", SMOLLM2, 1e-3),
        ("full", SMOLLM2, 1e-4), ("dora", SMOLLM2, 3e-3), ("vera", SMOLLM2, 3e-2),
        ("ln_tuning", SMOLLM2, 3e-3), ("ia3", SMOLLM2, 3e-2),
    ],
)  # fmt: skip
def test_best_rates_inside_grid(method: str, parameters: int, found: float) -> None:
    """The best rates of our full searches (benchmarks/results) are inside the default grids."""
    centre = centre_rate(entry(method), parameters).learning_rate
    assert centre / 10 < found < centre * 10


@pytest.mark.parametrize(
    ("parameters", "width"),
    [(1.24e9, 2048), (3.21e9, 3072), (8.03e9, 4096), (70.6e9, 8192)],
)
def test_lora_agrees_with_tinker(parameters: float, width: int) -> None:
    """LoRA's centre is the Tinker cookbook's rate for Llama, but for rounding to one digit."""
    theirs = 5e-4 * (2000 / width) ** 0.781
    assert centre_rate(entry("lora"), int(parameters)).learning_rate == pytest.approx(
        theirs, rel=0.25
    )


def test_full_falls_with_square_root() -> None:
    """Full fine-tuning's rate falls with the square root of the size, within limits."""
    rates = [centre_rate(entry("full"), n).learning_rate for n in (10, 10**7, 7 * 10**9)]
    assert rates == [5e-4, 5e-4, 2e-5]


def test_rates_without_size_kept() -> None:
    """An unknown base, and a prior for any base, leave a method as it is."""
    lora, head = entry("lora"), entry("head")
    assert centre_rate(lora, None) is lora
    assert centre_rate(head, MINILM) is head


def test_note_names_centres(study_values: dict[str, Any]) -> None:
    """The note has the centres, without methods whose rates the study file states."""
    study_values["methods"] = {"contenders": ["full", "head", "ia3"]}
    study_values["budget"]["settings"] = 1
    study_values["method"] = {"ia3": {"learning_rates": [1e-2]}}
    spec = parse_spec(study_values)
    entries = [centre_rate(entry(n), MINILM) for n in spec.method_names]
    assert centre_note(spec, entries, MINILM) == (
        "centred for a base of 22.7 M parameters: lora 1e-3, full 4e-4"
    )
    assert centre_note(spec, entries, None) is None
    assert rate_grid(entries[0], spec) == (1e-3,)
    assert rate_grid(entries[3], spec) == (1e-2,)


def test_size_of_prior_not_in_trial_id(study_values: dict[str, Any]) -> None:
    """Trial ids depend on the rate, not on the size that it is for."""
    from helpers.records import CONDITIONS

    here = centre_rate(entry("lora"), 7 * 10**9)
    trials = [Trial(e, {"learning_rate": 1e-3}, 0, "search", CONDITIONS)
              for e in (here, entry("lora"))]  # fmt: skip
    assert trials[0].id == trials[1].id


def test_sizes_in_words() -> None:
    assert [format_size(n) for n in (MINILM, SMOLLM2, 1.24e9, 7e9)] == [
        "22.7 M", "135 M", "1.24 B", "7 B",
    ]  # fmt: skip
