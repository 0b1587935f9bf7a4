"""The model card of delivered weights: what they are, how to load them, what they were chosen by.

Stands beside ``markdown``: what was delivered and the report in, text out. Its head is the one that
model hubs read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bakeoff.core.format import format_significant, score_unit
from bakeoff.core.names import is_hub_id
from bakeoff.report.markdown import escape_markdown, markdown

_CAUSAL, _CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
_LABELS = """labels = json.loads(Path("bakeoff.json").read_text())["labels"]
heads = {"num_labels": len(labels), "id2label": dict(enumerate(labels))}
"""
_LOADING = {
    "adapter": """base = {auto}.from_pretrained({base!r}{heads})
model = PeftModel.from_pretrained(base, ".")""",
    "model": """model = {auto}.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")""",
    "tensors": """model = {auto}.from_pretrained({base!r}{heads})
model.load_state_dict(load_file("model.safetensors"), strict=False)""",
}
_IMPORTS = {
    "adapter": "from peft import PeftModel\nfrom transformers import {auto}",
    "model": "from transformers import {auto}, AutoTokenizer",
    "tensors": "from safetensors.torch import load_file\nfrom transformers import {auto}",
}


def loading_code(made: Mapping[str, Any]) -> str:
    """Return the lines of Python that load what was delivered, run in its folder."""
    kind, fresh = made["kind"], made["labels"] is not None and made["kind"] != "model"
    auto = _CAUSAL if made["labels"] is None else _CLASSIFIER
    own = {"auto": auto, "base": made["base"], "heads": ", **heads" if fresh else ""}
    parts = [_IMPORTS[kind].format(**own), "", _LOADING[kind].format(**own)]
    if fresh:
        parts = ["import json\nfrom pathlib import Path\n", parts[0], "", _LABELS + parts[2]]
    return "\n".join(parts)


def model_card(made: Mapping[str, Any], report: dict[str, Any]) -> str:
    """Return the card of ``made`` (``delivery.Delivered`` as a dict) as Markdown."""
    unit = score_unit(report["study"])
    head = ["library_name: peft" if made["kind"] == "adapter" else "library_name: transformers"]
    if is_hub_id(made["base"]):
        head.append(f"base_model: {made['base']}")
    head.append("tags:\n- bakeoff")
    rank = f" of rank {made['rank']}" if made["rank"] else ""
    said = [
        f"{made['title']} on {made['base']}, seed {made['seed']}, delivered as "
        f"{made['form']}{rank}.",
        f"As written here it gives a validation loss of {format_significant(made['loss'])} "
        f"({format_significant(made['trained_loss'])} at the end of training) and "
        f"{made['metric']} {unit.plain(made['score'])} {unit.word}".rstrip()
        + f" ({unit.plain(made['trained_score'])} in the study) on {made['n_items']} test items, "
        f"{made['differing']} of them scored otherwise.",
    ]
    return "\n\n".join(
        [
            "---\n" + "\n".join(head) + "\n---",
            f"# {escape_markdown(made['study'])}: {escape_markdown(made['title'])}",
            *map(escape_markdown, said),
            f"To load it, in this folder:\n\n```python\n{loading_code(made)}\n```",
            "Chosen by bakeoff; the comparison:",
            markdown(report),
        ]
    )
