"""Export a method's trained weights: as saved, merged into the base, or converted to LoRA.

The exported trial is the best one on validation. A worker converts the weights and evaluates the
written files; this module compares their scores with those of the trial.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from bakeoff.analysis.per_method.best_weights import best_final_run
from bakeoff.analysis.trial_runs import TrialRun, runs_by_method
from bakeoff.core import files, jobs, safe_read
from bakeoff.core.errors import PreflightError, UsageError, unknown_name
from bakeoff.core.names import quote_path
from bakeoff.core.record import StudyRecord
from bakeoff.core.trial import Segment
from bakeoff.data.assets.cache import cache_folder
from bakeoff.methods import vllm
from bakeoff.methods.serving import serving_forms
from bakeoff.report.model_card import model_card
from bakeoff.study import verify_weights
from bakeoff.study.config import parse_spec
from bakeoff.study.record import load_report, read_values
from bakeoff.study.remote import is_remote, make_executor, open_executor, run_remote
from bakeoff.study.setup import base_model
from bakeoff.study.storage import study_dir as study_folder

FORMS = ("adapter", "merged", "lora")
RANK = 16
"""Default rank of ``--as lora``: vLLM's default limit (``--max-lora-rank``)."""
NOTES = "bakeoff.json"
MERGE_TOLERANCE = 0.1
"""Relative increase of the loss that is accepted when an adapter trained on a 4 or 8 bit base is
merged into the unquantized base: it had learnt to correct quantization errors that are now gone."""


@dataclass(frozen=True)
class ExportedWeights:
    """Exported weights, with their scores and those of the trial.

    ``loss`` and ``trained_loss`` are mean validation losses in nats; ``score`` and
    ``trained_score`` are means of the metric over ``n_items`` test items, of which ``differing``
    have another score than in the study. ``same``: the losses agree up to rounding.
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
    """Labels of a classifier, in the order of its outputs."""
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
    """The command that serves it with vLLM; None if vLLM cannot."""
    not_served: str | None
    """Why vLLM cannot serve it, and what it can; None for a classifier."""


def export_weights(
    out: Path, target: Path, method: str | None = None, form: str = "adapter", rank: int = RANK,
    force: bool = False,
) -> ExportedWeights:  # fmt: skip
    """Export a method's weights (None: the recommended method's) into the new folder ``target``.

    With ``force`` also if their loss differs from the trained one. The study is not changed.

    Raises:
        UsageError: ``no-study``, ``unknown-form``, ``unknown-method``, ``nothing-to-export``,
            ``folder-taken``.
        PreflightError: ``cannot-merge``, ``cannot-convert``, ``base-differs``,
            ``export-differs``.
    """
    if form not in FORMS:
        raise unknown_name("unknown-form", "form", form, FORMS)
    if target.exists():
        cause = f"{target} already exists."
        raise UsageError("folder-taken", cause, "another folder: `--out DIR`.")
    study_folder.check_name(target)
    study_folder.check_no_symlinks(out)
    record, report = load_report(out, examples=False)
    run = _select_run(record, report, method, out)
    spec = parse_spec(read_values(out)["spec"])
    base = base_model.locate_base(spec.base.model, lambda _: None, run.trial.conditions.revision)
    if base.fingerprint != run.trial.conditions.fingerprint:
        raise PreflightError(
            "base-differs",
            f"The base model in {base.path} is not the one of this study: its files differ.",
            "restore the same files; the study's provenance has their fingerprint.",
        )
    # not the target's name with an ending: that could be too long
    making = target.with_name(f".export-{os.getpid()}{files.PARTIAL_SUFFIX}")
    value = {
        "segment": _segment(run, out, base.path, spec.engine.switches).to_json(),
        "form": form, "rank": rank, "target": str(making.resolve()),
    }  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # convert on this machine, which has the weights, even if the study ran elsewhere
        here = make_executor("process", 1) if is_remote(spec) else open_executor(spec)
        with closing(here) as through:
            converted = run_remote(through, jobs.CONVERT_WEIGHTS, value)
        exported = _exported_weights(
            record, run, converted, form, rank if form == "lora" else None, target
        )
        exported = _with_serving(run, base.path, exported, making, out)
        if not exported.same and not force:
            raise _mismatch_error(exported)
        files.atomic_write_text(making / "README.md", model_card(asdict(exported), report))
        files.atomic_write_text(making / NOTES, json.dumps(asdict(exported), indent=1) + "\n")
        for file in making.rglob("*.safetensors"):
            file.chmod(
                (making / NOTES).stat().st_mode
            )  # safetensors writes files that only the owner can read
        making.rename(target)
        files.fsync_path(target.parent)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return exported


def _select_run(
    record: StudyRecord, report: Mapping[str, Any], method: str | None, out: Path
) -> TrialRun:
    """Return the trial to export."""
    by_method = runs_by_method(record)
    if method is not None and method not in by_method:
        raise unknown_name("unknown-method", "method of this study", method, list(by_method))
    name = method or report["recommendation"]["method"]
    run = best_final_run(by_method[name].final) if name and record.imported is None else None
    if run is None:
        trained = [m for m, own in by_method.items() if best_final_run(own.final) is not None]
        if name is None and trained and record.imported is None:
            unlearnt = (report.get("learning") or {}).get("control_learnt") is False
            raise UsageError(
                "nothing-to-export",
                "The study recommends no method"
                + (": its control has learnt nothing." if unlearnt else "."),
                f"`--method NAME` exports one of {', '.join(trained)}.",
            )
        owner = f"{record.titles.get(name, name)} has" if name else "The study has"
        raise UsageError(
            "nothing-to-export",
            f"{owner} no trained weights to export yet.",
            f"`bakeoff run {quote_path(out)}` continues the study; `--method NAME` exports another "
            "method. The results of an imported study have no weights.",
        )
    return run


def _segment(run: TrialRun, out: Path, base: str, switches: Mapping[str, Any]) -> Segment:
    steps = run.trial.conditions.steps
    return Segment((run.trial,), 0, steps, str(out.resolve()), base, dict(switches))


def _exported_weights(
    record: StudyRecord, run: TrialRun, converted: Mapping[str, Any], form: str, rank: int | None,
    target: Path,
) -> ExportedWeights:  # fmt: skip
    assert run.result is not None
    assert run.validation_loss is not None
    trial, scores = run.trial, converted["scores"]["scores"]
    trained_scores = run.result.splits["test"].scores
    return ExportedWeights(
        folder=str(target),
        study=record.name,
        method=trial.method.name,
        title=trial.method.title,
        trial_id=trial.id,
        seed=trial.seed,
        form=form,
        kind=converted["kind"],
        rank=rank,
        base=trial.conditions.base,
        labels=tuple(labels) if (labels := trial.conditions.task_options.get("labels")) else None,
        metric=record.metric.name,
        unit=record.metric.unit,
        loss=converted["loss"],
        trained_loss=run.validation_loss,
        score=fmean(scores),
        trained_score=fmean(trained_scores),
        n_items=len(trained_scores),
        differing=sum(abs(a - b) > 1e-6 for a, b in zip(scores, trained_scores, strict=True)),
        same=_loss_matches(run, form, converted),
        note=converted["note"],
        serve=None,
        not_served=None,
    )


def _loss_matches(run: TrialRun, form: str, converted: Mapping[str, Any]) -> bool:
    """Tell whether a loss equals the trained one, within the tolerance of the form."""
    trained, c, loss = run.validation_loss, run.trial.conditions, converted["loss"]
    assert trained is not None
    if form == "merged" and c.quantize is not None:
        return bool(loss <= (1 + MERGE_TOLERANCE) * trained)
    # a quantised layer multiplies in 16 bits, whatever the study's precision
    precision = "bf16" if converted.get("dequantized") else c.precision
    return verify_weights.losses_match(trained, loss, precision)


def _with_serving(
    run: TrialRun, base: str, made: ExportedWeights, written: Path, study: Path
) -> ExportedWeights:
    """Add the command that serves the weights with vLLM, or why there is none and what works.

    ``written`` is where the files are now; the command names the folder where they will be.
    """
    c, folder = run.trial.conditions, Path(made.folder)
    if c.task == "classify":
        return made
    if made.kind == "model":
        return replace(made, serve=vllm.serve_model(folder, c.trusted))
    why: str | None = "it is not saved as LoRA"
    rank = 0
    if made.kind == "adapter":
        config, shapes = _read_adapter(written)
        why, rank = vllm.adapter_problem(config, shapes, _model_type(base)), vllm.max_rank(shapes)
    if why is None:
        nf4 = (c.quantize, c.quantizer) == ("nf4", "bitsandbytes")
        command = vllm.serve_adapter(
            base, folder, rank, revision=c.revision, trusted=c.trusted, nf4=nf4
        )
        return replace(made, serve=command)
    form = serving_forms([run.trial.method], cache_folder()).get(made.method, "merged")
    other = "vLLM serves no other form of this method either."
    if form is not None:
        command = f"bakeoff export {quote_path(study)} --method {made.method} --as merged"
        other = f"`{command}` writes a model that it serves."
    return replace(made, not_served=f"vLLM cannot serve this adapter: {why}. {other}")


def _read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return an adapter's configuration and the shapes of its tensors."""
    path = folder / "adapter_model.safetensors"
    with path.open("rb") as file:
        header = safe_read.read_header(file, path.stat().st_size)
    config = safe_read.read_json(folder / "adapter_config.json", safe_read.CONFIG_BYTES)
    return config, header.shapes if header is not None else {}


def _model_type(base: str) -> str:
    """Return the type of a base in a folder; empty for a hub id, whose files are not here."""
    path = Path(base, "config.json")
    if not path.is_file():
        return ""
    return str(safe_read.read_json(path, safe_read.CONFIG_BYTES).get("model_type", ""))


def _mismatch_error(weights: ExportedWeights) -> PreflightError:
    hint = ", or a higher `--rank`" if weights.form == "lora" else ""
    return PreflightError(
        "export-differs",
        f"Exported as {weights.form}, {weights.title} differs from the trained model: validation "
        f"loss {weights.loss:.4g}, at the end of training {weights.trained_loss:.4g}; "
        f"{weights.metric} {weights.score:.4g}, in the study {weights.trained_score:.4g}. "
        "Nothing was written.",
        f"another form{hint}; `--force` writes it anyway.",
    )
