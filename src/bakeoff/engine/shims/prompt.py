"""Prompt methods: an encoder that gives every row its prompt is not repeated once more.

``peft/peft_model.py:929`` (``PeftModel.get_prompt``) encodes one row of prompt tokens and repeats
the outcome for the batch. Nothing is wrong with it: but the encoder is where lanes part, so while
they ride it answers with one prompt a lane, already given to each of the lane's rows.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

_ENCODED_WHOLE = ("PREFIX_TUNING", "CARTRIDGE", "MULTITASK_PROMPT_TUNING")
"""Types whose encoder sees the whole batch as it is."""


def get_prompt(
    self: Any, batch_size: int, task_ids: Tensor | None = None, max_cache_len: int | None = None
) -> Tensor:
    """Return the virtual prompts, one a row."""
    config = self.active_peft_config
    if config.peft_type in _ENCODED_WHOLE or config.inference_mode:
        own: Tensor = self.stands_in_for.get_prompt(self, batch_size, task_ids, max_cache_len)
        return own
    encoder = self.prompt_encoder[self.active_adapter]
    tokens = self.prompt_tokens[self.active_adapter].unsqueeze(0)
    prompts: Tensor = encoder(tokens.to(encoder.embedding.weight.device))
    return prompts if len(prompts) == batch_size else prompts.repeat(batch_size, 1, 1)


STAND_INS = {"peft.peft_model.PeftModel.get_prompt": get_prompt}
