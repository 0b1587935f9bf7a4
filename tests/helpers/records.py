"""Study records made by hand: the input of analysis, report and store tests.

``make_trial`` and ``make_result`` give one trial and what it gave; ``search`` and ``final`` a
method's trials; ``finished`` a small whole study; ``make_record`` any other.
Numbers are made up, none is measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bakeoff.core.record import MetricInfo, StudyRecord
from bakeoff.core.results import Cost, CurvePoint, SplitScores, Status, TrialResult
from bakeoff.core.trial import MethodEntry, Trial
from bakeoff.testing.trials import CONDITIONS as BENCH_CONDITIONS

ACCURACY = MetricInfo("accuracy", better="higher", unit="fraction", low=0.0, high=1.0)
LOSS = MetricInfo("loss", better="lower", unit="nats", low=0.0)
TITLES = {"lora": "LoRA", "oft": "OFT", "ia3": "IA3", "dora": "DoRA", "full": "Full fine-tuning"}

CONDITIONS = dataclasses.replace(BENCH_CONDITIONS, steps=100, validations=2)

Pair = tuple[Trial, TrialResult | None]


def make_entry(name: str) -> MethodEntry:
    return MethodEntry(
        name, TITLES.get(name, name), "f", "m", None, "LoraConfig", None, {}, 1e-3, ""
    )


def make_trial(method: str, rate: float = 1e-3, seed: int = 0, phase: str = "search") -> Trial:
    return Trial(make_entry(method), {"learning_rate": rate}, seed, phase, CONDITIONS)


def make_result(
    trial: Trial,
    *,
    losses: Sequence[float | None] = (1.0, 0.5),
    test: Iterable[float] | None = None,
    status: Status = Status.DONE,
    reason: str | None = None,
    **more: Any,
) -> TrialResult:
    """Return a result whose validation losses lie evenly over the steps."""
    steps = trial.conditions.steps
    curve = tuple(
        CurvePoint(steps * (i + 1) // len(losses), loss, loss) for i, loss in enumerate(losses)
    )
    splits = {}
    if status is Status.DONE:
        splits["validation"] = SplitScores((1.0, 0.0), ("a", "b"), losses[-1])
    if test is not None:
        scores = tuple(float(x) for x in test)
        splits["test"] = SplitScores(scores, ("x",) * len(scores), None)
    given = {
        "trainable_parameters": 1000,
        "adapter_bytes": 4096,
        "train_seconds": 2.0,
        "evaluation_seconds": 0.5,
        "load_seconds": 0.25,
        **more,
    }
    return TrialResult(trial.id, status, reason, curve=curve, splits=splits, **given)


def search(method: str, losses: Mapping[float, float | Status | None]) -> list[Pair]:
    """Return a method's search: learning rate -> validation loss, failure, or None = not run."""
    pairs: list[Pair] = []
    for rate, loss in losses.items():
        trial = make_trial(method, rate)
        if loss is None:
            pairs.append((trial, None))
        elif isinstance(loss, Status):
            pairs.append((trial, failed_result(trial, loss)))
        else:
            pairs.append((trial, make_result(trial, losses=(2 * loss, loss))))
    return pairs


def final(
    method: str,
    tests: Mapping[int, Iterable[float] | Status | None],
    rate: float = 1e-3,
    losses: Sequence[float] = (1.0, 0.5),
) -> list[Pair]:
    """Return a method's finals: seed -> test score per item, failure, or None = not run."""
    pairs: list[Pair] = []
    for seed, test in tests.items():
        trial = make_trial(method, rate, seed, "final")
        if test is None:
            pairs.append((trial, None))
        elif isinstance(test, Status):
            pairs.append((trial, failed_result(trial, test)))
        else:
            pairs.append((trial, make_result(trial, test=test, losses=losses)))
    return pairs


def failed_result(trial: Trial, status: Status) -> TrialResult:
    return make_result(trial, status=status, reason=f"it {status}", losses=(9.0, float("nan")))


def make_engine(**off: str) -> dict[str, Any]:
    """Return what a probe decides on a CPU in bf16; ``off`` gives the reason of what failed."""
    names = ("lanes", "packing", "loss", "compile", "graphs", "lean_inputs")
    unwished = ("compile", "graphs")
    return {
        "switches": {n: n not in off and n not in unwished for n in names},
        "reasons": off,
        "token_bytes": None,
    }


def make_cost(
    method: str,
    peak_bytes: int = 1_000_000,
    step_ms: float = 10.0,
    engine: dict[str, Any] | None = None,
) -> Cost:
    return Cost(
        method,
        Status.DONE,
        trainable_parameters=1000,
        train_tokens_per_second=1e6 / step_ms,
        step_milliseconds=step_ms,
        train_peak_bytes=peak_bytes,
        base_bytes=90_000_000,
        memory_kind="rss_above_base",
        steps=20,
        tokens_per_step=1000.0,
        engine=engine,
    )


def make_record(trials: Iterable[Pair], methods: Sequence[str], **more: Any) -> StudyRecord:
    """Return a record of ``trials``; the first method is the control."""
    pairs = tuple(trials)
    sizes = [len(r.splits["test"].scores) for _, r in pairs if r and "test" in r.splits]
    given: dict[str, Any] = {
        "name": "hand-made",
        "base": "tiny",
        "base_note": None,
        "task": "classify",
        "metric": ACCURACY,
        "margin": 0.01,
        "control": methods[0],
        "methods": tuple(methods),
        "titles": {m: TITLES.get(m, m) for m in methods},
        "n_items": {"train": 200, "validation": 2, "test": sizes[0] if sizes else 40},
        "steps": CONDITIONS.steps,
        "trials": pairs,
        "costs": {},
        "incompatible": {},
        "wall_seconds": 12.5,
        "warnings": (),
        "provenance": {"versions": {"bakeoff": "0.1.0"}},
        **more,
    }
    return StudyRecord(**given)


def hits(n_right: int, n_items: int) -> list[float]:
    """Return the scores of an accuracy: the first ``n_right`` of ``n_items`` are right."""
    return [1.0] * n_right + [0.0] * (n_items - n_right)


def finished_record() -> StudyRecord:
    """Return a finished study: OFT is better, IA3 scores the same and is cheaper, full diverged."""
    rates = {1e-4: 0.9, 1e-3: 0.5, 1e-2: 0.7}
    trials = [pair for method in ("lora", "oft", "ia3") for pair in search(method, rates)]
    trials += search("full", dict.fromkeys(rates, Status.DIVERGED))
    for method, right in (("lora", 120), ("oft", 160), ("ia3", 120)):
        trials += final(method, {seed: hits(right, 200) for seed in (1, 2, 3)})
    return make_record(
        trials,
        ("lora", "oft", "ia3", "full"),
        costs={
            "lora": make_cost("lora"),
            "oft": make_cost("oft"),
            "ia3": make_cost("ia3", 500_000),
        },
    )
