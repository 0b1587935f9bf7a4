"""The loop's parts against plain PyTorch, and hand-computed answers."""

from __future__ import annotations

import dataclasses
import itertools
from itertools import islice
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from bakeoff.core.errors import PreflightError
from bakeoff.core.results import Cost, Status
from bakeoff.core.trial import Conditions, Segment
from bakeoff.engine import device, profiling
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.batch_order import step_indices
from bakeoff.engine.batching import StepBatch
from bakeoff.engine.device import resolve_device, resolve_precision, set_dtypes
from bakeoff.engine.loop import LossReading, reading_steps, train
from bakeoff.engine.loss import supervised_logits, supervised_positions
from bakeoff.engine.optim import learning_rate_factor
from bakeoff.tasks.classify import Classify
from bakeoff.testing.tiny import rows, write_splits
from bakeoff.testing.trials import LABELS, build_tiny_setup, make_trial, single_trial_losses
from bakeoff.training import setup
from bakeoff.training.preflight import cost_probe, lane_cost
from bakeoff.training.preflight.parity import ParityResult
from bakeoff.training.segment import run_segment

LIKE_PLAIN = {
    "seed": 3, "phase": "search", "rate": 5e-3, "steps": 10, "warmup": 0.2, "weight_decay": 0.01,
}  # fmt: skip


def test_schedule_warmup_constant_decay() -> None:
    """The schedule warms up, stays constant and decays to zero."""
    got = [learning_rate_factor(s, 10, warmup=0.2, decay=0.3) for s in range(11)]
    assert got == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3, 0])
    assert [learning_rate_factor(s, 4, 0.0, 0.0) for s in range(4)] == [1, 1, 1, 1]


def test_readings_evenly_spaced() -> None:
    """Readings are evenly spaced and the last one is at the end."""
    assert reading_steps(100, 4) == (25, 50, 75, 100)
    assert reading_steps(2, 4) == (1, 2)


def test_order_depends_on_seed_only() -> None:
    """The order depends on the seed only and repeats no row before all were seen."""
    first = list(itertools.islice(step_indices(10, 4, seed=1), 5))
    assert first == list(itertools.islice(step_indices(10, 4, seed=1), 5))
    assert first != list(itertools.islice(step_indices(10, 4, seed=2), 5))
    flat = [i for step in first for i in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))


def test_supervised_positions_match_next_labels() -> None:
    """Supervised positions are those whose next token is labelled."""
    labels = torch.tensor([[-100, -100, 7, 8], [-100, 9, -100, -100]])
    at = supervised_positions(labels)
    assert at.rows.tolist() == [0, 0, 1]
    assert at.columns.tolist() == [1, 2, 0]
    assert at.targets.tolist() == [7, 8, 9]


@pytest.mark.parametrize("method", ["lora", "prefix_tuning"])
def test_picked_logits_match_model(tiny_llama: Path, method: str) -> None:
    """The selected logits equal those of the model."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = {
        "lora": peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
        "prefix_tuning": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    }[method]
    model = peft.get_peft_model(model, config).eval()
    ids = torch.randint(3, 30, (2, 9))
    labels = torch.where(torch.rand(2, 9) > 0.5, ids, -100)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    at = supervised_positions(labels)
    picked = supervised_logits(model, inputs, at)
    whole = model(**inputs).logits[at.rows, at.columns]
    torch.testing.assert_close(picked, whole)
    torch.testing.assert_close(
        functional.cross_entropy(picked, at.targets),
        AutoModelForCausalLM.from_pretrained(tiny_llama).loss_function(
            model(**inputs).logits, labels, vocab_size=picked.shape[-1]
        ),
    )


def plain_losses(model: Any, batches: list[dict[str, torch.Tensor]], c: Conditions) -> list[float]:
    """Train with plain PyTorch and the model's own loss, written from scratch."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.01)
    scale = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: max(0.0, min(1.0, (s + 1) / 2, (c.steps - s) / 3))
    )
    model.train()
    found = []
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scale.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_sft_matches_peft_and_pytorch(tiny_llama: Path, tmp_path: Path) -> None:
    """SFT training equals plain PEFT and plain PyTorch."""
    a_trial = make_trial("lora", "sft", **LIKE_PLAIN)
    ours = build_tiny_setup(a_trial, tiny_llama, tmp_path)
    plain: Any = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llama),
        peft.LoraConfig(task_type="CAUSAL_LM", r=32, lora_alpha=32, target_modules="all-linear"),
    )
    plain.load_state_dict(ours.model.state_dict())
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama)
    data = rows()
    batches = []
    for step in itertools.islice(step_indices(len(data), 8, seed=3), 10):
        texts = []
        for i in step:
            prompt = tokenizer(f"Command : {data[i]['text']} JSON")["input_ids"]
            answer = [*tokenizer(data[i]["json"])["input_ids"], tokenizer.eos_token_id]
            texts.append((prompt + answer, [-100] * len(prompt) + answer))
        longest = max(len(t) for t, _ in texts)
        batches.append(
            {
                "input_ids": torch.tensor([t + [0] * (longest - len(t)) for t, _ in texts]),
                "attention_mask": torch.tensor(
                    [[1] * len(t) + [0] * (longest - len(t)) for t, _ in texts]
                ),
                "labels": torch.tensor([y + [-100] * (longest - len(y)) for _, y in texts]),
            }
        )
    expected = plain_losses(plain, batches, a_trial.conditions)
    assert single_trial_losses(ours, 10) == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]


def test_classification_trains_like_plain_pytorch(tiny_bert: Path, tmp_path: Path) -> None:
    a_trial = make_trial("full", "classify", **LIKE_PLAIN)
    ours = build_tiny_setup(a_trial, tiny_bert, tmp_path)
    plain: Any = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3)
    plain.load_state_dict(ours.model.state_dict())
    for module in (*plain.modules(), *ours.model.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_bert)
    data = rows()
    batches = []
    for step in itertools.islice(step_indices(len(data), 8, seed=3), 10):
        batch = tokenizer([data[i]["text"] for i in step], padding=True, return_tensors="pt")
        labels = torch.tensor([LABELS.index(data[i]["label"]) for i in step])
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        batches.append({**inputs, "labels": labels})
    expected = plain_losses(plain, batches, a_trial.conditions)
    assert single_trial_losses(ours, 10) == pytest.approx(expected, rel=1e-5)


def test_seed_fixes_head_and_order(tiny_bert: Path, tmp_path: Path) -> None:
    """The same seed gives every method the same head and the same order."""
    benches = [
        build_tiny_setup(make_trial(m, "classify"), tiny_bert, tmp_path) for m in ("lora", "full")
    ]
    heads = [
        next(p for n, p in b.model.named_parameters() if "classifier" in n and n.endswith("weight"))
        for b in benches
    ]
    assert torch.equal(heads[0], heads[1])
    first = [
        next(b.batch_builder.training_steps(b.examples("train"), [0])).passes[0].batch
        for b in benches
    ]
    assert torch.equal(first[0].inputs["input_ids"], first[1].inputs["input_ids"])


def test_head_learning_rate(tiny_bert: Path, tmp_path: Path) -> None:
    """The head has its own rate if something else is trained as well."""
    found = {}
    for method in ("lora", "head"):
        a_trial = make_trial(method, "classify", rate=5e-3, head_learning_rate=0.5)
        at = build_tiny_setup(a_trial, tiny_bert, tmp_path)
        sizes = [span.stop - span.start for span in at.lanes.stack.spans]
        groups = setup.parameter_groups(at.model, at.task, a_trial)
        found[method] = list(zip(sizes, (g.rate(a_trial) for g in groups), strict=True))
    assert found["head"] == [(3 * 32 + 3, 5e-3)]
    assert [rate for _, rate in found["lora"]] == [5e-3, 0.5]
    assert found["lora"][1][0] == 3 * 32 + 3


def test_nonfinite_loss_names_step(tiny_bert: Path, tmp_path: Path) -> None:
    """A loss that is not finite is reported with its step."""
    at = build_tiny_setup(make_trial("lora", "classify", steps=10), tiny_bert, tmp_path)
    stepper = at.stepper()
    plain = stepper.losses
    calls = itertools.count(1)

    def spoilt(model: torch.nn.Module, batch: Any) -> Any:
        sums, counts = plain(model, batch)
        return sums * (float("nan") if next(calls) == 7 else 1.0), counts

    stepper.losses = spoilt
    heard: list[LossReading] = []
    batches = at.batch_builder.training_steps(at.examples("train"), [0])
    train(stepper, batches, (0, 10), (5, 10), heard.append)
    assert [(r.step, r.diverged) for r in heard] == [(5, (None,)), (10, (7,))]


def test_frozen_and_trained_dtypes() -> None:
    """Frozen tensors are held in the compute dtype and trained ones in fp32."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    set_dtypes(model, "bf16")
    assert [p.dtype for p in model.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 2
    set_dtypes(model, "fp32")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_missing_device_refused() -> None:
    """A device that does not exist is refused."""
    with pytest.raises(PreflightError, match="device-not-found"):
        resolve_device("cuda:99")
    assert resolve_precision("fp32", "cpu") == "fp32"
    assert resolve_precision("auto", "cpu") in ("bf16", "fp32")


def test_precision_suits_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 37: no fp16 anywhere, and no bf16 where the hardware does not compute in it."""
    for supported, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, s=supported, **__: s)
        assert device.resolve_precision("auto", "cuda:0") == precision
        monkeypatch.setattr(device, "cpu_has_bf16", lambda s=supported: s)
        assert device.resolve_precision("auto", "cpu") == precision


def test_ineffective_training_fails(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training that changes nothing gives no result.

    Fault 16: losses of exactly 0, or gradients that reach no weight; seen before any trial.
    """
    right, plain = Classify.item_losses, ParityResult(Switches.all_off(), {})

    def nothing(self: Any, model: Any, batch: Any) -> Any:
        found = right(self, model, batch)
        return found._replace(sums=0 * found.sums)

    monkeypatch.setattr(Classify, "item_losses", nothing)
    monkeypatch.setattr(cost_probe, "_select_accelerators", lambda *_: plain)
    monkeypatch.setattr(profiling, "TIMED_STEPS", 1)
    write_splits(tmp_path / "data")
    trial = make_trial("lora", "classify", phase="search", steps=3, metric="accuracy")
    segment = Segment((trial,), 0, 3, str(tmp_path), str(tiny_bert))
    cost, (result,) = cost_probe.probe_cost(segment.to_json()), run_segment(segment).results
    assert (cost["status"], result.status) == (Status.INCOMPATIBLE, Status.FAILED)
    assert "no gradient reached any of its weights in 4 steps" in cost["reason"]
    assert "in 3 steps: it is still the base model" in (result.reason or "")


def test_graphs_are_captured_for_one_shape(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With CUDA graphs the middle shape is timed, and the peak is that of the largest step.

    A replay allocates nothing, so memory is read in a step without a graph.
    """
    trial = make_trial("lora", "sft")
    setup = build_tiny_setup([trial], tiny_llama, tmp_path, Switches.best("cpu", "fp32"))
    stepper, builder, examples = setup.stepper(), setup.batch_builder, setup.examples("train")
    drawn = islice(builder.training_steps(examples, [trial.seed]), 23)
    sizes = sorted(step.slots for step in drawn)
    builder.switches = dataclasses.replace(builder.switches, graphs=True)
    taken: list[tuple[int, bool]] = []

    def take(index: int, batch: StepBatch, capture: bool = True) -> None:
        taken.append((batch.slots, capture))

    monkeypatch.setattr(stepper, "step", take)
    monkeypatch.setattr(builder, "_choose_shapes", lambda *_: ())
    monkeypatch.setattr(profiling, "peak_bytes", lambda _: 7)
    batches, peak = cost_probe._find_fitting_batches(setup, stepper, examples)
    assert {batch.slots for batch in batches} == {sizes[11]}
    assert peak == 7
    assert taken == [(sizes[-1], False), (sizes[-1], False), (sizes[11], True)]


def test_cost_probe_times_a_group_of_lanes(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe of several trials times their common step, which does not change what else it says.

    Where the group fails, the probe has all its other results.
    """
    monkeypatch.setattr(profiling, "TIMED_STEPS", 1)
    monkeypatch.setattr(cost_probe, "_add_latency", lambda cost, _: cost)
    write_splits(tmp_path / "data")
    trial = make_trial("lora", "classify", phase="search", steps=3, metric="accuracy")
    segment = Segment((trial,) * 3, 0, 3, str(tmp_path), str(tiny_bert), {"lanes": "auto"})
    cost = cost_probe.probe_cost(segment.to_json())
    assert cost["status"] == Status.DONE, cost["reason"]
    assert 0.1 < cost["lanes_ratio"] < 30
    assert cost["step_milliseconds"] > 0

    assert cost["lanes_timed"] == 3
    assert {"base", "parity", "timed steps", "lanes"} <= cost["probe_seconds"].keys()

    def out_of_memory(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(lane_cost, "_time_group", out_of_memory)
    monkeypatch.setattr(lane_cost, "_measure_token_bytes", lambda _: 100.0)
    engine = {**cost["engine"], "token_bytes": 100.0}
    without = Cost.from_json({**cost, "lanes_ratio": None, "lanes_timed": None, "engine": engine})
    assert cost_probe._add_lane_cost(without, segment) == without
    monkeypatch.setattr(lane_cost, "_time_group", lambda *_: 4 * cost["step_milliseconds"])
    assert cost_probe._add_lane_cost(without, segment).lanes_ratio == pytest.approx(4)
    one = Segment((trial,), 0, 3, str(tmp_path), str(tiny_bert))
    assert cost_probe._add_lane_cost(without, one) == without
