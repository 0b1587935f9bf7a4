"""AdaLoRA: a penalty keeps the factors orthogonal; ranks are pruned by importance in training.

Tensor axes: K = lanes, P = trained parameters of a lane, R = ranks of all layers before pruning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

from bakeoff.engine.lanes.parameter_stack import ParameterStack
from bakeoff.methods.hook import AttachContext, Hook, Incompatible, SaveContext

AVERAGE, UNCERTAINTY = "exp_avg_ipt", "exp_avg_unc"
"""PEFT's names of the two moving averages that importances are made of."""
PATTERN = "pattern"
PREFIX = "base_model.model."
"""What a parameter's name begins with, and PEFT's name in a rank pattern does not."""


class AdaLora(Hook):
    """Trains P, Lambda and Q of an SVD and prunes Lambda to a budget (arXiv 2303.10512)."""

    def inject(self, base: nn.Module, config: peft.PeftConfig, context: AttachContext) -> nn.Module:
        """Attach; each trial has its own importances and ranks."""
        settings: Any = config
        if settings.tinit >= settings.total_step - settings.tfinal:
            raise Incompatible(
                f"tinit and tfinal leave no step of {settings.total_step} to prune in"
            )
        model: Any = super().inject(base, config, context)
        self.allocator = model.base_model.rankallocator
        self.ranks = LaneRanks(self.allocator)
        wrapped: nn.Module = model
        return wrapped

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Return PEFT's orthogonality term, which its forward adds only to its own loss."""
        peft_model: Any = model
        weight: float = peft_model.peft_config["default"].orth_reg_weight
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for name, p in model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                rows = p if ".lora_A." in name else p.mT
                by_shape.setdefault(rows.shape, []).append(rows)
        terms = []
        for factors in by_shape.values():
            rows = torch.stack(factors)
            gram = rows @ rows.mT
            off = gram - torch.eye(gram.shape[-1], device=gram.device)
            terms.append(torch.linalg.vector_norm(off, dim=(1, 2)))
        return weight * torch.cat(terms).mean()

    def after_lanes_step(self, stack: ParameterStack, step: int) -> None:
        """Prune each trial's ranks by its own importances (``update_and_allocate``)."""
        config = self.allocator.peft_config
        last = config.total_step - config.tfinal
        self.ranks.use(stack)
        if step > last:
            self.ranks.prune_again()
            return
        if step < last:
            self.ranks.update()
        budget, due = self.allocator.budget_schedule(step)
        if due or step == last:
            self.ranks.prune(budget)
        if step == last:
            self.ranks.forget_importances()

    def state(self, lane: int) -> dict[str, Tensor]:
        """Return the trial's importances and remaining ranks."""
        return self.ranks.state(lane)

    def restore(self, lane: int, saved: Mapping[str, Tensor]) -> None:
        """Restore the result of ``state``."""
        self.ranks.restore(lane, saved)

    def save(self, model: Any, folder: Path, trial: SaveContext) -> None:
        """Write the adapter at the ranks that this trial was pruned to."""
        for config in model.peft_config.values():
            config.rank_pattern = self.ranks.pattern(trial.lane)
        super().save(model, folder, trial)


class LaneRanks:
    """Importances and ranks of all trials: PEFT's ``RankAllocator``, for all lanes at once."""

    def __init__(self, allocator: Any) -> None:
        self.allocator = allocator
        self.saved: dict[int, dict[str, Tensor]] = {}
        """States of trials from checkpoints, until the first step."""
        self.stack: ParameterStack | None = None
        self.average: Tensor | None = None
        self.uncertainty: Tensor | None = None
        self.kept: Tensor | None = None
        """Which ranks are left, ``[K, R]``; None before the first pruning."""

    def use(self, stack: ParameterStack) -> None:
        """Take the tensors of the trials, at the first step with their states."""
        if self.stack is stack:
            return
        self.stack, self.average, self.uncertainty, self.kept = stack, None, None, None
        # in the order of PEFT's rank pattern
        self.singular = [n for n in stack.names if ".lora_E." in n]
        self.sizes = [stack.shapes[n].numel() for n in self.singular]
        numbers = torch.arange(stack.values.shape[1], device=stack.values.device)[None]
        at = [stack.view(numbers, n).flatten() for n in self.singular]
        self.places = torch.cat(at)
        for lane, saved in self.saved.items():
            self._restore(lane, saved)
        self.saved = {}

    def update(self) -> None:
        """Update the moving averages of all weights (``update_ipt``)."""
        assert self.stack is not None
        values, (beta1, beta2) = self.stack.values, (self.allocator.beta1, self.allocator.beta2)
        if self.average is None or self.uncertainty is None:
            self.average, self.uncertainty = torch.zeros_like(values), torch.zeros_like(values)
        now = (values * self.stack.gradients).abs()
        self.average = beta1 * self.average + (1 - beta1) * now
        change = (now - self.average).abs()
        self.uncertainty = beta2 * self.uncertainty + (1 - beta2) * change

    def prune(self, budget: int) -> None:
        """Set the least important singular values of each trial to 0 (``mask_to_budget``)."""
        assert self.stack is not None
        assert self.average is not None
        assert self.uncertainty is not None
        scores, view = self.average * self.uncertainty, self.stack.view
        by_rank = []
        for name in self.singular:
            a = view(scores, name.replace("lora_E", "lora_A")).mean(2)
            b = view(scores, name.replace("lora_E", "lora_B")).mean(1)
            by_rank.append(view(scores, name).flatten(1) + (a + b))
        importances = torch.cat(by_rank, 1)
        limit = torch.kthvalue(importances, self.allocator.init_bgt - budget, 1, True).values
        self.kept = importances > limit
        self.prune_again()

    def prune_again(self) -> None:
        """Set the singular values of pruned ranks to 0 (``mask_using_rank_pattern``)."""
        assert self.stack is not None
        if self.kept is not None:
            now = self.stack.values[:, self.places]
            self.stack.values[:, self.places] = torch.where(self.kept, now, 0.0)

    def forget_importances(self) -> None:
        """Drop the moving averages: ranks are final."""
        self.average = self.uncertainty = None

    def pattern(self, lane: int) -> dict[str, list[bool]] | None:
        """Return a trial's remaining ranks by PEFT's name of the layer, None before pruning."""
        if self.stack is None:
            keys = [k for k in self.saved.get(lane, {}) if k.startswith(f"{PATTERN}|")]
            return {k.partition("|")[2]: self.saved[lane][k].tolist() for k in keys} or None
        if self.kept is None:
            return None
        parts = torch.split(self.kept[lane].cpu(), self.sizes)
        named = zip(self.singular, parts, strict=True)
        return {name.removeprefix(PREFIX): part.tolist() for name, part in named}

    def state(self, lane: int) -> dict[str, Tensor]:
        """Return a trial's moving averages and remaining ranks, by name."""
        if self.stack is None:
            return self.saved.get(lane, {})
        tensors: dict[str, Tensor] = {}
        for kind, rows in ((AVERAGE, self.average), (UNCERTAINTY, self.uncertainty)):
            if rows is not None:
                tensors |= {
                    f"{kind}|{name.removeprefix(PREFIX)}": self.stack.view(rows, name)[lane].clone()
                    for name in self._factors()
                }
        pattern = self.pattern(lane) or {}
        return tensors | {f"{PATTERN}|{n}": torch.tensor(ranks) for n, ranks in pattern.items()}

    def restore(self, lane: int, saved: Mapping[str, Tensor]) -> None:
        """Restore the result of ``state``: in effect from the first step of the trials."""
        self.stack = None
        self.saved[lane] = dict(saved)

    def _restore(self, lane: int, saved: Mapping[str, Tensor]) -> None:
        assert self.stack is not None
        values = self.stack.values
        for kind in (AVERAGE, UNCERTAINTY):
            if not any(key.startswith(f"{kind}|") for key in saved):
                continue
            attribute = "average" if kind == AVERAGE else "uncertainty"
            if getattr(self, attribute) is None:
                setattr(self, attribute, torch.zeros_like(values))
            for name in self._factors():
                into = self.stack.view(getattr(self, attribute), name)
                into[lane] = saved[f"{kind}|{name.removeprefix(PREFIX)}"].to(values.device)
        ranks = [saved.get(f"{PATTERN}|{n.removeprefix(PREFIX)}") for n in self.singular]
        known = [r for r in ranks if r is not None]
        if len(known) == len(ranks):
            if self.kept is None:
                self.kept = values.new_ones(len(values), sum(self.sizes), dtype=torch.bool)
            self.kept[lane] = torch.cat([r.flatten() for r in known]).to(values.device)

    def _factors(self) -> list[str]:
        assert self.stack is not None
        return [n for n in self.stack.names if ".lora_" in n]


HOOK = AdaLora
