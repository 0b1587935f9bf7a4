"""The two sides of the CPU benchmark: this engine, and Hugging Face ``Trainer`` + PEFT.

Used by ``lanes_cpu``. Both run the same examples in the same steps and write down when each step
ended; what is particular to one library stays in its class.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
from torch import nn
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bakeoff.core.errors import BakeoffError
from bakeoff.core.trial import Trial
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.batch_order import step_indices
from bakeoff.methods.arguments import RuleContext, resolve_arguments
from bakeoff.tasks._base import Example
from bakeoff.training import setup

WARMUP = 3
"""Untimed steps at the start of every run."""
LEARNING_RATE = 1e-3
COLLATORS = {"classify": DataCollatorWithPadding, "sft": DataCollatorForSeq2Seq}


class Ground(NamedTuple):
    """What both sides stand on: one trial a lane, the base's files, frozen data, the machine."""

    trials: list[Trial]
    base: str
    data: Path
    machine: dict[str, Any]


class Run(NamedTuple):
    """When each step ended, the real tokens of each, and losses where they were kept."""

    ends: list[float]
    tokens: list[int]
    losses: list[torch.Tensor]

    @property
    def rate(self) -> float:
        """Real tokens a second, warm-up left out."""
        return sum(self.tokens[WARMUP:]) / (self.ends[-1] - self.ends[WARMUP - 1])


class Ours:
    """This engine with some of the trials: one (solo) or all (laned)."""

    def __init__(self, trials: Sequence[Trial], ground: Ground) -> None:
        self.bench = setup.build_setup(
            trials, ground.base, ground.data, Switches.best("cpu", trials[0].conditions.precision)
        )
        self.examples = self.bench.examples("train")
        self.stepper = self.bench.stepper()
        self.model = self.bench.model
        self._taken = 0

    def run(self, seeds: Sequence[int], steps: int) -> Run:
        """Take ``steps`` further steps from the start of each seed's order."""
        picked = [pick(self.examples, self.bench.conditions.batch_size, s, steps) for s in seeds]
        run = Run([], [sum(counts) for counts in zip(*map(token_counts, picked), strict=True)], [])
        batches = self.bench.batch_builder.training_steps(self.examples, seeds)
        self.model.train()
        for _ in range(steps):
            run.losses.append(self.stepper.step(self._taken, next(batches)).clone())
            run.ends.append(time.perf_counter())
            self._taken += 1
        return run


class Theirs:
    """Plain transformers and PEFT: the same base, adapter and start, trained by ``Trainer``."""

    def __init__(self, trial: Trial, ours: Ours, ground: Ground, weights: torch.dtype) -> None:
        self.trial, self.ours, self.folder = trial, ours, ground.data.parent / "trainer"
        task = ours.bench.task
        base: Any = task.load_model(ground.base, trial.conditions.revision)
        self.tokenizer = ours.bench.tokenizer
        base.config.pad_token_id = self.tokenizer.pad_token_id
        around = RuleContext(base, task.heads, trial.conditions.steps, tuple)
        arguments = resolve_arguments(trial.method, trial.config, around)
        config = peft.LoraConfig(task_type=task.task_type, **arguments)
        self.model: Any = peft.get_peft_model(base.to(weights), config)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        self.collate = COLLATORS[trial.conditions.task](self.tokenizer)
        self.tokenizer.padding_side = "right"

    def start_as(self, lane: int) -> None:
        """Start from the tensors that ``lane`` of our side starts from."""
        own = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        stack = self.ours.bench.lanes.stack
        if set(own) != set(stack.names):
            raise refusal("tensors-differ", "The two sides do not train the same tensors.")
        for name, parameter in own.items():
            parameter.data.copy_(stack.tensor(name)[lane])

    def run(self, seed: int, steps: int, keep_losses: bool = False) -> Run:
        """Take ``steps`` steps of a fresh ``Trainer`` in the seed's order."""
        c = self.trial.conditions
        picked = pick(self.ours.examples, c.batch_size, seed, steps)
        run = Run([], token_counts(picked), [])
        trainer = (Kept if keep_losses else Trainer)(
            model=self.model,
            args=self._arguments(steps),
            train_dataset=[feature(e, c.task) for step in picked for e in step],
            data_collator=self.collate,
            callbacks=[Clock(run.ends)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.kept = run.losses
        autocast = self._watch_autocast()
        trainer.train()
        if autocast != [c.precision == "bf16"]:
            raise refusal("autocast-differs", f"Trainer's autocast was {autocast}.")
        return run

    def _watch_autocast(self) -> list[bool]:
        """Note in the next forward pass whether autocast is on.

        accelerate puts it on the model once, whatever the Trainers after the first one ask for.
        """
        seen: list[bool] = []

        def watch(*_: Any) -> None:
            seen.append(torch.is_autocast_enabled("cpu"))
            handle.remove()

        handle = self.model.base_model.register_forward_pre_hook(watch)
        return seen

    def _arguments(self, steps: int) -> TrainingArguments:
        c = self.trial.conditions
        return TrainingArguments(
            output_dir=str(self.folder),
            max_steps=steps,
            per_device_train_batch_size=c.batch_size,
            gradient_accumulation_steps=1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=c.weight_decay,
            max_grad_norm=c.clip,
            optim=optimizer_name(),
            train_sampling_strategy="sequential",
            bf16=c.precision == "bf16",
            use_cpu=True,
            dataloader_num_workers=0,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            label_names=["labels"],
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )


class Kept(Trainer):  # type: ignore[misc]
    """Keeps each step's loss; never timed."""

    kept: list[torch.Tensor]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Keep what is optimised."""
        loss = super().compute_loss(*args, **kwargs)
        self.kept.append(loss.detach().clone())
        return loss


class Clock(TrainerCallback):  # type: ignore[misc]
    """Writes down when each step ended."""

    def __init__(self, ends: list[float]) -> None:
        self.ends = ends

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Write down the time."""
        self.ends.append(time.perf_counter())


def pick(examples: Sequence[Example], size: int, seed: int, steps: int) -> list[list[Example]]:
    """Return the examples of each of a seed's first steps."""
    order = step_indices(len(examples), size, seed)
    return [[examples[i] for i in next(order)] for _ in range(steps)]


def token_counts(picked: Sequence[Sequence[Example]]) -> list[int]:
    """Return the real tokens of each step."""
    return [sum(len(e.tokens) for e in step) for step in picked]


def feature(example: Example, task: str) -> dict[str, Any]:
    """Return an example as a row of a Hugging Face dataset."""
    labels = example.labels[0] if task == "classify" else list(example.labels)
    ids = list(example.tokens)
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def optimizer_name() -> str:
    """Return Trainer's name of AdamW: fused where this PyTorch fuses it on a CPU."""
    try:
        torch.optim.AdamW([nn.Parameter(torch.zeros(1))], fused=True)
    except RuntimeError:
        return "adamw_torch"
    return "adamw_torch_fused"


def refusal(code: str, cause: str) -> BakeoffError:
    """Return the error of two sides that do not do the same."""
    return BakeoffError(code, cause, "no ratio means anything before this agrees: see both losses.")
