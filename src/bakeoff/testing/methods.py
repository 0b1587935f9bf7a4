"""The contract of a method: what a TOML entry must do on a tiny decoder and a tiny encoder.

``CHECKS`` maps a check's name to a function of a ``Subject``; each raises ``AssertionError`` with
what is wrong, and ``Incompatible`` where the method says that it cannot run on that base or task.
The project runs them over its whole catalog; run them over your own entry like this::

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
from bakeoff.testing.tiny import save_bert, save_llama
from bakeoff.testing.trials import batches, build_tiny_setup, make_trial, single_trial_losses
from bakeoff.training import checkpoints
from bakeoff.training.evaluate import item_losses
from bakeoff.training.setup import TrainingSetup, load_base

BASES = {"sft": save_llama, "classify": save_bert}
WIDTH = 64
SPREAD = 0.2
"""Wide enough that what a random base computes of its input can be told apart."""
STEPS = 30
GRID = (1.0, 10**0.5, 10.0, 10**-0.5, 0.1)
"""The default grid around a method's prior, its middle first."""
EXACT = 1e-4
"""Largest difference of logits that counts as none: fp32 rounding of a merged product."""


class Subject(NamedTuple):
    """A method's entry, the task that it is tried on, a base for it, and a folder to write in."""

    entry: MethodEntry
    task: str
    base: Path
    folder: Path

    @classmethod
    def make(cls, entry: MethodEntry, task: str, folder: Path) -> Subject:
        """Return a subject with a tiny base of its own (``sft``: Llama, ``classify``: BERT)."""
        return cls(entry, task, BASES[task](folder / f"base-{task}", WIDTH, SPREAD), folder)

    def trial(self, *, seed: int = 0, rate: float | None = None) -> Trial:
        """Return a trial of it, at its prior rate without another."""
        return make_trial(
            self.entry, self.task, seed=seed, rate=rate or self.entry.learning_rate, steps=STEPS
        )

    def setup(self, trial: Trial | None = None) -> TrainingSetup:
        """Build a trial on the base."""
        return build_tiny_setup(trial or self.trial(), self.base, self.folder)


def trains_and_leaves_the_base_alone(subject: Subject) -> TrainingSetup:
    """Something trains, in fp32, and changes; what is frozen is bit-equal after training.

    Returns the trained bench, for a check that goes on with it.
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
    """The loss on what was trained on falls at a rate of its own grid."""
    tried = {}
    for factor in GRID:
        rate = factor * subject.entry.learning_rate
        at = subject.setup(subject.trial(rate=rate))
        before = _validation_loss(at)
        single_trial_losses(at, STEPS)
        tried[rate] = _validation_loss(at) / before
        if tried[rate] < MAX_LOSS_RATIO:
            return
    raise AssertionError(f"the loss after {STEPS} steps over the loss before, by rate: {tried}")


MAX_LOSS_RATIO = 0.995
"""A tiny random base has little to give. The rows are the same before and after: no noise."""


def _validation_loss(at: TrainingSetup) -> float:
    found = float(item_losses(at, at.examples("validation")).mean())
    assert found is not None
    return found


def repeats(subject: Subject) -> None:
    """The same seed gives the same bits, another seed gives others."""
    first = single_trial_losses(subject.setup(), 3)
    assert single_trial_losses(subject.setup(), 3) == first, "the same seed gave other bits"
    assert single_trial_losses(subject.setup(subject.trial(seed=1)), 3) != first, (
        "another seed gave the same"
    )


def goes_on(subject: Subject) -> None:
    """Stopped at a rung and gone on with from its state, it takes the same steps to the bit."""
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
    assert [*first, *rest] == whole, "gone on with from a rung, it trained other bits"


def reloads(subject: Subject, at: TrainingSetup | None = None) -> None:
    """What is saved gives the same logits on a fresh base, in plain transformers and PEFT."""
    at = at or train_briefly(subject)
    folder = subject.folder / at.hook.saved_as
    start = at.starts[0].trained if at.starts else None
    at.hook.save(at.model, folder, SaveContext(str(subject.base), 0, start))
    off = relative_difference(
        logits(load_plain(at, subject.base, folder), at), logits(at.model, at)
    )
    assert off < EXACT, f"reloaded logits are {off:.2g} off"


def merges(subject: Subject) -> None:
    """Merged into the base it gives the same logits, or PEFT says that it cannot be merged."""
    off = merging_error(train_briefly(subject))
    assert off is None or off < EXACT, f"merged logits are {off:.2g} off"


def disables(subject: Subject) -> None:
    """Switched off it gives the base's logits, and what was frozen is still frozen after."""
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
    """Return the method on its base after a few steps at its prior rate."""
    at = subject.setup()
    single_trial_losses(at, 5)
    return at


def merging_error(at: TrainingSetup) -> float | None:
    """Return how far merged logits are off, as a share of them; None where PEFT cannot merge."""
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
    """Return how far logits are off the base's with the adapter off; None without a switch.

    A task's fresh output layer is no part of the base: the same one is put on both.
    """
    model: Any = at.model
    if not hasattr(model, "disable_adapter"):
        return None
    base = load_base(at.conditions, at.task, str(subject.base), at.trials[0].seed)
    try:
        with model.disable_adapter():
            off = logits(model, at)
    except (UnboundLocalError, AttributeError, NotImplementedError, ValueError):
        return None  # PEFT: prompt methods on an encoder have no off
    return relative_difference(off, logits(base, at))


def logits(model: nn.Module, at: TrainingSetup) -> Tensor:
    """Return a model's logits on the first validation examples, in evaluation mode."""
    batch = at.task.batch(at.examples("validation")[:8], 0, "cpu")
    model.eval()
    with torch.no_grad():
        out: Tensor = model(**batch.inputs).logits
    # prompts stand before the tokens in some models' logits
    return out[:, -batch.inputs["input_ids"].shape[1] :] if out.dim() == 3 else out


def relative_difference(one: Tensor, other: Tensor) -> float:
    """Return the norm of the difference over the norm of ``other``."""
    return float((one - other).norm() / other.norm())


def load_plain(at: TrainingSetup, base: Path, folder: Path) -> Any:
    """Load what was saved with plain transformers and peft; rows are of task 0 where PEFT asks."""
    auto, arguments = {
        "classify": (AutoModelForSequenceClassification, {"num_labels": 3}),
        "sft": (AutoModelForCausalLM, {}),
    }[at.conditions.task]
    return load_saved.load_onto(auto.from_pretrained(base, **arguments), folder, at.hook.saved_as)
