"""How fast PEFT's own ``method_comparison/MetaMathQA/run.py`` trains: the real file itself.

    python benchmarks/method_comparison.py --repo PEFT/method_comparison/MetaMathQA --model 135m

``run.train`` runs unmodified on the base and the examples of ``lanes.py``. Only what it takes from
a hub or has nothing to do with training speed is put in its place: the data set, the tokenizer, the
loss on wiki text and the answers to questions (generation). Its own figures are printed: training
tokens per second of each ``--block`` of steps, so that a slow start can be told from the rest.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import torch
import transformers
from gpu_sides import BATCH, QV, SHAPES, Ground, examples
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from bakeoff.tasks._base import Example


class Rows:
    """The examples as ``run.py`` slices its data set: columns of lists."""

    def __init__(self, data: Sequence[Example], rows: int) -> None:
        self.tokens = [list(data[i % len(data)].tokens) for i in range(rows)]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, at: slice) -> dict[str, Any]:
        ids = self.tokens[at]
        masks = [[1] * len(t) for t in ids]
        return {"input_ids": ids, "attention_mask": masks, "response": [""] * len(ids)}


def load_run(folder: Path) -> Any:
    """Import ``run.py``; packages that it only needs for a hub or quantised bases may be absent."""
    absent = {}
    for name in ("bitsandbytes", "datasets"):
        if importlib.util.find_spec(name) is None:
            module: Any = ModuleType(name)
            module.Dataset = module.load_dataset = object
            absent[name] = module
    sys.modules.update(absent)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("run")
    finally:  # PEFT looks for them too, and must not find what is not there
        for name in absent:
            del sys.modules[name]


def stand_in(run: Any, data: Sequence[Example], rows: int) -> None:
    """Put local data in the place of the hub's, and nothing in the place of evaluation."""
    run.get_train_valid_test_datasets = lambda **_: (Rows(data, rows), Rows(data, 1), Rows(data, 1))
    run.get_wiki_small = list
    run.calculate_mean_per_token_loss = lambda **_: 1.5
    run.evaluate = lambda **_: ([""], [""])
    run.get_accuracy = lambda **_: 0.0
    run.print_verbose = lambda *_: None


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that pads: all that the training step asks of it."""
    plain = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>")


def main() -> None:
    """Run it with LoRA on q and v, as in its default experiment of rank 32."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repo", type=Path, required=True, help="the folder that holds run.py")
    parser.add_argument("--model", choices=SHAPES, default="135m")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--block", type=int, default=50)
    parser.add_argument("--out", type=Path, help="write the JSON to a file")
    args = parser.parse_args()
    run = load_run(args.repo)
    ground = Ground(args.model, None, [], "cuda:0")
    data = examples(ground.config().vocab_size, 768)
    stand_in(run, data, args.steps * BATCH)
    defaults = json.loads((args.repo / "default_training_params.json").read_text(encoding="utf-8"))
    config = peft.LoraConfig(r=32, lora_alpha=64, target_modules=QV, task_type="CAUSAL_LM")
    model = peft.get_peft_model(ground.load(), config, autocast_adapter_dtype=True)
    result = run.train(
        model=model, max_steps=args.steps, batch_size=BATCH, batch_size_eval=50,
        tokenizer=tokenizer(), accelerator_memory_init=0, eval_steps=args.block,
        generation_kwargs={}, grad_norm_clip=defaults["grad_norm_clip"],
        optimizer_type=defaults["optimizer_type"], optimizer_kwargs=defaults["optimizer_kwargs"],
        query_template="", lr_scheduler_arg=defaults["lr_scheduler"], use_amp=defaults["use_amp"],
        is_adalora=False, init_kv_cache_prefix=None, is_adamss=False,
    )  # fmt: skip
    if result.status.name != "SUCCESS":
        raise SystemExit(f"run.py stopped: {result.error_msg}")
    found = {
        "benchmark": "method_comparison",
        "model": args.model,
        "device": torch.cuda.get_device_name(),
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "tokens_per_second_by_block": [
            round(m["tokens / sec"]) for m in result.metrics if "tokens / sec" in m
        ],
        "steps_per_block": args.block,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
