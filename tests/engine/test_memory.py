"""Steps cut into passes, and layers computed twice: the same gradients in less memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bakeoff import api
from bakeoff.cli.plan import describe_memory
from bakeoff.core.results import Status
from bakeoff.core.trial import MethodEntry, Segment, Trial
from bakeoff.engine import profiling
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.generation.generate import DecodeSettings
from bakeoff.engine.lanes.dropout import KeyedDropout
from bakeoff.engine.layers import LayerStack, NotRecomputable
from bakeoff.engine.loop import train
from bakeoff.methods.hook import Incompatible
from bakeoff.study.config import parse_spec
from bakeoff.testing.tiny import save_llama
from bakeoff.testing.trials import batches, build_tiny_setup, make_trial, train_steps
from bakeoff.training import evaluate, generation, setup
from bakeoff.training.evaluate import item_losses, predict_all
from bakeoff.training.preflight import cost_probe, parity

ON = Switches(lanes=True, packing=True, loss=True, compile=False, graphs=False)
PLAIN = Switches.all_off()
CUT, AGAIN = {"micro_tokens": 40}, {"checkpointing": True}
RATES = (1e-3, 1e-2, 3e-3)
TASKS = [("sft", "lora"), ("classify", "lora"), ("classify", "full"), ("sft", "dora")]


def three(method: str | MethodEntry, task: str, **changes: Any) -> list[Trial]:
    return [make_trial(method, task, seed=s, rate=r, **changes) for s, r in enumerate(RATES)]


def dropping(method: str) -> MethodEntry:
    """A method of the catalog with dropout in its adapter."""
    entry = make_trial(method, "sft").method
    return dataclasses.replace(entry, config={**entry.config, "lora_dropout": 0.3})


def attend_to_all(at: setup.TrainingSetup) -> None:
    """Switch dropout of attention weights off: transformers' own draws from PyTorch's stream."""
    for module in at.model.modules():
        if type(module).__name__.endswith("SelfAttention"):
            module.dropout.p = 0.0  # type: ignore[union-attr,assignment]


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.parametrize(("task", "method"), TASKS)
@pytest.mark.parametrize("switches", [PLAIN, ON], ids=["plain", "on"])
@pytest.mark.parametrize(
    "less", [CUT, AGAIN, CUT | AGAIN], ids=["micro_tokens", "checkpointing", "both"]
)
def test_less_memory_same_gradients(
    task: str, method: str, switches: Switches, less: dict[str, Any],
    bases: dict[str, Path], tmp_path: Path,
) -> None:  # fmt: skip
    """A smaller memory budget gives the same gradients.

    Dropout included: an example's draws are its own, however its step is cut.
    """
    own = dropping("lora") if method == "lora" else method
    trials = three(own, task)
    at, as_it_was = (
        build_tiny_setup(trials, bases[task], tmp_path, dataclasses.replace(switches, **changes))
        for changes in (less, {})
    )
    if not switches.packing:
        for one in (at, as_it_was):
            attend_to_all(one)
    small, whole = train_steps(at, 3), train_steps(as_it_was, 3)
    assert off(small.gradients, whole.gradients) < 1e-5
    torch.testing.assert_close(small.losses, whole.losses, atol=1e-4, rtol=0)
    step = next(batches(at))
    assert (len(step.passes) > len(trials)) == ("micro_tokens" in less)
    assert at.batch_builder.active_switches.checkpointing == ("checkpointing" in less)


def test_dropout_draws_are_distinguishable(bases: dict[str, Path], tmp_path: Path) -> None:
    """Dropout that ignores how a pass was cut gives other gradients.

    What the test above relies on: other draws would show.
    """
    at = build_tiny_setup(three(dropping("lora"), "classify"), bases["classify"], tmp_path, ON)
    assert any(isinstance(d, KeyedDropout) for d in at.lanes.dropouts)
    whole = train_steps(at, 1)
    cut = build_tiny_setup(
        three(dropping("lora"), "classify"), bases["classify"], tmp_path,
        dataclasses.replace(ON, **CUT),
    )  # fmt: skip
    forgetful = cut.lanes.random

    class Blind(type(forgetful)):  # type: ignore[misc]
        """Draws that know of no cuts."""

        part = property(lambda self: None, lambda self, value: None)

    forgetful.__class__ = Blind
    assert off(train_steps(cut, 1).gradients, whole.gradients) > 0.05


def test_pass_bounded_by_tokens(tiny_llama: Path, tmp_path: Path) -> None:
    """A pass holds no more tokens than requested unless it has one example."""
    at = build_tiny_setup(
        three("lora", "sft"), tiny_llama, tmp_path, dataclasses.replace(ON, micro_tokens=56)
    )
    step = next(batches(at))
    longest = max(len(e.tokens) for e in at.examples("train"))
    assert 56 / 2 < longest < 56
    for one in step.passes:
        assert one.batch.n_tokens <= 56
    lanes = [[p for p in step.passes if p.first == lane] for lane in range(3)]
    for own in lanes:
        assert sum(p.batch.rows for p in own) == at.conditions.batch_size
        assert [p.part.last for p in own if p.part] == [False] * (len(own) - 1) + [True]
    tiny = build_tiny_setup(
        three("lora", "sft"), tiny_llama, tmp_path, dataclasses.replace(ON, micro_tokens=8)
    )
    assert all(p.batch.rows == 1 for p in next(batches(tiny)).passes)
    assert len(next(batches(tiny)).passes) == 3 * 8


def test_large_budget_splits_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    """A large token budget splits no step."""
    at = build_tiny_setup(
        three("lora", "sft"), tiny_llama, tmp_path, dataclasses.replace(ON, micro_tokens=10_000)
    )
    assert next(batches(at)).widths == (3,)


def test_penalties_count_once_a_step(tiny_llama: Path, tmp_path: Path) -> None:
    """A method with a term of its own beside the loss."""
    trials = three("kasa", "sft")
    whole = train_steps(build_tiny_setup(trials, tiny_llama, tmp_path, ON), 4)
    cut = train_steps(
        build_tiny_setup(trials, tiny_llama, tmp_path, dataclasses.replace(ON, **CUT)), 4
    )
    assert off(cut.gradients, whole.gradients) < 1e-5
    torch.testing.assert_close(cut.losses, whole.losses, atol=1e-4, rtol=0)


def test_evaluation_keeps_to_the_budget_too(tiny_llama: Path, tmp_path: Path) -> None:
    trials = three("lora", "sft")
    whole = build_tiny_setup(trials, tiny_llama, tmp_path, ON)
    cut = build_tiny_setup(trials, tiny_llama, tmp_path, dataclasses.replace(ON, **CUT))
    found = [item_losses(at, at.examples("validation")) for at in (whole, cut)]
    assert abs(found[0] - found[1]).max() < 1e-5
    steps = list(cut.batch_builder.evaluation_steps(cut.examples("validation"), 8))
    assert all(p.batch.n_tokens <= 40 or p.batch.rows == 1 for s in steps for p in s.passes)
    assert all(p.part is None for s in steps for p in s.passes)


def short_of_memory(
    at: setup.TrainingSetup, most: int, needs_again: bool = False
) -> Callable[..., Any]:
    """Wrap a bench's losses: more than ``most`` examples a pass do not fit."""
    right = at.task.item_losses

    def losses(model: nn.Module, batch: Any) -> Any:
        again = at.batch_builder.stack is not None and at.batch_builder.stack.checkpointing
        if batch.rows > most or (needs_again and not again):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(model, batch)

    return losses


@pytest.mark.parametrize("most", [8, 3, 1])
def test_out_of_memory_reduces_lanes_first(most: int, tiny_llama: Path, tmp_path: Path) -> None:
    """Running out of memory reduces the lanes first, then the examples of a pass."""
    trials = three("lora", "sft")
    expected = train_steps(build_tiny_setup(trials, tiny_llama, tmp_path, ON), 4).losses
    at = build_tiny_setup(trials, tiny_llama, tmp_path, ON)
    stepper, source = at.stepper(), batches(at)
    stepper.losses = short_of_memory(at, most)
    heard: list[Any] = []
    train(stepper, source, (0, 4), (1, 2, 3, 4), heard.append, at.batch_builder.split_last_step)
    found = torch.tensor([r.train_losses for r in heard])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    step = next(source)
    assert max(p.batch.rows for p in step.passes) <= most
    assert any(p.part for p in step.passes) == (most < 8)


def test_checkpointing_as_last_resort(tiny_llama: Path, tmp_path: Path) -> None:
    """Layers are recomputed when nothing else is left to reduce."""
    trials = three("lora", "sft")
    expected = train_steps(build_tiny_setup(trials, tiny_llama, tmp_path, ON), 2).losses
    at = build_tiny_setup(trials, tiny_llama, tmp_path, ON)
    at.batch_builder.may_recompute = True
    stepper = at.stepper()
    stepper.losses = short_of_memory(at, 8, needs_again=True)
    heard: list[Any] = []
    train(stepper, batches(at), (0, 2), (1, 2), heard.append, at.batch_builder.split_last_step)
    found = torch.tensor([r.train_losses for r in heard])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert at.batch_builder.active_switches.checkpointing is True


def test_without_checkpointing_runs_out(tiny_llama: Path, tmp_path: Path) -> None:
    """Without gradient checkpointing, training runs out of memory."""
    at = build_tiny_setup(three("lora", "sft"), tiny_llama, tmp_path, ON)
    stepper = at.stepper()
    stepper.losses = short_of_memory(at, 8, needs_again=True)
    with pytest.raises(torch.OutOfMemoryError):
        train(
            stepper,
            batches(at),
            (0, 2),
            (2,),
            lambda reading: None,
            at.batch_builder.split_last_step,
        )


def test_prefix_tuning_not_recomputable(tiny_llama: Path, tmp_path: Path) -> None:
    """Prefix tuning cannot be recomputed: its prefix would be added twice."""
    trial = make_trial("prefix_tuning", "sft")
    at = build_tiny_setup(
        trial, tiny_llama, tmp_path, dataclasses.replace(PLAIN, checkpointing=True)
    )
    with pytest.raises(NotRecomputable, match="cache of keys and values"):
        train_steps(at, 1)
    found = parity.probe_accelerators(
        trial, str(tiny_llama), tmp_path / "data", dataclasses.replace(PLAIN, checkpointing=True)
    )
    assert found.switches.checkpointing is False
    assert "cache of keys and values" in found.reasons["checkpointing"]


def test_parity_probe_accepts_splits_and_checkpointing(tiny_llama: Path, tmp_path: Path) -> None:
    """The parity probe accepts smaller passes together with checkpointing."""
    trial = make_trial("lora", "sft")
    build_tiny_setup(trial, tiny_llama, tmp_path)
    wished = dataclasses.replace(ON, micro_tokens=40, checkpointing=True)
    assert (
        parity.probe_accelerators(trial, str(tiny_llama), tmp_path / "data", wished).switches
        == wished
    )


def test_checkpointed_layer_keeps_input(tmp_path: Path) -> None:
    """A checkpointed layer keeps only its input.

    The bytes that wait for the backward pass, counted.
    """
    base = save_llama(tmp_path / "llama", width=64)
    trial = make_trial("lora", "sft")

    def kept(**changes: Any) -> int:
        at = build_tiny_setup(trial, base, tmp_path, dataclasses.replace(ON, **changes))
        stepper, held = at.stepper(), {}
        at.model.train()
        step = next(batches(at))

        def pack(t: torch.Tensor) -> torch.Tensor:
            if not t.is_leaf:
                held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            stepper._forward(step.passes[0])
        return sum(held.values())

    assert kept(checkpointing=True) < kept() / 5


def test_cost_probe_finds_fitting_pass(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost probe finds what fits and records it."""
    trial = make_trial("lora", "sft")
    at = build_tiny_setup(trial, tiny_llama, tmp_path)
    task = type(at.task)
    right = task.item_losses
    again = {"on": False}
    recompute = LayerStack.__setattr__

    def watch(stack: LayerStack, name: str, value: Any) -> None:
        if name == "checkpointing":
            again["on"] = value
        recompute(stack, name, value)

    def losses(self: Any, model: nn.Module, batch: Any) -> Any:
        if batch.rows > 2 or not again["on"]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(self, model, batch)

    monkeypatch.setattr(LayerStack, "__setattr__", watch)
    monkeypatch.setattr(profiling, "TIMED_STEPS", 1)
    monkeypatch.setattr(profiling, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(task, "item_losses", losses)
    wishes = {"lanes": "auto", "checkpointing": "auto"}
    segment = Segment((trial,), 0, 6, str(tmp_path), str(tiny_llama), wishes)
    cost = cost_probe.probe_cost(segment.to_json())
    assert cost["status"] == Status.DONE, cost["reason"]
    assert cost["engine"]["switches"]["checkpointing"] is True
    assert cost["engine"]["rescue"] is True
    assert cost["engine"]["pass_tokens"] > 0
    forbidden = dataclasses.replace(segment, engine={**wishes, "checkpointing": "off"})
    again["on"] = False
    assert cost_probe.probe_cost(forbidden.to_json())["status"] == Status.OUT_OF_MEMORY


def test_graph_conflicts_give_reason() -> None:
    """Switches that CUDA graphs cannot capture give the reason."""
    wished = dataclasses.replace(ON, graphs=True)
    assert wished.conflicts() == {}
    assert "too many shapes" in dataclasses.replace(wished, micro_tokens=64).conflicts()["graphs"]
    assert "on the host" in dataclasses.replace(wished, checkpointing=True).conflicts()["graphs"]


def test_plan_and_report_show_fitting(study_values: dict[str, Any], tmp_path: Path) -> None:
    """The plan and the report say how a study is made to fit."""
    study_values["engine"] |= {"micro_tokens": 64, "checkpointing": "on"}
    spec = parse_spec(study_values)
    assert describe_memory(api.overview(spec, tmp_path)) == [
        "at most 64 tokens per pass",
        "gradient checkpointing",
    ]
    report = api.run(parse_spec(study_values), tmp_path, tmp_path / "run")
    for row in report["methods"]:
        assert row["status"] == "done"
        assert {"micro_tokens", "checkpointing", "packing"} <= set(row["engine"]["on"])


def test_evaluation_split_to_fit(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation that does not fit is done in parts.

    Fault 12: at the very end, after hours of training, that would be quite a loss.
    """
    trial, most = make_trial("lora", "sft", evaluation_batch_size=2), 1
    at = build_tiny_setup(trial, tiny_llama, tmp_path)
    task, rows = type(at.task), at.rows("validation")[:3]
    examples = at.examples("validation")[:3]
    expected, said = item_losses(at, examples), predict_all(at, rows)
    losses, predict = task.item_losses, task.predict

    def few_losses(self: Any, model: nn.Module, batch: Any) -> Any:
        if batch.rows > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses(self, model, batch)

    def few_answers(self: Any, model: Any, tokenizer: Any, asked: Any, device: str) -> Any:
        if len(asked) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, model, tokenizer, asked, device)

    monkeypatch.setattr(task, "item_losses", few_losses)
    monkeypatch.setattr(task, "predict", few_answers)
    assert abs(item_losses(at, examples) - expected).max() < 1e-5
    assert predict_all(at, rows) == said
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        item_losses(at, examples)
    with pytest.raises(Incompatible, match="not even one row of"):
        cost_probe._check_evaluation_fits(at)


def test_fast_generation_split_to_fit(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fast generation that does not fit is done in parts.

    Fault 12: with fewer rows, and no more than those asked for.
    """
    at = build_tiny_setup(make_trial("lora", "sft"), tiny_llama, tmp_path)
    asked = at.task.prompts(at.tokenizer, at.rows("validation")[:12])
    right, tried = generation.generate_in_lanes, []

    def tight(lanes: Any, span: Any, own: Any, rows: int, *rest: Any) -> Any:
        tried.append(rows)
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(lanes, span, own, rows, *rest)

    expected = generation.generate_fast(at.model, asked, at.conditions, graphs=False)
    monkeypatch.setattr(generation, "generate_in_lanes", tight)
    gpu_like = DecodeSettings.for_device("cuda")._replace(lane_rows=16)
    monkeypatch.setattr(generation.DecodeSettings, "for_device", lambda _: gpu_like)
    assert generation.generate_fast(at.model, asked, at.conditions, graphs=False) == expected
    assert tried == [12, 6, 3, 1]


def test_longest_answer_read_before_trials(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest answer is read before any trial.

    Fault 12: at the end of a search a first long answer would be too late.
    """
    trial = make_trial("lora", "sft")
    at = build_tiny_setup(trial, tiny_llama, tmp_path)
    asked = at.task.prompts(at.tokenizer, at.rows("validation"))
    longest = max(map(len, asked.prompts)) + asked.max_new_tokens - 1
    assert asked.max_new_tokens > 1
    assert evaluate.check_longest_answer(at, None) == longest
    assert evaluate.check_longest_answer(at, longest - 2) == longest - 3
    right = evaluate.generate_plain

    def small(model: Any, question: Any) -> Any:
        if max(map(len, question.prompts)) >= longest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return right(model, question)

    monkeypatch.setattr(evaluate, "generate_plain", small)
    with pytest.raises(Incompatible, match="not even one answer of full length"):
        cost_probe._check_evaluation_fits(at)


@pytest.mark.filterwarnings("ignore:Position ids are not supported")
@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "prefix_tuning", "full"])
def test_longest_answer_check_is_clean(tiny_llama: Path, tmp_path: Path, method: str) -> None:
    """Reading the longest answer leaves nothing behind."""
    at = build_tiny_setup(make_trial(method, "sft"), tiny_llama, tmp_path)
    before = item_losses(at, at.examples("validation"))
    assert evaluate.check_longest_answer(at, None)
    assert (item_losses(at, at.examples("validation")) == before).all()


def test_task_without_answers_skips_check(tiny_bert: Path, tmp_path: Path) -> None:
    """A task without answers has no longest answer."""
    at = build_tiny_setup(make_trial("lora", "classify"), tiny_bert, tmp_path)
    assert evaluate.check_longest_answer(at, None) is None
