"""A worker's kept set-up gives what a new one gives, whatever the group before it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.core_methods import CASES

from bakeoff.core.trial import Trial
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.base_cache import BaseCache, cache_base
from bakeoff.testing.tiny import write_splits
from bakeoff.testing.trials import make_trial, train_steps
from bakeoff.training import setup, setup_cache
from bakeoff.training.setup_cache import SetupCache, keep_setups

ON = Switches(lanes=True, packing=True, loss=True, compile=False, graphs=False)
PADDED = dataclasses.replace(ON, packing=False)
STEPS = 3


@pytest.fixture
def bases_kept() -> Iterator[BaseCache]:
    with cache_base() as cache:
        yield cache


@pytest.fixture
def cache(bases_kept: BaseCache) -> Iterator[SetupCache]:
    with keep_setups() as found:
        yield found


def group(method: str, task: str, seeds: tuple[int, ...]) -> list[Trial]:
    return [make_trial(method, task, seed=s, rate=1e-3 * (1 + s)) for s in seeds]


def all_losses(
    trials: list[Trial], base: Path, data: Path, cache: SetupCache | None
) -> torch.Tensor:
    """Return the losses of the first steps, and what the trials end with."""
    # its prefix comes as keys and values from outside the batch
    switches = PADDED if trials[0].method.name == "prefix_tuning" else ON
    at = setup.build_setup(trials, str(base), data, switches, cache)
    losses = train_steps(at, STEPS).losses
    values = at.lanes.stack.values.clone()
    at.keep_model()
    return torch.cat([losses.flatten(), values.flatten()])


@pytest.mark.parametrize(
    ("method", "task"),
    [*CASES, ("adalora", "sft"), ("pissa", "classify"), ("shira", "sft"), ("eva", "sft")],
)
def test_kept_setup_equals_new_one(
    method: str, task: str, bases: dict[str, Path], tmp_path: Path, cache: SetupCache
) -> None:
    """A later group, with a known seed and a new one, has the same losses and ends to the bit."""
    data = write_splits(tmp_path / "data")
    later = group(method, task, (2, 1))
    first = all_losses(group(method, task, (0, 1)), bases[task], data, cache)
    found, new = (all_losses(later, bases[task], data, kept) for kept in (cache, None))
    assert torch.equal(found, new)
    assert not torch.equal(first, new)
    alone = group(method, task, (3,))
    assert torch.equal(
        all_losses(alone, bases[task], data, cache), all_losses(alone, bases[task], data, None)
    )


def test_kept_base_has_the_output_layer_of_each_seed(
    tiny_bert: Path, bases_kept: BaseCache
) -> None:
    trial = make_trial("lora", "classify")
    task = setup.make_task(trial.conditions)
    first, *others = (
        setup.load_base(trial.conditions, task, str(tiny_bert), s) for s in (1, 2, 1, 2)
    )
    entry = bases_kept.entry
    bases_kept.clear()
    new = setup.load_base(trial.conditions, task, str(tiny_bert), 2)
    assert entry is not bases_kept.entry
    for name, tensor in new.state_dict().items():
        assert torch.equal(others[0].state_dict()[name], tensor), name
        assert torch.equal(others[2].state_dict()[name], tensor), name
        assert torch.equal(first.state_dict()[name], others[1].state_dict()[name]), name
    differing = [
        n for n, t in new.state_dict().items() if not torch.equal(first.state_dict()[n], t)
    ]
    assert differing == ["classifier.weight"]


def test_base_that_was_written_into_is_not_used_again(
    tiny_llama: Path, tmp_path: Path, bases_kept: BaseCache, cache: SetupCache
) -> None:
    data, trials = write_splits(tmp_path / "data"), group("lora", "sft", (1,))
    expected = all_losses(trials, tiny_llama, data, None)
    all_losses(group("lora", "sft", (1, 2)), tiny_llama, data, cache)
    base = setup.load_base(trials[0].conditions, setup.make_task(trials[0].conditions),
                           str(tiny_llama), 1)  # fmt: skip
    with torch.no_grad():
        next(p for n, p in base.named_parameters() if "q_proj" in n).add_(1.0)
    assert torch.equal(all_losses(trials, tiny_llama, data, cache), expected)


def test_methods_without_random_numbers_are_attached_once(
    tiny_llama: Path, tmp_path: Path, bases_kept: BaseCache, cache: SetupCache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data, seeds, attach = write_splits(tmp_path / "data"), list[int](), setup.attach

    def recorded(trial: Trial, *rest: Any) -> Any:
        seeds.append(trial.seed)
        return attach(trial, *rest)

    monkeypatch.setattr(setup, "attach", recorded)
    all_losses(group("ln_tuning", "sft", (1, 2, 3)), tiny_llama, data, cache)
    assert seeds == [3]
    all_losses(group("lora", "sft", (1, 2, 3)), tiny_llama, data, cache)
    assert seeds[1:] == [3, 2, 1]
    all_losses(group("lora", "sft", (4, 2)), tiny_llama, data, cache)
    assert seeds[4:] == [4]
    for method in ("ln_tuning", "lora", "ln_tuning"):  # as the stages of a study take turns
        all_losses(group(method, "sft", (2, 1)), tiny_llama, data, cache)
    assert seeds[5:] == []


def test_oldest_method_makes_room(
    tiny_llama: Path, tmp_path: Path, cache: SetupCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_splits(tmp_path / "data")
    for method in ("lora", "ia3"):
        all_losses(group(method, "sft", (1, 2)), tiny_llama, data, cache)
    lora, ia3 = cache._methods.values()
    assert lora.size > ia3.size > 0
    monkeypatch.setattr(setup_cache, "MOST_BYTES", ia3.size)
    all_losses(group("ia3", "sft", (1, 2)), tiny_llama, data, cache)
    assert list(cache._methods.values()) == [ia3]
    all_losses(group("lora", "sft", (1, 2)), tiny_llama, data, cache)
    assert sum(m.size for m in cache._methods.values()) <= ia3.size, "LoRA's do not fit"
