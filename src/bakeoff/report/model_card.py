"""The model card of exported weights: scores, loading code and the comparison, as Markdown.

It begins with the metadata header that model hubs read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bakeoff.core.format import format_significant, score_unit
from bakeoff.core.names import is_hub_id
from bakeoff.report.markdown import escape_markdown, markdown

_CAUSAL, _CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
_LABELS = """labels = json.loads(Path("bakeoff.json").read_text(encoding="utf-8"))["labels"]
heads = {"num_labels": len(labels), "id2label": dict(enumerate(labels))}
heads["ignore_mismatched_sizes"] = True  # the base may be a classifier of other labels
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


def loading_code(weights: Mapping[str, Any]) -> str:
    """Return Python code that loads the exported weights, to run in their folder."""
    kind, fresh = weights["kind"], weights["labels"] is not None and weights["kind"] != "model"
    auto = _CAUSAL if weights["labels"] is None else _CLASSIFIER
    values = {"auto": auto, "base": weights["base"], "heads": ", **heads" if fresh else ""}
    parts = [_IMPORTS[kind].format(**values), "", _LOADING[kind].format(**values)]
    if fresh:
        parts = ["import json\nfrom pathlib import Path\n", parts[0], "", _LABELS + parts[2]]
    return "\n".join(parts)


def model_card(weights: Mapping[str, Any], report: dict[str, Any]) -> str:
    """Return the card of ``weights`` (``ExportedWeights`` as a dict) as Markdown."""
    unit = score_unit(report["study"])
    head = ["library_name: peft" if weights["kind"] == "adapter" else "library_name: transformers"]
    if is_hub_id(weights["base"]):
        head.append(f"base_model: {weights['base']}")
    head.append("tags:\n- bakeoff")
    rank = f" of rank {weights['rank']}" if weights["rank"] else ""
    sentences = [
        f"{weights['title']} on {weights['base']}, seed {weights['seed']}, exported as "
        f"{weights['form']}{rank}.",
        f"The exported files give a validation loss of {format_significant(weights['loss'])} "
        f"({format_significant(weights['trained_loss'])} at the end of training) and "
        f"{weights['metric']} {unit.plain(weights['score'])} {unit.word}".rstrip()
        + f" ({unit.plain(weights['trained_score'])} in the study) on {weights['n_items']} test "
        f"items, {weights['differing']} of which have a different score.",
    ]
    return "\n\n".join(
        [
            "---\n" + "\n".join(head) + "\n---",
            f"# {escape_markdown(weights['study'])}: {escape_markdown(weights['title'])}",
            *map(escape_markdown, sentences),
            f"To load it, in this folder:\n\n```python\n{loading_code(weights)}\n```",
            "Selected by a bakeoff study:",
            markdown(report),
        ]
    )
