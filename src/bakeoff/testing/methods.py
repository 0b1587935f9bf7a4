"""The contract of a method, checked on a tiny decoder and a tiny encoder.

``CHECKS`` maps a check's name to a function of a ``Subject``. A check raises ``AssertionError`` if
it fails, and ``Incompatible`` if the method does not support the base or task. Run them over your
own method like this::

    @pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
    def test_mine(check, tmp_path):
        check(Subject.make(registry.load("mine.toml", HERE), "sft", tmp_path))
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from bakeoff.core import trial_dir
from bakeoff.core.results import Status, TrialResult
from bakeoff.core.trial import MethodEntry, Trial
from bakeoff.methods import load_saved
from bakeoff.methods.hook import SaveContext, trainable_parameters
from bakeoff.study.planning.learning_rates import centre_rate
from bakeoff.testing.tiny import save_bert, save_llama
from bakeoff.testing.trials import batches, build_tiny_setup, make_trial, single_trial_losses
from bakeoff.training import checkpoints
from bakeoff.training.evaluate import item_losses
from bakeoff.training.setup import TrainingSetup, load_base

BASES = {"sft": save_llama, "classify": save_bert}
WIDTH = 64
SPREAD = 0.2
"""Standard deviation of the base's weights: large enough that its outputs depend on its inputs."""
STEPS = 30
GRID = (1.0, 10**0.5, 10.0, 10**-0.5, 0.1)
"""Factors of the default grid around its middle, the middle first."""
TINY = 100_000
"""Parameters of the tiny bases, about; the middle of a grid depends on the size of the base."""
EXACT = 1e-4
"""Relative difference of logits up to which they count as equal: fp32 rounding after merging."""


class Subject(NamedTuple):
    """A method's entry, a task, a base model for it, and a folder for files."""

    entry: MethodEntry
    task: str
    base: Path
    folder: Path

    @classmethod
    def make(cls, entry: MethodEntry, task: str, folder: Path) -> Subject:
        """Return a subject with its own tiny base (``sft``: Llama, ``classify``: BERT)."""
        return cls(entry, task, BASES[task](folder / f"base-{task}", WIDTH, SPREAD), folder)

    def trial(self, *, seed: int = 0, rate: float | None = None) -> Trial:
        """Return a trial of the method, by default at its prior learning rate."""
        return make_trial(
            self.entry, self.task, seed=seed, rate=rate or self.entry.learning_rate, steps=STEPS
        )

    def setup(self, trial: Trial | None = None) -> TrainingSetup:
        """Set up a trial on the base."""
        return build_tiny_setup(trial or self.trial(), self.base, self.folder)


def trains_and_leaves_the_base_alone(subject: Subject) -> TrainingSetup:
    """Check that fp32 parameters are trained, and that frozen tensors do not change by a bit.

    Returns the set-up after training, for further checks.
    """
    at = subject.setup()
    trained = {n: p.detach().clone() for n, p in trainable_parameters(at.model).items()}
    assert sum(p.numel() for p in trained.values()) > 0, "nothing is trained"
    assert {p.dtype for p in trained.values()} == {torch.float32}
    frozen = {n: p.clone() for n, p in at.model.named_parameters() if not p.requires_grad}
    single_trial_losses(at, 3)
    moved = [n for n, was in trained.items() if not torch.equal(at.model.get_parameter(n), was)]
    assert moved, "no trained tensor moved"
    for name, was in frozen.items():
        assert torch.equal(at.model.get_parameter(name), was), f"{name} was frozen and changed"
    return at


def learns(subject: Subject) -> None:
    """Check that the loss on the training rows falls at one of the learning rates of the grid."""
    ratios = {}
    middle = centre_rate(subject.entry, TINY).learning_rate
    for factor in GRID:
        rate = factor * middle
        at = subject.setup(subject.trial(rate=rate))
        before = _validation_loss(at)
        single_trial_losses(at, STEPS)
        ratios[rate] = _validation_loss(at) / before
        if ratios[rate] < MAX_LOSS_RATIO:
            return
    raise AssertionError(f"loss after {STEPS} steps divided by the loss before, by rate: {ratios}")


MAX_LOSS_RATIO = 0.995
"""A tiny random base learns little, but the rows are the same before and after: no noise."""


def _validation_loss(at: TrainingSetup) -> float:
    return float(item_losses(at, at.examples("validation")).mean())


def repeats(subject: Subject) -> None:
    """Check that equal seeds give bit-equal losses, and different seeds different ones."""
    first = single_trial_losses(subject.setup(), 3)
    assert single_trial_losses(subject.setup(), 3) == first, "the same seed gave other bits"
    assert single_trial_losses(subject.setup(subject.trial(seed=1)), 3) != first, (
        "another seed gave the same"
    )


def goes_on(subject: Subject) -> None:
    """Check that training resumed from a checkpoint gives bit-equal losses."""
    stop, end = 5, 12
    whole = single_trial_losses(subject.setup(), end)
    at = subject.setup()
    stepper, first = at.stepper(), []
    at.model.train()
    for i, batch in zip(range(stop), batches(at), strict=False):
        first.append(float(stepper.step(i, batch)))
    result = TrialResult(at.trials[0].id, Status.STOPPED, step=stop)
    path = trial_dir.checkpoint_path(subject.folder, at.trials[0].id, stop)
    checkpoints.save(path, checkpoints.Checkpoint(stepper.state(0), at.hook.state(0), result))
    fresh, state = subject.setup(), checkpoints.load(path, "cpu")
    stepper, rest = fresh.stepper(), []
    stepper.restore(0, state.lane, stop)
    fresh.hook.restore(0, state.hook)
    fresh.model.train()
    for i, batch in zip(range(stop, end), batches(fresh, stop), strict=False):
        rest.append(float(stepper.step(i, batch)))
    assert state.result == result
    assert [*first, *rest] == whole, "resumed from a checkpoint, the losses differ"


def reloads(subject: Subject, at: TrainingSetup | None = None) -> None:
    """Check that the saved files give the same logits in plain transformers and PEFT."""
    at = at or train_briefly(subject)
    folder = subject.folder / at.hook.saved_as
    start = at.starts[0].trained if at.starts else None
    at.hook.save(at.model, folder, SaveContext(str(subject.base), 0, start))
    off = relative_difference(
        logits(load_plain(at, subject.base, folder), at), logits(at.model, at)
    )
    assert off < EXACT, f"reloaded logits are {off:.2g} off"


def merges(subject: Subject) -> None:
    """Check that merging keeps the logits, or that PEFT refuses to merge."""
    off = merging_error(train_briefly(subject))
    assert off is None or off < EXACT, f"merged logits are {off:.2g} off"


def disables(subject: Subject) -> None:
    """Check that the disabled adapter gives the base's logits, and frozen tensors stay frozen."""
    at = train_briefly(subject)
    frozen = {n for n, p in at.model.named_parameters() if not p.requires_grad}
    off = disabling_error(at, subject)
    assert off is None or off < EXACT, f"logits are {off:.2g} off the base's when it is disabled"
    thawed = [n for n in frozen if at.model.get_parameter(n).requires_grad]
    assert not thawed, f"disabling and enabling made {thawed[0]} trainable"


CHECKS: dict[str, Callable[..., Any]] = {
    c.__name__: c
    for c in (
        trains_and_leaves_the_base_alone, learns, repeats, goes_on, reloads, merges, disables,
    )
}  # fmt: skip


def train_briefly(subject: Subject) -> TrainingSetup:
    """Return the set-up after a few steps at the prior learning rate."""
    at = subject.setup()
    single_trial_losses(at, 5)
    return at


def merging_error(at: TrainingSetup) -> float | None:
    """Return the relative difference of merged logits; None if PEFT cannot merge."""
    model: Any = at.model
    if not hasattr(model, "merge_and_unload"):
        return None
    apart = logits(model, at)
    try:
        merged = model.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError, TypeError, RuntimeError):
        return None
    return relative_difference(logits(merged, at), apart)


def disabling_error(at: TrainingSetup, subject: Subject) -> float | None:
    """Return the relative difference of logits between the disabled adapter and the base.

    None if the adapter cannot be disabled. The task's new output layer is the same on both.
    """
    model: Any = at.model
    if not hasattr(model, "disable_adapter"):
        return None
    base = load_base(at.conditions, at.task, str(subject.base), at.trials[0].seed)
    try:
        with model.disable_adapter():
            off = logits(model, at)
    except (UnboundLocalError, AttributeError, NotImplementedError, ValueError):
        return None  # in PEFT, prompt methods on an encoder cannot be disabled
    return relative_difference(off, logits(base, at))


def logits(model: nn.Module, at: TrainingSetup) -> Tensor:
    """Return a model's logits on the first validation examples, in evaluation mode."""
    batch = at.task.batch(at.examples("validation")[:8], 0, "cpu")
    model.eval()
    with torch.no_grad():
        out: Tensor = model(**batch.inputs).logits
    # the logits of some models start with those of soft prompts
    return out[:, -batch.inputs["input_ids"].shape[1] :] if out.dim() == 3 else out


def relative_difference(one: Tensor, other: Tensor) -> float:
    """Return the norm of the difference divided by the norm of ``other``."""
    return float((one - other).norm() / other.norm())


def load_plain(at: TrainingSetup, base: Path, folder: Path) -> Any:
    """Load saved files with plain transformers and PEFT; rows belong to task 0 if PEFT asks."""
    auto, arguments = {
        "classify": (AutoModelForSequenceClassification, {"num_labels": 3}),
        "sft": (AutoModelForCausalLM, {}),
    }[at.conditions.task]
    return load_saved.load_onto(auto.from_pretrained(base, **arguments), folder, at.hook.saved_as)
