"""Trials that train the output layer of a causal LM run in lanes, whatever its logits go through.

The completions differ in length, so that lanes have different numbers of supervised tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional

from bakeoff.core.trial import MethodEntry, Trial
from bakeoff.engine import loss
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.batching import StepShape
from bakeoff.methods import registry
from bakeoff.testing.tiny import tokenizer, write_splits
from bakeoff.testing.trials import (
    batches,
    build_tiny_setup,
    disable_dropout,
    make_trial,
    train_steps,
)
from bakeoff.training.evaluate import summed_losses
from bakeoff.training.preflight.parity import one_step, probe_accelerators
from bakeoff.training.setup import TrainingSetup, prepare_process

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
ON = Switches(lanes=True, packing=True, loss=True, compile=False, graphs=False)
OPTIONS = {
    "columns": {"prompt": "Command : {text}", "completion": "{template}"},
    "max_length": 64,
    "max_new_tokens": 6,
}
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0,
    "eos_token_id": 2, "bos_token_id": None, "initializer_range": 0.3,
}  # fmt: skip
BASES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},  # tied
    # tied; attention with a soft cap is not packed
    "gemma2": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": None},
    "cohere": {"logit_scale": 0.25},  # tied
    "granite": {"logits_scaling": 4.0, "tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "phi": {"num_key_value_heads": 4},  # its output layer has a bias
}


@pytest.fixture(scope="module")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that writes a tiny random base of a kind, more rows than tokens."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            torch.manual_seed(0)
            words = tokenizer()
            config = transformers.AutoConfig.for_model(
                kind, **{**SIZES, **BASES[kind]}, vocab_size=len(words) + 5
            )
            model: Any = transformers.AutoModelForCausalLM.from_config(config)
            made[kind] = tmp_path_factory.mktemp(kind)
            model.save_pretrained(made[kind])
            words.save_pretrained(made[kind])
        return made[kind]

    return make


def entry(name: str) -> MethodEntry:
    """Return a method that trains the output layer in its own way, by its name here."""
    base, _, how = name.partition(" ")
    config: dict[str, Any] = {
        "": {},
        "saved": {"modules_to_save": ["lm_head"]},
        "saved both": {"modules_to_save": ["lm_head", "embed_tokens"]},
        "embedding": {"modules_to_save": ["embed_tokens"]},
        "low rank": {"target_modules": ["q_proj", "lm_head"]},
        "low rank both": {"target_modules": ["q_proj", "lm_head", "embed_tokens"]},
    }[how]
    found = registry.load(base, Path())
    return dataclasses.replace(found, config={**found.config, **config})


def trials(name: str, **changes: Any) -> list[Trial]:
    return [
        dataclasses.replace(
            trial, conditions=dataclasses.replace(trial.conditions, task_options=OPTIONS)
        )
        for trial in (
            make_trial(entry(name), "sft", seed=s, rate=r, **changes)
            for s, r in enumerate((1e-3, 1e-2, 3e-3))
        )
    ]


def plain_gradients(at: TrainingSetup) -> tuple[float, torch.Tensor]:
    """Return loss and clipped gradients of a first step, from the logits of the whole rows."""
    batch = next(batches(at)).passes[0].batch
    labels = torch.full_like(batch.inputs["input_ids"], -100)
    labels[batch.targets.rows, batch.targets.columns + 1] = batch.targets.targets
    at.lanes.run_single(0)
    logits = at.model.train()(**batch.inputs).logits
    total = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    named = dict(at.model.named_parameters())
    values = [named[name] for name in at.lanes.stack.names]
    gradients = torch.autograd.grad(total, values, allow_unused=True)
    flat = [
        torch.zeros_like(v).flatten() if g is None else g.flatten()
        for v, g in zip(values, gradients, strict=True)
    ]
    whole = torch.cat(flat)
    return float(total.detach()), whole * (at.conditions.clip / whole.norm()).clamp(max=1)


def assert_lanes_match(
    some: Sequence[Trial], base: Path, folder: Path, on: Switches = ON, within: float = 1e-4
) -> None:
    """Compare a step in lanes with plain autograd, and some steps with the trials one by one."""
    expected = [plain_gradients(disable_dropout(build_tiny_setup(t, base, folder))) for t in some]
    step = one_step(build_tiny_setup(some, base, folder, on))
    plain = torch.stack([g for _, g in expected])
    off = (step.gradients - plain).norm(dim=1) / plain.norm(dim=1)
    assert float(off.max()) < within
    assert step.losses.tolist() == pytest.approx([x for x, _ in expected], rel=within)
    alone = [train_steps(disable_dropout(build_tiny_setup(t, base, folder)), 5) for t in some]
    together = train_steps(disable_dropout(build_tiny_setup(some, base, folder, on)), 5)
    apart = torch.cat([r.losses for r in alone], 1)
    torch.testing.assert_close(together.losses, apart, atol=within, rtol=within)


CASES = [
    ("full", "llama"), ("full", "gpt2"), ("full", "gemma2"), ("full", "cohere"),
    ("full", "granite"), ("full", "qwen2"), ("full", "phi"), ("bitfit", "phi"),
    ("lora saved", "llama"), ("lora saved", "gemma2"), ("lora saved", "qwen2"),
    ("lora saved both", "llama"), ("lora embedding", "llama"), ("lora low rank", "granite"),
    ("lora low rank", "qwen2"), ("lora low rank both", "llama"), ("trainable_tokens", "qwen2"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_lanes_match_plain_pytorch(method: str, kind: str, make_base: Any, tmp_path: Path) -> None:
    assert_lanes_match(trials(method), make_base(kind), tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("method", "kind"), [("full", "llama"), ("lora saved", "granite")])
def test_probe_keeps_all_accelerators(
    method: str, kind: str, precision: str, make_base: Any, tmp_path: Path
) -> None:
    """Lanes, packing, the chunked loss and fast generation all agree with the plain path.

    So does fast generation in lanes.
    """
    (trial, *_) = trials(method, precision=precision)
    requested = dataclasses.replace(ON, generation=True, lean_inputs=precision == "bf16")
    data = write_splits(tmp_path / "data")
    prepare_process(trial.conditions)
    result = probe_accelerators(trial, str(make_base(kind)), data, requested)
    assert result == (dataclasses.replace(requested, lane_generation=True), {})


def test_evaluation_in_lanes(make_base: Any, tmp_path: Path) -> None:
    some = trials("lora saved")
    together = build_tiny_setup(some, make_base("llama"), tmp_path, ON)
    train_steps(together, 2)
    examples = together.examples("validation")[:20]
    sums, counts = summed_losses(together, examples)
    for lane in range(3):
        together.lanes.run_single(lane)
        batch = together.task.batch(examples, 0, "cpu")
        with torch.no_grad():
            alone = together.task.item_losses(together.model.eval(), batch)
        assert sums[lane] == pytest.approx(alone.sums.numpy(), rel=1e-4)
        assert counts[lane].tolist() == alone.counts.tolist()


def test_align_lanes() -> None:
    """Each lane has as many positions; a filler has no target and belongs to its lane's rows."""
    labels = torch.full((4, 6), -100)
    labels[0, 2], labels[1, 3], labels[1, 4], labels[3, 5] = 7, 8, 9, 10
    at = loss.align_lanes(loss.supervised_positions(labels, 9), lanes=2, rows=2)
    assert at.rows.tolist() == [0, 1, 1, 3, 2, 2]
    assert at.columns.tolist() == [1, 2, 3, 4, 0, 0]
    assert at.targets.tolist() == [7, 8, 9, 10, -100, -100]
    wide = loss.align_lanes(loss.supervised_positions(labels), lanes=2, rows=2, size=4)
    assert wide.targets.tolist() == [7, 8, 9, -100, 10, -100, -100, -100]


def test_fixed_shapes_change_nothing(make_base: Any, tmp_path: Path) -> None:
    """A CUDA graph fixes the number of positions: each lane is filled up by itself."""
    at = build_tiny_setup(trials("full"), make_base("gpt2"), tmp_path, ON)
    disable_dropout(at)
    examples = at.examples("train")
    picked = [examples[:4], examples[20:24], examples[60:64]]
    at.model.train()
    gradients = []
    for shapes in ((), (StepShape(24, 96, 48),)):
        at.lanes.stack.gradients.zero_()
        at.stepper().forward_backward(at.batch_builder.step(picked, shapes))
        gradients.append(at.lanes.stack.gradients.clone())
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_logits_at_supervised_tokens_only(
    method: str, make_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    plain, chunk = loss.cross_entropy, loss._chunk_loss_in_place

    def counted(kernel: Any) -> Any:
        def count(logits: Any, targets: Any) -> Any:
            sizes.append(len(logits))
            return kernel(logits, targets)

        return count

    monkeypatch.setattr(loss, "cross_entropy", counted(plain))
    monkeypatch.setattr(loss, "_chunk_loss_in_place", counted(chunk))
    at = build_tiny_setup(trials(method), make_base("llama"), tmp_path, ON)
    step = next(batches(at)).passes[0].batch
    train_steps(at, 1)
    known = step.targets.targets >= 0
    lanes = torch.bincount(step.targets.rows[known] // (step.rows // 3))
    assert sizes == [3 * int(lanes.max()) if method == "full" else int(lanes.sum())]


class Scaled(transformers.LlamaForCausalLM):  # type: ignore[misc]  # transformers has no types
    """A base whose own code scales its logits, under no key that is known."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs with scaled logits."""
        out = super().forward(*args, **kwargs)
        out.logits = 0.5 * out.logits
        return out


class Masked(transformers.LlamaForCausalLM):  # type: ignore[misc]  # transformers has no types
    """A base whose own code blanks the rows beyond its tokens, in place."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs without logits of padded rows."""
        out = super().forward(*args, **kwargs)
        out.logits[..., 20:] = torch.finfo(out.logits.dtype).min
        return out


class Cut(transformers.LlamaForCausalLM):  # type: ignore[misc]  # transformers has no types
    """A base whose own code cuts the rows beyond its tokens off."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs without logits of padded rows."""
        out = super().forward(*args, **kwargs)
        out.logits = out.logits[..., :40]
        return out


@pytest.mark.parametrize("kind", [Scaled, Masked, Cut])
def test_logits_of_unknown_code(kind: Any) -> None:
    """The loss is that of the model's own logits, and the random draws are those of one pass."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, vocab_size=50, attention_dropout=0.5)
    model = kind(config).train().requires_grad_(False)
    ids = torch.randint(3, 20, (2, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    at = loss.supervised_positions(ids)
    torch.manual_seed(1)
    found = [loss.token_losses(model, inputs, at) for _ in range(2)]
    torch.manual_seed(1)
    for losses in found:
        logits = model(**inputs).logits[:, :-1].flatten(0, 1)
        expected = functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
        torch.testing.assert_close(losses, expected)
