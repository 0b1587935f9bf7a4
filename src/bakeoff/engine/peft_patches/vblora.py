"""VB-LoRA: without the check for infinite logits.

``peft/tuners/vblora/layer.py:192`` (``Linear._get_lora_matrices``) branches on
``logits[0, 0].isinf().any()`` in training: data-dependent control flow, which vmap
does not support (and a read-back from the device in every layer). It guards against resuming from a
``save_only_topk_weights`` file, which never happens here. Fix upstream: check when a file is
loaded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class VBLoraFactors(NamedTuple):
    """The low-rank factors of a layer."""

    a: Tensor
    b: Tensor


def get_lora_matrices(self: Any, adapter: str, cast_to_fp32: bool = False) -> tuple[Tensor, Tensor]:
    """Return the factors that the adapter's logits select from the vector bank."""
    logits_a, logits_b = self.vblora_logits_A[adapter], self.vblora_logits_B[adapter]
    bank = self.vblora_vector_bank[adapter].to(logits_a.device)
    if cast_to_fp32:
        logits_a, logits_b, bank = logits_a.float(), logits_b.float(), bank.float()
    topk = self.topk[adapter]
    a = self._get_low_rank_matrix(logits_a, bank, topk).reshape(logits_a.shape[0], -1)
    b = self._get_low_rank_matrix(logits_b, bank, topk).transpose(1, 2)
    return VBLoraFactors(a, b.reshape(-1, logits_b.shape[1]))


PATCHES = {"peft.tuners.vblora.layer.Linear._get_lora_matrices": get_lora_matrices}
