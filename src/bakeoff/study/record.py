"""Read a study's database into the record that the analysis takes, and compute its report."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bakeoff.analysis.rounds.look import Look
from bakeoff.analysis.study_looks import look_again, looks_until
from bakeoff.analysis.summary import summarise
from bakeoff.analysis.trial_runs import is_final
from bakeoff.core import trial_dir
from bakeoff.core.clock import wall_times
from bakeoff.core.errors import UsageError
from bakeoff.core.record import ImportedScores, ImportedStudy, MetricInfo, StudyRecord
from bakeoff.core.redact import redact_value
from bakeoff.core.results import Cost, Status, TrialResult
from bakeoff.core.trial import Trial
from bakeoff.core.warning_codes import with_code
from bakeoff.data.assets.cache import cache_folder
from bakeoff.data.rows import SPLITS
from bakeoff.methods.serving import serving_forms
from bakeoff.study import base_scores, fork, retry, test_texts, verify_weights
from bakeoff.study.config import StudySpec, parse_spec
from bakeoff.study.planning import trials
from bakeoff.study.setup import head_rate
from bakeoff.study.storage import repair
from bakeoff.study.storage.database import Reader
from bakeoff.study.storage.database.schema import AGAIN, PLANNED
from bakeoff.study.storage.study_dir import DATABASE, database_path


def read_values(out: Path) -> dict[str, Any]:
    """Return the study's values from its database."""
    with Reader(out / DATABASE) as reader:
        return reader.values()


def read_trials(out: Path) -> tuple[tuple[Trial, TrialResult | None], ...]:
    """Return the study's planned trials with their results."""
    with Reader(out / DATABASE) as reader:
        return reader.trials()


def read_record(out: Path, examples: bool = True) -> StudyRecord:
    """Return all that a study has written so far, with the texts of test items if ``examples``.

    Raises:
        UsageError: ``no-study``.
    """
    with Reader(database_path(out)) as reader, reader.snapshot():
        values, costs, trials = reader.values(), reader.costs(), reader.trials()
        decisions = reader.decisions()
        looks = {kind: tuple(reader.looks(kind)) for kind in (PLANNED, AGAIN)}
    if "imported" in values:
        return imported_record(values, trials, costs)
    _require_started(out, values)
    spec, known = parse_spec(values["spec"]), values["about"]
    # a removed method keeps its trials in the database, but is not part of the study any more
    trials = tuple(pair for pair in trials if pair[0].method.name in known["methods"])
    costs = {name: cost for name, cost in costs.items() if name in known["methods"]}
    decisions = [d for d in decisions if d["method"] in known["methods"]]
    return StudyRecord(
        name=spec.name,
        base=spec.base.model,
        base_note=known["base_note"],
        task=spec.task.kind,
        metric=MetricInfo(**known["metric"]),
        margin=spec.task.margin,
        control=known["methods"][0],
        methods=tuple(known["methods"]),
        titles=known["titles"],
        n_items={s: known["n_items"][s] for s in SPLITS},
        steps=values.get("final_steps", spec.budget.planned_steps),
        trials=trials,
        costs=costs,
        incompatible=_incompatible_reasons(costs),
        wall_seconds=sum(wall_times(values)) or None,
        warnings=(*known["warnings"], *provenance_warnings(values)),
        provenance={**known["provenance"], **fork.fork_provenance(values)},
        sizes=known.get("sizes"),
        race=race_record(spec, decisions, values),
        test_reads=tuple(values.get("looks", ())),
        rounds=values.get("rounds"),
        looks=looks[PLANNED],
        looks_again=looks[AGAIN],
        retried=tuple(values.get(retry.KEY, ())),
        hours=values["hours"]["fit"] if "hours" in values else None,
        settings=spec.budget.settings,
        select_on=spec.budget.select_on,
        prefer=spec.verdict.model_dump()["prefer"],
        pareto=spec.verdict.pareto,
        base_scores=base_scores.base_scores(values),
        constant=base_scores.constant_answer(values),
        weights=weight_hashes(out, trials),
        secondary=tuple(known["secondary"]),
        **item_fields(known),
        artifacts=values.get(verify_weights.KEY, {}),
        head=values.get(head_rate.KEY),
        serving=serving_forms(
            {t.method.name: t.method for t, _ in trials}.values(), cache_folder()
        ),
        **test_texts.text_fields(out, trials, examples),
    )


def item_fields(about: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of ``StudyRecord`` about test items: references, and groups if known.

    Studies of older versions have no groups.
    """
    fields: dict[str, Any] = {"references": tuple(about["references"])}
    if groups := about.get("groups"):
        fields |= {"groups": tuple(groups["of_items"]), "group_source": groups["source"]}
    return fields


def _incompatible_reasons(costs: dict[str, Cost]) -> dict[str, str]:
    return {n: c.reason or "" for n, c in costs.items() if c.status is Status.INCOMPATIBLE}


def weight_hashes(out: Path, trials: Iterable[tuple[Trial, TrialResult | None]]) -> dict[str, str]:
    """Return a hash of each final trial's saved weights, from its manifest; none if it is gone."""
    ids = [t.id for t, result in trials if is_final(t, result) and result is not None]
    hashes = {i: trial_dir.weights_hash(out / trial_dir.TRIALS / i) for i in ids}
    return {i: found for i, found in hashes.items() if found is not None}


def _require_started(out: Path, values: dict[str, Any]) -> None:
    if "about" not in values:
        raise UsageError(
            "no-study",
            f"The study in {out} has not started yet.",
            "`bakeoff run STUDY.toml` with the same study file starts it.",
        )


def provenance_warnings(values: dict[str, Any]) -> list[str]:
    """Return warnings about the origin of results: slow base answers, a rebuilt database."""
    reason = (values.get("base_scores") or {}).get("note")
    warnings = [with_code(base_scores.base_note(reason), "base-generate")] if reason else []
    if "rebuilt" in values:
        warnings.append(repair.REBUILT.format(at=values["rebuilt"]["at"]))
    return warnings


def race_record(
    spec: StudySpec, decisions: list[dict[str, Any]], values: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the race for the study's record, or None if the study does not race."""
    rungs = trials.rung_steps(spec.budget)
    if not rungs:
        return None
    race = {"seeds": spec.budget.seeds, "decisions": decisions}
    first = values.get(fork.FIRST_RUNG)
    if first is None:
        return {**race, "rungs": list(rungs)}
    taken = [first["step"], *(s for s in rungs[1:] if s > first["step"])]
    return {**race, "rungs": taken, "first_rung": first}


def compute_looks(out: Path, number: int) -> tuple[Look, ...]:
    """Return the study's first ``number`` looks, computed from its test scores.

    There are fewer if the control has no scores to compare with.
    """
    return looks_until(read_record(out, examples=False), number)


def compute_look_again(out: Path, number: int, replicates: int) -> Look | None:
    """Return further look ``number`` of ``--again``, over as many replicates, or None."""
    return look_again(read_record(out, examples=False), number, replicates)


def resampling_generator(values: dict[str, Any]) -> np.random.Generator:
    """Return the random generator for bootstrap resampling; imported studies use seed 0."""
    seed = parse_spec(values["spec"]).seed if "spec" in values else 0
    return np.random.default_rng(seed)


def load_report(out: Path, examples: bool = True) -> tuple[StudyRecord, dict[str, Any]]:
    """Return a study's record, and its report as JSON values without secrets.

    Raises:
        UsageError: ``no-study``.
    """
    record = read_record(out, examples)
    report = redact_value(summarise(record, resampling_generator(read_values(out))))
    return record, json.loads(json.dumps(report, allow_nan=False))


def imported_record(
    values: dict[str, Any],
    trials: tuple[tuple[Trial, TrialResult | None], ...],
    costs: dict[str, Cost],
) -> StudyRecord:
    """Return the record of an imported study from its database values."""
    known = values["imported"]
    reported = {m: ImportedScores(**r) for m, r in known["reported"].items()}
    source, benchmark = known["source"], known["benchmark"]
    return StudyRecord(
        name=known["name"],
        base=known["base"],
        base_note=None,
        task=known["task"],
        metric=MetricInfo(**known["metric"]),
        margin=known["margin"],
        control=known["methods"][0],
        methods=tuple(known["methods"]),
        titles={},
        n_items={split: n for split, n in known["n_items"].items() if n is not None},
        steps=known["steps"],
        trials=trials,
        costs=costs,
        incompatible={},
        wall_seconds=None,
        warnings=tuple(known["warnings"]),
        provenance=known["provenance"],
        imported=ImportedStudy(
            source, benchmark, reported, known["no_interval"], known["differing"]
        ),
    )
