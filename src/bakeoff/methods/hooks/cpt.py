"""CPT: a prompt that starts as worked examples and may move only a little from them."""

from __future__ import annotations

from typing import Any

import peft
from torch import nn

from bakeoff.methods.hook import AttachContext, Hook, Incompatible

SHOTS = 4
"""Training examples in the context: few-shot, as in the paper."""
MOST_TOKENS = 96
"""Longest context, so that it stays a small share of an example."""
INPUT, LABEL, KINDS = 2, 4, 4
"""Token kinds of PEFT's ``cpt_tokens_type_mask``: a kind, plus 4 for each example before."""


class CPT(Hook):
    """Context-aware prompt tuning (arXiv 2410.17222) on the study's first training examples."""

    def peft_config(self, base: nn.Module, ground: AttachContext) -> peft.PeftConfig:
        """Write the context's tokens and their kinds into the arguments."""
        tokens: list[int] = []
        kinds: list[int] = []
        shots = 0
        for example in ground.examples():
            if len(example.labels) != len(example.tokens):
                raise Incompatible("it needs answers in words: this task's are classes")
            if len(tokens) + len(example.tokens) > MOST_TOKENS or shots == SHOTS:
                break
            tokens += example.tokens
            kinds += [(LABEL if y >= 0 else INPUT) + KINDS * shots for y in example.labels]
            shots += 1
        if not shots:
            raise Incompatible(f"its first training example is longer than {MOST_TOKENS} tokens")
        context: dict[str, Any] = {
            "cpt_token_ids": tokens,
            "cpt_mask": [1] * len(tokens),
            "cpt_tokens_type_mask": kinds,
        }
        self.config = {**self.config, **context}
        return super().peft_config(base, ground)


HOOK = CPT
