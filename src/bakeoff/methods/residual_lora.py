"""Base class of LoRA methods that subtract their initialisation from the base's weights.

PiSSA, OLoRA, CorDA and LoRA-GA replace W by W - B0 A0, so their B A fits only that residual.
The difference fits the original base: W + (B A - B0 A0), a LoRA of twice the rank (PEFT's
``subtract_mutated_init``). That is what ``save`` writes.
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
    """A LoRA whose initialisation is subtracted from the base's weights."""

    needs_start = True

    def attach(self, base: nn.Module, context: AttachContext) -> nn.Module:
        """Attach the LoRA and subtract its initialisation from the base's weights.

        Raises:
            Incompatible: the base is quantised; the residual would be rounded a second time.
        """
        if is_quantized(base):
            raise Incompatible("it starts by changing weights of the base, which are quantised")
        return super().attach(base, context)

    def save(self, model: Any, folder: Path, trial: SaveContext) -> None:
        """Write the difference to the initialisation as plain LoRA of twice the rank."""
        assert trial.start is not None
        (name,) = model.peft_config
        config = model.peft_config[name]
        original = {f: getattr(config, f) for f in _CHANGED_FIELDS}
        now = get_peft_model_state_dict(model, save_embedding_layers=False)
        # fp32 copies: exactly the tensors that were subtracted from the base
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
            inference_mode, config.inference_mode = config.inference_mode, True
            config.save_pretrained(str(folder))
            config.inference_mode = inference_mode
        finally:
            for field, value in original.items():
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
    """Concatenate A with A0 and B with -B0; return other tensors (a trained head) unchanged."""
    if "lora_A" in key:
        return torch.cat([now, before], 0).contiguous()
    if "lora_B" in key:
        return torch.cat([now, -before], 1).contiguous()
    return now.contiguous()
