"""What vLLM can serve: the rules that it applies to an adapter, and the command that serves it.

Standard library only. The rules are those of vLLM's ``PEFTHelper`` and of its table of supported
models; one that reads less than an adapter has would give other answers without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bakeoff.core.names import quote_path

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of ``--max-lora-rank``."""
DEFAULT_MAX_RANK = 16
BASES_WITHOUT_ADAPTERS = frozenset({"bloom", "falcon", "gpt2", "gptj", "gpt_neox", "mpt"})
"""Kinds of model (``model_type``) that vLLM serves, but without LoRA."""
OUTPUT_LAYERS = ("lm_head", "embed_out")
_FACTORS = (".lora_A.weight", ".lora_B.weight")
_UNSUPPORTED_KEYS = (
    "use_dora", "modules_to_save", "lora_bias", "trainable_token_indices", "layer_replication",
    "target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora", "velora_config",
)  # fmt: skip
"""Keys of PEFT's LoraConfig that add something to A and B, which servers do not read."""

Shapes = Mapping[str, tuple[int, ...]]


def plain_lora_problem(config: Mapping[str, Any], tensors: Iterable[str]) -> str | None:
    """Return why an adapter is no plain LoRA; None if it is.

    Plain LoRA is W + scale B A with one scale for all layers, and nothing else. ``config`` is its
    ``adapter_config.json``, ``tensors`` has the names in its file.
    """
    if config.get("peft_type") != "LORA":
        return "it is not saved as LoRA"
    for key in _UNSUPPORTED_KEYS:
        if config.get(key):
            return f"it is saved with {key}"
    if config.get("bias", "none") != "none":
        return "it is saved with biases"
    if len(_scales(config)) > 1:
        return "its layers have different scales (rank_pattern, alpha_pattern)"
    for name in tensors:
        if not name.endswith(_FACTORS):
            own = name.removesuffix(".weight").rpartition(".")[2]
            return f"it saves {own} beside LoRA's A and B"
    return None


def adapter_problem(config: Mapping[str, Any], shapes: Shapes, model_type: str) -> str | None:
    """Return why vLLM cannot serve an adapter on a base of ``model_type``; None if it can."""
    for name in shapes:
        layer = name.rpartition(".lora_")[0].rpartition(".")[2]
        if layer in OUTPUT_LAYERS:
            return f"it changes the output layer ({layer}), which vLLM allows on few bases only"
    if (why := plain_lora_problem(config, shapes)) is not None:
        return why
    if model_type in BASES_WITHOUT_ADAPTERS:
        return f"vLLM has no LoRA for bases of the type {model_type}"
    if (rank := max_rank(shapes)) > RANKS[-1]:
        return f"its rank is {rank}, and vLLM's limit is {RANKS[-1]}"
    return None


def max_rank(shapes: Shapes) -> int:
    """Return the largest rank in an adapter's file."""
    return max(
        (shape[0] for name, shape in shapes.items() if name.endswith(_FACTORS[0])), default=0
    )


def serve_model(folder: Path, trusted: bool) -> str:
    """Return the command that serves a whole model."""
    return " ".join(["vllm serve", quote_path(folder), *_trust(trusted)])


def serve_adapter(
    base: str, folder: Path, rank: int, *, revision: str | None, trusted: bool, nf4: bool
) -> str:
    """Return the command that serves an adapter of ``rank`` on ``base``, a folder or a hub id.

    ``nf4``: it was trained and evaluated on the base in 4 bits.
    """
    parts = ["vllm serve", quote_path(base), *_trust(trusted)]
    if revision is not None and not Path(base).is_dir():
        parts += ["--revision", quote_path(revision)]
    if nf4:
        parts += ["--quantization", "bitsandbytes"]
    parts.append("--enable-lora")
    if rank > DEFAULT_MAX_RANK:
        parts += ["--max-lora-rank", str(next(limit for limit in RANKS if limit >= rank))]
    named = f"tuned={folder}"
    if "=" in str(folder) or str(folder).startswith("{"):  # vLLM would split it at each "="
        named = json.dumps({"name": "tuned", "path": str(folder)}, ensure_ascii=False)
    return " ".join([*parts, "--lora-modules", quote_path(named)])


def _trust(trusted: bool) -> list[str]:
    return ["--trust-remote-code"] if trusted else []


def _scales(config: Mapping[str, Any]) -> set[float]:
    """Return the scales of a LoRA's layers: alpha / rank, or alpha / sqrt(rank)."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    power = 0.5 if config.get("use_rslora") else 1.0
    rank, alpha = config["r"], config["lora_alpha"]
    pairs = [(ranks.get(k, rank), alphas.get(k, alpha)) for k in {*ranks, *alphas}]
    return {round(a / r**power, 9) for r, a in [(rank, alpha), *pairs]}
