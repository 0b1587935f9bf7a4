"""Train a study's method on shuffled answers, to find answers that the model can see."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from bakeoff.analysis.per_method.best_weights import best_final_run
from bakeoff.analysis.trial_runs import TrialRun, runs_by_method
from bakeoff.core import jobs
from bakeoff.core.trial import Segment
from bakeoff.study.config import parse_spec
from bakeoff.study.record import read_record, read_values
from bakeoff.study.remote import is_remote, make_executor, open_executor, run_remote
from bakeoff.study.setup import base_model
from bakeoff.study.storage.repair import BAD, NOTE, OK, Finding

WHAT = "shuffled answers"
STEPS = 300
"""Most training steps; it stops as soon as the loss is too low."""
FULL = "full"
"""The method that learns most from what it sees; without it, the control is trained."""


def check_shuffled_answers(out: Path, steps: int = STEPS) -> Finding:
    """Train one method of a finished study on shuffled answers and return what was found.

    The study is not changed. Nothing tells the answers apart then, so the loss on held-out rows
    cannot fall below the entropy of the answers, unless the model sees them.
    """
    run = _choose_run(out)
    if run is None:
        text = "not trained: the study has no finished final trial of its own"
        return Finding(WHAT, NOTE, "answers-not-probed", text)
    spec = parse_spec(read_values(out)["spec"])
    conditions = run.trial.conditions
    base = base_model.locate_base(spec.base.model, lambda _: None, conditions.revision)
    segment = Segment((run.trial,), 0, steps, str(out.resolve()), base.path, None)
    here = make_executor("process", 1) if is_remote(spec) else open_executor(spec)
    with closing(here) as executor:
        value = {"segment": segment.to_json(), "steps": steps}
        found = run_remote(executor, jobs.TRAIN_ON_SHUFFLED, value)
    title = run.trial.method.title
    if found["error_text"] is not None:
        text = f"{title} could not be trained on them: {found['error_text']}"
        return Finding(WHAT, NOTE, "answers-not-probed", text)
    text = (
        f"after {found['steps']} steps of {title} the loss on {found['rows']} held-out rows is "
        f"{found['loss']:.3g} nats per answer; a model that does not see the answers has at least "
        f"{found['entropy']:.3g}"
    )
    if found["seen"]:
        text += ": the model sees the answers that it has to predict. No score of this study counts"
        return Finding(WHAT, BAD, "answers-seen", text)
    return Finding(WHAT, OK, "answers-not-seen", text)


def _choose_run(out: Path) -> TrialRun | None:
    """Return a final trial of full fine-tuning, else of the control, else of any method."""
    record = read_record(out)
    if record.imported is not None:
        return None
    by_method = runs_by_method(record)
    order = [FULL, *by_method]  # the control comes first
    runs = (best_final_run(by_method[name].final) for name in order if name in by_method)
    return next((run for run in runs if run is not None), None)
