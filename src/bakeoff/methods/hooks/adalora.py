"""AdaLoRA: a penalty keeps the factors orthogonal; ranks are pruned by importance in training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

from bakeoff.methods.hook import AttachContext, Hook, Incompatible, SaveContext

IMPORTANCES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""Attributes of PEFT's ``RankAllocator`` with the statistics of each weight."""
PATTERN = "pattern"


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
        self.fresh = copy.deepcopy(model.base_model.rankallocator)
        self.allocators: dict[int, Any] = {}
        self.patterns: dict[int, Any] = {}
        wrapped: nn.Module = model
        return wrapped

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Return PEFT's orthogonality term, which its forward adds only to its own loss."""
        peft_model: Any = model
        weight: float = peft_model.peft_config["default"].orth_reg_weight
        terms = []
        for name, p in model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                gram = p @ p.mT if ".lora_A." in name else p.mT @ p
                terms.append((gram - torch.eye(len(gram), device=gram.device)).norm())
        return weight * torch.stack(terms).mean()

    def after_step(self, model: nn.Module, step: int, lane: int) -> None:
        """Prune this trial's ranks by its own importances."""
        tuner: Any = model.base_model
        config = tuner.peft_config["default"]
        tuner.rankallocator = self.allocators.setdefault(lane, copy.deepcopy(self.fresh))
        tuner.rankallocator.peft_config = config
        config.rank_pattern = self.patterns.get(lane)
        tuner.update_and_allocate(step)
        self.patterns[lane] = config.rank_pattern

    def state(self, lane: int) -> dict[str, Tensor]:
        """Return the trial's importances and remaining ranks."""
        allocator = self.allocators.get(lane)
        tensors = {
            f"{kind}|{name}": tensor.detach().clone()
            for kind in IMPORTANCES
            for name, tensor in getattr(allocator, kind, {}).items()
        }
        pattern = self.patterns.get(lane) or {}
        return tensors | {f"{PATTERN}|{n}": torch.tensor(ranks) for n, ranks in pattern.items()}

    def restore(self, lane: int, saved: Mapping[str, Tensor]) -> None:
        """Restore the result of ``state``."""
        allocator = self.allocators.setdefault(lane, copy.deepcopy(self.fresh))
        pattern = {}
        for key, tensor in saved.items():
            kind, _, name = key.partition("|")
            if kind == PATTERN:
                pattern[name] = tensor.tolist()
            else:
                getattr(allocator, kind)[name] = tensor
        self.patterns[lane] = pattern or None

    def save(self, model: Any, folder: Path, trial: SaveContext) -> None:
        """Write the adapter at the ranks that this trial was pruned to."""
        for config in model.peft_config.values():
            config.rank_pattern = self.patterns.get(trial.lane)
        super().save(model, folder, trial)


HOOK = AdaLora
