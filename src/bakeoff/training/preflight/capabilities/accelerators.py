"""Find which accelerators work with a method: the parity probe of studies, on tiny bases.

The parity probe builds trials as a study does, so it needs a saved base, a tokenizer and rows.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bakeoff.core.trial import LEARNING_RATE, Conditions, MethodEntry, Trial
from bakeoff.engine.accelerators import Switches
from bakeoff.methods.capability_records import AcceleratorSupport
from bakeoff.training.preflight.capabilities import tiny
from bakeoff.training.preflight.parity import probe_accelerators
from bakeoff.training.setup import prepare_process

PLACES = ("kitchen", "bedroom", "garage", "office", "attic", "hall", "study", "garden")
VERBS = ("dim", "play", "stop")
TASKS = {"sft": "llama", "classify": "bert"}
"""The tasks that are tried, each with a suitable kind of base."""
_OPTIONS = {
    "sft": {
        "columns": {"prompt": "{text}", "completion": "{label} {place}"},
        "max_length": 32,
        "max_new_tokens": 4,
    },
    "classify": {
        "columns": {"text": "text", "label": "label"},
        "max_length": 32,
        "max_new_tokens": None,
        "labels": list(VERBS),
    },
}


def tiny_conditions(task: str) -> Conditions:
    """Return conditions for a tiny trial of ``task``."""
    return Conditions(
        base="tiny",
        revision=None,
        task=task,
        task_options=_OPTIONS[task],
        metric="accuracy",
        data={},
        steps=20,
        batch_size=4,
        evaluation_batch_size=4,
        warmup=0.0,
        decay=0.0,
        weight_decay=0.0,
        clip=1.0,
        head_learning_rate=None,
        validations=1,
        device="cpu",
        precision="fp32",
        threads=1,
    )


def supported_accelerators(entry: MethodEntry, task: str, folder: Path) -> AcceleratorSupport:
    """Return which accelerators work with ``entry`` on ``task``; files are put into ``folder``."""
    base, data = folder / TASKS[task], folder / "data"
    c = tiny_conditions(task)
    prepare_process(c)
    if not data.is_dir():
        _write_rows(data)
    if not base.is_dir():
        tiny.base(TASKS[task]).save_pretrained(base)
        _tokenizer().save_pretrained(base)
    trial = Trial(entry, {LEARNING_RATE: entry.learning_rate}, 0, "search", c)
    # whether generated answers agree depends on the base, so each study probes that
    requested = dataclasses.replace(Switches.best(c.device, c.precision), generation=False)
    parity = probe_accelerators(trial, str(base), data, requested)
    on = [name for name, value in dataclasses.asdict(parity.switches).items() if value]
    return AcceleratorSupport(tuple(on), parity.reasons)


def _write_rows(folder: Path) -> None:
    folder.mkdir(parents=True)
    rows = [
        {"text": f"{verb} in the {'old ' * i}{place}", "label": verb, "place": place}
        for verb in VERBS
        for i, place in enumerate(PLACES)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def _tokenizer() -> PreTrainedTokenizerFast:
    words = ("[PAD]", "[UNK]", "[EOS]", "in", "the", "old", *VERBS, *PLACES)
    model = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )
