"""The model card of delivered weights: what they are, how to load them, what they were chosen by.

Stands beside ``markdown``: what was delivered and the report in, text out. Its head is the one that
model hubs read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bakeoff.report import words
from bakeoff.report.markdown import inert, markdown

_LOADED = {
    "adapter": "model = PeftModel.from_pretrained({auto}.from_pretrained({base!r}), {folder!r})",
    "model": "model = {auto}.from_pretrained({folder!r})",
    "tensors": "model = {auto}.from_pretrained({base!r})\n"
    "model.load_state_dict(load_file({folder!r} + '/model.safetensors'), strict=False)",
}
_IMPORTED = {
    "adapter": "from peft import PeftModel\n",
    "model": "",
    "tensors": "from safetensors.torch import load_file\n",
}


def card(made: Mapping[str, Any], report: dict[str, Any]) -> str:
    """Return the card of ``made`` (``delivery.Delivered`` as a dict) as Markdown."""
    unit = words.score_unit(report["study"])
    auto = "AutoModelForCausalLM"
    if report["study"].get("task") == "classify":
        auto = "AutoModelForSequenceClassification"
    head = ["library_name: peft" if made["kind"] == "adapter" else "library_name: transformers"]
    if _is_hub_id(made["base"]):
        head.append(f"base_model: {made['base']}")
    head.append("tags:\n- bakeoff")
    code = _LOADED[made["kind"]].format(auto=auto, base=made["base"], folder=".")
    rank = f" of rank {made['rank']}" if made["rank"] else ""
    said = [
        f"{made['title']} on {made['base']}, seed {made['seed']}, delivered as "
        f"{made['form']}{rank}.",
        f"As written here it gives a validation loss of {words.significant(made['loss'])} "
        f"({words.significant(made['trained_loss'])} at the end of training) and "
        f"{made['metric']} {unit.plain(made['score'])} {unit.word}".rstrip()
        + f" ({unit.plain(made['trained_score'])} in the study) on {made['n_items']} test items, "
        f"{made['differing']} of them scored otherwise.",
    ]
    return "\n\n".join(
        [
            "---\n" + "\n".join(head) + "\n---",
            f"# {inert(made['study'])}: {inert(made['title'])}",
            *map(inert, said),
            f"```python\nfrom transformers import {auto}\n{_IMPORTED[made['kind']]}\n{code}\n```",
            "Chosen by bakeoff; the comparison:",
            markdown(report),
        ]
    )


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))
