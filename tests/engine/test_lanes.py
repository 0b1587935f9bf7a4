"""Lanes: K trials in one step are the same K trials alone, whatever their neighbours do."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.core_methods import CASES
from torch.func import vmap

from bakeoff.core.errors import UsageError
from bakeoff.core.results import Status
from bakeoff.core.trial import Segment, Trial
from bakeoff.engine.accelerators import (
    STRICT_VARIABLE,
    Switches,
    explain_defaults,
    explain_failure,
)
from bakeoff.engine.batching import worthwhile_buckets
from bakeoff.engine.lanes import dropout
from bakeoff.engine.lanes.lanes import FrozenPartsDiffer
from bakeoff.engine.lanes.vmapped_linear import lane_linear
from bakeoff.engine.loop import train
from bakeoff.engine.packing import layout
from bakeoff.engine.packing.attention import NotPackable, attend
from bakeoff.engine.packing.layout import Layout
from bakeoff.study.config import parse_spec
from bakeoff.testing.tiny import tokenizer, write_splits
from bakeoff.testing.trials import (
    batches,
    build_tiny_setup,
    disable_dropout,
    make_trial,
    step_losses,
    train_steps,
)
from bakeoff.training import segment
from bakeoff.training.preflight.parity import probe_accelerators

ON = Switches(lanes=True, packing=True, loss=True, compile=False, graphs=False)
RATES = (1e-3, 1e-2, 3e-3)
PADDED = {"prefix_tuning"}
"""Its prefix comes as keys and values from outside the batch."""


def three(method: str, task: str, **changes: Any) -> list[Trial]:
    return [make_trial(method, task, seed=s, rate=r, **changes) for s, r in enumerate(RATES)]


@pytest.mark.parametrize(("method", "task"), CASES)
def test_lanes_match_sequential_trials(
    method: str, task: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """Trials in lanes equal the same trials run sequentially.

    Everything on against the plain path: padded, transformers' attention, one by one.
    """
    base = bases[task]
    on = dataclasses.replace(ON, packing=method not in PADDED)
    trials = three(method, task)
    alone = [train_steps(disable_dropout(build_tiny_setup(t, base, tmp_path)), 10) for t in trials]
    together = train_steps(disable_dropout(build_tiny_setup(trials, base, tmp_path, on)), 10)
    plain = torch.cat([r.gradients for r in alone])
    off = (together.gradients - plain).norm(dim=1) / plain.norm(dim=1)
    assert float(off.max()) < 1e-5
    apart = torch.cat([r.losses for r in alone], 1)
    torch.testing.assert_close(together.losses, apart, atol=1e-4, rtol=0)
    assert len({float(x) for x in together.losses[-1]}) == 3, "three trials, three losses"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_dropout_draws_belong_to_the_trial(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    trials = three(method, "classify")
    alone = torch.cat(
        [step_losses(build_tiny_setup(t, tiny_bert, tmp_path, ON), 6) for t in trials], 1
    )
    together = step_losses(build_tiny_setup(trials, tiny_bert, tmp_path, ON), 6)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    still = step_losses(disable_dropout(build_tiny_setup(trials, tiny_bert, tmp_path, ON)), 6)
    assert not torch.allclose(together, still, atol=1e-3), "dropout did nothing"


def test_dropout_keeps_its_share_and_scale() -> None:
    draws = dropout.LaneRandom([1, 2], torch.device("cpu"))
    draws.begin_step(0)
    draws.select(0, 2)
    x = torch.ones(2, 100_000)
    first, second = (
        dropout.apply_dropout(x, 0.1, draws.next_key(), draws.noise(100_000)) for _ in range(2)
    )
    for mask in (first, second):
        assert float((mask == 0).float().mean()) == pytest.approx(0.1, abs=0.005)
        assert float(mask.mean()) == pytest.approx(1.0, abs=0.01)
    # independent between lanes and between calls: both dropped with probability 0.01
    assert float(((first[0] == 0) & (first[1] == 0)).float().mean()) == pytest.approx(
        0.01, abs=0.003
    )
    assert float(((first == 0) & (second == 0)).float().mean()) == pytest.approx(0.01, abs=0.003)
    draws.begin_step(1)
    draws.select(0, 2)
    later = dropout.apply_dropout(x, 0.1, draws.next_key(), draws.noise(100_000))
    assert float(((first == 0) & (later == 0)).float().mean()) == pytest.approx(0.01, abs=0.003)


@pytest.mark.parametrize(("task", "method"), [("sft", "lora"), ("classify", "full")])
def test_diverging_lane_leaves_others_identical(
    task: str, method: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """A diverging lane does not change a bit of the other lanes."""
    calm = three(method, task)
    wild = [dataclasses.replace(t) for t in calm]
    wild[1] = dataclasses.replace(calm[1], setting={"learning_rate": 1e30})
    quiet, loud = (build_tiny_setup(trials, bases[task], tmp_path, ON) for trials in (calm, wild))
    expected, found = step_losses(quiet, 8), step_losses(loud, 8)
    assert torch.equal(found[:, [0, 2]], expected[:, [0, 2]])
    values, spoilt = quiet.lanes.stack.values, loud.lanes.stack.values
    assert torch.equal(spoilt[[0, 2]], values[[0, 2]])


def test_diverged_lane_frozen_others_finish(tiny_llama: Path, tmp_path: Path) -> None:
    """A diverged lane is frozen and reported with its step; the others finish."""
    trials = three("lora", "sft", steps=12, validations=3, metric="json_match")
    trials = [dataclasses.replace(t, phase="search") for t in trials]
    trials[1] = dataclasses.replace(trials[1], setting={"learning_rate": 1e30})
    at = build_tiny_setup(trials, tiny_llama, tmp_path, ON)
    stepper = at.stepper()
    source = batches(at)
    heard: list[Any] = []
    train(stepper, source, (0, 6), (6,), heard.append)
    died = heard[0].diverged[1]
    assert heard[0].diverged == (None, died, None)
    assert 1 < died <= 6
    frozen = at.lanes.stack.values[1].clone()
    moving = at.lanes.stack.values[0].clone()
    stepper.step(6, next(source))
    assert torch.equal(at.lanes.stack.values[1], frozen)
    assert not torch.equal(at.lanes.stack.values[0], moving)

    engine = {"switches": dataclasses.asdict(ON), "token_bytes": None}
    whole = Segment(tuple(trials), 0, 12, str(tmp_path), str(tiny_llama), engine)
    results = segment.run_segment(whole).results
    assert [r.status for r in results] == [Status.DONE, Status.DIVERGED, Status.DONE]
    assert results[1].diverged_at_step == died
    assert results[1].splits == {}
    assert [r.lanes for r in results] == [3, 3, 3]
    assert [len(r.curve) for r in results] == [3, 0, 3]


def test_nonfinite_validation_loss_diverges(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lane whose validation loss is not finite has diverged."""
    write_splits(tmp_path / "data")
    trials = [dataclasses.replace(t, phase="search") for t in three("lora", "classify", steps=12)]
    right = segment.item_losses

    def broken(*given: Any) -> Any:
        losses = right(*given)
        losses[1, 0] = float("nan")
        return losses

    monkeypatch.setattr(segment, "item_losses", broken)
    at_rung = Segment(tuple(trials), 0, 2, str(tmp_path), str(tiny_bert))
    results = segment.run_segment(at_rung).results
    assert [r.status for r in results] == [Status.STOPPED, Status.DIVERGED, Status.STOPPED]
    assert results[1].reason == "the validation loss was not finite at step 2"
    assert (results[1].diverged_at_step, results[1].item_losses) == (2, ())


@pytest.mark.parametrize(("method", "task"), CASES)
def test_group_trained_and_scored_in_lanes(
    method: str, task: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """A group of trials is trained and scored in lanes.

    Evaluation puts another number of rows to each lane than training does.
    """
    write_splits(tmp_path / "data")
    metric = {"classify": "accuracy", "sft": "json_match"}[task]
    trials = three(method, task, steps=4, evaluation_batch_size=33, metric=metric)
    trials = [dataclasses.replace(t, phase="search") for t in trials]
    on = dataclasses.replace(ON, packing=method not in PADDED)
    engine = {"switches": dataclasses.asdict(on), "token_bytes": None}
    whole = Segment(tuple(trials), 0, 4, str(tmp_path), str(bases[task]), engine, scored=True)
    for trial, lane in zip(trials, segment.run_segment(whole).results, strict=True):
        assert lane.status is Status.DONE, lane.reason
        assert lane.lanes == 3, lane.warnings
        alone = dataclasses.replace(whole, trials=(trial,))
        (solo,) = segment.run_segment(alone).results
        pairs = zip(*(r.splits["validation"].predictions for r in (lane, solo)), strict=True)
        assert len(lane.splits["validation"].predictions) > 1
        assert sum(a != b for a, b in pairs) <= 1, "rounding may turn one item, not more"
        assert lane.curve[-1].validation_loss == pytest.approx(
            solo.curve[-1].validation_loss, abs=1e-3
        )


def test_unsupported_group_runs_sequentially(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that vmap does not support runs sequentially and records why."""
    write_splits(tmp_path / "data")
    right = segment.build_setup

    def only_alone(trials: Any, *rest: Any) -> Any:
        if len(trials) > 1:
            raise FrozenPartsDiffer("its frozen tensors differ by seed (W)")
        return right(trials, *rest)

    monkeypatch.setattr(segment, "build_setup", only_alone)
    trials = [make_trial("lora", "sft", seed=s, phase="search", steps=2) for s in (1, 2)]
    for start, status in ((0, Status.STOPPED), (1, Status.DONE)):
        part = Segment(tuple(trials), start, start + 1, str(tmp_path), str(tiny_llama))
        for result in segment.run_segment(part).results:
            assert result.status is status, result.traceback
            assert (result.lanes, result.step) == (1, start + 1)
            said = "trained sequentially, not in lanes: its frozen tensors differ by seed (W)"
            assert result.warnings[-1] == said


@pytest.mark.parametrize("always", [True, False])
def test_error_in_lanes_is_not_a_reason(
    always: bool, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of lanes is shown as a fault; one that comes again alone belongs to its trial."""
    monkeypatch.delenv(STRICT_VARIABLE)
    write_splits(tmp_path / "data")
    right = segment.build_setup

    def broken(trials: Any, *rest: Any) -> Any:
        if always or len(trials) > 1:
            raise ValueError("no room for two")
        return right(trials, *rest)

    monkeypatch.setattr(segment, "build_setup", broken)
    trials = [make_trial("lora", "sft", seed=s, phase="search", steps=1) for s in (1, 2)]
    part = Segment(tuple(trials), 0, 1, str(tmp_path), str(tiny_llama))
    results = segment.run_segment(part).results
    if always:
        assert {(r.status, r.reason, r.warnings) for r in results} == {
            (Status.FAILED, "ValueError: no room for two", ())
        }
        return
    for result in results:
        assert result.status is Status.DONE
        assert result.warnings[-1] == (
            "trained sequentially, not in lanes: a fault of bakeoff's, please report it with the "
            "file in logs/ (ValueError: no room for two)"
        )
    monkeypatch.setenv(STRICT_VARIABLE, "1")
    with pytest.raises(ValueError, match="no room"):
        segment.run_segment(part)


def test_position_tables_are_a_limit(tmp_path: Path) -> None:
    """A trained table of relative positions is read once, so trials cannot have their own."""
    words = tokenizer()
    config = transformers.MPNetConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    transformers.MPNetModel(config).save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    data = write_splits(tmp_path / "data")
    on = dataclasses.replace(Switches.all_off(), lanes=True)
    for method, works in (("full", False), ("lora", True)):
        found = probe_accelerators(make_trial(method, "classify"), str(tmp_path / "base"), data, on)
        assert found.switches.lanes is works
        assert works or "table of relative positions" in found.reasons["lanes"]


def test_only_limits_are_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit is shown as its sentence, anything else as a fault, and tests fail on it."""
    limits = {
        NotPackable("the base has no list of layers with attention"): "the base has no list",
        torch.OutOfMemoryError("CUDA out of memory"): "memory ran out",
        RuntimeError("vmap: It looks like you're calling .item() on a Tensor"): "on the host",
    }
    for error, why in limits.items():
        assert why in explain_failure(error)
        assert type(error).__name__ not in explain_failure(error)
    wrapped = RuntimeError("wrapped by a compiler")
    wrapped.__cause__ = NotPackable("sliding")
    assert explain_failure(wrapped) == "sliding"
    for fault in (ValueError("sizes"), RuntimeError("vmap: sizes differ")):
        with pytest.raises(type(fault)):
            explain_failure(fault)
    monkeypatch.delenv(STRICT_VARIABLE)
    assert explain_failure(ValueError("sizes")).startswith("a fault of bakeoff's")


def test_out_of_memory_halves_lanes(tiny_llama: Path, tmp_path: Path) -> None:
    """Running out of memory halves the lanes of a pass and loses no work."""
    trials = [make_trial("lora", "sft", seed=s, rate=1e-2) for s in range(4)]
    expected = step_losses(build_tiny_setup(trials, tiny_llama, tmp_path, ON), 6)
    at = build_tiny_setup(trials, tiny_llama, tmp_path, ON)
    stepper = at.stepper()
    plain, widths = stepper.losses, []

    def scarce(model: torch.nn.Module, batch: Any) -> Any:
        widths.append(batch.rows // 8)
        if len(widths) > 3 and batch.rows > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(model, batch)

    stepper.losses = scarce
    found: list[torch.Tensor] = []
    real_step = stepper.step

    def noted(index: int, batch: Any) -> torch.Tensor:
        losses = real_step(index, batch)
        found.append(losses.clone())
        return losses

    stepper.step = noted  # type: ignore[method-assign]
    source = batches(at)
    train(stepper, source, (0, 6), (6,), lambda reading: None, at.batch_builder.split_last_step)
    assert widths[:3] == [4, 4, 4]
    assert widths[3:6] == [4, 2, 1]
    torch.testing.assert_close(torch.stack(found), expected, atol=1e-5, rtol=0)

    def never(model: torch.nn.Module, batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    stepper.losses = never
    with pytest.raises(torch.OutOfMemoryError):
        train(stepper, source, (0, 6), (6,), lambda reading: None, at.batch_builder.split_last_step)


def test_passes_bounded_by_tokens(tiny_llama: Path, tmp_path: Path) -> None:
    """Passes hold no more tokens than fit."""
    trials = [make_trial("lora", "sft", seed=0, rate=1e-2) for _ in range(5)]
    whole = build_tiny_setup(trials, tiny_llama, tmp_path, ON)
    tight = build_tiny_setup(trials, tiny_llama, tmp_path, ON)
    tight.batch_builder.pass_tokens = 2 * next(batches(tight)).passes[0].layout.gather.shape[1]
    step = next(batches(tight))
    assert step.widths == (2, 2, 1)
    torch.testing.assert_close(step_losses(tight, 4), step_losses(whole, 4), atol=1e-5, rtol=0)


def test_probe_keeps_agreeing_accelerators(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe keeps the accelerators that agree and says why it drops the rest."""
    build_tiny_setup(make_trial("lora", "sft"), tiny_llama, tmp_path)
    data = tmp_path / "data"
    good = probe_accelerators(make_trial("lora", "sft"), str(tiny_llama), data, ON)
    assert good.switches == ON
    assert good.reasons == {}
    prefix = probe_accelerators(make_trial("prefix_tuning", "sft"), str(tiny_llama), data, ON)
    assert prefix.switches == dataclasses.replace(ON, packing=False)
    assert "prefix" in prefix.reasons["packing"]

    real = layout.unpack
    monkeypatch.setattr("bakeoff.engine.layers.unpack", lambda x, w: real(x, w) + 0.05)
    wrong = probe_accelerators(make_trial("lora", "sft"), str(tiny_llama), data, ON)
    assert not wrong.switches.packing
    assert wrong.switches.lanes
    assert "differ from the same trials alone" in wrong.reasons["packing"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_bf16_keeps_all_accelerators(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    """In bf16, the probe drops no accelerator.

    Trained embeddings leave queries and keys in fp32 beside values in bf16.
    """
    trial = make_trial(method, "sft", precision="bf16")
    found = probe_accelerators(trial, str(tiny_llama), write_splits(tmp_path), ON)
    assert found.reasons == {}


@pytest.mark.parametrize("method", ["bitfit", "ln_tuning"])
def test_norms_train_in_half_precision(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    """A CPU's layer norm wants one dtype, also where only its bias is trained."""
    trial = make_trial(method, "classify", precision="bf16")
    found = probe_accelerators(trial, str(tiny_bert), write_splits(tmp_path), ON)
    assert found.reasons == {}


def test_switches_follow_user_with_reasons() -> None:
    """The switches follow the user's settings and give reasons."""
    assert Switches.from_request({"packing": "off", "compile": "on"}, "cpu", "bf16", 9) == Switches(
        lanes=True, packing=False, loss=True, compile=True, graphs=False, lean_inputs=True,
        generation=True,
    )  # fmt: skip
    assert not Switches.from_request({}, "cpu", "fp32", 9).lean_inputs
    assert all(e.why for e in explain_defaults("cpu", "fp32").values())


@pytest.mark.parametrize(("steps", "on"), [(None, True), (500, True), (499, False)])
def test_few_steps_skip_compilation(steps: int | None, on: bool) -> None:
    """Compilation is skipped for a few steps."""
    assert explain_defaults("cuda", "fp32", steps)["compile"].on is on
    assert explain_defaults("cuda", "fp32", steps)["compile"].why


def layouts() -> Iterator[tuple[Layout, int]]:
    yield layout.make_layout([3, 5, 2, 4], lanes=2, length=6, tokens=16), 2
    yield layout.make_layout([6, 1], lanes=1, length=6, tokens=7), 1


def test_packing_roundtrip() -> None:
    """Packing concatenates examples and separates them again."""
    for where, lanes in layouts():
        rows = len(where.scatter)
        x = torch.randn(rows, 6, 3, requires_grad=True)
        packed = layout.pack(x, where)
        back = layout.unpack(packed, where)
        assert packed.shape == (lanes, where.gather.shape[1], 3)
        assert torch.equal(back, x * where.real[..., None])
        back.pow(2).sum().backward()
        assert torch.equal(x.grad, 2 * x * where.real[..., None])
    where = layout.make_layout([3, 5, 2, 4], lanes=2, length=6, tokens=16)
    # what is left of a row comes in pieces that are no longer than an example may be
    assert where.bounds.tolist() == [0, 3, 8, 14, 16, 16, 18, 22, 28, 32, 32]
    assert layout.pack(torch.arange(24.0).view(4, 6, 1), where)[0, :8, 0].tolist() == [
        0, 1, 2, 6, 7, 8, 9, 10,
    ]  # fmt: skip


def test_buckets_hold_every_size() -> None:
    sizes = [100, 130, 250, 260, 700]
    found = layout.choose_buckets(sizes, 3, 32)
    assert found[-1] >= 700
    assert all(size % 32 == 0 for size in found)
    assert layout.pick_bucket(101, (64, 128, 256)) == 128


@pytest.mark.parametrize(("steps", "expected"), [(24, 1), (100, 2), (1000, 2)])
def test_few_steps_are_not_worth_many_graphs(steps: int, expected: int) -> None:
    # one row size pads a third of the slots: 24 / 3 = 8 steps and a capture of 12 are fewer than
    # two captures; 100 / 3 + 12 are more
    assert worthwhile_buckets([100, 200], steps, 1) == expected


@pytest.mark.parametrize("causal", [True, False])
def test_attention_separates_packed_examples(causal: bool) -> None:
    """Attention keeps packed examples separate, and its gradients are correct."""
    torch.manual_seed(0)
    where = layout.make_layout([3, 5, 2, 4], lanes=2, length=6, tokens=10)
    q = torch.randn(2, 4, 10, 8, requires_grad=True)
    k, v = (torch.randn(2, 2, 10, 8, requires_grad=True) for _ in range(2))
    none = torch.empty(0, dtype=torch.int32)
    out, _ = attend(q, k, v, *where, 8**-0.5, causal, 0.0, none, none)
    weight = torch.randn_like(out)
    filled = where.filled[:, None, :, None]
    ours = torch.autograd.grad((out * weight * filled).sum(), [q, k, v])

    bounds = where.bounds.tolist()
    total = torch.zeros(())
    for start, stop in itertools.pairwise(bounds):
        lane, first = divmod(start, 10)
        span = slice(first, first + stop - start)
        if stop == start or not bool(where.filled[lane, span].all()):
            continue
        one = [x[lane : lane + 1, :, span] for x in (q, k, v)]
        alone = torch.nn.functional.scaled_dot_product_attention(
            *one, is_causal=causal, enable_gqa=True
        )
        torch.testing.assert_close(out[lane : lane + 1, :, span], alone)
        total = total + (alone * weight[lane : lane + 1, :, span]).sum()
    for got, expected in zip(ours, torch.autograd.grad(total, [q, k, v]), strict=True):
        torch.testing.assert_close(got, expected)


def test_operators_pass_torch_opcheck() -> None:
    """The custom operators pass torch's checks."""
    where = layout.make_layout([3, 5, 2, 4], lanes=2, length=6, tokens=10)
    q = torch.randn(2, 4, 10, 8, requires_grad=True)
    k, v = (torch.randn(2, 2, 10, 8, requires_grad=True) for _ in range(2))
    none = torch.empty(0, dtype=torch.int32)
    torch.library.opcheck(attend, (q, k, v, *where, 0.3, True, 0.0, none, none))


@pytest.mark.parametrize(
    ("given", "laned"),
    [("xw", "x"), ("xw", "w"), ("xw", "xw"), ("xwb", "x"), ("xwb", "b"), ("xwb", "xb"),
     ("xwb", "xw"), ("xwb", "xwb")],
)  # fmt: skip
def test_batched_linear_matches_torch(given: str, laned: str) -> None:
    """A linear layer in lanes equals torch's."""
    torch.manual_seed(0)
    shapes = {"x": (2, 5, 4), "w": (6, 4), "b": (6,)}
    dims = tuple(0 if name in laned else None for name in given)
    own = [
        torch.randn(*((3,) if name in laned else ()), *shapes[name], requires_grad=True)
        for name in given
    ]
    none = (None,) * (3 - len(given))
    out = vmap(lambda *tensors: lane_linear(*tensors, *none), in_dims=dims)(*own)
    each = [[t if d is None else t[k] for t, d in zip(own, dims, strict=True)] for k in range(3)]
    expected = torch.stack([torch.nn.functional.linear(*one) for one in each])
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    found, truth = (torch.autograd.grad((y * weight).sum(), own) for y in (out, expected))
    torch.testing.assert_close(found, truth)


def test_tokens_are_made_once_a_study(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = build_tiny_setup(make_trial("lora", "sft"), tiny_llama, tmp_path)
    first = at.examples("train")
    monkeypatch.setattr(type(at.task), "encode", lambda *_: pytest.fail("tokenised again"))
    assert (
        build_tiny_setup(make_trial("lora", "sft"), tiny_llama, tmp_path).examples("train") == first
    )


def test_no_lanes_at_all_is_refused(study_values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="study-invalid") as error:
        parse_spec({**study_values, "engine": {"lanes": 0}})
    assert "engine.lanes" in error.value.cause
