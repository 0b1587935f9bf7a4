"""What a training step takes: whole, cut into passes, with layers computed again, with both.

    python benchmarks/memory.py --shape 135m --tokens 1024 --examples 8
    python benchmarks/memory.py --shape 8b --quantize nf4 --device cuda:0 --cap-gib 24 --tokens 2048

Each setting runs in a process of its own: a few LoRA steps of the engine on random tokens, half of
them supervised, over random weights of the named shape (memory does not depend on their values).
Reported are the base, and the peak of the later steps above it: resident memory on a CPU, allocated
memory on a GPU, where ``--cap-gib`` lets the allocator have no more than a smaller card would. A
setting that does not fit says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
import warnings
from typing import Any

import torch
from gpu_sides import BATCH, SHAPES, TASK, Ground, entry
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

from bakeoff.engine import peft_patches, profiling, quantization
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.batching import BatchBuilder
from bakeoff.engine.device import (
    disable_input_casting,
    is_out_of_memory,
    keep_freed_memory,
    move_to_device,
    set_dtypes,
)
from bakeoff.engine.lanes.lanes import InitialTensors, Lanes
from bakeoff.engine.loop import Recipe, Stepper
from bakeoff.methods.hook import build_hook, step_extras, trainable_parameters
from bakeoff.tasks._base import Example

SHAPES_HERE: dict[str, dict[str, Any]] = {
    **SHAPES,
    # Llama-3.1-8B
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 8,
           "vocab_size": 128256},
}  # fmt: skip
TIED = ("tiny", "135m", "3b")
STEPS = 2
"""The first is warm-up: it makes what later ones find."""


def settings(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the settings by name: what each changes of the switches."""
    cut = {"micro_tokens": args.micro_tokens or args.tokens}
    again = {"checkpointing": True}
    return {"whole": {}, "micro_tokens": cut, "checkpointing": again, "both": cut | again}


def base(args: argparse.Namespace) -> Any:
    """Return the base on its device, random weights, its linear layers rounded where asked."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES_HERE[args.shape],
        tie_word_embeddings=args.shape in TIED,
        max_position_embeddings=8192,
        use_cache=False,
    )
    if args.quantize is None:
        ground = Ground(args.shape, None, (), args.device)
        return ground.load().requires_grad_(False)
    with torch.device("meta"):
        model: Any = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    how: BitsAndBytesConfig = quantization.quantization_kwargs(
        args.quantize, "bitsandbytes", args.device, precision(args), ()
    )["quantization_config"]
    model = replace_with_bnb_linear(model, ["lm_head"], how)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = filled(parameter, args.device)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(args.device)
    if args.shape in TIED:
        model.tie_weights()
    model.is_loaded_in_4bit = model.is_quantized = True
    quantization.keep_trainable(model)
    return model.requires_grad_(False)


def filled(parameter: torch.nn.Parameter, device: str) -> torch.nn.Parameter:
    """Return a parameter's shape with random weights, rounded as the empty one would be."""
    weights = torch.randn(parameter.shape, dtype=torch.bfloat16, device=device) * 0.02
    if quantization.is_packed(parameter):
        how = {k: v for k, v in parameter.__dict__.items() if k != "quant_state"}
        return type(parameter)(weights, requires_grad=False, **how).to(device)
    return torch.nn.Parameter(weights if weights.ndim > 1 else torch.ones_like(weights), False)


def precision(args: argparse.Namespace) -> str:
    """bf16 on a GPU; fp32 on a CPU, where bf16 has memory of its own for weights in fp32."""
    return "fp32" if args.device == "cpu" else "bf16"


def one(args: argparse.Namespace) -> dict[str, Any]:
    """Train a few steps in this process; return base, peak and seconds of a step."""
    if args.device != "cpu" and args.cap_gib:
        total = torch.cuda.get_device_properties(args.device).total_memory
        torch.cuda.set_per_process_memory_fraction(args.cap_gib * 2**30 / total, args.device)
    else:
        keep_freed_memory()
    model = base(args)
    hook = build_hook(entry(args.method), entry(args.method).config)
    data = examples(args)
    model = hook.attach(model, Ground(args.shape, None, data, args.device).around())
    peft_patches.install_patches(model)
    move_to_device(model, args.device)
    set_dtypes(model, precision(args))
    best = Switches.best(args.device, precision(args))
    plain = dataclasses.replace(best, compile=False, graphs=False)
    switches = dataclasses.replace(plain, **settings(args)[args.one])
    lanes = Lanes(
        model,
        [InitialTensors.from_model(model, checksums=False)] * args.lanes,
        [list(trainable_parameters(model))],
        [0] * args.lanes,
    )  # fmt: skip
    if switches.lean_inputs:
        disable_input_casting(model)
    feed = BatchBuilder(lanes, TASK, args.examples, 0, args.device, switches)
    recipe = Recipe(100, 0.0, 0.0, 0.0, 1.0, args.device, precision(args))
    stepper = Stepper(lanes, [(1e-4,)] * args.lanes, recipe, TASK.item_losses, step_extras(hook))
    model.train()
    profiling.release_memory()
    held = in_use(args.device)
    source = feed.training_steps(data, [0] * args.lanes)
    seconds, losses = [], []
    for index in range(STEPS):
        if index == 1:
            profiling.release_memory()
            profiling.reset_peak(args.device)
        started = time.perf_counter()
        step = next(source)
        losses.append(stepper.step(index, step).tolist())
        seconds.append(time.perf_counter() - started)
    peak = profiling.peak_bytes(args.device)
    return {
        "setting": args.one,
        "base_gib": round(held / 2**30, 2),
        "step_gib": None if peak is None else round((peak - held) / 2**30, 2),
        "peak_gib": None if peak is None else round(peak / 2**30, 2),
        "seconds": round(min(seconds[1:]), 2),
        "passes": len(step.passes),
        "losses": losses[0],
    }


def examples(args: argparse.Namespace) -> list[Example]:
    """Return two steps of random examples, each as long as asked, half of it supervised."""
    drawn = torch.Generator().manual_seed(1)
    vocabulary = SHAPES_HERE[args.shape]["vocab_size"]
    rows = torch.randint(3, vocabulary, (2 * args.examples, args.tokens), generator=drawn).tolist()
    half = args.tokens // 2
    return [Example(tuple(r), (*[-100] * half, *r[half:])) for r in rows]


def in_use(device: str) -> int:
    """Return what is in use now: resident on a CPU, allocated on a GPU."""
    if device == "cpu":
        return profiling.resident_bytes() or 0
    return int(torch.cuda.memory_allocated(device))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES_HERE, default="135m")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--quantize", choices=("nf4",))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=1024, help="of each example")
    parser.add_argument("--examples", type=int, default=BATCH, help="of a step")
    parser.add_argument("--micro-tokens", type=int, help="of a pass; default: one example")
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--cap-gib", type=float, help="most that the GPU's allocator may have")
    parser.add_argument("--one", choices=("whole", "micro_tokens", "checkpointing", "both"))
    return parser.parse_args()


def main() -> None:
    """Run one setting here, or each in a process of its own."""
    args = parse()
    if args.one:
        warnings.simplefilter("ignore")
        try:
            print(json.dumps(one(args)))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            print(json.dumps({"setting": args.one, "error": "out of memory"}))
        return
    for name in settings(args):
        command = [sys.executable, *sys.argv, "--one", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
