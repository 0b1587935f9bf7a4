"""The usual way's side of ``time_to_verdict.py``: which trials are sampled, their jobs and scores.

The trial itself is ``usual_trial.py``, a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bakeoff import api
from bakeoff.core.errors import BakeoffError
from bakeoff.core.results import TrialResult
from bakeoff.core.trial import Trial
from bakeoff.data.rows import SPLITS, read_rows
from bakeoff.engine.batch_order import step_indices
from bakeoff.methods.hook import AttachContext, Hook, build_hook, trainable_parameters
from bakeoff.metrics.load import load_metric
from bakeoff.study.config import StudySpec
from bakeoff.study.setup.base_model import locate_base
from bakeoff.tasks._base import load_tokenizer, pad_id_of
from bakeoff.training.setup import make_task, quiet_transformers

TRIAL = Path(__file__).parent / "usual_trial.py"
ROWS = 50
"""Rows of the usual way's evaluation batches."""


def trials_to_sample(study: Path) -> dict[str, tuple[Trial, TrialResult]]:
    """Return one trial a method with its result: the first that was scored on test, if any was."""
    found: dict[str, tuple[Trial, TrialResult]] = {}
    done = [(trial, result) for trial, result in api.read_trials(study) if result is not None]
    for trial, result in sorted(done, key=lambda pair: "test" not in pair[1].splits):
        found.setdefault(trial.method.name, (trial, result))
    return found


def write_config(trial: Trial, base: str, out: Path) -> dict[str, Any]:
    """Write PEFT's config of a trial's method; return its folder, or the names it trains.

    Raises:
        BakeoffError: ``no-usual-way`` for multiple choice, and for methods that PEFT alone cannot
            train.
    """
    c, hook = trial.conditions, build_hook(trial.method, trial.config)
    task = make_task(c)
    if c.task == "choice" or (type(hook) is not Hook and hook.saved_as == "adapter"):
        raise BakeoffError(
            "no-usual-way",
            f"usual_trial.py does not train {trial.method.title} on the task {c.task}.",
            "other methods with --methods.",
        )
    model = task.load_model(base, c.revision).requires_grad_(False)
    context = AttachContext(task.task_type, task.heads, c.steps, list, _nothing, _nothing)
    if type(hook) is not Hook:
        return {"adapter": None, "trained": [*trainable_parameters(hook.attach(model, context))]}
    hook.peft_config(model, context).save_pretrained(str(out / "config"))
    return {"adapter": str(out / "config"), "trained": None}


def _nothing(*_: Any) -> Any:
    raise NotImplementedError("such a method is not sampled")


def job_of(trial: Trial, base: str, data: Path) -> dict[str, Any]:
    """Return what ``usual_trial.py`` needs to know of a trial, but for its method's config."""
    c = trial.conditions
    task, tokenizer = make_task(c), load_tokenizer(base, c.revision, c.trusted)
    rows = {split: read_rows(data / f"{split}.jsonl") for split in SPLITS}
    examples = {split: task.encode(tokenizer, rows[split]) for split in SPLITS}
    order = step_indices(len(examples["train"]), c.batch_size, trial.seed)
    job: dict[str, Any] = {
        "base": base,
        "auto_model": task.auto_model,
        "load": {k: v for k, v in task.model_arguments().items() if k == "num_labels"},
        "pad": pad_id_of(tokenizer),
        "device": c.device,
        "precision": c.precision,
        "seed": trial.seed,
        "rows": ROWS,
        "generates": task.generates,
        "learning_rate": trial.learning_rate,
        "head_learning_rate": trial.head_learning_rate,
        "heads": task.heads,
        "factors": trial.method.rates,
        "warmup": c.warmup,
        "decay": c.decay,
        "weight_decay": c.weight_decay,
        "clip": c.clip,
        "order": [next(order) for _ in range(c.steps)],
        "train": [(e.tokens, e.labels) for e in examples["train"]],
        "validation": [(e.tokens, e.labels) for e in examples["validation"]],
        "test": [e.tokens for e in examples["test"]],
    }
    if task.generates:
        asked = task.prompts(tokenizer, rows["test"])
        job |= {"test": asked.prompts, "end_tokens": asked.end_tokens}
        job |= {"max_new_tokens": asked.max_new_tokens}
    return job


def score(
    trial: Trial, base: str, study: Path, answers: Sequence[Any]
) -> tuple[list[float], float]:
    """Return the study's metric of the usual way's answers, and the seconds of scoring them."""
    c = trial.conditions
    task, tokenizer = make_task(c), load_tokenizer(base, c.revision, c.trusted)
    rows, metric = read_rows(study / "data/test.jsonl"), load_metric(c, study)
    references = task.scored_references(tokenizer, rows)
    started = time.perf_counter()
    if task.generates:
        request = task.prompts(tokenizer, rows)
        texts = [a.text for a in task.answers(tokenizer, request, list(map(request.trim, answers)))]
    else:
        texts = [task.options["labels"][number] for number in answers]
    scores = metric.score(texts, references, "test")
    return scores, time.perf_counter() - started


def run_trial(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Run a job in a process of its own; return its result, the import among its seconds.

    Raises:
        BakeoffError: ``usual-way-failed``.
    """
    (out / "job.json").write_text(json.dumps(job), encoding="utf-8")
    started = time.perf_counter()
    files = [str(TRIAL), str(out / "job.json"), str(out / "result.json")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *files],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    wall = time.perf_counter() - started
    if done.returncode:
        say(done.stderr)
        cause = f"{TRIAL.name} ended with {done.returncode}."
        raise BakeoffError("usual-way-failed", cause, "its errors are above.")
    result: dict[str, Any] = json.loads((out / "result.json").read_text(encoding="utf-8"))
    parts = result["seconds"]
    start = wall - sum(parts.values())
    del parts["choice of threads"]
    return {**result, "seconds": {"import": start, **parts}}


def sample(
    folder: Path, study: Path, spec: StudySpec, pair: tuple[Trial, TrialResult], trainer: str
) -> dict[str, Any]:
    """Run a trial of our study the usual way; return its seconds, kept in ``folder``.

    ``trainer`` is ``torch`` or ``trl``. A sample that is there is not run again. On a CPU the
    process has the threads of one of the study's workers or of all, whichever is faster.
    """
    trial, ours = pair
    out = folder / trainer / trial.method.name
    done = out / "sample.json"
    if done.exists():
        kept: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        if kept["trial"] == trial.id:
            return kept
    out.mkdir(parents=True, exist_ok=True)
    quiet_transformers()
    base = locate_base(spec.base.model, say, spec.base.revision).path
    steps, threads = trial.conditions.steps, trial.conditions.threads
    on_cpu = trial.conditions.device == "cpu"
    validations = sorted({*(point.step for point in ours.curve), steps})
    job = {
        **job_of(trial, base, study / "data"),
        **write_config(trial, base, out),
        "trainer": trainer,
        "threads": sorted({threads, threads * spec.engine.workers}) if on_cpu else [threads],
        "validations": validations,
        "out": str(out / "saved"),
    }
    say(f"{trainer}: {trial.method.title}")
    result = run_trial(job, out)
    seconds = result["seconds"]
    found = {
        "trial": trial.id,
        "steps": steps,
        "validations": len(validations),
        "seconds": seconds,
        "threads": result["threads"],
        "our_validation_loss": ours.validation_loss,
    }
    if trainer == "torch":
        scores, seconds["score"] = score(trial, base, study, result["answers"])
        found |= {"score": statistics.fmean(scores), "validation_loss": result["losses"][-1]}
        on_test = ours.splits.get("test")
        found["our_score"] = on_test and statistics.fmean(on_test.scores)
    done.write_text(json.dumps(found), encoding="utf-8")
    return found


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def kept_samples(folder: Path, methods: Iterable[str], trainer: str) -> dict[str, Any]:
    """Return the samples that are there, by method."""
    files = {name: folder / trainer / name / "sample.json" for name in methods}
    return {n: json.loads(f.read_text(encoding="utf-8")) for n, f in files.items() if f.exists()}


def why_no_trl(task: str) -> str | None:
    """Return why TRL cannot be sampled, None if it can."""
    if task != "sft":
        return f"SFTTrainer does not train the task {task}: no second reference."
    if importlib.util.find_spec("trl") is None:
        return "trl is not installed: no second reference (`pip install trl`)."
    return None
