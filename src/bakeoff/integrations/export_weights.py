"""Deliver a method's weights: as they were saved, merged or as LoRA, scored again as written.

Stands above ``api`` in the study half: called by `bakeoff export`. Which trial's weights they are
is decided by validation alone (``analysis.weights``); a worker converts and scores them
(``conversion``), and here the scores are held against the trial's own.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bakeoff.analysis.per_method.best_weights import best_final_run
from bakeoff.analysis.trial_runs import TrialRun, runs_by_method
from bakeoff.core import files, jobs
from bakeoff.core.errors import PreflightError, UsageError, unknown_name
from bakeoff.core.record import StudyRecord
from bakeoff.core.trial import Conditions, Segment
from bakeoff.report.model_card import model_card
from bakeoff.study import verify_weights
from bakeoff.study.config import parse_spec
from bakeoff.study.record import load_report, read_values
from bakeoff.study.remote import is_remote, make_executor, open_executor, run_remote
from bakeoff.study.setup import base_model
from bakeoff.study.storage import study_dir as study_folder

FORMS = ("adapter", "merged", "lora")
RANK = 16
"""Of `--as lora`: vLLM's own limit unless it is told another (`--max-lora-rank`)."""
NOTES = "bakeoff.json"
MERGE_TOLERANCE = 0.1
"""Share by which the loss may be higher where what was trained beside 4 or 8 bits is merged into
the base as its files have it: what made up for their rounding now has none to make up for."""


@dataclass(frozen=True)
class ExportedWeights:
    """Weights that were written, and what they score beside what the trial scored.

    ``loss`` and ``trained_loss`` are mean validation losses in nats; ``score`` and
    ``trained_score`` means of the metric over ``n_items`` test items, of which ``differing`` are
    scored otherwise than in the study. ``same``: the losses agree within rounding.
    """

    folder: str
    study: str
    method: str
    title: str
    trial_id: str
    seed: int
    form: str
    kind: str
    rank: int | None
    base: str
    labels: tuple[str, ...] | None
    """Of a classifier, in the order of its outputs."""
    metric: str
    unit: str
    loss: float
    trained_loss: float
    score: float
    trained_score: float
    n_items: int
    differing: int
    same: bool
    note: str | None
    serve: str | None


def export_weights(
    out: Path, target: Path, method: str | None = None, form: str = "adapter", rank: int = RANK,
    force: bool = False,
) -> ExportedWeights:  # fmt: skip
    """Write a method's weights (None: those of the recommended one) into the new ``target``.

    With ``force`` also where they do not give what was trained. The study is only read.

    Raises:
        UsageError: ``no-study``, ``unknown-form``, ``unknown-method``, ``nothing-to-export``,
            ``folder-taken``.
        PreflightError: ``cannot-merge``, ``cannot-convert``, ``base-differs``,
            ``export-differs``.
    """
    if form not in FORMS:
        raise unknown_name("unknown-form", "form", form, FORMS)
    if target.exists():
        cause = f"{target} is there already."
        raise UsageError("folder-taken", cause, "another folder: `--out DIR`.")
    study_folder.check_no_symlinks(out)
    record, report = load_report(out, examples=False)
    run = _select_run(record, report, method)
    spec = parse_spec(read_values(out)["spec"])
    base = base_model.locate_base(spec.base.model, lambda _: None, run.trial.conditions.revision)
    if base.fingerprint != run.trial.conditions.fingerprint:
        raise PreflightError(
            "base-differs",
            f"The base in {base.path} is not the one that this study trained on: its files differ.",
            "put the same files there; the study's provenance has their fingerprint.",
        )
    making = target.with_name(f".{target.name}.{os.getpid()}{files.PARTIAL_SUFFIX}")
    value = {
        "segment": _segment(run, out, base.path, spec.engine.switches).to_json(),
        "form": form, "rank": rank, "target": str(making.resolve()),
    }  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # the weights are here, whatever machines the study was carried to
        here = make_executor("process", 1) if is_remote(spec) else open_executor(spec)
        with closing(here) as through:
            found = run_remote(through, jobs.CONVERT_WEIGHTS, value)
        made = _exported_weights(record, run, found, form, rank if form == "lora" else None, target)
        if not made.same and not force:
            raise _mismatch_error(made)
        files.atomic_write_text(making / "README.md", model_card(asdict(made), report))
        files.atomic_write_text(making / NOTES, json.dumps(asdict(made), indent=1) + "\n")
        for file in making.rglob("*.safetensors"):
            file.chmod((making / NOTES).stat().st_mode)  # safetensors lets nobody else read them
        making.rename(target)
        files.fsync_path(target.parent)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return made


def _select_run(record: StudyRecord, report: Mapping[str, Any], method: str | None) -> TrialRun:
    """Return the trial whose weights are delivered."""
    by_method = runs_by_method(record)
    if method is not None and method not in by_method:
        raise unknown_name("unknown-method", "method of this study", method, list(by_method))
    wanted = method or report["recommendation"]["method"]
    run = best_final_run(by_method[wanted].final) if wanted and record.imported is None else None
    if run is None:
        what = f"{record.titles.get(wanted, wanted)} has" if wanted else "The study has"
        raise UsageError(
            "nothing-to-export",
            f"{what} no trained weights to hand out yet.",
            "`bakeoff run` goes on with the study; `--method NAME` takes another one.",
        )
    return run


def _segment(run: TrialRun, out: Path, base: str, wishes: Mapping[str, Any]) -> Segment:
    steps = run.trial.conditions.steps
    return Segment((run.trial,), 0, steps, str(out.resolve()), base, dict(wishes))


def _exported_weights(
    record: StudyRecord, run: TrialRun, found: Mapping[str, Any], form: str, rank: int | None,
    target: Path,
) -> ExportedWeights:  # fmt: skip
    assert run.result is not None
    assert run.validation_loss is not None
    trial, scores = run.trial, found["scores"]["scores"]
    own = run.result.splits["test"].scores
    return ExportedWeights(
        folder=str(target),
        study=record.name,
        method=trial.method.name,
        title=trial.method.title,
        trial_id=trial.id,
        seed=trial.seed,
        form=form,
        kind=found["kind"],
        rank=rank,
        base=trial.conditions.base,
        labels=tuple(labels) if (labels := trial.conditions.task_options.get("labels")) else None,
        metric=record.metric.name,
        unit=record.metric.unit,
        loss=found["loss"],
        trained_loss=run.validation_loss,
        score=fmean(scores),
        trained_score=fmean(own),
        n_items=len(own),
        differing=sum(abs(a - b) > 1e-6 for a, b in zip(scores, own, strict=True)),
        same=_loss_matches(run, form, found["loss"]),
        note=found["note"],
        serve=_serve_command(trial.conditions, form, found["kind"], target),
    )


def _loss_matches(run: TrialRun, form: str, loss: float) -> bool:
    """Tell whether a loss is that of the end of training, as far as the form can keep it."""
    trained, c = run.validation_loss, run.trial.conditions
    assert trained is not None
    if form == "merged" and c.quantize is not None:
        return loss <= (1 + MERGE_TOLERANCE) * trained
    return verify_weights.losses_match(trained, loss, c.precision)


def _serve_command(conditions: Conditions, form: str, kind: str, target: Path) -> str | None:
    """Return the command that serves it with vLLM; None where that cannot be known."""
    if conditions.task == "classify":
        return None
    folder = shlex.quote(str(target))
    if kind == "model":
        return f"vllm serve {folder}"
    if kind == "adapter" and form == "lora":
        base = shlex.quote(conditions.base)
        return f"vllm serve {base} --enable-lora --lora-modules tuned={folder}"
    return None


def _mismatch_error(made: ExportedWeights) -> PreflightError:
    more = ", or a higher `--rank`" if made.form == "lora" else ""
    return PreflightError(
        "export-differs",
        f"As {made.form} {made.title} is not what was trained: its validation loss is "
        f"{made.loss:.4g}, at the end of training it was {made.trained_loss:.4g}; {made.metric} "
        f"{made.score:.4g}, in the study {made.trained_score:.4g}. Nothing was written.",
        f"another form{more}; `--force` writes it all the same.",
    )
