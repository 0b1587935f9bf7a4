"""Prompt methods: the output of an encoder with a prompt for every row is not repeated again.

``peft/peft_model.py:929`` (``PeftModel.get_prompt``) encodes one row of prompt tokens and repeats
the result for the batch. When lanes are batched, the encoder is vmapped and already returns a
prompt for each row of each lane.

``PeftModelForCausalLM.forward`` (``peft_model.py:2134``, and ``_cpt_forward``) creates its part of
the masks on the host and copies it, which no CUDA graph can capture; here it is created on the
device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_ENCODED_WHOLE = ("PREFIX_TUNING", "CARTRIDGE", "MULTITASK_PROMPT_TUNING")
"""Types whose encoder receives the whole batch."""


def get_prompt(
    self: Any, batch_size: int, task_ids: Tensor | None = None, max_cache_len: int | None = None
) -> Tensor:
    """Return the virtual prompts, one per row."""
    config = self.active_peft_config
    if config.peft_type in _ENCODED_WHOLE or config.inference_mode:
        own: Tensor = self.original_class.get_prompt(self, batch_size, task_ids, max_cache_len)
        return own
    encoder = self.prompt_encoder[self.active_adapter]
    tokens = self.prompt_tokens[self.active_adapter].unsqueeze(0)
    prompts: Tensor = encoder(tokens.to(encoder.embedding.weight.device))
    return prompts if len(prompts) == batch_size else prompts.repeat(batch_size, 1, 1)


def forward(
    self: Any, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any
) -> Any:
    """Run PEFT's own forward pass with an attention mask that is completed on the device.

    CPT's mask of token kinds, which PEFT would create on the host, is passed in.
    """
    own, config = self.original_class.forward, self.active_peft_config
    if not config.is_prompt_learning or input_ids is None or attention_mask is None:
        return own(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    virtual = torch.ones(len(input_ids), config.num_virtual_tokens, device=attention_mask.device)
    mask = torch.cat((virtual, attention_mask), dim=1)
    if config.peft_type == "CPT":
        kwargs.setdefault("input_type_mask", torch.full_like(input_ids, _LABEL, dtype=torch.float))

    def complete(_: nn.Module, args: Any, arguments: dict[str, Any]) -> Any:
        return args, {**arguments, "attention_mask": mask}

    handle = self.base_model.register_forward_pre_hook(complete, with_kwargs=True)
    try:
        return own(self, input_ids=input_ids, **kwargs)
    finally:
        handle.remove()


_LABEL = 4
"""CPT's kind of a supervised token, which ``_cpt_forward`` assumes for all tokens."""
PATCHES = {
    "peft.peft_model.PeftModel.get_prompt": get_prompt,
    "peft.peft_model.PeftModelForCausalLM.forward": forward,
}
