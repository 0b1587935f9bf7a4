"""AdaMSS with ASA: unimportant subspaces stop training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import peft
from torch import Tensor, nn

from bakeoff.methods.hook import AttachContext, Hook

SCORES = ("exp_avg_ipt_A", "exp_avg_ipt_B", "exp_avg_unc_A", "exp_avg_unc_B")
"""Attributes of PEFT's layers with the importances of their subspaces."""

STOPPED = "stopped"


class AdamssAsa(Hook):
    """Adaptive subspace allocation (PEFT's ``AdamssModel.update_and_allocate``), trial by trial.

    PEFT stops a subspace by clearing ``requires_grad`` and its gradient. Here the optimizer steps a
    stack of tensors as a whole, so a stopped tensor is reset to its value after each step.
    """

    def inject(self, base: nn.Module, config: peft.PeftConfig, context: AttachContext) -> nn.Module:
        """Attach; each trial has its own importances and stopped subspaces."""
        model = super().inject(base, config, context)
        self.layers = [m for m in model.modules() if "exp_avg_ipt_A" in vars(m)]
        self.fresh = _scores(self.layers)
        self.scores: dict[int, list[dict[str, Any]]] = {}
        self.stopped: dict[int, dict[str, Tensor]] = {}
        return model

    def after_step(self, model: nn.Module, step: int, lane: int) -> None:
        """Reset stopped subspaces; let PEFT score the others and stop some."""
        trained = {n: p for n, p in model.named_parameters() if ".adamss_" in n}
        stopped = self.stopped.setdefault(lane, {})
        for name, value in stopped.items():
            trained[name].data.copy_(value)
        self._set_scores(self.scores.get(lane, self.fresh))
        gradients = {n: p.grad for n, p in trained.items()}
        for name in stopped:
            trained[name].grad = None  # PEFT skips subspaces without a gradient
        model.base_model.update_and_allocate(step)  # type: ignore[union-attr,operator]  # PEFT's
        self.scores[lane] = _scores(self.layers)
        for name, p in trained.items():
            if not p.requires_grad:
                stopped[name] = p.detach().clone()
                p.requires_grad_(True)
            p.grad = gradients[name]

    def state(self, lane: int) -> dict[str, Tensor]:
        """Return the trial's importances and its stopped subspaces."""
        tensors = {
            f"{STOPPED}|{n}": t.detach().clone() for n, t in self.stopped.get(lane, {}).items()
        }
        for number, layer in enumerate(self.scores.get(lane, ())):
            for name, adapters in layer.items():
                for adapter, values in adapters.items():
                    for i, tensor in enumerate(values):
                        if tensor is not None:
                            key = f"{number}|{name}|{adapter}|{i}"
                            tensors[key] = tensor.detach().clone()
        return tensors

    def restore(self, lane: int, saved: Mapping[str, Tensor]) -> None:
        """Restore the result of ``state``."""
        scores: list[dict[str, Any]] = [
            {name: {a: [None] * len(v) for a, v in own.items()} for name, own in layer.items()}
            for layer in self.fresh
        ]
        self.stopped[lane] = {}
        for key, tensor in saved.items():
            kind, _, rest = key.partition("|")
            if kind == STOPPED:
                self.stopped[lane][rest] = tensor
                continue
            name, adapter, i = rest.split("|")
            scores[int(kind)][name][adapter][int(i)] = tensor
        self.scores[lane] = scores

    def _set_scores(self, scores: list[dict[str, Any]]) -> None:
        for layer, values in zip(self.layers, scores, strict=True):
            for name in SCORES:
                # PEFT updates them in place, so every trial needs copies
                copies = {a: [_copy(t) for t in v] for a, v in values[name].items()}
                getattr(layer, name).update(copies)


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _scores(layers: Iterable[Any]) -> list[dict[str, Any]]:
    return [
        {name: {a: list(v) for a, v in getattr(layer, name).items()} for name in SCORES}
        for layer in layers
    ]


HOOK = AdamssAsa
