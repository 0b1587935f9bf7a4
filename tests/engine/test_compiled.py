"""A compiled layer is the layer: traced whole, for every row length, lanes and units inside it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bakeoff.engine import layers, loss
from bakeoff.engine.accelerators import Switches
from bakeoff.testing.trials import build_tiny_setup, disable_dropout, make_trial, train_steps

EAGER = Switches(lanes=True, packing=True, loss=True, compile=False, graphs=False)
COMPILED = Switches(lanes=True, packing=True, loss=True, compile=True, graphs=False)
METHODS = ["dora", "oft", "vera", "full"]
"""One of each kind of layer: with a norm of the weight, a rotation, shared matrices, no adapter."""

# the compiler looks at every tensor's .grad
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor is being accessed"
)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Trace as on a GPU, write no kernels, and refuse a trace that breaks off."""
    made: list[Any] = []

    def trace(graph: Any, given: Any, **_: Any) -> Any:
        made.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, given)

    whole = functools.partial(torch.compile, backend=trace, fullgraph=True)
    for module in (layers, loss):
        monkeypatch.setattr(module.torch, "compile", whole)
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


@pytest.mark.parametrize(("method", "lanes"), [("lora", 1), *((method, 3) for method in METHODS)])
def test_single_compilation_for_all_lengths(
    method: str, lanes: int, tiny_llama: Path, tmp_path: Path, traced: list[Any]
) -> None:
    """One compilation serves all layers and lengths."""
    rates = (1e-3, 1e-2, 3e-3)[:lanes]
    trials = [make_trial(method, "sft", seed=s, rate=r) for s, r in enumerate(rates)]
    expected = train_steps(
        disable_dropout(build_tiny_setup(trials, tiny_llama, tmp_path, EAGER)), 6
    )
    found = train_steps(
        disable_dropout(build_tiny_setup(trials, tiny_llama, tmp_path, COMPILED)), 6
    )
    torch.testing.assert_close(found.losses, expected.losses, atol=1e-5, rtol=0)
    off = (found.gradients - expected.gradients).norm(dim=1) / expected.gradients.norm(dim=1)
    assert float(off.max()) < 1e-5
    layer = [g for g in traced if any("attend" in str(n.target) for n in g.graph.nodes)]
    assert len(layer) == 1, "compiled again for another layer or row length"
    assert len(traced) - len(layer) <= 1, "the loss compiled again for another number of rows"


def test_compiled_layer_recomputed(tiny_llama: Path, tmp_path: Path, traced: list[Any]) -> None:
    """A compiled layer is recomputed under gradient checkpointing."""
    trials = [make_trial("dora", "sft", seed=s, rate=r) for s, r in enumerate((1e-3, 1e-2, 3e-3))]
    less = dataclasses.replace(COMPILED, checkpointing=True, micro_tokens=60)
    expected = train_steps(
        disable_dropout(build_tiny_setup(trials, tiny_llama, tmp_path, EAGER)), 4
    )
    found = train_steps(disable_dropout(build_tiny_setup(trials, tiny_llama, tmp_path, less)), 4)
    torch.testing.assert_close(found.losses, expected.losses, atol=1e-5, rtol=0)
    off = (found.gradients - expected.gradients).norm(dim=1) / expected.gradients.norm(dim=1)
    assert float(off.max()) < 1e-5
    assert traced


def test_compiled_layer_draws_noise(tiny_llama: Path, tmp_path: Path, traced: list[Any]) -> None:
    """Noise is made before a layer is traced, and is that of the uncompiled layer."""
    trials = [make_trial("pvera", "sft", seed=s, rate=r) for s, r in enumerate((1e-3, 1e-2))]
    expected = train_steps(build_tiny_setup(trials, tiny_llama, tmp_path, EAGER), 2)
    found = train_steps(build_tiny_setup(trials, tiny_llama, tmp_path, COMPILED), 2)
    torch.testing.assert_close(found.losses, expected.losses, atol=1e-5, rtol=0)
    off = (found.gradients - expected.gradients).norm(dim=1) / expected.gradients.norm(dim=1)
    assert float(off.max()) < 1e-5
    assert traced
