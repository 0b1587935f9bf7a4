"""Convert a GGUF file into an ordinary safetensors folder.

This runs in a subprocess: the caller must not import torch, the memory of the float32 copy is freed
at the end, and progress bars of transformers do not disturb ours.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from bakeoff.core.errors import EnvironmentProblem

CHILD = "import sys; from bakeoff.data.assets.dequantize import convert; convert(*sys.argv[1:])"


def check_gguf_reader() -> None:
    """Refuse before any download if the package ``gguf`` is missing.

    Raises:
        EnvironmentProblem: ``asset-needs-gguf``.
    """
    if importlib.util.find_spec("gguf") is None:
        raise EnvironmentProblem(
            "asset-needs-gguf",
            "This model is packaged as GGUF, and the package 'gguf', which reads it, is missing.",
            "`pip install 'bakeoff[gguf]'`.",
        )


def dequantize(gguf: Path, to: Path) -> None:
    """Write the model in ``gguf`` and its tokenizer to ``to``, as bf16 safetensors.

    Raises:
        EnvironmentProblem: ``asset-convert``, with the last line of the conversion's output.
    """
    here = str(Path(__file__).parents[3])  # the child must import the same bakeoff
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(gguf), str(to)],
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        why = lines[-1] if lines else f"the process ended with {done.returncode}"
        raise EnvironmentProblem(
            "asset-convert",
            f"{gguf.name} could not be dequantised: {why}",
            "the tested versions of transformers and gguf (constraints.txt), or more memory.",
        )


def convert(gguf: str, to: str) -> None:
    """Dequantise in this process to float32 (transformers' dtype for GGUF) and round to bf16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = os.path.split(gguf)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    clear_quantization_flags(model)
    model.to(torch.bfloat16).save_pretrained(to)
    tokenizer.save_pretrained(to)


def clear_quantization_flags(model: object) -> None:
    """Remove the flags that mark a dequantised model as quantised.

    transformers 5 leaves them on a model that was read from GGUF, and then refuses to save it ("not
    serializable") or to train all of it ("purely quantized").
    """
    for name, value in (("hf_quantizer", None), ("is_quantized", False)):
        setattr(model, name, value)
    for owner, name in (
        (model, "quantization_method"),
        (getattr(model, "config", None), "quantization_config"),
    ):
        if hasattr(owner, name):
            delattr(owner, name)
