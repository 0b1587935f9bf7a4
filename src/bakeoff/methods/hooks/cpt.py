"""CPT: a soft prompt, initialised as few-shot examples and kept close to them."""

from __future__ import annotations

from typing import Any

import peft
from torch import nn

from bakeoff.methods.hook import AttachContext, Hook, Incompatible

SHOTS = 4
"""Training examples in the prompt, as in the paper."""
MOST_TOKENS = 96
"""Limit for the prompt, so that it is a small share of an example."""
INPUT, LABEL, KINDS = 2, 4, 4
"""Token types of PEFT's ``cpt_tokens_type_mask``: the type plus 4 for each earlier example."""


class CPT(Hook):
    """Context-aware prompt tuning (arXiv 2410.17222) on the study's first training examples."""

    def peft_config(self, base: nn.Module, context: AttachContext) -> peft.PeftConfig:
        """Put the prompt's tokens and their types into the arguments."""
        tokens: list[int] = []
        kinds: list[int] = []
        shots = 0
        for example in context.examples():
            if len(example.labels) != len(example.tokens):
                raise Incompatible("it needs answers in words: this task's are classes")
            if len(tokens) + len(example.tokens) > MOST_TOKENS or shots == SHOTS:
                break
            tokens += example.tokens
            kinds += [(LABEL if y >= 0 else INPUT) + KINDS * shots for y in example.labels]
            shots += 1
        if not shots:
            raise Incompatible(f"its first training example is longer than {MOST_TOKENS} tokens")
        prompt: dict[str, Any] = {
            "cpt_token_ids": tokens,
            "cpt_mask": [1] * len(tokens),
            "cpt_tokens_type_mask": kinds,
        }
        self.config = {**self.config, **prompt}
        return super().peft_config(base, context)


HOOK = CPT
