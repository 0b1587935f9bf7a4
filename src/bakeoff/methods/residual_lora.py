"""LoRA that starts inside the base's own weights, saved as plain LoRA against the untouched base.

PiSSA, OLoRA, CorDA and LoRA-GA take B0 A0 out of W when they start, so what they train fits no
base but that residual. The difference to the start does: W + (B A - B0 A0), a LoRA of twice the
rank (PEFT's ``subtract_mutated_init``). Base class of the hooks that start so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from bakeoff.engine.quantization import is_quantized
from bakeoff.methods.hook import AttachContext, Hook, Incompatible, SaveContext


class ResidualLora(Hook):
    """A LoRA whose start is part of the base's weights."""

    needs_start = True

    def attach(self, base: nn.Module, ground: AttachContext) -> nn.Module:
        """Put the LoRA on a base whose weights can take its start out of themselves.

        Raises:
            Incompatible: the base is quantised; what is left of it would be rounded anew.
        """
        if is_quantized(base):
            raise Incompatible("it starts by changing weights of the base, which are quantised")
        return super().attach(base, ground)

    def save(self, model: Any, folder: Path, trial: SaveContext) -> None:
        """Write the difference to the start as plain LoRA of twice the rank."""
        assert trial.start is not None
        (name,) = model.peft_config
        config = model.peft_config[name]
        kept = {f: getattr(config, f) for f in _CHANGED_FIELDS}
        now = get_peft_model_state_dict(model, save_embedding_layers=False)
        # fp32 copies: the start is the exact tensor that the base was made residual with
        before = get_peft_model_state_dict(
            model, state_dict={**model.state_dict(), **trial.start}, save_embedding_layers=False
        )
        tensors = {key: _stack_with_start(key, now[key], before[key]) for key in now}
        try:
            config.base_model_name_or_path = trial.base_name
            config.init_lora_weights = True
            config.r, config.lora_alpha = 2 * config.r, _scale_alpha(config, config.lora_alpha)
            config.rank_pattern = {k: 2 * r for k, r in config.rank_pattern.items()}
            config.alpha_pattern = {
                k: _scale_alpha(config, a) for k, a in config.alpha_pattern.items()
            }
            for field in ("corda_config", "lora_ga_config"):
                setattr(config, field, None)
            folder.mkdir(parents=True, exist_ok=True)
            was, config.inference_mode = config.inference_mode, True
            config.save_pretrained(str(folder))
            config.inference_mode = was
        finally:
            for field, value in kept.items():
                setattr(config, field, value)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


_CHANGED_FIELDS = (
    "init_lora_weights", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "corda_config",
    "lora_ga_config",
)  # fmt: skip


def _scale_alpha(config: Any, alpha: float) -> float:
    """Return the alpha that keeps the scale at twice the rank: alpha/r, or alpha/sqrt(r)."""
    return alpha * (2**0.5 if config.use_rslora else 2)


def _stack_with_start(key: str, now: Tensor, before: Tensor) -> Tensor:
    """Stack A on A0, and B beside -B0; other tensors (a trained head) as they are."""
    if "lora_A" in key:
        return torch.cat([now, before], 0).contiguous()
    if "lora_B" in key:
        return torch.cat([now, -before], 1).contiguous()
    return now.contiguous()
