"""The methods that need code: each does what its paper and PEFT's own code for it do."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.optimizers.riemannian import _collect_lora_pairs, _RiemannianPreconditioner

from bakeoff.core.errors import PreflightError
from bakeoff.engine.accelerators import Switches
from bakeoff.methods import registry
from bakeoff.methods.arguments import RuleContext, resolve_arguments
from bakeoff.methods.hook import Incompatible
from bakeoff.methods.hooks import eva
from bakeoff.testing.tiny import save_llama
from bakeoff.testing.trials import batches, build_tiny_setup, make_trial, train_steps
from bakeoff.training import setup

eva_svd = eva.get_eva_state_dict
LANES = Switches(lanes=True, packing=True, loss=True, compile=False, graphs=False)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("wide"), 64, 0.2)


def bench(method: str, base: Path, folder: Path, **changes: Any) -> setup.TrainingSetup:
    return build_tiny_setup(make_trial(method, "sft", **changes), base, folder)


def gradients(at: setup.TrainingSetup) -> None:
    """Leave the gradients of one batch in the model."""
    at.model.train()
    at.lanes.run_single(0)
    at.stepper().forward_backward(next(batches(at)))


def test_riemannian_is_pefts(llama: Path, tmp_path: Path) -> None:
    at = bench("riemannian", llama, tmp_path)
    train_steps(at, 3)  # B is no longer 0
    gradients(at)
    names = dict(at.model.named_parameters())
    ours = {n: names[n].grad.clone() for n in at.lanes.stack.names}
    found = at.hook.precondition({n: names[n].detach() for n in names}, ours)
    _RiemannianPreconditioner(_collect_lora_pairs(at.model), reg=1e-2).step()
    assert set(found) == set(at.lanes.stack.names)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, names[name].grad, rtol=1e-3, atol=1e-5)


def test_lora_fa_nearest_step(llama: Path, tmp_path: Path) -> None:
    """LoRA-FA keeps A frozen and takes the nearest step."""
    at = bench("lora_fa", llama, tmp_path)
    names = dict(at.model.named_parameters())
    frozen = {n: p.clone() for n, p in names.items() if ".lora_A." in n}
    assert all(".lora_B." in n for n in at.lanes.stack.names)
    gradients(at)
    name = at.lanes.stack.names[0]
    a, g = names[name.replace("lora_B", "lora_A")].double(), names[name].grad
    found = at.hook.precondition(names, {name: g})[name]
    # the least-squares solution of s g_B A = g A^T A s, where the scale s is alpha / r = 1
    expected = g.double() @ torch.linalg.inv(a @ a.T)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-7)
    train_steps(at, 3)
    assert all(torch.equal(names[n], was) for n, was in frozen.items())


def test_lora_plus_learning_rate_ratio(llama: Path, tmp_path: Path) -> None:
    """LoRA+ gives B sixteen times the learning rate."""
    at = bench("lora_plus", llama, tmp_path, rate=1e-4)
    groups = setup.parameter_groups(at.model, at.task, at.trials[0])
    rates = {n.split(".")[-3]: g.rate(at.trials[0]) for g in groups for n in g.names}
    assert rates == pytest.approx({"lora_A": 1e-4, "lora_B": 16e-4})
    before = {n: p.detach().clone() for n, p in at.model.named_parameters() if p.requires_grad}
    train_steps(at, 1)
    moved = {
        part: max(
            float((at.model.get_parameter(n).detach() - was).abs().max())
            for n, was in before.items()
            if part in n
        )
        for part in ("lora_A", "lora_B")
    }
    # Adam's first step is the rate itself; A has no gradient while B is 0
    assert moved["lora_A"] == 0
    assert moved["lora_B"] == pytest.approx(16e-4 / 3, rel=0.01), "warm-up: a third of the rate"


def test_adalora_prunes_by_own_importance(llama: Path, tmp_path: Path) -> None:
    """AdaLoRA prunes each trial by its own importance scores."""
    trials = [make_trial("adalora", "sft", seed=s, rate=2e-2) for s in (0, 1, 2)]
    together = build_tiny_setup(trials, llama, tmp_path, LANES)
    losses = train_steps(together, 30).losses
    alone = torch.cat(
        [train_steps(build_tiny_setup(t, llama, tmp_path), 30).losses for t in trials], 1
    )
    torch.testing.assert_close(losses, alone, atol=2e-3, rtol=0)
    config = together.model.peft_config["default"]
    kept = []
    for lane in range(3):
        together.lanes.run_single(lane)
        singular = [p for n, p in together.model.named_parameters() if ".lora_E." in n]
        kept.append([int((p != 0).sum()) for p in singular])
    assert {sum(k) for k in kept} == {config.target_r * len(kept[0])}, "the whole budget, no more"
    assert len({tuple(k) for k in kept}) > 1, "three trials pruned alike"


def test_adalora_prunes_as_peft_does(llama: Path, tmp_path: Path) -> None:
    """Two lanes keep the ranks that PEFT's allocator keeps for each, before and after a resume."""
    trials = [make_trial("adalora", "sft", seed=s) for s in (0, 1)]
    at = build_tiny_setup(trials, llama, tmp_path, LANES)
    stack, hook = at.lanes.stack, at.hook
    others = []
    for lane in (0, 1):
        at.lanes.run_single(lane)
        others.append(copy.deepcopy(at.model))
    draws = torch.Generator().manual_seed(0)
    total = at.model.peft_config["default"].total_step
    for step in range(total):
        for tensor in (stack.values, stack.gradients):
            tensor.copy_(torch.randn(tensor.shape, generator=draws))
        for lane, other in enumerate(others):
            for name in stack.names:
                parameter = other.get_parameter(name)
                parameter.data.copy_(stack.tensor(name)[lane])
                parameter.grad = stack.gradient(name)[lane].clone()
            other.base_model.update_and_allocate(step)
        if step == total // 2:
            states = [hook.state(lane) for lane in (0, 1)]
            hook.ranks = type(hook.ranks)(hook.allocator)
            for lane, state in enumerate(states):
                hook.restore(lane, state)
        hook.after_lanes_step(stack, step)
        for lane, other in enumerate(others):
            for name in stack.names:
                assert torch.equal(stack.tensor(name)[lane], other.get_parameter(name)), step
            pattern = other.peft_config["default"].rank_pattern or None
            assert hook.ranks.pattern(lane) == pattern, step
    assert pattern is not None


def test_adaloras_penalty_is_pefts(llama: Path, tmp_path: Path) -> None:
    at = bench("adalora", llama, tmp_path)
    train_steps(at, 2)
    ids = torch.arange(3, 9)[None]
    out = at.model(input_ids=ids, labels=ids)
    logits = out.logits[:, :-1].flatten(0, 1).float()
    plain = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    torch.testing.assert_close(at.hook.penalty(at.model), out.loss - plain, rtol=1e-3, atol=1e-5)


def test_adamss_stops_subspaces_per_trial(llama: Path, tmp_path: Path) -> None:
    """AdaMSS stops subspaces permanently, trial by trial."""
    pytest.importorskip("sklearn")
    trials = [make_trial("adamss_asa", "sft", seed=s, rate=1e-2) for s in (0, 1)]
    at = build_tiny_setup(trials, llama, tmp_path, LANES)
    stepper, source = at.stepper(), batches(at)
    at.model.train()
    for i in range(20):
        stepper.step(i, next(source))
    stopped = {lane: dict(at.hook.stopped[lane]) for lane in (0, 1)}
    assert all(stopped.values())
    for i in range(20, 24):
        stepper.step(i, next(source))
    for lane, values in stopped.items():
        at.lanes.run_single(lane)
        for name, value in values.items():
            assert torch.equal(at.model.get_parameter(name), value), "a stopped subspace moved"
    alone = build_tiny_setup(trials[0], llama, tmp_path)
    assert (train_steps(alone, 24).losses[:, 0] > 0).all()
    assert set(alone.hook.stopped[0]) == set(at.hook.stopped[0])


@pytest.mark.parametrize("method", ["eva", "corda", "lora_ga"])
def test_data_init_follows_study_seed(method: str, llama: Path, tmp_path: Path) -> None:
    """Initial values from data depend on the study, not on the seed."""
    if method == "corda":
        pytest.importorskip("attr")
    starts = [
        dict(bench(method, llama, tmp_path, seed=seed).model.named_parameters()) for seed in (0, 1)
    ]
    plain = dict(bench("lora", llama, tmp_path).model.named_parameters())
    a = next(n for n in plain if ".lora_A." in n)
    torch.testing.assert_close(starts[0][a], starts[1][a])
    assert starts[0][a].shape != plain[a].shape or not torch.equal(starts[0][a], plain[a])


def test_eva_starts_as_pefts(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start is computed once for all seeds, and is that of plain PEFT."""
    made: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(1)
        return eva_svd(*args, **kwargs)

    monkeypatch.setattr(eva, "get_eva_state_dict", counted)
    trials = [make_trial("eva", "sft", seed=s) for s in (0, 1)]
    at = build_tiny_setup(trials, llama, tmp_path)
    assert len(made) == 1
    task, c = at.task, trials[0].conditions
    context = setup.attach_context(task, at.tokenizer, c, at.data)
    base = setup.load_base(c, task, str(llama), 0)
    plain = peft.get_peft_model(base, at.hook.peft_config(base, context)).eval()
    rows = [dict(b.inputs) for b in context.batches(64) if b.rows == 64]
    peft.initialize_lora_eva_weights(plain, rows, show_progress_bar=False)
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(at.lanes.stack.tensor(name)[1], parameter), name


def test_eva_gives_up_with_a_reason(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the directions do not settle, PEFT would run on without end."""
    monkeypatch.setattr(eva, "MOST_PASSES", 1)
    with pytest.raises(Incompatible, match="not settled after 1 batches"):
        bench("eva", llama, tmp_path)


def test_cpt_starts_from_worked_examples(llama: Path, tmp_path: Path) -> None:
    at = bench("cpt", llama, tmp_path)
    config = at.model.peft_config["default"]
    first, second = at.examples("train")[:2]
    n = len(first.tokens)
    assert config.cpt_token_ids[: n + 3] == [*first.tokens, *second.tokens[:3]]
    assert config.cpt_tokens_type_mask[:n] == [4 if y >= 0 else 2 for y in first.labels]
    assert set(config.cpt_tokens_type_mask[n : n + len(second.tokens)]) == {6, 8}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
def test_trainable_tokens_are_the_most_frequent(llama: Path, tmp_path: Path) -> None:
    at = bench("trainable_tokens", llama, tmp_path)
    counts = Counter(t for e in at.examples("train") for t in e.tokens)
    chosen = at.model.peft_config["default"].token_indices
    assert len(chosen) == min(64, len(counts))
    assert min(counts[t] for t in chosen) >= max(
        (n for t, n in counts.items() if t not in chosen), default=0
    )


@pytest.fixture
def around(llama: Path) -> RuleContext:
    task = setup.make_task(make_trial("lora", "sft").conditions)
    base = setup.load_base(make_trial("lora", "sft").conditions, task, str(llama), 0)
    return RuleContext(base, (), 200, tuple)


def resolved(method: str, around: RuleContext, **changes: Any) -> dict[str, Any]:
    entry = registry.load(method, Path())
    return resolve_arguments(entry, {**entry.config, **changes}, around)


def test_rules_are_resolved_on_the_base(around: RuleContext) -> None:
    assert resolved("pissa", around, r=12)["lora_alpha"] == 12
    ada = resolved("adalora", around)
    assert (ada["total_step"], ada["tinit"], ada["tfinal"]) == (200, 20, 60)
    # widths are 64, 32 and 128
    assert resolved("vblora", around, vector_length="divisor <= 48")["vector_length"] == 32
    assert resolved("vblora", around, vector_length="divisor <= 20")["vector_length"] == 16
    assert resolved("adaption_prompt", around)["adapter_layers"] == 2
    values = resolved("beft", around)["target_modules"]
    assert values == [f"model.layers.{i}.self_attn.v_proj" for i in (0, 1)]
    assert resolved("trainable_tokens", around)["target_modules"] == ["model.embed_tokens"]
    assert resolved("kasa", around)["kasa_config"].__class__.__name__ == "KasaConfig"


def test_rank_limited_by_width(around: RuleContext) -> None:
    """A rank above the base's width, 64, is not used; PiSSA's is limited by the narrowest layer."""
    assert resolved("lora", around, r=48)["r"] == 48
    assert resolved("lora", around, r=512)["r"] == 64
    pissa = resolved("pissa", around, r=512)
    assert (pissa["r"], pissa["lora_alpha"]) == (32, 32)
    assert resolved("lora_ga", around)["r"] == 16
    assert resolved("kasa", around)["r"] == 31
    assert resolved("miss_bat", around)["r"] == 32
    assert resolved("shira", around)["r"] == 32 * 64 // (32 + 64)
    assert resolved("vera", around, r=512)["r"] == 512


def test_rules_without_match_give_reason(around: RuleContext) -> None:
    """Rules that cannot be resolved give the reason."""
    with pytest.raises(Incompatible, match="names q, which is not a number"):
        resolved("lora", around, lora_alpha="2 * q")
    with pytest.raises(PreflightError, match="did you mean 'beta'"):
        resolved("kasa", around, kasa_config={"betta": 1})
    bare = dataclasses.replace(registry.load("beft", Path()))
    empty = around._replace(base=torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(Incompatible, match="no value projection"):
        resolve_arguments(bare, bare.config, empty)
