"""Which adapters vLLM serves, and the commands that serve them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from bakeoff.core.safe_read import CONFIG_BYTES, read_header, read_json
from bakeoff.methods import vllm

PLAIN = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}


def saved(folder: Path, **arguments: Any) -> tuple[dict[str, Any], vllm.Shapes]:
    """Return the configuration and shapes of an adapter as PEFT saves it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, attention_bias=True,
    )  # fmt: skip
    kind = arguments.pop("kind", peft.LoraConfig)
    model = peft.get_peft_model(LlamaForCausalLM(config), kind(**{**PLAIN, **arguments}))
    model.save_pretrained(folder)
    path = folder / "adapter_model.safetensors"
    with path.open("rb") as file:
        header = read_header(file, path.stat().st_size)
    assert header is not None
    with safe_open(path, "pt") as file:
        assert header.shapes == {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
    return read_json(folder / "adapter_config.json", CONFIG_BYTES), header.shapes


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"use_rslora": True},
        {"r": 64},
        # twice the rank and twice alpha: one scale for all layers
        {"rank_pattern": {"q_proj": 16}, "alpha_pattern": {"q_proj": 32}},
    ],
    ids=str,
)
def test_served(arguments: dict[str, Any], tmp_path: Path) -> None:
    assert vllm.adapter_problem(*saved(tmp_path, **arguments), "llama") is None


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:Adapter 'default'")
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "biases"),
        ({"rank_pattern": {"q_proj": 2}}, "different scales"),
        ({"alpha_pattern": {"q_proj": 2}}, "different scales"),
        ({"target_modules": ["q_proj", "lm_head"]}, "output layer (lm_head)"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "beside LoRA's A and B"),
        ({"trainable_token_indices": {"embed_tokens": [1, 2]}}, "trainable_token_indices"),
        ({"r": 600}, "limit is 512"),
    ],
    ids=str,
)
def test_not_served(arguments: dict[str, Any], why: str, tmp_path: Path) -> None:
    found = vllm.adapter_problem(*saved(tmp_path, **arguments), "llama")
    assert found is not None
    assert why in found


def test_base_without_adapters(tmp_path: Path) -> None:
    found = vllm.adapter_problem(*saved(tmp_path), "gpt2")
    assert found == "vLLM has no LoRA for bases of the type gpt2"


def words(*arguments: Any, **more: Any) -> list[str]:
    given = {"revision": None, "trusted": False, "nf4": False, **more}
    return shlex.split(vllm.serve_adapter(*arguments, **given))


@pytest.mark.parametrize(
    ("rank", "limit"), [(16, None), (17, "32"), (64, "64"), (300, "320"), (512, "512")]
)
def test_rank_above_default(rank: int, limit: str | None) -> None:
    given = words("org/base", Path("a"), rank)
    assert given[:3] == ["vllm", "serve", "org/base"]
    assert ("--max-lora-rank" in given) is (limit is not None)
    assert limit is None or given[given.index("--max-lora-rank") + 1] == limit


def test_options_of_the_base() -> None:
    given = words("org/base", Path("a"), 8, revision="abc", trusted=True, nf4=True)
    assert given == [
        "vllm", "serve", "org/base", "--trust-remote-code", "--revision", "abc",
        "--quantization", "bitsandbytes", "--enable-lora", "--lora-modules", "tuned=a",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a b", "it's", "$HOME", "-x", "#"])
def test_folders_are_quoted(name: str) -> None:
    assert words("b", Path(name), 8)[-1] == f"tuned={name}"
    assert Path(shlex.split(vllm.serve_model(Path(name), False))[2]) == Path(name)


def test_folder_with_equals_sign() -> None:
    """vLLM splits `name=path` at every equals sign, and takes JSON too."""
    assert words("b", Path("a=b"), 8)[-1] == '{"name": "tuned", "path": "a=b"}'
