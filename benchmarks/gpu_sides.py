"""The two sides of the GPU benchmark: this engine, and the step of PEFT's method_comparison.

Used by ``lanes``. Both train the same methods on the same examples over a base of the same shape.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from bakeoff.core.trial import MethodEntry
from bakeoff.engine import peft_patches
from bakeoff.engine.accelerators import Switches
from bakeoff.engine.batching import BatchBuilder
from bakeoff.engine.device import disable_input_casting, move_to_device, set_dtypes
from bakeoff.engine.lanes.lanes import InitialTensors, Lanes
from bakeoff.engine.loop import Recipe, Stepper
from bakeoff.methods import registry
from bakeoff.methods.hook import CALIBRATION_EXAMPLES, build_hook, step_extras, trainable_parameters
from bakeoff.methods.hook import AttachContext as Around
from bakeoff.tasks._base import Example
from bakeoff.tasks.sft import SupervisedFineTuning

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512},
    # SmolLM2-135M and Llama-3.2-3B
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "head_dim": 64,
             "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "head_dim": 128,
           "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
QV = ["q_proj", "v_proj"]
"""PEFT's benchmark adapts these two; methods whose catalog entry says "all-linear" follow it."""
BATCH = 4
BUCKET = 20
"""method_comparison's BUCKET_FACTOR: examples are sorted by length within 20 batches."""
EMPTY_CACHE = 10
"""run.py empties the allocator's cache each so many steps."""
PASS_EXAMPLES = 640
OF_TASKS = ("poly", "multitask_prompt_tuning")
"""Methods whose every row names its task."""
STEPS = 10_000
"""Length of the run that a few steps are timed of."""
TASK = SupervisedFineTuning({"columns": {}, "max_length": 768})
SHAPES_SEEN = 40
"""Steps after which every shape of a graphed run has been captured."""


class Ground(NamedTuple):
    """What both sides stand on: a named shape or a local folder, the examples, the device."""

    shape: str
    path: str | None
    data: Sequence[Example]
    device: str

    @property
    def precision(self) -> str:
        """bf16 on a GPU; fp32 where the script is only tried out."""
        return "fp32" if self.device == "cpu" else "bf16"

    def config(self) -> Any:
        """Return the base's configuration."""
        if self.path:
            return AutoConfig.from_pretrained(self.path)
        return LlamaConfig(
            **SHAPES[self.shape],
            tie_word_embeddings=True,
            max_position_embeddings=8192,
            use_cache=False,
        )

    def load(self) -> Any:
        """Return the base in bf16, random weights of the named shape or the folder's."""
        if self.path:
            model = AutoModelForCausalLM.from_pretrained(
                self.path, dtype=torch.bfloat16, attn_implementation="sdpa"
            )
            return model.to(self.device)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(self.device):
                config = copy.deepcopy(self.config())
                return LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
        finally:
            torch.set_default_dtype(torch.float32)

    def around(self) -> Around:
        """Return what methods may know when they are attached: the same data, this task."""

        def batches(rows: int) -> Iterator[Any]:
            for i in range(0, min(CALIBRATION_EXAMPLES, len(self.data)), rows):
                yield TASK.batch(self.data[i : i + rows], 0, self.device)

        def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
            sums, counts = TASK.item_losses(model, batch)
            return sums.sum() / counts.sum()

        return Around("CAUSAL_LM", (), STEPS, lambda: self.data, batches, loss)


class Clocking(NamedTuple):
    """Steps before the clock starts, steps that are timed, and what keeps others still then.

    With ``starting`` as many steps are timed before the warm-up too, after so many others.
    """

    warm_up: int
    steps: int
    quiet: Callable[[], AbstractContextManager[None]] = nullcontext
    starting: int | None = None


def entry(name: str) -> MethodEntry:
    """Return a catalog method, ``<name>_qv`` on q and v as in PEFT's benchmark (r = 32)."""
    found = registry.load(name.removesuffix("_qv"), Path())
    if not name.endswith("_qv"):
        return found
    config = {**found.config, "target_modules": QV}
    if "r" in config and config["r"] == 8:
        config["r"] = 32
    if isinstance(config.get("lora_alpha"), int):
        config["lora_alpha"] = 64
    return dataclasses.replace(found, config=config)


def examples(vocabulary: int, longest: int, count: int = PASS_EXAMPLES) -> list[Example]:
    """Return examples as long as MetaMathQA's: log-normal around 190 tokens, all supervised."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(size=count) * 0.45 + np.log(190)).clip(40, longest)
    made = []
    for n in lengths.astype(int):
        tokens = tuple(int(t) for t in rng.integers(0, vocabulary, n))
        made.append(Example(tokens, tokens))
    return made


def clean(device: str) -> None:
    gc.collect()
    torch._dynamo.reset()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def drain(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def timed(step: Callable[[], int], device: str, clocking: Clocking) -> dict[str, Any]:
    """Return tokens per second over ``steps`` and their wall time; the device is drained around."""

    def run_in(steps: int) -> None:
        for _ in range(steps):
            step()
        drain(device)

    def clock() -> tuple[float, float]:
        with clocking.quiet():
            started = time.perf_counter()
            tokens = sum(step() for _ in range(clocking.steps))
            drain(device)
            seconds = time.perf_counter() - started
        return tokens / seconds, seconds

    found: dict[str, Any] = {}
    if clocking.starting is not None:
        run_in(clocking.starting)
        found["first_tokens_per_second"] = clock()[0]
    started = time.perf_counter()
    run_in(clocking.warm_up)
    set_up = time.perf_counter() - started
    rate, seconds = clock()
    on_gpu = device != "cpu"
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    return {
        **found,
        "tokens_per_second": rate,
        "step_milliseconds": 1000 * seconds / clocking.steps,
        "peak_gib": peak,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if on_gpu else None,
        "set_up_seconds": set_up,
        "steps": clocking.steps,
    }


def hf_batches(data: Sequence[Example]) -> Iterator[list[Example]]:
    """Yield batches as method_comparison's BucketIterator does."""
    while True:
        for start in range(0, len(data), BATCH * BUCKET):
            bucket = sorted(data[start : start + BATCH * BUCKET], key=lambda e: -len(e.tokens))
            yield from (bucket[i : i + BATCH] for i in range(0, len(bucket), BATCH))


def hf_style(ground: Ground, method: str, clocking: Clocking) -> dict[str, Any]:
    """Measure the step of method_comparison's run.py: as it is, and with the cache kept."""
    device = ground.device
    clean(device)
    base = ground.load()
    base.requires_grad_(method == "full")
    model: Any = base
    if method != "full":
        hook = build_hook(entry(method), entry(method).config)
        model = hook.attach(base, ground.around())  # casts adapters to fp32, as run.py's default
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    scheduler = transformers.get_cosine_schedule_with_warmup(optimizer, 1, 10_000)
    source = hf_batches(ground.data)
    losses = []

    def step() -> int:
        picked = next(source)
        ids = pad_sequence([torch.tensor(e.tokens) for e in picked], batch_first=True).to(device)
        lengths = [len(e.tokens) for e in picked]
        mask = pad_sequence([torch.ones(n, dtype=torch.long) for n in lengths], batch_first=True)
        labels = ids.clone()
        for i, n in enumerate(lengths):
            labels[i, n + 1 :] = -100
        mask = mask.to(device)
        extra = {"num_items_in_batch": mask.sum().item()}
        if method.removesuffix("_qv") in OF_TASKS:
            extra["task_ids"] = torch.zeros(len(ids), dtype=torch.long, device=device)
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, **extra).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if hasattr(model, "base_model") and hasattr(model.base_model, "update_and_allocate"):
            model.base_model.update_and_allocate(len(losses))
        scheduler.step()
        losses.append(loss.item())
        return sum(lengths)

    def emptying() -> int:
        tokens = step()
        if len(losses) % EMPTY_CACHE == 0 and device != "cpu":
            torch.cuda.empty_cache()
        return tokens

    # a length that the process has not seen yet is slow once (measured: 0.33 s a step for the first
    # pass over the data, 0.15 s from the second pass on): not what a run of thousands of steps is
    as_it_is = timed(emptying, device, clocking)
    if clocking.quiet is not nullcontext:
        return as_it_is
    kept = timed(step, device, Clocking(EMPTY_CACHE, clocking.steps))
    return {**as_it_is, "cache_kept_tokens_per_second": kept["tokens_per_second"]}


def ours(
    ground: Ground,
    method: str,
    lanes: int,
    switches: Switches,
    clocking: Clocking,
    pass_tokens: int | None,
    profiled: bool,
) -> dict[str, Any]:
    """Measure the engine with ``lanes`` trials of a method."""
    device = ground.device
    clean(device)
    base = ground.load()
    base.requires_grad_(False)
    hook = build_hook(entry(method), entry(method).config)
    model = hook.attach(base, ground.around())
    peft_patches.install_patches(model)
    move_to_device(model, device)
    set_dtypes(model, ground.precision)
    start = InitialTensors.from_model(model, checksums=False)
    names = list(trainable_parameters(model))
    together = Lanes(model, [start] * lanes, [names], [0] * lanes)
    feed = BatchBuilder(together, TASK, BATCH, 0, device, switches)
    if switches.lean_inputs:
        disable_input_casting(model)
    feed.pass_tokens = pass_tokens
    recipe = Recipe(STEPS, 0.0, 0.0, 0.1, 1.0, device, ground.precision, switches.graphs)
    rates = [(1e-4 * 1.1**k,) for k in range(lanes)]
    stepper = Stepper(together, rates, recipe, TASK.item_losses, step_extras(hook))
    model.train()
    source = feed.training_steps(ground.data, [0] * lanes)
    counter = itertools.count()
    losses: list[torch.Tensor] = []

    def step() -> int:
        batch = next(source)
        losses.append(stepper.step(next(counter), batch).clone())
        return sum(batch.n_tokens)

    # every shape must have been captured before the clock starts
    more = SHAPES_SEEN if switches.graphs else 0
    result = timed(step, device, clocking._replace(warm_up=clocking.warm_up + more))
    if profiled:
        profile(step, device)
    if not torch.isfinite(torch.stack(losses)).all():
        raise AssertionError("a loss was not finite")
    first = [x[0].item() for x in losses[:12:4]]
    return {
        **result,
        "lanes": lanes,
        "switches": dataclasses.asdict(switches),
        "losses_of_lane_0": first,
    }


def profile(step: Callable[[], int], device: str) -> None:
    """Print where the time of five steps goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        for _ in range(5):
            step()
        drain(device)
    table = found.key_averages()
    print(
        table.table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=90),
        file=sys.stderr,
    )
