"""The learning rate of the output layer: stored features, and the rate that they lead to."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.classifiers import ARCHITECTURES, save_headless

from bakeoff.core.trial import Segment, Trial
from bakeoff.engine.optim import learning_rate_factor
from bakeoff.methods import registry
from bakeoff.tasks._base import HEAD
from bakeoff.testing.tiny import tokenizer, write_splits
from bakeoff.testing.trials import OPTIONS, build_tiny_setup, make_trial
from bakeoff.training import head_rate
from bakeoff.training.evaluate import item_losses
from bakeoff.training.head_rate import RateSearch, Rows, choose_rate, rate_beyond_edge, tune_head
from bakeoff.training.setup import TrainingSetup, parameter_groups

STEPS = 12


def head_trial() -> Trial:
    return make_trial("head", "classify", phase="search", rate=1e-2, steps=STEPS)


def segment(trial: Trial, base: Path, folder: Path) -> Segment:
    write_splits(folder / "data")
    return Segment((trial,), 0, trial.conditions.steps, str(folder), str(base))


def losses_from_both(setup: TrainingSetup, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    of_text = item_losses(setup, rows.validation)
    with head_rate.use_features(setup, head_rate.compute_features(setup, rows)):
        return of_text, item_losses(setup, head_rate.number_rows(rows).validation)


def test_best_rate_is_bracketed() -> None:
    """The grid grows at the edge where the best rate is; equal losses take the lower rate."""
    assert rate_beyond_edge({1e-2: 2.0, 3e-2: 1.0, 1e-1: 2.0}) is None
    assert rate_beyond_edge({1e-1: 2.0, 3e-1: 1.5, 1.0: 1.0}) == 3.0
    assert rate_beyond_edge({1e-3: 1.0, 3e-3: 1.5, 1e-2: math.inf}) == 3e-4
    assert choose_rate({3e-2: 1.0, 1e-2: 1.0, 1e-1: math.inf}) == 1e-2


@pytest.mark.parametrize(
    "name", ["bert", "roberta", "distilbert", "deberta", "modernbert", "llama"]
)
def test_stored_features_give_losses_of_text(name: str, tmp_path: Path) -> None:
    """A head of one layer, one that reads all tokens, one of several layers, and a decoder's."""
    base = save_headless(name, tmp_path / "base")
    tokenizer().save_pretrained(base)
    options = {**OPTIONS["classify"], HEAD: {"modules": ARCHITECTURES[name][2], "replaced": False}}
    trial = head_trial()
    conditions = dataclasses.replace(trial.conditions, task_options=options)
    setup = build_tiny_setup(dataclasses.replace(trial, conditions=conditions), base, tmp_path)
    with torch.no_grad():  # a new layer is so small that any features would give the same losses
        setup.lanes.stack.values.mul_(30)
    rows = head_rate.rows_of_study(setup)
    of_text, of_features = losses_from_both(setup, rows)
    assert np.allclose(of_text, of_features, atol=1e-5)
    assert of_text.std() > 1e-2
    assert "forward" not in setup.model.__dict__


def test_losses_equal_plain_training(tiny_bert: Path, tmp_path: Path) -> None:
    """The loss at a rate is that of a linear layer which plain AdamW trains on the features."""
    trial = head_trial()
    search = RateSearch(segment(trial, tiny_bert, tmp_path))
    found = search.losses([3e-2])[3e-2]
    setup = build_tiny_setup(trial, tiny_bert, tmp_path)
    rows = head_rate.rows_of_study(setup)
    features = head_rate.compute_features(setup, rows)
    labels = torch.tensor([e.labels[0] for e in (*rows.train, *rows.validation)])
    n, start = len(rows.train), setup.model.classifier
    expected = []
    for order in rows.orders:
        layer = torch.nn.Linear(32, 3)
        layer.load_state_dict(start.state_dict())
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1.0, weight_decay=0.0)
        for step, picked in enumerate(torch.from_numpy(order)):
            optimizer.param_groups[0]["lr"] = 3e-2 * learning_rate_factor(step, STEPS, 0.1, 0.3)
            loss = torch.nn.functional.cross_entropy(layer(features[picked]), labels[picked])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(layer(features[n:]), labels[n:])
        expected.append(float(loss))
    assert len(expected) == head_rate.ORDERS
    assert found == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_tune_head_is_repeatable(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same study gets the same rate to the bit, and a grid with its losses."""
    monkeypatch.setattr(head_rate, "RATES", (1e-2, 1e-1, 1.0))
    value = segment(head_trial(), tiny_bert, tmp_path).to_json()
    first = tune_head(value)
    assert first == tune_head(value)
    grid = {point["learning_rate"]: point["loss"] for point in first["grid"]}
    assert first["learning_rate"] == min(grid, key=lambda rate: grid[rate] or math.inf)
    assert first["learning_rate"] not in (min(grid), max(grid)) or len(grid) == 6


def test_text_is_used_if_features_fail(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base whose head does not run on stored features is tuned on the rows' text."""
    search = RateSearch(segment(head_trial(), tiny_bert, tmp_path))

    def fail(*_: object) -> None:
        raise TypeError("this model needs attention masks of another shape")

    monkeypatch.setattr(head_rate, "use_features", fail)
    assert 0 < search.losses([1e-2])[1e-2] < math.inf


def test_diverged_rate_is_infinite(tiny_bert: Path, tmp_path: Path) -> None:
    """A rate at which training diverged is never chosen."""
    losses = RateSearch(segment(head_trial(), tiny_bert, tmp_path)).losses([1e-2, 1e9])
    assert losses[1e9] == math.inf > losses[1e-2]


def test_head_factor_multiplies_rate() -> None:
    """A setting's `head_factor` scales the rate of the head alone, and is no argument of PEFT."""
    trial = make_trial("lora", "classify", rate=1e-3, head_learning_rate=0.1)
    scaled = dataclasses.replace(trial, setting={**trial.setting, "head_factor": 3.0})
    assert scaled.head_learning_rate == pytest.approx(0.3)
    assert scaled.learning_rate == 1e-3
    assert scaled.config == trial.config


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("arguments", "count"),
    [({"modules_to_save": ["embed_tokens"]}, 1), ({"trainable_token_indices": [3, 4]}, 1)],
    ids=["modules", "tokens"],
)
def test_saved_modules_have_own_rate(
    arguments: dict[str, Any], count: int, tiny_llama: Path, tmp_path: Path
) -> None:
    """Embeddings that a method trains beside its adapter do not have the adapter's rate."""
    lora = registry.load("lora", Path())
    entry = dataclasses.replace(lora, config={**lora.config, **arguments})
    trial = make_trial(entry, "sft", rate=1e-2, saved_learning_rate=1e-4)
    setup = build_tiny_setup(trial, tiny_llama, tmp_path)
    own, saved = parameter_groups(setup.model, setup.task, trial)
    assert (own.rate(trial), saved.rate(trial)) == (1e-2, 1e-4)
    assert len(saved.names) == count
    assert all("lora_" in name for name in own.names)
    before = dataclasses.replace(trial.conditions, saved_learning_rate=None)
    (only,) = parameter_groups(
        setup.model, setup.task, dataclasses.replace(trial, conditions=before)
    )
    assert set(only.names) == {*own.names, *saved.names}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_trainable_tokens_keep_their_rate(tiny_llama: Path, tmp_path: Path) -> None:
    """A method that trains nothing but tokens has its own grid for them."""
    trial = make_trial("trainable_tokens", "sft", rate=1e-2, saved_learning_rate=1e-4)
    setup = build_tiny_setup(trial, tiny_llama, tmp_path)
    (only,) = parameter_groups(setup.model, setup.task, trial)
    assert only.rate(trial) == 1e-2
