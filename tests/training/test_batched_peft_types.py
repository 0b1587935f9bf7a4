"""All PEFT types at once: laned trials equal the same trials alone, which equal plain PEFT."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.peft_types import CASES, Case
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch.nn import functional

from bakeoff.core.errors import UsageError
from bakeoff.core.trial import Trial
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.batch_order import step_indices
from bakeoff.engine.optim import learning_rate_factor
from bakeoff.engine.packing.attention import NotPackable
from bakeoff.engine.packing.layout import round_up
from bakeoff.methods.hook import Incompatible, build_hook, trainable_parameters
from bakeoff.testing import trials as benches
from bakeoff.testing.tiny import rows, write_jsonl, write_splits
from bakeoff.testing.trials import StepTrace
from bakeoff.training import setup

CONDITIONS = dataclasses.replace(
    benches.CONDITIONS, task="sft", task_options=benches.OPTIONS["sft"]
)
STEPS = 10
SEEDS_AND_RATES = ((0, 1e-3), (1, 1e-2), (2, 3e-3))

# PEFT and PyTorch warn of what this host lacks or of PEFT's own ways; none of it bears on lanes
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}:UserWarning")
    for message in (
        "Failed to load the CUDA extension",
        "Setting boft_n_butterfly_factor to 1",
        "Detected that the base layer has no bias term",
        "Sparse invariant checks are implicitly disabled",
        "Model has `tie_word_embeddings=True` and a tied layer",
    )
]


class Setting(NamedTuple):
    """The tiny Llama, the frozen data, and its rows."""

    base: Path
    data: Path
    rows: list[dict[str, str]]

    def run(self, trials: list[Trial], *, lanes: bool, packing: bool) -> StepTrace:
        """Take the first steps of these trials."""
        switches = dataclasses.replace(Switches.all_off(), lanes=lanes, packing=packing, loss=True)
        at = setup.build_setup(trials, str(self.base), self.data, switches)
        return benches.train_steps(at, STEPS)

    def each_alone(self, trials: list[Trial], *, packing: bool) -> StepTrace:
        """Take the first steps of each trial by itself."""
        runs = [self.run([t], lanes=False, packing=packing) for t in trials]
        return StepTrace(
            torch.cat([r.losses for r in runs], 1), torch.cat([r.gradients for r in runs])
        )


@pytest.fixture(scope="module")
def setting(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    setup.prepare_process(CONDITIONS)
    return Setting(tiny_llama, write_splits(tmp_path_factory.mktemp("riding")), rows())


@pytest.fixture(scope="module")
def of_one_length(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """The same with rows of as many tokens: no batch has padding."""
    task = setup.make_task(CONDITIONS)
    tokenizer = setup.load_tokenizer(str(setting.base), None)
    found = task.encode(tokenizer, [dict(r) for r in setting.rows])
    lengths = Counter(len(e.tokens) for e in found)
    (length, _), *_ = lengths.most_common()
    kept = [r for r, e in zip(setting.rows, found, strict=True) if len(e.tokens) == length]
    data = tmp_path_factory.mktemp("one_length")
    write_jsonl(data / "train.jsonl", kept)
    return Setting(setting.base, data, kept)


@pytest.fixture(autouse=True)
def _one_load(monkeypatch: pytest.MonkeyPatch, base_model: torch.nn.Module) -> None:
    """Copy the base instead of reading it again: 8 times a type, it is most of the time."""

    def load(_c: Any, _task: Any, _path: str, seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return copy.deepcopy(base_model)

    monkeypatch.setattr(setup, "load_base", load)


@pytest.fixture(scope="module")
def base_model(setting: Setting) -> torch.nn.Module:
    task = setup.make_task(CONDITIONS)
    base = setup.load_base(CONDITIONS, task, str(setting.base), 0)
    # X-LoRA asks for it; nothing is generated here
    base.config.use_cache = False
    return base


def trials_of(case: Case) -> list[Trial]:
    return [
        Trial(case.entry, {"learning_rate": rate}, seed, "final", CONDITIONS)
        for seed, rate in SEEDS_AND_RATES
    ]


def equal(one: StepTrace, other: StepTrace) -> None:
    apart = (one.gradients - other.gradients).norm(dim=1) / other.gradients.norm(dim=1)
    assert apart.max() < 1e-5
    assert (one.losses - other.losses).abs().max() < 1e-4


def plain_peft(
    trial: Trial, setting: Setting, load: Callable[[], torch.nn.Module], tasks: bool
) -> list[float]:
    """Train with PEFT and PyTorch alone, padded, no part of the engine but order and schedule."""
    c = trial.conditions
    task = setup.make_task(c)
    tokenizer = setup.load_tokenizer(str(setting.base), None)
    examples = task.encode(tokenizer, [dict(r) for r in setting.rows])
    base = load()
    torch.manual_seed(trial.seed + 1_000_003)
    around = setup.attach_context(task, tokenizer, c, setting.data)
    model = build_hook(trial.method, trial.config).attach(base, around).train()
    trained = list(trainable_parameters(model).values())
    optimizer = torch.optim.AdamW(trained, lr=trial.learning_rate, weight_decay=c.weight_decay)
    order = step_indices(len(examples), c.batch_size, trial.seed)
    # a mean over tokens must not see padding: rows of one length are not padded
    longest = max(len(e.tokens) for e in examples)
    same = longest == min(len(e.tokens) for e in examples)
    length = longest if same else round_up(longest, 8)
    losses = []
    for step in range(STEPS):
        picked = [examples[i] for i in next(order)]
        ids, labels, mask = (
            torch.tensor([[*row, *[fill] * (length - len(row))] for row in found])
            for found, fill in (
                ([e.tokens for e in picked], 0),
                ([e.labels for e in picked], -100),
                ([[1] * len(e.tokens) for e in picked], 0),
            )
        )
        named = {"task_ids": torch.zeros(len(ids), dtype=torch.long)} if tasks else {}
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **named).logits
        logits = logits[:, -length:]
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, c.clip)
        for group in optimizer.param_groups:
            group["lr"] = trial.learning_rate * learning_rate_factor(
                step, c.steps, c.warmup, c.decay
            )
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("case", [c for c in CASES if c.supports_lanes], ids=lambda c: c.name)
def test_peft_type_in_lanes(
    case: Case, setting: Setting, of_one_length: Setting, base_model: torch.nn.Module
) -> None:
    if case.outcome.needs:
        pytest.importorskip(case.outcome.needs)
    trials = trials_of(case)
    alone = setting.each_alone(trials, packing=False)
    assert (alone.gradients.norm(dim=1) > 0).all()
    equal(setting.run(trials, lanes=True, packing=False), alone)
    if case.outcome.unpacked:
        with pytest.raises(NotPackable, match=case.outcome.unpacked):
            setting.run(trials, lanes=True, packing=True)
    else:
        equal(setting.run(trials, lanes=True, packing=True), alone)
    if not case.outcome.random:
        at, losses = setting, alone.losses[:, 1]
        if case.outcome.mean:
            at = of_one_length
            losses = at.run(trials[1:2], lanes=False, packing=False).losses[:, 0]
        plain = plain_peft(trials[1], at, lambda: copy.deepcopy(base_model), case.outcome.tasks)
        assert (torch.tensor(plain) - losses).abs().max() < 1e-4


@pytest.mark.parametrize("case", [c for c in CASES if not c.supports_lanes], ids=lambda c: c.name)
def test_stays_behind(case: Case, setting: Setting) -> None:
    """What keeps it from riding keeps it from training alone, too."""
    with pytest.raises((ValueError, Incompatible, UsageError), match=case.outcome.raises):
        setting.run(trials_of(case)[:1], lanes=False, packing=False)


def test_forty_types_support_lanes() -> None:
    assert {c.peft_type for c in CASES} == {t.value for t in PEFT_TYPE_TO_CONFIG_MAPPING}
    present = [c for c in CASES if not c.outcome.needs or importlib.util.find_spec(c.outcome.needs)]
    assert len({c.peft_type for c in present if c.supports_lanes}) >= 40
